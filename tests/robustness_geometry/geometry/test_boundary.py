import copy
import math

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import deepfool, random_noise
from robustness_geometry.attacks.crossings import crossings
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import boundary_points, default_h
from robustness_geometry.norms import norms


def close(found, expected, **tolerance):
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=found.dtype).expand_as(found), **tolerance
    )


def test_inside_a_sphere_the_boundary_is_reached_radially(quadric, image):
    found = boundary_points(quadric([1.0, 1.0, 1.0]), image(0.8, 0, 0))
    close(found.points, image(1.0, 0, 0))
    close(found.normals, image(1.0, 0, 0))
    close(found.perturbations, image(0.2, 0, 0))
    assert (found.labels.item(), found.targets.item(), bool(found.success)) == (0, 1, True)
    close(found.gradient_norms, 2.0)
    assert found.distances.item() < 1e-15
    assert found.angles.item() < 1e-12


def test_outside_a_sphere_the_normal_points_inwards(quadric, image):
    found = boundary_points(quadric([1.0, 1.0, 1.0]), image(0.0, 1.2, 0))
    close(found.points, image(0, 1.0, 0))
    close(found.normals, image(0, -1.0, 0))
    assert (found.labels.item(), found.targets.item()) == (1, 0)


def test_a_point_that_is_not_the_closest_is_projected(quadric, image):
    # The closest point of x^2 / 4 + y^2 = 1 to (0.9, 0.3), from its stationarity condition.
    model, x = quadric([0.25, 1.0]), image(0.9, 0.3)
    t = torch.linspace(0, math.pi / 2, 2_000_001, dtype=torch.float64)
    closest = ((2 * t.cos() - 0.9) ** 2 + (t.sin() - 0.3) ** 2).min().sqrt()
    plain = boundary_points(model, x, refinements=0)
    assert plain.angles.item() > 0.05
    assert plain.distances.item() < 1e-14
    found = boundary_points(model, x, refinements=100, angle=1e-6)
    assert found.angles.item() <= 1e-6
    assert norms(found.perturbations).item() == pytest.approx(closest.item(), rel=1e-10)
    some = boundary_points(model, x)
    assert closest <= norms(some.perturbations).item() <= norms(plain.perturbations).item()


def test_any_attack_will_do_and_the_projection_mends_it(quadric, image):
    def noise(model, images):
        return random_noise(model, images, generator=torch.Generator().manual_seed(1))

    model, x = quadric([1.0] * 6), image(0.3, 0, 0, 0.2, 0, 0)
    plain = boundary_points(model, x, attack=noise, refinements=0)
    found = boundary_points(model, x, attack=noise, refinements=60, angle=1e-5)
    assert plain.angles.item() > 0.1
    assert found.angles.item() <= 1e-5
    assert norms(found.perturbations).item() == pytest.approx(1 - math.hypot(0.3, 0.2), rel=1e-8)


def test_the_target_is_the_class_that_follows(function):
    # Along the line the labels are 0, 1, 2; an attack that jumps into 2 comes back to the boundary
    # of 0 and 1.
    model = function(lambda x: torch.stack([x[:, 0] * 0, x[:, 0] - 1, 2 * x[:, 0] - 4], dim=1))
    x = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    found = boundary_points(model, x, attack=lambda m, i: deepfool(m, i, overshoot=9.0))
    assert (found.targets.item(), found.points[0, 0, 0, 0].item()) == (1, pytest.approx(1))
    # A given target has its boundary with the label alone, which class 1 covers.
    given = boundary_points(model, x, targets=torch.tensor([2]))
    assert (given.targets.item(), given.points[0, 0, 0, 0].item()) == (2, pytest.approx(2))


def test_on_networks_points_are_on_the_boundary_and_no_farther_than_the_attack(
    smooth, jagged, pictures
):
    for model in (smooth, jagged):
        attack = deepfool(model, pictures)
        found = boundary_points(model, pictures)
        assert bool(found.success.all())
        assert bool((norms(found.perturbations) < norms(attack.perturbations)).all())
        with torch.no_grad():
            best = model(found.points).topk(2)
        close(best.values[:, 0] - best.values[:, 1], 0.0, atol=1e-13, rtol=0)
        pairs = torch.stack([found.labels, found.targets], dim=1)
        assert torch.equal(best.indices.sort(dim=1).values, pairs.sort(dim=1).values)
        close(norms(found.normals), 1.0)
        r = found.perturbations.flatten(1)
        cosine = (r * found.normals.flatten(1)).sum(dim=1) / r.norm(dim=1)
        close(found.angles.cos(), cosine, atol=1e-7, rtol=0)
    assert float(boundary_points(smooth, pictures, refinements=50).angles.max()) <= 0.01


