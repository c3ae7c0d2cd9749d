"""Lanczos against full spectra."""

import pytest
import torch
from torch import nn

from benchmarks.counting import count_passes
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import (
    boundary_points,
    hessian_operator,
    leading_curvatures,
    mean_hessian,
    principal_curvatures,
)

ENDS = {
    "largest": lambda row: row.sort(descending=True).values,
    "smallest": lambda row: row.sort().values,
    "magnitude": lambda row: row[row.abs().argsort(descending=True)],
}
ends = pytest.mark.parametrize("which", ENDS)


def close(found, expected, **tolerance):
    expected = torch.as_tensor(expected, dtype=found.dtype).expand_as(found)
    torch.testing.assert_close(found, expected, **tolerance)


@ends
def test_lanczos_finds_what_the_full_spectrum_holds(smooth, pictures, which):
    z = boundary_points(smooth, pictures[:2])
    options = {"labels": z.labels, "targets": z.targets, "h": 1e-3}
    full = principal_curvatures(smooth, z.points, **options).values
    found = leading_curvatures(smooth, z.points, **options, which=which, count=4, directions=True)
    expected = torch.stack([ENDS[which](row)[:4] for row in full])
    close(found.values, expected, rtol=1e-3, atol=1e-4 * float(full.abs().max()))
    assert found.directions.shape == (2, 4, 64)
    close(
        found.directions @ found.directions.mT, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-9
    )
    close(found.directions @ z.normals.flatten(1)[..., None], 0.0, rtol=0, atol=1e-6)


@ends
def test_ellipsoid_without_the_normal(quadric, image, pair, which):
    # The normal's own zero lies between the curvatures and must not be taken for one of them.
    model = quadric([1.0, 4.0, 0.25, -2.0, -0.5])
    expected = ENDS[which](torch.tensor([4.0, 0.25, -2.0, -0.5], dtype=torch.float64))
    for count in range(1, 5):
        found = leading_curvatures(
            model, image(1, 0, 0, 0, 0), **pair(), h=1e-3, which=which, count=count
        )
        close(found.values, expected[None, :count], rtol=1e-6, atol=1e-6)


def test_many_equal_curvatures(quadric, image, pair):
    z = image(0.5, *[0] * 19)
    found = leading_curvatures(quadric([1.0] * 20, 0.25), z, **pair(), h=1e-3, count=7)
    close(found.values, 2.0, rtol=1e-6, atol=0)


def test_flat_boundaries_have_curvature_zero(pictures, pair):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double().eval()
    found = leading_curvatures(model, pictures, **pair(4), tolerance="inf", exact=True, count=3)
    close(found.values, 0.0)


def test_relus_differ_from_the_full_spectrum_but_little(jagged, pictures):
    z = boundary_points(jagged, pictures[:2])
    options = {"labels": z.labels, "targets": z.targets}
    full = principal_curvatures(jagged, z.points, **options).values
    found = leading_curvatures(jagged, z.points, **options, count=2).values
    # Differences over a finite length are not linear in the direction: the eigenvectors of the
    # matrix see other kinks.
    assert bool((found[:, 0] > 0.5 * full[:, 0]).all())
    assert bool((found[:, 0] < 2 * full[:, 0]).all())


def test_the_number_of_gradients_is_bounded_and_what_is_not_found_is_nan(smooth, pictures):
    z = boundary_points(smooth, pictures[:1])
    options = {"labels": z.labels, "targets": z.targets, "h": 1e-3}
    with count_passes(smooth) as passes:
        found = leading_curvatures(smooth, z.points, **options, count=3)
    assert passes.backward <= 1 + 2 * 45
    assert not bool(found.values.isnan().any())
    with count_passes(smooth) as passes:
        few = leading_curvatures(smooth, z.points, **options, count=3, products=6, directions=True)
    assert passes.backward <= 1 + 2 * 8
    missing = few.values.isnan()
    assert bool(missing.any())
    assert torch.equal(few.directions.isnan().all(dim=2), missing)


def test_the_same_draws_give_the_same_result(smooth, pictures):
    z = boundary_points(smooth, pictures[:1])
    options = {"labels": z.labels, "targets": z.targets, "count": 2}
    first = leading_curvatures(
        smooth, z.points, **options, generator=torch.Generator().manual_seed(3)
    ).values
    again = leading_curvatures(
        smooth, z.points, **options, generator=torch.Generator().manual_seed(3)
    ).values
    assert torch.equal(first, again)


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_operator_is_the_mean_hessian(smooth, pictures, projected, normalised):
    z = boundary_points(smooth, pictures)
    options = {
        "labels": z.labels,
        "targets": z.targets,
        "projected": projected,
        "normalised": normalised,
    }
    matrix = mean_hessian(smooth, z.points, **options, exact=True)
    operator = hessian_operator(smooth, z.points, **options, exact=True)
    vectors = torch.randn(64, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    close(
        torch.from_numpy(operator.matmat(vectors.numpy())), matrix @ vectors, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be"),
        ({"count": 3}, "count must be a whole number from 1 to 2.*; got 3"),
        ({"count": 2, "products": 3}, "products must be"),
        ({"which": "top"}, "which must be"),
    ],
)
def test_bad_options_are_refused(quadric, image, pair, options, message):
    with pytest.raises(InputError, match=message):
        leading_curvatures(
            quadric([1.0, 1.0, 1.0]), image(1, 0, 0), **{"count": 1, **pair(), **options}
        )
