import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import (
    boundary_points,
    curved_directions,
    hessian_operator,
    mean_hessian,
    normal_directions,
    principal_angles,
    random_subspace,
    shared_directions,
)


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found, expected, **tolerance):
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=found.dtype).expand_as(found), **tolerance
    )


def test_normals_of_one_boundary_have_rank_one():
    found = normal_directions(torch.outer(gaussian(9), gaussian(20, seed=1)), 1)
    close(found.values[0], 3.0)  # nine unit vectors
    close(found.values[1:], 0.0, rtol=0, atol=1e-12)
    close(found.basis.abs(), (gaussian(20, seed=1) / gaussian(20, seed=1).norm()).abs()[None])
    with pytest.raises(
        InputError, match=r"count must be a whole number from 1 to the rank 1.*; got 2"
    ):
        normal_directions(torch.outer(gaussian(9), gaussian(20, seed=1)), 2)


def test_normals_count_by_direction_alone():
    normals = gaussian(12, 1, 3, 4)
    scaled = normals * gaussian(12, seed=4).abs()[:, None, None, None]
    first, second = normal_directions(normals, 5), normal_directions(scaled, 5)
    close(first.values, second.values)
    close(first.basis.abs(), second.basis.abs())
    close(first.basis @ first.basis.T, torch.eye(5, dtype=torch.float64))
    assert first.values.shape == (12,)
    # The directions keep as much of the unit normals as any five can.
    unit = normals.flatten(1) / normals.flatten(1).norm(dim=1, keepdim=True)
    close((unit @ first.basis.T).square().sum(), first.values[:5].square().sum())


def test_shared_directions_are_those_that_images_have_in_common():
    common, own = torch.eye(10, dtype=torch.float64)[:2], torch.eye(10, dtype=torch.float64)[2:]
    directions = torch.stack([torch.stack([*common, row]) for row in own])
    found = shared_directions(directions, 2)
    close(found.values, torch.tensor([math.sqrt(8)] * 2 + [1.0] * 8))
    close(principal_angles(found.basis, common).angles, 0.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 3), torch.full((2, 3), torch.nan), torch.zeros(0, 3)]
)
def test_vectors_without_a_direction_are_refused(bad):
    with pytest.raises(InputError, match="vectors must be"):
        normal_directions(bad, 1)


def test_directions_that_were_not_found_are_refused():
    directions = gaussian(3, 2, 4)
    directions[0, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 6 not finite"):
        shared_directions(directions, 1)


def test_curved_directions_are_the_most_positive_ones(quadric, image, pair):
    # Of this ellipsoid's axes, the shortest bends most; the hyperbolic one bends the other way.
    model, z = quadric([1.0, 4.0, 0.25, -3.0]), image(1, 0, 0, 0)
    matrix = mean_hessian(model, z, **pair(), h=1e-3, normalised=True)
    positive, negative = (
        curved_directions(matrix, 2),
        curved_directions(matrix, 1, which="negative"),
    )
    close(positive.values, torch.tensor([4.0, 0.25]))
    close(positive.basis.abs(), torch.eye(4, dtype=torch.float64)[1:3], rtol=0, atol=1e-8)
    close(negative.values, -3.0)
    close(negative.basis.abs(), torch.eye(4, dtype=torch.float64)[3:], rtol=0, atol=1e-8)


def test_on_spheres_positive_means_inside(quadric, pair):
    # Images inside a cylinder around the last two axes: only these bend, and with a positive sign.
    model = quadric([0.0, 0.0, 1.0, 1.0])
    images = gaussian(6, 1, 1, 4) * 0.3
    z = boundary_points(model, images).found()
    options = {"labels": z.labels, "targets": z.targets, "h": 1e-3, "normalised": True}
    inside = curved_directions(mean_hessian(model, z.points, **options), 2)
    assert bool((inside.values > 0.05).all())
    assert inside.values.sum().item() == pytest.approx(1.0)
    close(inside.basis[:, :2], 0.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("which", ["positive", "negative"])
def test_an_operator_gives_the_directions_of_its_matrix(smooth, pictures, which):
    z = boundary_points(smooth, pictures)
    options = {"labels": z.labels, "targets": z.targets, "exact": True}
    matrix = curved_directions(mean_hessian(smooth, z.points, **options), 4, which=which)
    operator = curved_directions(hessian_operator(smooth, z.points, **options), 4, which=which)
    close(operator.values, matrix.values, rtol=1e-4, atol=1e-5)
    assert float(principal_angles(operator.basis, matrix.basis).angles.max()) < 1e-2
    with pytest.raises(InputError, match="products must be"):
        curved_directions(hessian_operator(smooth, z.points, **options), 4, products=6)


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        (torch.eye(3), {"count": 4}, "count must be .*; got 4"),
        (torch.eye(3), {"count": 0}, "count must be .*; got 0"),
        (torch.eye(3), {"count": 1, "which": "both"}, "which must be .*; got 'both'"),
        (torch.arange(9.0).view(3, 3), {"count": 1}, "symmetric"),
        (torch.full((3, 3), torch.inf), {"count": 1}, "finite"),
    ],
)
def test_bad_matrices_and_counts_are_refused(matrix, options, message):
    with pytest.raises(InputError, match=message):
        curved_directions(matrix, **options)