def test_float32_is_as_good_as_float32_can_be(smooth, pictures):
    exact = boundary_points(smooth, pictures)
    found = boundary_points(copy.deepcopy(smooth).float(), pictures.float())
    assert found.points.dtype == torch.float32
    assert float(found.distances.max()) < 1e-5
    close(norms(found.perturbations), norms(exact.perturbations).float(), rtol=1e-2, atol=0)


def test_failures_are_nan_and_can_be_dropped(quadric, image):
    # The first image has another label than the one given, the last one is so far inside that no
    # step suffices.
    images = torch.cat([image(1.2, 0), image(0.5, 0), image(0.6, 0)])
    found = boundary_points(quadric([1.0, 1.0]), images, labels=torch.tensor([0, 0, 1]))
    assert found.success.tolist() == [False, True, False]
    for values in (found.points, found.perturbations, found.normals):
        assert values.flatten(1).isnan().all(dim=1).tolist() == [True, False, True]
    for values in (found.angles, found.distances, found.gradient_norms):
        assert values.isnan().tolist() == [True, False, True]
    kept = found.found()
    assert len(kept) == 1
    close(kept.points, image(1.0, 0))
    assert len(found.select(torch.tensor([2, 1]))) == 2


def test_the_model_is_left_as_it_was(smooth, pictures):
    before = {name: value.clone() for name, value in smooth.state_dict().items()}
    untouched = pictures.clone()
    boundary_points(smooth, pictures)
    assert torch.equal(untouched, pictures)
    assert all(torch.equal(before[name], value) for name, value in smooth.state_dict().items())
    assert all(parameter.grad is None for parameter in smooth.parameters())


def test_an_empty_batch_calls_no_model():
    found = boundary_points(nn.Identity().eval(), torch.zeros(0, 1, 2, 2))
    assert len(found) == 0
    assert found.points.shape == (0, 1, 2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bisections": 0}, "bisections must be"),
        ({"refinements": -1}, "refinements must be"),
        ({"angle": -0.1}, "angle must be"),
        ({"tolerance": 0}, "tolerance must be"),
        ({"targets": torch.tensor([0])}, "targets must be"),
        ({"labels": torch.tensor([5])}, "labels must be"),
    ],
)
def test_bad_options_are_refused(quadric, image, options, message):
    with pytest.raises(InputError, match=message):
        boundary_points(quadric([1.0, 1.0]), image(0.5, 0), **options)


def test_logits_that_do_not_depend_on_the_input_are_refused(function, image):
    constant = function(lambda x: torch.tensor([[1.0, 0.0]], dtype=x.dtype).expand(len(x), 2))
    with pytest.raises(InputError, match="do not depend on the input"):
        boundary_points(constant, image(0.5, 0))


def test_a_tolerance_decides_what_counts_as_found(quadric, image):
    coarse = boundary_points(quadric([1.0, 1.0]), image(0.5, 0), bisections=1, refinements=0)
    assert not bool(coarse.success)
    assert bool(
        boundary_points(
            quadric([1.0, 1.0]), image(0.5, 0), bisections=1, refinements=0, tolerance=1
        ).success
    )
    assert default_h(784) == pytest.approx(0.546)


CURVES = {
    "line": lambda t, a: t - a,
    "steep": lambda t, a: torch.atan(1e6 * (t - a)),
    "cubic": lambda t, a: (t - a) ** 3,
    "kink": lambda t, a: torch.where(t > a, 1e4 * (t - a), 1e-4 * (t - a)),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_crossings_of_awkward_functions_are_found(curve):
    places = torch.linspace(1e-3, 0.999, 57, dtype=torch.float64)

    def function(t, rows):
        return curve(t, places[rows]), torch.zeros_like(t)

    rows = torch.arange(len(places))
    ends = [function(torch.full_like(places, end), rows)[0] for end in (0.0, 1.0)]
    # A cubic is 0 to rounding long before its root.
    close(
        crossings(function, *ends, steps=180),
        places,
        rtol=0,
        atol=1e-4 if curve is CURVES["cubic"] else 1e-8,
    )


def test_crossings_of_smooth_functions_take_few_steps():
    places, calls = torch.linspace(0.01, 0.99, 99, dtype=torch.float64), []

    def function(t, rows):
        calls.append(len(rows))
        return torch.expm1(2 * (t - places[rows])), torch.full_like(t, 1e-14)

    ends = [torch.expm1(2 * (end - places)) for end in (0.0, 1.0)]
    close(crossings(function, *ends, steps=60), places, rtol=0, atol=1e-13)
    assert sum(calls) <= 10 * len(places)
