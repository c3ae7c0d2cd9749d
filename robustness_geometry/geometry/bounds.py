"""The bounds of Chapter 5 on random and semi-random perturbations, with their lemmas.

They were published in A. Fawzi, S.-M. Moosavi-Dezfooli and P. Frossard, "Robustness of classifiers:
from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
"""

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
    "curvature_limit",
    "lemma2_bounds",
    "lemma4_bounds",
    "lemma7_gap",
    "lemma8_gap",
    "theorem1_bounds",
    "theorem2_bounds",
    "zeta_1",
    "zeta_2",
]

C, C1, C2 = 0.2, 0.625, 2.25
"""The constants of Theorem 2."""

COROLLARY = (1 - C * C1, 1 + C * C2)
"""The constants 0.875 and 1.45 of Corollary 1."""


@dataclass(frozen=True)
class Interval:
    """An interval [low, high] that contains a random quantity with at least ``probability``.

    The probability is 0 where the theorem makes no promise.

    See :func:`theorem1_bounds`, which returns it, for an example.
    """

    low: float
    high: float
    probability: float


def zeta_1(m: int, delta: float) -> float:
    """The lower constant 1 / (1 + 2 sqrt(ln(1 / delta) / m) + 2 ln(1 / delta) / m), Equation 5.4.

    Args:
        m: dimension of the subspace.
        delta: in (0, 1).

    References:
        Thesis, Section 5.4, Equation 5.4; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import zeta_1
        >>> round(zeta_1(100, 0.05), 4)
        0.7112
    """
    share = -math.log(checked_share(m, delta)) / m
    return 1 / (1 + 2 * math.sqrt(share) + 2 * share)


def zeta_2(m: int, delta: float) -> float:
    """The upper constant 1 / max(delta^(2/m) / e, 1 - sqrt(2 (1 - delta^(2/m)))), Equation 5.5.

    The maximum is taken before the inverse: its second term is negative for small m.

    Args:
        m: dimension of the subspace.
        delta: in (0, 1).

    References:
        Thesis, Section 5.4, Equation 5.5; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import zeta_2
        >>> round(zeta_2(100, 0.05), 3)
        1.518
    """
    exponent = 2 * math.log(checked_share(m, delta)) / m
    return 1 / max(math.exp(exponent - 1), 1 - math.sqrt(-2 * math.expm1(exponent)))


def lemma2_bounds(dimension: int, m: int, delta: float) -> Interval:
    """Lemma 2: the squared norm of m coordinates of a random unit vector in d dimensions.

    beta_1 m / d <= ||P_m v||^2 <= beta_2 m / d with beta_1 = 1 / zeta_2 and beta_2 = 1 / zeta_1,
    with probability 1 - 2 delta.

    Args:
        dimension: d.
        m: 1 <= m <= d.
        delta: in (0, 1).

    References:
        Thesis, Appendix A, Lemma 2; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import lemma2_bounds
        >>> found = lemma2_bounds(dimension=1000, m=100, delta=0.05)
        >>> round(found.low, 3), round(found.high, 3), found.probability
        (0.066, 0.141, 0.9)
    """
    _check_subspace(dimension, m)
    share = m / dimension
    return Interval(share / zeta_2(m, delta), share / zeta_1(m, delta), _probability(2 * delta))


def theorem1_bounds(dimension: int, m: int, delta: float, classes: int) -> Interval:
    """Theorem 1: ||r_S|| / ||r*|| of an affine classifier in a random subspace (Equation 5.6).

    sqrt(zeta_1 d / m) <= ||r_S|| / ||r*|| <= sqrt(zeta_2 d / m) with probability
    1 - 2 (L + 1) delta. For L = 10 classes the usual delta = 0.05 promises nothing; delta = 0.002
    gives 0.956.

    Args:
        dimension: d.
        m: 1 <= m <= d.
        delta: in (0, 1).
        classes: L >= 2.

    References:
        Thesis, Section 5.4, Theorem 1; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import theorem1_bounds
        >>> found = theorem1_bounds(dimension=784, m=100, delta=0.002, classes=10)
        >>> round(found.low, 2), round(found.high, 2), round(found.probability, 3)
        (2.2, 3.9, 0.956)
    """
    low, high = _square_root_bounds(dimension, m, delta)
    return Interval(
        low, high, _probability(2 * (check_count("classes", classes, minimum=2) + 1) * delta)
    )


