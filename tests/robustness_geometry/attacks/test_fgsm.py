"""FGSM and the search for its smallest eps."""

import math

import pytest
import torch

from robustness_geometry.attacks import fgsm, fgsm_smallest_eps
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from robustness_geometry.types import predict


def test_the_step_is_the_sign_of_the_gradient_of_the_loss(network, pictures):
    labels = torch.arange(12) % 5
    leaf = pictures.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(network(leaf), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    result = fgsm(network, pictures, eps="8/255", labels=labels)
    torch.testing.assert_close(result.perturbations, 8 / 255 * gradient.sign())
    assert bool((result.steps == 1).all())
    euclidean = fgsm(network, pictures, eps=0.5, norm=2, labels=labels)
    unit = gradient / norms(gradient)[:, None, None, None]
    torch.testing.assert_close(euclidean.perturbations, 0.5 * unit, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_the_step_has_length_eps(network, pictures, p):
    result = fgsm(network, pictures, eps=0.3, norm=p)
    torch.testing.assert_close(
        norms(result.perturbations, p), torch.full((12,), 0.3), rtol=1e-4, atol=0
    )


def test_clipping_keeps_the_image_in_its_range(network, pictures):
    moved = fgsm(network, pictures, eps=2.0, clip=(0.0, 1.0)).adversarial(pictures)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


def test_a_gradient_of_zero_gives_a_failed_zero(table, points):
    model = table(lambda x: torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], dim=1))
    result = fgsm(model, points(count=3), eps=0.1)
    assert bool((result.perturbations == 0).all())
    assert not bool(result.success.any())


def exact_eps(model, images):
    """eps at which each image crosses, of a binary affine classifier: |f(x)| / ||w||_1."""
    with torch.no_grad():
        return model(images)[:, 0].abs() / model.weight.abs().sum()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1.0])
def test_smallest_eps_of_a_binary_affine_classifier(affine, points, rate):
    model, images = affine(outputs=1), points(count=40)
    crossings = exact_eps(model, images).sort().values
    expected = crossings[math.ceil(rate * 40) - 1].item()
    found = fgsm_smallest_eps(model, images, rate=rate, eps_max=10.0)
    assert found.reachable
    assert found.eps == pytest.approx(expected, rel=1e-3)
    assert found.rate == pytest.approx((crossings <= found.eps).double().mean().item())
    result = fgsm(model, images, eps=found.eps)
    assert result.success.double().mean().item() == pytest.approx(found.rate)
    assert [eps for eps, _ in found.curve] == sorted(eps for eps, _ in found.curve)


def test_a_crossing_below_the_grid_is_found(affine, points):
    model, images = affine(outputs=1), points(count=40)
    expected = exact_eps(model, images).max().item()
    found = fgsm_smallest_eps(model, images, rate=1.0, eps_max=1e4)
    assert found.eps == pytest.approx(expected, abs=1e-3)


def test_a_rate_out_of_reach_gives_the_best_there_is(table, points):
    # Only images with a first pixel below one half have a gradient.
    model = table(
        lambda x: torch.stack(
            [(x[:, 1] + 1) * (x[:, 0] < 0.5) + 1 * (x[:, 0] >= 0.5), 0 * x[:, 0]], dim=1
        )
    )
    images = points(count=40)
    images[:20, ..., 0], images[20:, ..., 0] = 0.2, 0.8
    found = fgsm_smallest_eps(model, images, rate=0.9, eps_max=100.0, norm=2)
    assert not found.reachable
    assert found.rate == 0.5
    assert found.eps == min(eps for eps, share in found.curve if share == 0.5)


def test_the_first_of_several_crossings_is_taken(table):
    # Misclassified where |x - 1| or |x - 3| is below 0.25, that is, not a monotone function of eps.
    model = table(lambda x: torch.cat([0.25 - (x - 1).abs().minimum((x - 3).abs()), 0 * x], dim=1))
    found = fgsm_smallest_eps(model, torch.zeros(4, 1, 1, 1), rate=1.0, eps_max=10.0)
    assert found.eps == pytest.approx(0.75, rel=1e-3)


def test_images_that_are_wrong_from_the_start_need_no_eps(affine, points):
    model, images = affine(), points()
    found = fgsm_smallest_eps(model, images, labels=(predict(model, images) + 1) % 5)
    assert (found.eps, found.rate, found.reachable) == (0.0, 1.0, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate must be .*; got 0"),
        ({"rate": 1.5}, "rate must be .*; got 1.5"),
        ({"eps_max": 0}, "eps_max must be .*; got 0"),
        ({"grid": 1}, "grid must be .*; got 1"),
        ({"norm": 0.5}, "norm must be .*; got 0.5"),
    ],
)
def test_options_that_cannot_be_used_are_refused(affine, points, options, message):
    with pytest.raises(InputError, match=message):
        fgsm_smallest_eps(affine(), points(), **options)


def test_there_must_be_images(affine, points):
    with pytest.raises(InputError, match="at least one image"):
        fgsm_smallest_eps(affine(), points()[:0])
