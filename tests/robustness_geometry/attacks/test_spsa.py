"""SPSA: its estimate of a gradient, balls and boxes, and images fooled without any gradient."""

import math

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import pgd, spsa
from robustness_geometry.attacks.spsa import Options, _slopes, margin_loss
from robustness_geometry.norms import dual, norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import predict


def test_the_margin_is_that_of_the_logits(affine, points):
    model, images = affine(), points(count=6)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    with torch.no_grad():
        logits = model(images)
    wanted = [
        row[y] - max(row[k] for k in range(5) if k != y)
        for row, y in zip(logits, labels, strict=True)
    ]
    torch.testing.assert_close(margin_loss(model, images, labels), torch.stack(wanted))
    torch.testing.assert_close(
        margin_loss(model, images, labels * 0, targets=labels), -torch.stack(wanted)
    )
    assert torch.equal(margin_loss(model, images, labels) < 0, predict(model, images) != labels)


def test_the_estimate_of_a_linear_slope_has_the_right_mean(affine, points):
    model, images = affine(outputs=1), points(count=1)
    options = Options(1.0, math.inf, 1, 20000, 0.01, 0.01, None)
    found = _slopes(model, images, torch.ones(1, dtype=torch.long), None, options, seeded(0))
    slope = model.weight.detach().view_as(images)
    assert float((found - slope).norm()) < 5 * float(slope.norm()) * math.sqrt(12 / 20000)
    # One direction d alone gives <w, d> d, exactly.
    single = Options(1.0, math.inf, 1, 1, 0.01, 0.01, None)
    one = _slopes(model, images, torch.ones(1, dtype=torch.long), None, single, seeded(1))
    along = float((slope * one.sign()).sum())
    torch.testing.assert_close(one.abs(), torch.full_like(one, abs(along)))


@pytest.mark.parametrize("p", [2, math.inf])
def test_the_result_is_inside_ball_and_box(network, pictures, p):
    result = spsa(network, pictures, eps=0.2, norm=p, steps=5, directions=8, learning_rate=0.1)
    assert float(norms(result.perturbations, p).max()) <= 0.2 * (1 + 1e-5)
    moved = result.adversarial(pictures)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


@pytest.mark.parametrize("factor", [0.97, 1.15])
def test_binary_affine_is_fooled_just_above_its_distance(affine, points, factor):
    model, images = affine(outputs=1), points(count=1)
    with torch.no_grad():
        distance = (
            model(images).abs() / torch.linalg.vector_norm(model.weight, ord=dual(math.inf))
        ).item()
    eps = factor * distance
    result = spsa(
        model, images, eps=eps, clip=None, steps=60, directions=256, learning_rate=eps / 10
    )
    assert bool(result.success) == (factor > 1)


def test_it_fools_where_gradients_vanish(points):
    class Masked(nn.Module):
        """Steps of the first pixel's size: no gradient anywhere, and a wrong label above 0.6."""

        def forward(self, images):
            first = (images.flatten(1)[:, :1] * 200).round() / 200
            return (
                torch.cat([0.6 - first, first - 0.6], dim=1).detach() + 0 * images.flatten(1)[:, :2]
            )

    images = points(count=8) * 0.3 + 0.2
    blind = pgd(Masked().eval(), images, eps=0.45, random_start=False, clip=None)
    seeing = spsa(
        Masked().eval(), images, eps=0.45, steps=60, directions=16, learning_rate=0.02, clip=None
    )
    assert not bool(blind.success.any())
    assert bool(seeing.success.all())


def test_the_iterate_with_the_smallest_margin_counts(network, pictures):
    labels = predict(network, pictures)
    before = margin_loss(network, pictures, labels)
    few, many = (
        spsa(network, pictures, eps=0.1, steps=n, directions=8, generator=seeded(3)) for n in (2, 6)
    )
    after = [margin_loss(network, each.adversarial(pictures), labels) for each in (few, many)]
    assert bool((after[0] <= before + 1e-6).all())
    assert bool((after[1] <= after[0] + 1e-6).all())
    assert many.steps.tolist() == [6] * len(pictures)


def test_targets_are_reached(affine, points):
    model, images = affine(), points(count=5)
    targets = (predict(model, images) + 1) % 5
    result = spsa(
        model,
        images,
        eps=4.0,
        steps=150,
        directions=32,
        learning_rate=0.1,
        clip=None,
        targets=targets,
    )
    assert bool(result.success.all())
    assert torch.equal(result.adversarial_labels, targets)