def curvature_limit(dimension: int, m: int, delta: float) -> float:
    """The largest kappa ||r_k|| for which Theorem 2 holds: (0.2 / zeta_2) m / d (Equation 5.9).

    kappa is the global curvature of Section 5.5.1, the inverse of the smallest inscribed ball's
    radius, without a sign.

    Args:
        dimension: d.
        m: 1 <= m <= d.
        delta: in (0, 1).

    References:
        Thesis, Section 5.5.2, Equation 5.9; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import curvature_limit
        >>> round(curvature_limit(dimension=1000, m=100, delta=0.05), 4)
        0.0132
    """
    _check_subspace(dimension, m)
    return C / zeta_2(m, delta) * m / dimension


def theorem2_bounds(dimension: int, m: int, delta: float, bend: float) -> Interval:
    """Theorem 2: ||r_S^k|| / ||r_k|| at a curved boundary between two classes (Equation 5.10).

    The lower bound of Theorem 1 times 1 - 0.625 kappa ||r_k|| zeta_2 d / m, and its upper bound
    times 1 + 2.25 kappa ||r_k|| zeta_2 d / m, with probability 1 - 4 delta.

    Args:
        dimension: d.
        m: 1 <= m <= d.
        delta: in (0, 1).
        bend: kappa ||r_k||, which has no unit.

    Raises:
        InputError: ``bend`` is above :func:`curvature_limit`.

    References:
        Thesis, Section 5.5.2, Theorem 2; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import theorem2_bounds
        >>> found = theorem2_bounds(dimension=1000, m=100, delta=0.05, bend=0.01)
        >>> round(found.low, 2), round(found.high, 2), found.probability
        (2.41, 5.23, 0.8)
    """
    limit = curvature_limit(dimension, m, delta)
    if check_positive("bend", bend, zero=True) > limit * (1 + 1e-9):
        refuse("bend", bend, f"at most {limit:.4g}, the curvature condition of Theorem 2")
    low, high = _square_root_bounds(dimension, m, delta)
    scaled = bend * C / limit
    return Interval((1 - C1 * scaled) * low, (1 + C2 * scaled) * high, _probability(4 * delta))


def corollary1_bounds(dimension: int, m: int, delta: float, classes: int) -> Interval:
    """Corollary 1: ||r_S|| / ||r*|| of a classifier whose near boundaries are almost flat.

    The bounds are 0.875 sqrt(zeta_1 d / m) and 1.45 sqrt(zeta_2 d / m), with probability
    1 - 4 (L + 2) delta, if Equation 5.9 holds for every class that :func:`corollary1_excluded`
    keeps (Equation 5.12).

    Args:
        dimension: d.
        m: 1 <= m <= d.
        delta: in (0, 1).
        classes: L >= 2.

    References:
        Thesis, Section 5.5.2, Corollary 1; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import corollary1_bounds
        >>> found = corollary1_bounds(dimension=784, m=100, delta=0.001, classes=10)
        >>> round(found.low, 2), round(found.high, 2), round(found.probability, 3)
        (1.9, 5.79, 0.952)
    """
    low, high = _square_root_bounds(dimension, m, delta)
    probability = _probability(4 * (check_count("classes", classes, minimum=2) + 2) * delta)
    return Interval(COROLLARY[0] * low, COROLLARY[1] * high, probability)


