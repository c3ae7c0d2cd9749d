"""Closed forms on spherical boundaries, and the curvature by inscribed balls (Section 5.5.1 and Appendix A.2)."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import check_count, check_positive

__all__ = ["inscribed_radius", "sphere_step"]

MARGIN = 1e-4
"""By how much the sampled sphere is smaller than the ball, which is open and touches the boundary."""

GROWTH, SMALLEST = 1.02, 1e-4
"""Factor from one ball to the next, and the smallest of them as a share of the largest."""

HALVINGS = 20
"""Bisection steps between two balls: far finer than the sampled directions resolve."""


def sphere_step(offset: Tensor, cosine: Tensor, radius: Tensor | float) -> Tensor:
    """How far it is to a sphere from a point, along the best direction of a subspace.

    A point at ``offset`` = a from the centre, whose nearest boundary point lies in direction n, and
    a subspace S with c = ||P_S n||: inside (a < R) the distance is -a c + sqrt(R^2 - a^2 (1 -
    c^2)), outside a c - sqrt(R^2 - a^2 (1 - c^2)). With c = cos(theta) it is the distance to an arc
    along a line tilted by theta (Lemma 4).

    Args:
        offset: a >= 0, any shape.
        cosine: c in [0, 1], of a shape that broadcasts with it.
        radius: R > 0.

    Returns:
        The distances, infinite where the subspace does not meet the sphere.
    """
    root = (
        radius**2 - offset.square() * (1 - cosine.square())
    ).sqrt()  # NaN where no line of S meets the sphere
    # The difference of root and a c, without the cancellation that a large sphere would bring.
    step = (radius - offset).abs() * (radius + offset) / (root + offset * cosine)
    return step.nan_to_num(nan=math.inf)


def inscribed_radius(
    inside: Callable[[Tensor], Tensor],
    point: Float[Tensor, " d"],
    normal: Float[Tensor, " d"],
    *,
    largest: float,
    directions: int = 4096,
) -> float:
    """q(p) of Equation 5.7: the radius of the largest ball in a region that touches its boundary at p, by sampling.

    Balls that touch the boundary at p have their centres on the normal and lie inside one another,
    so that what keeps
    a ball from growing shows first on its surface: balls are grown until a sampled point of the
    surface is outside.

    Args:
        inside: maps points (n, d) to (n,) whether they lie in the region.
        point: p, (d,), on the boundary.
        normal: (d,) unit normal that points into the region.
        largest: the radius returned where even that ball fits, such as at a plane.
        directions: sampled points of each surface.
    """
    check_positive("largest", largest)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(
        check_count("directions", directions), len(point), generator=generator, dtype=point.dtype
    )
    # The direction away from p shows first where a ball is too large; random ones rarely come close
    # to it.
    unit = torch.cat([normal[None], drawn / drawn.norm(dim=1, keepdim=True)])

    def fits(radius: float) -> bool:
        surface = point + radius * normal + (1 - MARGIN) * radius * unit
        return bool(inside(surface).all())

    low, high = 0.0, SMALLEST * largest
    while high < largest and fits(high):
        low, high = high, min(GROWTH * high, largest)
    if high == largest and fits(largest):
        return largest
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
