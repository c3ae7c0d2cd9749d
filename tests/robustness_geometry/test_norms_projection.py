"""Projections onto l_p balls: closed forms, the nearest point, idempotence; both precisions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustness_geometry.norms import norms, project

BALLS = [1, 2, math.inf]
QUICK = settings(max_examples=40, deadline=None)
EXACT = {torch.float32: 1e-5, torch.float64: 1e-13}

balls = st.sampled_from(BALLS)
types = st.sampled_from(list(EXACT))
radii = st.sampled_from([1e-3, 0.25, 1.0, 30.0])


def drawn(seed, dimension, dtype):
    """Vectors of several sizes, with ties and zeros."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(5, dimension, generator=generator, dtype=torch.float64)
    vectors[1] = vectors[1].sign()
    vectors[2, ::2] = 0
    vectors[3] *= 1e3
    vectors[4] *= 1e-3
    return vectors.to(dtype)


@pytest.mark.parametrize(
    ("vector", "p", "expected"),
    [
        ([3.0, 1.0], 1, [2.0, 0.0]),
        ([3.0, -2.0], 1, [1.5, -0.5]),
        ([2.0, -2.0, 0.0], 1, [1.0, -1.0, 0.0]),
        ([0.5, -0.5], 1, [0.5, -0.5]),
        ([6.0, 8.0], 2, [1.2, 1.6]),
        ([0.6, -0.8], 2, [0.6, -0.8]),
        ([0.0, 0.0], 2, [0.0, 0.0]),
        ([3.0, -1.0], math.inf, [2.0, -1.0]),
        ([-5.0, 5.0], math.inf, [-2.0, 2.0]),
    ],
)
def test_closed_forms_on_the_ball_of_radius_two(vector, p, expected):
    found = project(torch.tensor([vector], dtype=torch.float64), 2.0, p)
    torch.testing.assert_close(
        found, torch.tensor([expected], dtype=torch.float64), rtol=1e-15, atol=0
    )


@QUICK
@given(seed=st.integers(0, 2**31), dimension=st.integers(1, 60), radius=radii, dtype=types)
def test_the_l1_projection_is_the_soft_threshold_that_bisection_finds(
    seed, dimension, radius, dtype
):
    vectors = drawn(seed, dimension, dtype)
    exact = vectors.double()
    low, high = torch.zeros(5, 1, dtype=torch.float64), exact.abs().amax(dim=1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        long = (exact.abs() - middle).clamp_min(0).sum(dim=1, keepdim=True) > radius
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    expected = exact.sign() * (exact.abs() - high).clamp_min(0)
    expected = torch.where(norms(exact, 1)[:, None] <= radius, exact, expected)
    # What rounding does to a threshold is in proportion to the sum that it is taken from.
    atol = EXACT[dtype] * float(norms(exact, 1).max())
    torch.testing.assert_close(project(vectors, radius, 1).double(), expected, rtol=0, atol=atol)


@QUICK
@given(seed=st.integers(0, 2**31), dimension=st.integers(1, 60), radius=radii, p=balls, dtype=types)
def test_a_projection_is_in_the_ball_once_and_for_all(seed, dimension, radius, p, dtype):
    vectors = drawn(seed, dimension, dtype)
    once = project(vectors, radius, p)
    slack = EXACT[dtype] * float(norms(vectors.double(), 1).max())
    assert bool((norms(once.double(), p) <= radius + slack).all())
    assert once.dtype == dtype
    torch.testing.assert_close(project(once, radius, p), once, rtol=0, atol=slack)


@QUICK
@given(seed=st.integers(0, 2**31), dimension=st.integers(1, 60), radius=radii, p=balls)
def test_a_projection_keeps_signs_order_and_what_is_inside(seed, dimension, radius, p):
    vectors = drawn(seed, dimension, torch.float64)
    found = project(vectors, radius, p)
    assert bool((found * vectors >= 0).all())
    assert bool((found.abs() <= vectors.abs()).all())
    inside = norms(vectors, p) < radius
    assert torch.equal(found[inside], vectors[inside])
    assert torch.equal(project(-vectors, radius, p), -found)


@QUICK
@given(seed=st.integers(0, 2**31), dimension=st.integers(2, 30), p=balls)
def test_the_projection_brings_no_two_points_further_apart(seed, dimension, p):
    first, second = drawn(seed, dimension, torch.float64), drawn(seed + 1, dimension, torch.float64)
    moved = norms(project(first, 1.0, p) - project(second, 1.0, p))
    assert bool((moved <= norms(first - second) * (1 + 1e-12)).all())
