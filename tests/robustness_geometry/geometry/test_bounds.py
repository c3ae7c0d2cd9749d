import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import (
    corollary1_bounds,
    corollary1_excluded,
    crosses_quadratic,
    curvature_limit,
    lemma2_bounds,
    lemma4_bounds,
    lemma7_gap,
    lemma8_gap,
    sphere_step,
    theorem1_bounds,
    theorem2_bounds,
    theorem3_radius,
    theorem4_radius,
    zeta_1,
    zeta_2,
)


@pytest.mark.parametrize(
    ("m", "first", "second"),
    [
        (1, 0.09567, 1087.31),
        (10, 0.37122, 4.94881),
        (100, 0.71120, 1.51755),
        (250, 0.80457, 1.27816),
        (1000, 0.89650, 1.12272),
    ],
)
def test_constants_of_theorem_1_at_delta_005(m, first, second):
    assert zeta_1(m, 0.05) == pytest.approx(first, rel=1e-4)
    assert zeta_2(m, 0.05) == pytest.approx(second, rel=1e-5)


@given(m=st.integers(1, 10**6), delta=st.floats(1e-6, 0.5))
@settings(max_examples=50, deadline=None)
def test_constants_bracket_one(m, delta):
    assert 0 < zeta_1(m, delta) < 1 < zeta_2(m, delta)


def test_theorem_1_promises_nothing_for_ten_classes_at_delta_005():
    assert theorem1_bounds(784, 49, 0.05, 10).probability == 0
    assert theorem1_bounds(784, 49, 0.002, 10).probability == pytest.approx(0.956)
    bounds = theorem1_bounds(1000, 10, 0.05, 2)
    assert bounds.low == pytest.approx(math.sqrt(0.37122 * 100), rel=1e-4)
    assert bounds.high == pytest.approx(math.sqrt(4.94881 * 100), rel=1e-4)


def test_lemma_2_is_theorem_1_turned_over():
    lemma, theorem = lemma2_bounds(500, 20, 0.05), theorem1_bounds(500, 20, 0.05, 2)
    assert lemma.low == pytest.approx(1 / theorem.high**2)
    assert lemma.high == pytest.approx(1 / theorem.low**2)
    assert lemma.probability == pytest.approx(0.9)


def test_theorem_2_without_curvature_is_theorem_1():
    flat, affine = theorem2_bounds(784, 49, 0.05, 0.0), theorem1_bounds(784, 49, 0.05, 2)
    assert (flat.low, flat.high) == (affine.low, affine.high)
    assert flat.probability == pytest.approx(0.8)


def test_theorem_2_at_its_curvature_limit_has_the_constants_of_corollary_1():
    limit = curvature_limit(784, 49, 0.002)
    curved, affine = theorem2_bounds(784, 49, 0.002, limit), theorem1_bounds(784, 49, 0.002, 2)
    assert curved.low == pytest.approx(0.875 * affine.low)
    assert curved.high == pytest.approx(1.45 * affine.high)
    corollary = corollary1_bounds(784, 49, 0.002, 10)
    assert (corollary.low, corollary.high) == pytest.approx((curved.low, curved.high))
    assert corollary.probability == pytest.approx(1 - 4 * 12 * 0.002)
    with pytest.raises(InputError, match="bend must be"):
        theorem2_bounds(784, 49, 0.002, 1.01 * limit)


def test_far_classes_are_excluded():
    high = corollary1_bounds(784, 196, 0.002, 10).high
    distances = torch.tensor([[2.0, 2 * high * 0.99, 2 * high * 1.01]])
    assert corollary1_excluded(distances, 784, 196, 0.002).tolist() == [[False, False, True]]


@pytest.mark.parametrize("outwards", [True, False])
def test_lemma_4_holds_on_arcs(outwards):
    bend = torch.logspace(-4, -0.001, 60, dtype=torch.float64)[:, None]
    angle = torch.linspace(0.0, 1.5, 80, dtype=torch.float64)
    radius = 1 / bend  # at distance r = 1 from the arc
    step = sphere_step(radius + 1 if outwards else radius - 1, angle.cos(), radius)
    departure = step * angle.cos() - 1
    low, high = lemma4_bounds(bend, angle.tan())
    assert bool((departure >= low - 1e-9).all())
    assert bool((departure <= high + 1e-9).all())


def test_lemmas_7_and_8_hold():
    x = torch.linspace(0, 2 * (math.sqrt(2) - 1), 1001, dtype=torch.float64)
    assert lemma7_gap(x).min() >= -1e-15
    assert lemma7_gap(x[-1] + 0.01) < 0
    assert lemma8_gap(torch.linspace(0, 100, 1001, dtype=torch.float64)).min() >= -1e-15


def test_radii_of_theorems_3_and_4():
    assert theorem3_radius(10, 0.1) == pytest.approx(math.sqrt(math.e * 10) / 0.1)
    assert theorem3_radius(10, 0.1, xi=0.5) == pytest.approx(2 * theorem3_radius(10, 0.1))
    assert theorem4_radius(4.0, 50, 0.1) == pytest.approx(
        math.sqrt(2 * math.log(20) / 50) / 4 + 0.5
    )


def test_quadratic_model_of_curvature_one_half_is_the_unit_ball():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    shortest = torch.zeros(5, dtype=torch.float64)
    shortest[0] = 1.0
    crossed = crosses_quadratic(
        noise, shortest.expand(200, -1), 0.5 * torch.eye(5).double().expand(200, -1, -1)
    )
    assert torch.equal(crossed, noise.norm(dim=1) >= 1)


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda: zeta_1(0, 0.05), "m must be .*; got 0"),
        (lambda: zeta_2(5, 0.0), "delta must be .*; got 0.0"),
        (lambda: zeta_2(5, 1.0), "delta must be .*; got 1.0"),
        (lambda: theorem1_bounds(10, 11, 0.05, 2), "m must be .*; got 11"),
        (lambda: theorem1_bounds(10, 5, 0.05, 1), "classes must be .*; got 1"),
        (lambda: theorem3_radius(5, 0.1, xi=1.0), "xi must be .*; got 1.0"),
        (lambda: theorem4_radius(0.0, 5, 0.1), "curvature must be .*; got 0.0"),
    ],
)
def test_bad_input_is_refused(call, key):
    with pytest.raises(InputError, match=key):
        call()