def corollary1_excluded(
    distances: Float[Tensor, "*batch rivals"], dimension: int, m: int, delta: float
) -> Bool[Tensor, "*batch rivals"]:
    """The set A of classes that are too far away to matter (Equation 5.11).

    These are the classes with ||r_k|| >= 1.45 sqrt(zeta_2 d / m) ||r*||.

    Args:
        distances: (..., L - 1) the ||r_k||, of which the smallest is ||r*||.
        dimension: d.
        m: dimension of the subspace.
        delta: in (0, 1).

    Returns:
        (..., L - 1).

    References:
        Thesis, Section 5.5.2, Equation 5.11; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import corollary1_excluded
        >>> import torch
        >>> corollary1_excluded(torch.tensor([1.0, 5.0, 9.0]), dimension=784, m=100, delta=0.05)
        tensor([False, False,  True])
    """
    _, high = _square_root_bounds(dimension, m, delta)
    return distances >= COROLLARY[1] * high * distances.amin(dim=-1, keepdim=True)


def lemma4_bounds(bend: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """Lemma 4: how far the distance to an arc departs from the distance to its tangent.

    Along a line tilted by theta,
    -0.625 kappa r tan(theta)^2 <= ||x_gamma - x|| / ||u|| - 1 <= 2.25 kappa r tan(theta)^2, where
    ||u|| = r / cos(theta); the upper bound needs tan(theta)^2 <= 0.2 / (kappa r).

    Args:
        bend: kappa r < 1, any shape.
        tangent: tan(theta), of a shape that broadcasts with it.

    Returns:
        The bounds; the upper one is infinite where its condition fails.

    References:
        Thesis, Appendix A.2, Lemma 4; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import lemma4_bounds
        >>> import torch
        >>> lemma4_bounds(torch.tensor([0.1]), torch.tensor([1.0]))
        (tensor([-0.0625]), tensor([0.2250]))
    """
    slant = bend * tangent.square()
    return -C1 * slant, torch.where(slant <= C, C2 * slant, torch.inf)


def lemma7_gap(x: Tensor) -> Tensor:
    """The gap sqrt(1 - x) - (1 - x / 2 - x^2 / 4) of Lemma 7.

    The lemma says that it is not negative on [0, 2 (sqrt(2) - 1)].

    Args:
        x: any shape, at most 1.

    References:
        Thesis, Appendix A, Lemma 7; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import lemma7_gap
        >>> import torch
        >>> lemma7_gap(torch.tensor([0.0, 0.75]))
        tensor([0.0000, 0.0156])
    """
    return (1 - x).sqrt() - (1 - x / 2 - x.square() / 4)


def lemma8_gap(x: Tensor) -> Tensor:
    """The gap sqrt(1 + x) - (1 + x / 2 - x^2 / 8) of Lemma 8.

    The lemma says that it is not negative for x >= 0.

    Args:
        x: any shape, at least -1.

    References:
        Thesis, Appendix A, Lemma 8; Fawzi et al. (2016), arXiv:1608.08967.

    Example:
        >>> from robustness_geometry.geometry import lemma8_gap
        >>> import torch
        >>> lemma8_gap(torch.tensor([0.0, 3.0]))
        tensor([0.0000, 0.6250])
    """
    return (1 + x).sqrt() - (1 + x / 2 - x.square() / 8)


def _square_root_bounds(dimension: int, m: int, delta: float) -> tuple[float, float]:
    """sqrt(zeta_1 d / m) and sqrt(zeta_2 d / m)."""
    _check_subspace(dimension, m)
    share = dimension / m
    return math.sqrt(zeta_1(m, delta) * share), math.sqrt(zeta_2(m, delta) * share)


def _probability(missed: float) -> float:
    return max(0.0, 1 - missed)


def checked_share(m: int, delta: float) -> float:
    """Return ``delta``, after a check that it is in (0, 1) and that m is at least 1."""
    check_count("m", m)
    if not 0 < delta < 1:
        refuse("delta", delta, "a number in (0, 1)")
    return delta


def _check_subspace(dimension: int, m: int) -> None:
    if not 1 <= m <= dimension:
        refuse("m", m, f"a whole number from 1 to d = {dimension}")
