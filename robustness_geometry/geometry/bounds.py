"""The bounds of chapters 5 and 6 on random, semi-random and universal perturbations, with their lemmas."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustness_geometry.checks import check_count, check_positive, refuse

__all__ = [
    "C1",
    "C2",
    "COROLLARY",
    "Interval",
    "corollary1_bounds",
    "corollary1_excluded",
    "crosses_quadratic",
    "curvature_limit",
    "lemma2_bounds",
    "lemma4_bounds",
    "lemma7_gap",
    "lemma8_gap",
    "theorem1_bounds",
    "theorem2_bounds",
    "theorem3_radius",
    "theorem4_radius",
    "zeta_1",
    "zeta_2",
]

C, C1, C2 = 0.2, 0.625, 2.25
"""The constants of Theorem 2."""

COROLLARY = (1 - C * C1, 1 + C * C2)
"""The constants 0.875 and 1.45 of Corollary 1."""


@dataclass(frozen=True)
class Interval:
    """A random quantity lies in [low, high] with at least ``probability`` (0 where the theorem promises nothing)."""

    low: float
    high: float
    probability: float


def zeta_1(m: int, delta: float) -> float:
    """The lower constant 1 / (1 + 2 sqrt(ln(1 / delta) / m) + 2 ln(1 / delta) / m), Equation 5.4.

    Args:
        m: dimension of the subspace.
        delta: in (0, 1).
    """
    share = -math.log(_checked(m, delta)) / m
    return 1 / (1 + 2 * math.sqrt(share) + 2 * share)


def zeta_2(m: int, delta: float) -> float:
    """The upper constant 1 / max(delta^(2/m) / e, 1 - sqrt(2 (1 - delta^(2/m)))), Equation 5.5.

    The maximum is taken before the inverse: its second term is negative for small m.

    Args:
        m: dimension of the subspace.
        delta: in (0, 1).
    """
    exponent = 2 * math.log(_checked(m, delta)) / m
    return 1 / max(math.exp(exponent - 1), 1 - math.sqrt(-2 * math.expm1(exponent)))


def lemma2_bounds(dimension: int, m: int, delta: float) -> Interval:
    """Lemma 2: the squared norm of m coordinates of a random unit vector of d = ``dimension`` coordinates.

    beta_1 m / d <= ||P_m v||^2 <= beta_2 m / d with beta_1 = 1 / zeta_2 and beta_2 = 1 / zeta_1,
    probability 1 - 2 delta.
    """
    _check_subspace(dimension, m)
    share = m / dimension
    return Interval(share / zeta_2(m, delta), share / zeta_1(m, delta), _probability(2 * delta))


def theorem1_bounds(dimension: int, m: int, delta: float, classes: int) -> Interval:
    """Theorem 1: ||r_S|| / ||r*|| of an affine classifier in a random m-dimensional subspace (Equation 5.6).

    sqrt(zeta_1 d / m) <= ||r_S|| / ||r*|| <= sqrt(zeta_2 d / m), probability 1 - 2 (L + 1) delta.
    For L = 10 classes the usual delta = 0.05 promises nothing; delta = 0.002 gives 0.956.

    Args:
        dimension: d.
        m: 1 <= m <= d.
        delta: in (0, 1).
        classes: L >= 2.
    """
    low, high = _square_root_bounds(dimension, m, delta)
    return Interval(
        low, high, _probability(2 * (check_count("classes", classes, minimum=2) + 1) * delta)
    )


def curvature_limit(dimension: int, m: int, delta: float) -> float:
    """The largest kappa ||r_k|| for which Theorem 2 holds: (0.2 / zeta_2) m / d (Equation 5.9).

    kappa is the global curvature of Section 5.5.1, the inverse of the smallest inscribed ball's
    radius, without a sign.
    """
    _check_subspace(dimension, m)
    return C / zeta_2(m, delta) * m / dimension


def theorem2_bounds(dimension: int, m: int, delta: float, bend: float) -> Interval:
    """Theorem 2: ||r_S^k|| / ||r_k|| at a curved boundary between two classes (Equation 5.10), probability 1 - 4 delta.

    The bounds of Theorem 1, times 1 - 0.625 kappa ||r_k|| zeta_2 d / m and 1 + 2.25 kappa ||r_k||
    zeta_2 d / m.

    Args:
        dimension: d.
        m: 1 <= m <= d.
        delta: in (0, 1).
        bend: kappa ||r_k||, which has no unit.

    Raises:
        InputError: ``bend`` is above :func:`curvature_limit`.
    """
    limit = curvature_limit(dimension, m, delta)
    if check_positive("bend", bend, zero=True) > limit * (1 + 1e-9):
        refuse("bend", bend, f"at most {limit:.4g}, the curvature condition of Theorem 2")
    low, high = _square_root_bounds(dimension, m, delta)
    scaled = bend * C / limit
    return Interval((1 - C1 * scaled) * low, (1 + C2 * scaled) * high, _probability(4 * delta))


def corollary1_bounds(dimension: int, m: int, delta: float, classes: int) -> Interval:
    """Corollary 1: ||r_S|| / ||r*|| of a classifier whose near boundaries bend little (Equation 5.12).

    0.875 sqrt(zeta_1 d / m) and 1.45 sqrt(zeta_2 d / m), probability 1 - 4 (L + 2) delta, if
    Equation 5.9 holds for every class that :func:`corollary1_excluded` keeps.
    """
    low, high = _square_root_bounds(dimension, m, delta)
    probability = _probability(4 * (check_count("classes", classes, minimum=2) + 2) * delta)
    return Interval(COROLLARY[0] * low, COROLLARY[1] * high, probability)


def corollary1_excluded(
    distances: Float[Tensor, "*batch rivals"], dimension: int, m: int, delta: float
) -> Bool[Tensor, "*batch rivals"]:
    """The set A of classes too far to matter: ||r_k|| >= 1.45 sqrt(zeta_2 d / m) ||r*|| (Equation 5.11).

    Args:
        distances: (..., L - 1) the ||r_k||, of which the smallest is ||r*||.
        dimension: d.
        m: dimension of the subspace.
        delta: in (0, 1).
    """
    _, high = _square_root_bounds(dimension, m, delta)
    return distances >= COROLLARY[1] * high * distances.amin(dim=-1, keepdim=True)


def lemma4_bounds(bend: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """Lemma 4: how far the distance to an arc departs from the distance to its tangent, along a tilted line.

    -0.625 kappa r tan(theta)^2 <= ||x_gamma - x|| / ||u|| - 1 <= 2.25 kappa r tan(theta)^2, where
    ||u|| = r / cos(theta); the upper bound needs tan(theta)^2 <= 0.2 / (kappa r).

    Args:
        bend: kappa r < 1, any shape.
        tangent: tan(theta), of a shape that broadcasts with it.

    Returns:
        The bounds; the upper one is infinite where its condition fails.
    """
    slant = bend * tangent.square()
    return -C1 * slant, torch.where(slant <= C, C2 * slant, torch.inf)


def lemma7_gap(x: Tensor) -> Tensor:
    """sqrt(1 - x) - (1 - x / 2 - x^2 / 4), which Lemma 7 says is never negative on [0, 2 (sqrt(2) - 1)]."""
    return (1 - x).sqrt() - (1 - x / 2 - x.square() / 4)


def lemma8_gap(x: Tensor) -> Tensor:
    """sqrt(1 + x) - (1 + x / 2 - x^2 / 8), which Lemma 8 says is never negative for x >= 0."""
    return (1 + x).sqrt() - (1 + x / 2 - x.square() / 8)


def theorem3_radius(m: int, delta: float, xi: float = 0.0) -> float:
    """Theorem 3: rho = sqrt(e m) / (delta (1 - xi)), in units of ||r||.

    Where the boundaries are flat and their normals lie in an m-dimensional subspace up to a share
    xi of their length, some v with ||v|| <= rho has: v or -v fools all but a share delta of the
    images.
    """
    if not 0 <= xi < 1:
        refuse("xi", xi, "a number in [0, 1)")
    return math.sqrt(math.e * m) / (_checked(m, delta) * (1 - xi))


def theorem4_radius(curvature: float, m: int, delta: float) -> float:
    """Theorem 4: rho = sqrt(2 ln(2 / delta) / m) / kappa + kappa^(-1/2), in units of ||r||.

    Where the boundaries bend by ``curvature`` = kappa along all but a share beta of the directions
    of an m-dimensional subspace, some v with ||v|| <= rho fools all but a share delta + beta of the
    images. kappa is that of the quadratic model of :func:`crosses_quadratic`, which lacks the
    factor 1/2: kappa there is a sphere of radius 1 / (2 kappa).
    """
    kappa = check_positive("curvature", curvature)
    return math.sqrt(2 * math.log(2 / _checked(m, delta)) / m) / kappa + kappa**-0.5


def crosses_quadratic(
    noise: Float[Tensor, "*batch d"],
    shortest: Float[Tensor, "*batch d"],
    hessian: Float[Tensor, "*batch d d"],
) -> Bool[Tensor, "*batch"]:
    """Whether v crosses the quadratic boundary model Q of Section 6.4: (v - r)' H (v - r) + r' (v - r) >= 0.

    The thesis' definition of Q prints <= 0; its proof uses >= 0, which is what x + v on the far
    side means.

    Args:
        noise: v, (..., d).
        shortest: r, (..., d), the smallest perturbation.
        hessian: H / alpha, (..., d, d), of F = f_other - f_own over alpha = ||grad F|| / ||r||.
    """
    offset = noise - shortest
    bent = torch.einsum("...i,...ij,...j->...", offset, hessian, offset)
    return bent + (shortest * offset).sum(dim=-1) >= 0


def _square_root_bounds(dimension: int, m: int, delta: float) -> tuple[float, float]:
    """sqrt(zeta_1 d / m) and sqrt(zeta_2 d / m)."""
    _check_subspace(dimension, m)
    share = dimension / m
    return math.sqrt(zeta_1(m, delta) * share), math.sqrt(zeta_2(m, delta) * share)


def _probability(missed: float) -> float:
    return max(0.0, 1 - missed)


def _checked(m: int, delta: float) -> float:
    check_count("m", m)
    if not 0 < delta < 1:
        refuse("delta", delta, "a number in (0, 1)")
    return delta


def _check_subspace(dimension: int, m: int) -> None:
    if not 1 <= m <= dimension:
        refuse("m", m, f"a whole number from 1 to d = {dimension}")
