"""Norms, hyperplane steps and projections against their defining properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustness_geometry.checks import InputError
from robustness_geometry.norms import dual, hyperplane_step, norms, project, relative_norms

EXPONENTS = st.sampled_from([1, 1.01, 1.2, 1.5, 2, 3, 7.5, 50, math.inf])
BALLS = st.sampled_from([1, 2, math.inf])
SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**31)
SCALES = st.sampled_from([1e-12, 1e-3, 1.0, 1e6])
QUICK = settings(max_examples=60, deadline=None)


def drawn(seed, dimension, scale, rows=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, dimension, generator=generator, dtype=dtype)


@QUICK
@given(p=EXPONENTS, dimension=SIZES, seed=SEEDS, scale=SCALES)
def test_a_norm_is_homogeneous_and_bounds_inner_products_with_its_dual(p, dimension, seed, scale):
    first, second = drawn(seed, dimension, scale), drawn(seed + 1, dimension, 1.0)
    torch.testing.assert_close(norms(3 * first, p), 3 * norms(first, p), rtol=1e-9, atol=0)
    products = (first * second).sum(dim=1).abs()
    assert bool((products <= norms(first, p) * norms(second, dual(p)) * (1 + 1e-9)).all())


@QUICK
@given(p=EXPONENTS, dimension=SIZES, seed=SEEDS, scale=SCALES)
def test_a_hyperplane_step_lies_on_the_hyperplane_and_is_as_short_as_can_be(
    p, dimension, seed, scale
):
    normals = drawn(seed, dimension, scale)
    gaps = drawn(seed + 1, 4, 1.0, rows=1)[0]
    steps = hyperplane_step(gaps, normals, p)
    torch.testing.assert_close((normals * steps).sum(dim=1), gaps, rtol=1e-7, atol=0)
    torch.testing.assert_close(
        norms(steps, p), gaps.abs() / norms(normals, dual(p)), rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("p", [1.01, 1.1, 3, 40])
def test_large_powers_of_small_gradients_do_not_vanish_in_float32(p):
    normals = drawn(0, 50, 1e-3, dtype=torch.float32)
    steps = hyperplane_step(torch.ones(4), normals, p)
    torch.testing.assert_close((normals * steps).sum(dim=1), torch.ones(4), rtol=1e-4, atol=0)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
def test_a_zero_normal_gives_a_zero_step(p):
    assert bool((hyperplane_step(torch.ones(2), torch.zeros(2, 3), p) == 0).all())


def test_the_l1_step_moves_one_of_tied_coordinates():
    steps = hyperplane_step(torch.tensor([6.0]), torch.tensor([[2.0, -3.0, 3.0]]), 1)
    assert norms(steps, 1).item() == pytest.approx(2.0)
    assert int((steps != 0).sum()) == 1


@QUICK
@given(p=BALLS, dimension=SIZES, seed=SEEDS, radius=st.sampled_from([1e-6, 0.3, 1.0, 50.0]))
def test_a_projection_is_inside_the_ball_idempotent_and_leaves_inner_points(
    p, dimension, seed, radius
):
    vectors = drawn(seed, dimension, 2.0)
    inside = project(vectors, radius, p)
    assert bool((norms(inside, p) <= radius + 1e-12).all())
    torch.testing.assert_close(project(inside, radius, p), inside, rtol=1e-12, atol=1e-12)
    kept = norms(vectors, p) <= radius
    assert bool((inside[kept] == vectors[kept]).all())


@QUICK
@given(p=BALLS, dimension=SIZES, seed=SEEDS)
def test_no_point_of_the_ball_is_nearer_than_the_projection(p, dimension, seed):
    vectors = drawn(seed, dimension, 2.0)
    nearest = project(vectors, 1.0, p)
    others = drawn(seed + 1, dimension, 1.0)
    others = others / norms(others, p).clamp_min(1.0)[:, None]
    # The characterisation of a projection onto a convex set: <v - Pv, z - Pv> <= 0 for all z in it.
    assert bool((((vectors - nearest) * (others - nearest)).sum(dim=1) <= 1e-9).all())


def test_shapes_of_images_are_kept():
    images = torch.rand(3, 2, 4, 5)
    assert norms(images, 3).shape == (3,)
    assert (
        project(images, 1.0).shape == hyperplane_step(torch.ones(3), images).shape == images.shape
    )
    assert norms(images[:0], 1.5).shape == (0,)


def test_relative_norms_divide_by_the_norm_of_the_image():
    images = torch.full((1, 1, 2, 2), 0.5)
    assert relative_norms(0.1 * images, images).item() == pytest.approx(0.1)
    assert math.isinf(relative_norms(images, torch.zeros_like(images)).item())


@pytest.mark.parametrize(("p", "q"), [(1, math.inf), (2, 2), (math.inf, 1), (1.5, 3), (3, 1.5)])
def test_dual_exponents(p, q):
    assert dual(p) == pytest.approx(q)


def test_other_balls_are_refused():
    with pytest.raises(InputError, match=r"norm must be .*; got 3"):
        project(torch.ones(1, 2), 1.0, 3)