def test_principal_angles_of_known_planes():
    axes = torch.eye(5, dtype=torch.float64)
    tilted = torch.stack([axes[0] * math.cos(0.3) + axes[3] * math.sin(0.3), axes[1]])
    expected = torch.tensor([0.0, 0.3], dtype=torch.float64)
    close(principal_angles(axes[:2], tilted).angles, expected, rtol=1e-12, atol=1e-12)
    close(principal_angles(axes[:2], axes[2:]).angles, math.pi / 2)
    # A cosine of 1 - 1e-20 would be 1.
    slight = torch.stack([axes[0] + 1e-10 * axes[4], axes[1]])
    assert principal_angles(axes[:2], slight).angles[1].item() == pytest.approx(1e-10, rel=1e-5)


def test_bases_need_not_be_orthonormal_and_the_rank_is_reported():
    rows = gaussian(3, 8)
    dependent = torch.cat([rows, rows.sum(dim=0, keepdim=True)])
    found = principal_angles(dependent, rows.flip(0) * 5)
    assert found.ranks == (3, 3)
    close(found.angles, 0.0, rtol=0, atol=1e-7)


def test_random_subspaces_share_what_their_dimensions_say():
    # The share of a random vector's norm in 200 of 3,072 dimensions is Table 7.1's 0.25.
    first, second = random_subspace(300, 20, dtype=torch.float64), gaussian(200, 300, seed=2)
    angles = torch.stack([principal_angles(first, row[None]).angles[0] for row in second])
    assert angles.cos().square().mean().sqrt().item() == pytest.approx(
        math.sqrt(20 / 300), rel=0.05
    )


@given(seed=st.integers(0, 1000), k=st.integers(1, 4), m=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_angles_are_symmetric_and_do_not_depend_on_the_basis(seed, k, m):
    first, second, mix = (
        gaussian(k, 9, seed=seed),
        gaussian(m, 9, seed=seed + 1),
        gaussian(k, k, seed=seed + 2),
    )
    forth, back = principal_angles(first, second), principal_angles(second, first)
    close(forth.angles, back.angles, rtol=0, atol=1e-7)
    assert forth.angles.shape == (min(k, m),)
    assert bool((forth.angles.diff() >= 0).all())
    if torch.linalg.cond(mix) < 1e3:
        close(principal_angles(mix @ first, second).angles, forth.angles, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.eye(3), torch.eye(4), "second.shape"),
        (torch.zeros(1, 3), torch.eye(3), "first must be"),
        (torch.eye(3), torch.full((1, 3), torch.nan), "second must be"),
    ],
)
def test_rows_that_span_nothing_are_refused(first, second, message):
    with pytest.raises(InputError, match=message):
        principal_angles(first, second)
