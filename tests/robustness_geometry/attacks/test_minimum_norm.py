"""L-BFGS and DDN near known optima, and random noise at its exact crossing."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from robustness_geometry.attacks import ddn, deepfool, lbfgs, random_noise
from robustness_geometry.attacks.quasi_newton import minimise
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from robustness_geometry.randomness import per_image, seeded
from robustness_geometry.types import predict


def affine_distances(model, images):
    """The l_2 distance to the nearest boundary, from DeepFool, which is exact there."""
    return norms(deepfool(model, images).perturbations) / 1.02


@pytest.fixture
def confident(affine):
    """An affine classifier with logits so large that only the nearest class enters the loss.

    Where the softmax is flat, its gradient points away from all other classes at once, and neither
    attack is near its optimum.
    """
    model = affine()
    with torch.no_grad():
        model.weight *= 50
        model.bias *= 50
    return model


@pytest.mark.parametrize(("attack", "options"), [(lbfgs, {"clip": None}), (ddn, {"steps": 300})])
def test_binary_affine_norms_are_near_the_optimum(affine, points, attack, options):
    model, images = affine(outputs=1), points()
    result = attack(model, images, **options)
    ratio = norms(result.perturbations) / affine_distances(model, images)
    assert bool(result.success.all())
    assert float(ratio.min()) >= 1 - 1e-9
    assert float(ratio.max()) <= 1.02


@pytest.mark.parametrize(
    ("attack", "options", "worst"),
    # DDN follows the loss, and now and then ends up at another class than the nearest.
    [(lbfgs, {"clip": None}, 1.03), (ddn, {"steps": 300}, 1.3)],
)
def test_multiclass_affine_norms_are_near_the_optimum(confident, points, attack, options, worst):
    images = points()
    result = attack(confident, images, **options)
    ratio = norms(result.perturbations) / affine_distances(confident, images)
    assert bool(result.success.all())
    assert float(ratio.min()) >= 1 - 1e-9
    assert float(ratio.median()) <= 1.01
    assert float(ratio.max()) <= worst


@pytest.mark.parametrize("radius", [0.7, 1.3])
@pytest.mark.parametrize(
    ("attack", "options"), [(lbfgs, {"clip": None}), (ddn, {"steps": 300, "init_norm": 0.5})]
)
def test_sphere_norms_are_near_the_optimum(radial, at, radius, attack, options):
    result = attack(radial(lambda r: 4 * (r**2 - 1)), at(radius), **options)
    assert bool(result.success)
    assert 0.3 - 1e-9 <= norms(result.perturbations).item() <= 0.3 * 1.03


def test_the_box_is_kept_and_its_optimum_found(affine, points):
    # min ||r|| with <w, r> = gap and 0 <= x + r <= 1, solved by bisection on the multiplier: r =
    # clip(x + m w) - x.
    model, images = affine(outputs=1), points(count=10)
    with torch.no_grad():
        gaps, weight = -model(images)[:, 0], model.weight[0].detach()
    flat = images.flatten(1)
    corner = (gaps[:, None] * weight > 0).double()
    feasible = gaps.abs() < 0.9 * ((corner - flat) @ weight).abs()
    low, high = torch.zeros_like(gaps), torch.full_like(gaps, 1e3)
    for _ in range(80):
        middle = (low + high) / 2
        offsets = (flat + (middle * gaps.sign())[:, None] * weight).clamp(0, 1) - flat
        enough = (offsets @ weight).abs() >= gaps.abs()
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    expected = offsets.norm(dim=1)[feasible]
    assert int(feasible.sum()) >= 5
    for result in (lbfgs(model, images), ddn(model, images, steps=300, clip=(0.0, 1.0))):
        moved = result.adversarial(images)
        assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
        ratio = norms(result.perturbations)[feasible] / expected
        assert bool(result.success[feasible].all())
        assert float(ratio.min()) >= 1 - 1e-9
        assert float(ratio.max()) <= 1.03


def test_lbfgs_targets_are_reached(confident, points):
    images = points(count=8)
    targets = (predict(confident, images) + 2) % 5
    result = lbfgs(confident, images, targets=targets, clip=None, constants=8)
    assert bool(result.success.all())
    assert torch.equal(result.adversarial_labels, targets)
    direct = deepfool(confident, images, targets=targets)
    assert float(norms(result.perturbations).mean()) <= float(norms(direct.perturbations).mean())


def test_more_candidates_are_never_worse(network, pictures):
    few, more = (
        lbfgs(network, pictures, constants=4, steps=8, candidates=count) for count in (1, 3)
    )
    assert bool((norms(more.perturbations) <= norms(few.perturbations) + 1e-6).all())
    assert bool((more.steps > few.steps).all())


def test_lbfgs_with_targets_refuses_candidates(affine, points):
    with pytest.raises(InputError, match=r"candidates must be .*; got 2"):
        lbfgs(affine(), points(), candidates=2, targets=torch.zeros(20, dtype=torch.int64))


@pytest.mark.parametrize(
    "attack", [partial(lbfgs, constants=3), partial(ddn, steps=30), random_noise]
)
def test_what_cannot_be_fooled_fails_and_stays_finite(table, points, attack):
    model = table(lambda x: torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], dim=1))
    result = attack(model, points(count=3))
    assert not bool(result.success.any())
    assert bool(torch.isfinite(result.perturbations).all())


@pytest.mark.parametrize(
    "attack", [partial(lbfgs, constants=3), partial(ddn, steps=30), random_noise]
)
def test_an_image_that_has_another_label_stays(affine, points, attack):
    model, images = affine(), points(count=4)
    result = attack(model, images, labels=(predict(model, images) + 1) % 5)
    assert bool((result.perturbations == 0).all())
    assert bool(result.success.all())


# The inner solver.


def test_the_solver_matches_scipys_in_a_box():
    generator = torch.Generator().manual_seed(0)
    count, dimension = 6, 8
    roots = torch.randn(count, dimension, dimension, generator=generator, dtype=torch.float64)
    matrices = roots @ roots.mT + 0.3 * torch.eye(dimension, dtype=torch.float64)
    shifts = 3 * torch.randn(count, dimension, generator=generator, dtype=torch.float64)

    def function(x):
        slopes = (matrices @ x[:, :, None])[:, :, 0]
        return 0.5 * (x * slopes).sum(dim=1) + (x * shifts).sum(dim=1) + x.cosh().sum(
            dim=1
        ), slopes + shifts + x.sinh()

    low, high = torch.full((dimension,), -0.5).double(), torch.full((dimension,), 0.7).double()
    found = minimise(
        function, torch.zeros(count, dimension, dtype=torch.float64), low, high, steps=200
    )
    for row in range(count):

        def single(x, row=row):
            values, slopes = function(torch.from_numpy(x).expand(count, -1))
            return float(values[row]), slopes[row].numpy()

        start = np.zeros(dimension)
        best = scipy_minimize(
            single, start, jac=True, method="L-BFGS-B", bounds=[(-0.5, 0.7)] * dimension, tol=1e-14
        )
        assert bool(((found[row] >= low) & (found[row] <= high)).all())
        np.testing.assert_allclose(found[row].numpy(), best.x, atol=1e-5)


def test_the_solver_crosses_a_curved_valley():
    def rosenbrock(x):
        a, b = 1 - x[:, 0], x[:, 1] - x[:, 0] ** 2
        return a**2 + 100 * b**2, torch.stack([-2 * a - 400 * x[:, 0] * b, 200 * b], dim=1)

    start = torch.tensor([[-1.2, 1.0], [2.0, -1.0]], dtype=torch.float64)
    free = torch.tensor(math.inf)
    found = minimise(rosenbrock, start, -free, free, steps=300)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-5)


# Random noise.


def test_random_noise_stops_at_the_boundary_of_an_affine_classifier(affine, points):
    model, images = affine(outputs=1), points(count=50)
    result = random_noise(model, images, max_norm=1e3, generator=seeded(1))
    unit = result.perturbations.flatten(1) / norms(result.perturbations)[:, None]
    with torch.no_grad():
        exact = -model(images)[:, 0] / (unit @ model.weight[0])
    # About half of the directions lead away from the boundary: they fail, at the largest norm.
    assert torch.equal(result.success, (exact > 0) & (exact < 1e3))
    assert 10 < int(result.success.sum()) < 40
    torch.testing.assert_close(
        norms(result.perturbations)[result.success], exact[result.success], rtol=1e-4, atol=0
    )
    assert norms(result.perturbations)[~result.success].tolist() == pytest.approx(
        [1e3] * int((~result.success).sum())
    )


def test_random_noise_leaves_a_sphere_in_every_direction(radial, at):
    images = at(0.0, dimension=5).expand(30, 1, 1, 5)
    result = random_noise(radial(lambda r: r**2 - 1), images)
    torch.testing.assert_close(
        norms(result.perturbations), torch.ones(30, dtype=torch.float64), rtol=1e-4, atol=0
    )


def test_random_signs_have_equal_entries(network, pictures):
    sizes = random_noise(network, pictures, norm="inf").perturbations.abs().flatten(1)
    torch.testing.assert_close(sizes, sizes[:, :1].expand_as(sizes))


def test_the_best_of_several_directions_is_kept(affine, points):
    model, images = affine(outputs=1), points(count=30)
    one = random_noise(model, images, generator=seeded(2))
    many = random_noise(model, images, directions=6, generator=seeded(2))
    assert bool((norms(many.perturbations) <= norms(one.perturbations)).all())
    assert int(many.success.sum()) > int(one.success.sum())


def test_two_sided_noise_keeps_the_nearer_side(affine, points):
    model, images = affine(outputs=1), points(count=30)
    generators = per_image(0, "noise", range(30))
    one = random_noise(model, images, generator=generators, max_norm=1e4)
    both = random_noise(
        model, images, generator=per_image(0, "noise", range(30)), max_norm=1e4, two_sided=True
    )
    assert bool(both.success.all())
    assert not bool(one.success.all())  # half of the directions lead away from the only boundary
    torch.testing.assert_close(both.perturbations[one.success], one.perturbations[one.success])
    with torch.no_grad():
        distance = model(images)[:, 0].abs()
    slope = (
        both.perturbations.flatten(1) / both.perturbations.flatten(1).norm(dim=1, keepdim=True)
    ) @ model.weight[0]
    torch.testing.assert_close(
        both.perturbations.flatten(1).norm(dim=1), distance / slope.abs(), rtol=1e-3, atol=0
    )
