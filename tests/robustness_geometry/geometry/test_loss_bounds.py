"""Theorem 5's bounds: the numbers of the thesis' example, their limits, and what they enclose."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import quadratic_robustness, theorem5_bounds


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def bounds(norm=1.0, along=0.5, curvature=2.0, gap=1.0):
    return [
        float(v)
        for v in theorem5_bounds(number(norm), number(along), number(curvature), number(gap))
    ]


def test_the_values_of_a_known_case():
    lower, upper, simple_lower, simple_upper = bounds()
    assert lower == pytest.approx((math.sqrt(5) - 1) / 2, abs=1e-12)
    assert lower == pytest.approx(0.618034, abs=1e-6)
    assert upper == pytest.approx(0.780776, abs=1e-6)
    assert (simple_lower, simple_upper) == (-3, 2)


@given(st.floats(0.01, 10), st.floats(0.01, 1), st.floats(0.01, 50), st.floats(0.01, 10))
def test_they_are_the_formulas_of_the_theorem(norm, share, curvature, gap):
    along = share * norm
    lower, upper, *_ = bounds(norm, along, curvature, gap)
    for found, slope in ((lower, norm), (upper, along)):
        wanted = slope / curvature * (math.sqrt(1 + 2 * curvature * gap / slope**2) - 1)
        assert found == pytest.approx(wanted, rel=1e-6)


def test_parallel_gradient_and_eigenvector_give_equality():
    lower, upper, *_ = bounds(along=-1.0)
    assert lower == upper


def test_limits_are_finite_and_continuous():
    flat = bounds(curvature=0.0)
    assert flat == [1, 2, 1, 2]
    assert bounds(curvature=1e-9) == pytest.approx(flat, abs=1e-6)
    assert bounds(along=0.0)[1] == pytest.approx(1.0, abs=1e-12)  # sqrt(2 c / nu)
    assert bounds(along=1e-9)[1] == pytest.approx(1.0, abs=1e-6)
    assert bounds(along=0.0)[3] == math.inf
    assert bounds(along=0.0, curvature=0.0)[1] == math.inf
    assert bounds(norm=0.0, along=0.0)[2] == -math.inf
    assert bounds(gap=0.0) == [0, 0, 0, 0]
    assert bounds(norm=0.0, along=0.0, gap=0.0) == [0, 0, 0, 0]


def test_values_far_from_one_keep_their_accuracy():
    lower, upper, *_ = bounds(norm=1e-8, along=1e-9, curvature=1e-14, gap=1e-6)
    assert lower == pytest.approx(100, rel=1e-3)
    assert 0 < lower < upper < math.inf


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.01, 20))
def test_they_enclose_the_smallest_perturbation(seed, dimension, gap):
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.randn(30, dimension, generator=generator, dtype=torch.float64)
    values = torch.randn(30, dimension, generator=generator, dtype=torch.float64)
    values[:, 0] = values.abs().amax(dim=1)
    gaps = torch.full((30,), gap, dtype=torch.float64)
    found = quadratic_robustness(slopes, values, gaps)
    lower, upper, simple_lower, simple_upper = theorem5_bounds(
        slopes.norm(dim=1), slopes[:, 0], values[:, 0], gaps
    )
    slack = 1 + 1e-9
    assert bool((simple_lower <= lower * slack).all())
    assert bool((lower <= found * slack).all())
    assert bool((found <= upper * slack).all())
    assert bool((upper <= simple_upper * slack).all())


def test_the_secular_equation_against_a_search_over_directions():
    slopes, values = number([[0.6, 0.8]]), number([[2.0, -1.0]])
    angles = torch.linspace(0, 2 * math.pi, 200001, dtype=torch.float64)
    rays = torch.stack([angles.cos(), angles.sin()], dim=1)
    a, b = (rays.square() * values).sum(dim=1) / 2, (rays * slopes).sum(dim=1)
    inside = b.square() + 4 * a * 1.5
    root = 2 * 1.5 / (b + inside.clamp_min(0).sqrt())  # the positive root of a t^2 + b t = 1.5
    best = root[(inside >= 0) & (root > 0)].min()
    found = quadratic_robustness(slopes, values, number([1.5]))
    torch.testing.assert_close(found, best[None], rtol=1e-7, atol=0)


def test_one_dimension_solves_the_quadratic():
    found = quadratic_robustness(number([[1.0]]), number([[2.0]]), number([1.0]))
    assert float(found) == pytest.approx(0.618034, abs=1e-6)


def test_a_gradient_orthogonal_to_the_top_eigenvector_is_the_hard_case():
    found = quadratic_robustness(number([[0.0, 0.1]]), number([[2.0, 1.0]]), number([1.0]))
    # At the multiplier 1 / nu the second component is 0.1 / 2 / (1 - 1 / 2) = 0.1, which lifts the
    # loss by 0.015.
    assert float(found) == pytest.approx(math.sqrt(0.1**2 + 2 * (1 - 0.015) / 2), rel=1e-9)
    only = quadratic_robustness(number([[0.0, 0.0]]), number([[2.0, 1.0]]), number([1.0]))
    assert float(only) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "values"),
    [("gradient_norm", (-1, 0, 1, 1)), ("curvature", (1, 0, -2, 1)), ("gap", (1, 0, 1, -1))],
)
def test_negative_norms_curvatures_and_gaps_are_refused(name, values):
    with pytest.raises(InputError, match=f"{name} must be .*; got -"):
        bounds(*values)


def test_a_concave_loss_and_a_negative_gap_are_refused():
    with pytest.raises(InputError, match=r"eigenvalues must be .*; got 0"):
        quadratic_robustness(number([[1.0]]), number([[0.0]]), number([1.0]))
    with pytest.raises(InputError, match=r"gaps must be .*; got -1"):
        quadratic_robustness(number([[1.0]]), number([[1.0]]), number([-1.0]))
