"""PGD: balls, boxes, restarts and an affine optimum."""

import math

import pytest
import torch

from robustness_geometry.attacks import pgd
from robustness_geometry.checks import InputError
from robustness_geometry.norms import dual, norms
from robustness_geometry.types import predict


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("random_start", [True, False])
def test_the_result_is_inside_ball_and_box(network, pictures, p, random_start):
    result = pgd(network, pictures, eps=0.3, norm=p, steps=7, random_start=random_start)
    assert float(norms(result.perturbations, p).max()) <= 0.3 * (1 + 1e-5)
    moved = result.adversarial(pictures)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_binary_affine_is_fooled_just_above_its_distance(affine, points, p, factor):
    model, images = affine(outputs=1), points(count=1)
    with torch.no_grad():
        distance = (
            model(images).abs() / torch.linalg.vector_norm(model.weight, ord=dual(p))
        ).item()
    result = pgd(model, images, eps=factor * distance, norm=p, clip=None, steps=50)
    assert bool(result.success) == (factor > 1)


def test_restarts_go_on_with_images_that_are_not_fooled(network, pictures):
    one = pgd(network, pictures, eps=0.05, steps=3)
    many = pgd(network, pictures, eps=0.05, steps=3, restarts=4)
    assert bool((many.success | ~one.success).all())
    torch.testing.assert_close(many.perturbations[one.success], one.perturbations[one.success])
    assert bool((many.steps[one.success] == 3).all())
    assert bool((many.steps[~many.success] == 12).all())


def test_without_a_random_start_the_first_step_is_fgsm(network, pictures):
    result = pgd(network, pictures, eps=0.1, steps=1, step_size=0.1, random_start=False, clip=None)
    leaf = pictures.clone().requires_grad_()
    logits = network(leaf)
    loss = torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1), reduction="sum")
    torch.testing.assert_close(
        result.perturbations, 0.1 * torch.autograd.grad(loss, leaf)[0].sign()
    )


def test_targets_are_reached(affine, points):
    model, images = affine(), points()
    targets = (predict(model, images) + 1) % 5
    result = pgd(model, images, eps=5.0, norm=2, steps=60, clip=None, targets=targets)
    assert bool(result.success.all())
    assert torch.equal(result.adversarial_labels, targets)


def test_random_starts_fill_the_ball(points):
    from robustness_geometry.attacks.pgd import Options, _random_start

    images = points(count=4000, dimension=3)
    starts = _random_start(
        images, Options(2.0, 2.0, 1, 1.0, None), torch.Generator().manual_seed(0)
    )
    # The volume within a radius grows as its cube: the median radius is 2 * 0.5 ** (1 / 3).
    assert float(norms(starts).median()) == pytest.approx(2 * 0.5 ** (1 / 3), rel=0.02)
    assert float(norms(starts).max()) <= 2
    square = _random_start(
        images, Options(2.0, math.inf, 1, 1.0, None), torch.Generator().manual_seed(0)
    )
    assert float(square.abs().mean()) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("p", [2, math.inf])
def test_every_image_may_have_a_ball_of_its_own(network, pictures, p):
    radii = torch.linspace(0.1, 0.6, len(pictures))
    result = pgd(network, pictures, eps=radii, norm=p, steps=5, restarts=3, clip=None)
    assert bool((norms(result.perturbations, p) <= radii * (1 + 1e-5)).all())
    same = pgd(network, pictures, eps=torch.full_like(radii, 0.3), norm=p, steps=5)
    one = pgd(network, pictures, eps=0.3, norm=p, steps=5)
    torch.testing.assert_close(same.perturbations, one.perturbations)


@pytest.mark.parametrize("radii", [torch.zeros(12), torch.full((12,), math.nan)])
def test_radii_that_cannot_be_used_are_refused(network, pictures, radii):
    with pytest.raises(InputError, match="eps must be"):
        pgd(network, pictures, eps=radii, norm=2)
