"""Bounds on the smallest perturbation that lifts a quadratic loss to a threshold (Theorem 5, Section 8.3)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import refuse

__all__ = ["LossBounds", "quadratic_robustness", "theorem5_bounds"]

BISECTIONS = 200
"""Halvings of the multiplier's interval: more than float64 can tell apart."""

Values = Float[Tensor, "*batch"]


class LossBounds(NamedTuple):
    """Brackets of ||r*||_2, each of the shape of the inputs.

    Attributes:
        lower: Equation 8.2.
        upper: Equation 8.3.
        simple_lower: Equation 8.4, linear in the curvature; can be negative.
        simple_upper: Equation 8.4; infinite where the gradient is orthogonal to the eigenvector.
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

    (||g|| / nu) (sqrt(1 + 2 nu c / ||g||^2) - 1) <= ||r*|| <= (|g.u| / nu) (sqrt(1 + 2 nu c /
    (g.u)^2) - 1),

    here as 2 c / (a + sqrt(a^2 + 2 nu c)) with a = ||g|| or |g.u|, which has the limits nu -> 0 (c
    / a) and a -> 0 (sqrt(2 c / nu)). Where gradient and curvature both vanish, c > 0 is out of
    reach and the bound infinite.

    Args:
        gradient_norm: ||g||_2, in units of the loss by pixel units.
        alignment: g.u, of either sign, |g.u| <= ||g||.
        curvature: nu >= 0.
        gap: c >= 0.

    Returns:
        The bounds, in pixel units.

    Raises:
        InputError: a negative norm, curvature or gap.
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
    which the constraint holds with equality; where it does not hold even at 1 / nu, because g has
    no part along the top eigenvectors, the rest of the way is along one of them (the hard case).

    Args:
        gradients: the components of g along the eigenvectors.
        eigenvalues: of H, in any order; the largest must be above 0.
        gaps: c >= 0.

    Returns:
        Norms in float64, found by bisection.

    Raises:
        InputError: a largest eigenvalue that is not above 0, or a negative gap.
    """
    slopes, values, wanted = gradients.double(), eigenvalues.double(), gaps.double()
    top = values.amax(dim=1, keepdim=True)
    if not bool((top > 0).all()):
        refuse("eigenvalues", float(top.min()), "a largest eigenvalue above 0")
    if not bool((wanted >= 0).all()):
        refuse("gaps", float(wanted.min()), "numbers >= 0")
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)  # of mu * nu
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        short = _rise(_point(slopes, values, top, middle), slopes, values) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    point = _point(slopes, values, top, low)
    missing = (wanted - _rise(point, slopes, values)).clamp_min(0)
    # Along a top eigenvector e the loss still rises by nu t^2 / 2 + (g.e + nu r.e) t, and g.e = r.e
    # = 0 there.
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
