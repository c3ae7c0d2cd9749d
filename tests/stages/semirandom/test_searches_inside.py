"""The searches inside random subspaces, and the law of linearised classes."""

import math

import pytest
import torch

from pipeline.evaluation import held_out, recomputed_success
from pipeline.studies.semirandom import flat_ratios, search_inside
from robustness_geometry.attacks import deepfool
from robustness_geometry.datasets import mnist5k
from robustness_geometry.geometry import RandomSubspaces, beta_spread, expected_beta
from robustness_geometry.models import pretrained
from robustness_geometry.norms import norms
from robustness_geometry.randomness import per_image


def searched(model, images, m, lines=3, far=False):
    """What the searches find, and the subspaces that they searched."""
    count = range(len(images))
    found = search_inside(
        deepfool, m, lines, 0, far, model, images, generator=per_image(0, "search", count)
    )
    subspaces = RandomSubspaces(
        images.shape[1:], m, per_image(0, "search", count), seed=0, like=images[:0]
    )
    return found, subspaces


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("m", [2, 12])
def test_the_best_in_a_subspace_of_an_affine_network_is_the_exact_minimum(made, classes, m):
    model, images = made.affine(0, classes), made.dataset(12).test.images
    found, subspaces = searched(model, images, m)
    with torch.no_grad():
        logits = model(images)
    weight = model[1].weight.detach()
    if classes == 1:
        gaps, normals = logits.abs(), weight.expand(len(images), 1, -1)
    else:
        own = logits.argmax(dim=1)
        gaps = logits.gather(1, own[:, None]) - logits
        normals = weight[own][:, None] - weight
    rows = torch.arange(len(images))
    inside = subspaces.project(normals.unflatten(-1, made.shape), rows).flatten(2).norm(dim=2)
    exact = torch.where(gaps > 0, gaps / inside, math.inf).amin(dim=1)
    assert bool(found.best.success.all())
    torch.testing.assert_close(norms(found.best.perturbations), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.best.alignment, torch.ones_like(exact), rtol=0, atol=1e-6)


@pytest.mark.parametrize("radius", [3.0, 9.0])
def test_the_best_in_a_subspace_reaches_a_sphere_at_its_nearest_point(made, radius):
    images = made.dataset(10).test.images
    found, subspaces = searched(made.ball(radius), images, m=20)
    rows = torch.arange(len(images))
    along = subspaces.project(images[:, None], rows).flatten(1).norm(dim=1)
    # Within S the sphere is one of radius sqrt(R^2 - ||x - P_S x||^2), centred at -P_S x.
    rest = images.flatten(1).square().sum(dim=1) - along.square()
    met = radius**2 > rest
    exact = ((radius**2 - rest).clamp_min(0).sqrt() - along).abs()
    assert torch.equal(found.best.success, met)
    sizes = norms(found.best.perturbations)
    torch.testing.assert_close(sizes[met], exact[met], rtol=2e-4, atol=0)


@pytest.mark.parametrize("name", ["mnist5k_lenet", "mnist5k_nin"])
def test_no_line_of_a_subspace_is_shorter_than_the_best_in_it(name):
    model = pretrained(name)
    images = held_out(mnist5k(train_limit=10, test_limit=40), 12).images
    found, subspaces = searched(model, images, m=10, far=True)
    best = torch.where(found.best.success, norms(found.best.perturbations), math.inf)
    for other in (found.line, found.deepfool):
        sizes = torch.where(other.success, norms(other.perturbations), math.inf)
        assert bool((best <= sizes).all())
        assert torch.equal(other.success, recomputed_success(model, images, other))
        assert bool((other.success <= found.best.success).all())
    assert bool((best < norms(found.deepfool.perturbations)).any())
    assert torch.equal(found.best.success, recomputed_success(model, images, found.best))
    inside = subspaces.project(found.best.perturbations[:, None], torch.arange(len(images)))[:, 0]
    torch.testing.assert_close(inside, found.best.perturbations, rtol=1e-3, atol=1e-4)


def test_a_line_is_found_where_deepfool_has_no_gradient():
    class Cliff(torch.nn.Module):
        def forward(self, images):
            far = (images.flatten(1)[:, :1].abs() > 2).to(images)
            return torch.cat([1 - far, far], dim=1) + 0 * images.flatten(1)[:, :1]

    images = torch.zeros(4, 1, 4, 4)
    found, _ = searched(Cliff().eval(), images, m=4, lines=5)
    assert not bool(found.deepfool.success.any())
    assert bool(found.best.success.all())
    reached = (images + found.best.perturbations).flatten(1)[:, 0].abs()
    torch.testing.assert_close(reached, torch.full((4,), 2.0), rtol=0.02, atol=0)


def test_the_flat_law_of_two_classes_is_the_beta_law(made):
    images = made.dataset(40).test.images
    generator = per_image(0, "flat", range(40))
    ratios = flat_ratios((8, 32, 64), 500, made.affine(), images, generator=generator)
    assert ratios.shape == (40, 3, 500)
    for place, m in enumerate((8, 32)):
        spread = beta_spread(64, m)
        assert ratios[:, place].mean() == pytest.approx(expected_beta(64, m), abs=0.03 * spread)
        assert ratios[:, place].std() == pytest.approx(spread, rel=0.05)
    torch.testing.assert_close(ratios[:, 2], torch.ones(40, 500, dtype=torch.float64))


@pytest.mark.parametrize("m", [3, 16])
def test_the_flat_law_of_several_classes_is_that_of_drawn_subspaces(made, m):
    model, images, draws = made.affine(0, 5), made.dataset(3).test.images, 1500
    ratios = flat_ratios(
        (m,), draws, model, images, generator=per_image(0, "flat", range(len(images)))
    )[:, 0]
    with torch.no_grad():
        logits = model(images)
    weight = model[1].weight.detach()
    for image in range(len(images)):
        own = int(logits[image].argmax())
        others = [k for k in range(5) if k != own]
        gaps, normals = logits[image, own] - logits[image, others], weight[own] - weight[others]
        subspaces = RandomSubspaces(made.shape, m, per_image(1, "drawn", range(draws)), like=images)
        inside = subspaces.project(
            normals.view(1, 4, *made.shape).expand(draws, -1, -1, -1, -1), torch.arange(draws)
        )
        drawn = (gaps / inside.flatten(2).norm(dim=2)).amin(dim=1)
        drawn = math.sqrt(m / 64) * drawn / (gaps / normals.norm(dim=1)).min()
        assert ratios[image].median() == pytest.approx(float(drawn.median()), rel=0.05)
        assert ratios[image].quantile(0.1) == pytest.approx(float(drawn.quantile(0.1)), rel=0.07)
