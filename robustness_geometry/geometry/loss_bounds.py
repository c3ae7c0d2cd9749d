"""Bounds on the smallest perturbation that lifts a quadratic loss to a threshold.

Theorem 5 of Section 8.3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import refuse

__all__ = ["LossBounds", "quadratic_robustness", "theorem5_bounds"]

BISECTIONS = 200
"""Halvings of the multiplier's interval: enough for the resolution of float64."""

Values = Float[Tensor, "*batch"]


class LossBounds(NamedTuple):
    """Brackets of ||r*||_2, each of the shape of the inputs.

    Attributes:
        lower: Equation 8.2.
        upper: Equation 8.3.
        simple_lower: Equation 8.4, linear in the curvature; can be negative.
        simple_upper: Equation 8.4; infinite where the gradient is orthogonal to the eigenvector.

    See :func:`theorem5_bounds`, which returns it, for an example.
    """

    lower: Tensor
    upper: Tensor
    simple_lower: Tensor
    simple_upper: Tensor


def theorem5_bounds(
    gradient_norm: Values, alignment: Values, curvature: Values, gap: Values
) -> LossBounds:
    """Bounds on r* = argmin ||r||_2 subject to l(x) + g.r + r.H r / 2 >= t (Theorem 5).

    With nu = lambda_max(H) >= 0, its eigenvector u and c = t - l(x) >= 0,

    (||g|| / nu) (sqrt(1 + 2 nu c / ||g||^2) - 1)
    <= ||r*|| <= (|g.u| / nu) (sqrt(1 + 2 nu c / (g.u)^2) - 1).

    Both are computed as 2 c / (a + sqrt(a^2 + 2 nu c)) with a = ||g|| or |g.u|, which has the
    limits c / a for nu -> 0 and sqrt(2 c / nu) for a -> 0. Where gradient and curvature both
    vanish, c > 0 is out of reach and the bound is infinite.

    Args:
        gradient_norm: ||g||_2, in units of the loss per pixel unit.
        alignment: g.u, of either sign, |g.u| <= ||g||.
        curvature: nu >= 0.
        gap: c >= 0.

    Returns:
        The bounds, in pixel units.

    Raises:
        InputError: a negative norm, curvature or gap.

    References:
        Thesis, Section 8.3, Theorem 5, Equations 8.2 to 8.4.
        S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato and P. Frossard, "Robustness via curvature
        regularization, and vice versa", CVPR 2019, arXiv:1811.09716.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import theorem5_bounds
        >>> one = torch.tensor([1.0])
        >>> found = theorem5_bounds(one, alignment=0.5 * one, curvature=2 * one, gap=one)
        >>> round(found.lower.item(), 4), round(found.upper.item(), 4)
        (0.618, 0.7808)
    """
    for key, values in (("gradient_norm", gradient_norm), ("curvature", curvature), ("gap", gap)):
        if not bool((values >= 0).all()):
            refuse(key, float(values.min()), "numbers >= 0")
    along = alignment.abs()
    linear = gap / gradient_norm
    simple = torch.where(
        curvature > 0, linear * (1 - 2 * curvature * gap / gradient_norm**2), linear
    )
    return LossBounds(
        _root(gradient_norm, curvature, gap),
        _root(along, curvature, gap),
        torch.where(gap > 0, simple, 0.0),
        torch.where(gap > 0, gap / along, 0.0),
    )


def _root(slope: Values, curvature: Values, gap: Values) -> Values:
    """The positive root of slope * r + curvature * r^2 / 2 = gap; infinite where there is none."""
    return torch.where(gap > 0, 2 * gap / (slope + (slope**2 + 2 * curvature * gap).sqrt()), 0.0)


def quadratic_robustness(
    gradients: Float[Tensor, "batch d"],
    eigenvalues: Float[Tensor, "batch d"],
    gaps: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """||r*||_2 of Theorem 5's problem by its secular equation, in the eigenbasis of H.

    The solution is r_i(mu) = mu g_i / (1 - mu lambda_i) for the multiplier 0 < mu <= 1 / nu at
    which the constraint holds with equality. In the hard case g has no part along the top
    eigenvectors and the constraint does not hold even at 1 / nu: r then gets a part along one of
    these eigenvectors.

    Args:
        gradients: (N, d) the components of g along the eigenvectors.
        eigenvalues: (N, d) eigenvalues of H, in any order; the largest must be above 0.
        gaps: (N,) c >= 0.

    Returns:
        (N,) norms in float64, found by bisection.

    Raises:
        InputError: a largest eigenvalue that is not above 0, or a negative gap.

    References:
        Thesis, Section 8.3, states the problem; for its solution see J. J. More and D. C. Sorensen,
        "Computing a trust region step", SIAM Journal on Scientific and Statistical Computing, 1983.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import quadratic_robustness
        >>> gradients, eigenvalues = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> round(quadratic_robustness(gradients, eigenvalues, torch.tensor([1.0])).item(), 4)
        0.618
    """
    slopes, values, wanted = gradients.double(), eigenvalues.double(), gaps.double()
    top = values.amax(dim=1, keepdim=True)
    if not bool((top > 0).all()):
        refuse("the largest of eigenvalues", float(top.min()), "above 0")
    if not bool((wanted >= 0).all()):
        refuse("gaps", float(wanted.min()), "numbers >= 0")
    # Bisect mu nu in [0, 1]: the loss at r(mu) rises with mu.
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        short = _rise(_point(slopes, values, top, middle), slopes, values) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    point = _point(slopes, values, top, low)
    missing = (wanted - _rise(point, slopes, values)).clamp_min(0)
    # The hard case: along a top eigenvector e the loss still rises by
    # nu t^2 / 2 + (g.e + nu r.e) t, and there g.e = r.e = 0.
    return torch.where(
        high < 1, point.norm(dim=1), (point.square().sum(dim=1) + 2 * missing / top[:, 0]).sqrt()
    )


def _point(slopes: Tensor, values: Tensor, top: Tensor, share: Tensor) -> Tensor:
    """r(mu) at mu = share / nu."""
    steps = share[:, None] / top
    below = (1 - steps * values).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(slopes == 0, 0.0, steps * slopes / below)


def _rise(point: Tensor, slopes: Tensor, values: Tensor) -> Tensor:
    """By how much the quadratic loss rises at ``point``."""
    return (slopes * point + values * point.square() / 2).sum(dim=1)
