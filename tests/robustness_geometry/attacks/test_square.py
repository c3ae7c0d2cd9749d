"""The square attack on classifiers with known answers, and beside its authors' package."""

import math

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import square
from robustness_geometry.attacks.spsa import margin_loss
from robustness_geometry.checks import InputError
from robustness_geometry.norms import dual, norms
from robustness_geometry.randomness import per_image
from robustness_geometry.types import predict


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_the_result_is_inside_ball_and_box(network, pictures, norm, clip):
    result = square(network, pictures, eps=0.3, norm=norm, queries=60, clip=clip)
    assert float(norms(result.perturbations, norm).max()) <= 0.3 + 1e-6
    if clip is not None:
        moved = result.adversarial(pictures)
        assert bool(((moved >= 0) & (moved <= 1)).all())
    assert int(result.steps.max()) <= 60
    assert bool((result.steps[~result.success] == 60).all())


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize(("factor", "fooled"), [(0.97, False), (3.0, True)])
def test_a_binary_affine_classifier_is_fooled_beyond_its_distance(
    affine, points, norm, factor, fooled
):
    model, images = affine(outputs=1, dimension=16), points(count=2, dimension=16)
    images = images.view(-1, 1, 4, 4)
    sizes = norms(model.weight.detach(), dual(norm))
    distances = model(images).detach().abs()[:, 0] / sizes
    for image, distance in zip(images, distances, strict=True):
        eps = factor * float(distance)
        result = square(model, image[None], eps=eps, norm=norm, queries=120, clip=None)
        assert bool(result.success) == fooled


def test_a_gradient_is_not_needed(table):
    # The logits are step functions, whose gradient is 0 everywhere.
    model = table(lambda x: torch.stack([0 * x[:, 0] + 4.5, (x > 0.6).sum(1).to(x)], dim=1))
    image = torch.full((1, 1, 3, 3), 0.5)
    assert bool(square(model, image, eps=0.2, queries=100).success)


def test_targets_are_reached_and_the_margin_is_lower_than_before(network, pictures):
    targets = (predict(network, pictures) + 2) % 5
    before = margin_loss(network, pictures, targets, targets=targets)
    result = square(network, pictures, eps=0.5, queries=150, targets=targets)
    after = margin_loss(network, result.adversarial(pictures), targets, targets=targets)
    assert bool((after < before).all())
    assert torch.equal(result.success, result.adversarial_labels == targets)
    assert bool(result.success.any())


def test_the_search_of_an_image_does_not_depend_on_when_others_are_done(network, pictures):
    generators = per_image(0, "square", range(12))
    whole = square(network, pictures, eps=0.05, queries=12, generator=generators)
    alone = square(
        network, pictures[5:6], eps=0.05, queries=12, generator=per_image(0, "square", [5])
    )
    torch.testing.assert_close(whole.perturbations[5:6], alone.perturbations)


@pytest.fixture(scope="module")
def smooth():
    """A network on images (1, 10, 10), a size on which the package's first l_2 bumps fit."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 3, 2), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(72, 5)).eval()


@pytest.mark.parametrize(("norm", "eps"), [(math.inf, 0.2), (2, 1.5)])
def test_it_fools_as_often_as_the_package(smooth, norm, eps):
    package = pytest.importorskip("pyautoattack.square")
    images = torch.rand(100, 1, 10, 10, generator=torch.Generator().manual_seed(9))
    labels = predict(smooth, images)
    ours = square(smooth, images, eps=eps, norm=norm, queries=150)
    name = "L2" if norm == 2 else "Linf"
    theirs = package.SquareAttack(
        lambda points: smooth(points).detach().clone(), norm=name, n_queries=150, eps=eps
    )
    theirs.init_hyperparam(images)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, moved = theirs.attack_single_run(images, labels)
    rate = float((predict(smooth, moved) != labels).float().mean())
    assert 0.1 < rate < 0.97
    assert float(ours.success.float().mean()) == pytest.approx(rate, abs=0.12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "eps must be"),
        ({"eps": 1, "norm": 1}, "norm must be 2 or inf; got 1"),
        ({"eps": 1, "queries": 0}, "queries must be"),
        ({"eps": 1, "area": 1.5}, r"area must be a number in \(0, 1\]; got 1.5"),
        ({"eps": 1, "area": 0}, "area must be"),
    ],
)
def test_options_that_cannot_be_used_are_refused(network, pictures, options, message):
    with pytest.raises(InputError, match=message):
        square(network, pictures, **options)
