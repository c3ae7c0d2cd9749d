"""Spherical boundaries in closed form, and curvature by inscribed balls.

Section 5.5.1 and Appendix A.2.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustness_geometry.attacks.protocol import Number
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.types import Images, Logits

__all__ = ["Ball", "inscribed_radius", "sphere_step"]

MARGIN = 1e-4
"""By how much the sampled sphere is smaller than the ball, which touches the boundary."""

GROWTH, SMALLEST = 1.02, 1e-4
"""Factor from one ball to the next, and the smallest of them as a share of the largest."""

HALVINGS = 20
"""Bisection steps between two balls: far finer than the sampled directions resolve."""


class Ball(nn.Module):
    """A classifier whose class 0 is a ball around the origin: one logit, ||x||^2 - R^2.

    All curvatures of its boundary are 1 / R, which makes it the example of this package.

    Args:
        radius: R > 0, in pixel units.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball
        >>> Ball(radius=2.0)(torch.ones(1, 1, 1, 2))
        tensor([[-2.]])
    """

    def __init__(self, radius: Number) -> None:
        super().__init__()
        self.radius = check_positive("radius", radius)
        self.eval()

    def forward(self, images: Images) -> Logits:
        """The logit (N, 1) of images (N, C, H, W), negative inside the ball."""
        return images.flatten(1).square().sum(dim=1, keepdim=True) - self.radius**2


def sphere_step(offset: Tensor, cosine: Tensor, radius: Tensor | float) -> Tensor:
    """The distance from a point to a sphere within a subspace.

    The point lies at ``offset`` = a from the centre, n is the direction of its nearest boundary
    point, and c = ||P_S n|| for the subspace S. Inside (a < R) the distance is
    -a c + sqrt(R^2 - a^2 (1 - c^2)), outside a c - sqrt(R^2 - a^2 (1 - c^2)). With c = cos(theta)
    it is the distance to an arc along a line tilted by theta (Lemma 4).

    Args:
        offset: a >= 0, any shape.
        cosine: c in [0, 1], of a shape that broadcasts with it.
        radius: R > 0.

    Returns:
        The distances, infinite where the subspace does not meet the sphere.

    References:
        Thesis, Appendix A.2, Lemma 4, for an arc; the rest follows from Pythagoras' theorem.
        A. Fawzi, S.-M. Moosavi-Dezfooli and P. Frossard, "Robustness of classifiers: from
        adversarial to random noise", NIPS 2016, arXiv:1608.08967.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import sphere_step
        >>> sphere_step(torch.tensor([0.5, 5.0]), torch.tensor([1.0, 1.0]), 2.0)
        tensor([1.5000, 3.0000])
    """
    # NaN where no line of S meets the sphere.
    root = (radius**2 - offset.square() * (1 - cosine.square())).sqrt()
    # (R^2 - a^2) / (root + a c) is the difference of root and a c, without their cancellation for
    # a large sphere.
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
    """The radius q(p) of the largest ball in a region that touches its boundary at p, by sampling.

    All balls that touch the boundary at p have their centres on the normal and lie inside one
    another, so that an obstacle shows first on the surface of a growing ball: balls grow until a
    sampled point of the surface is outside.

    Args:
        inside: maps points (n, d) to whether they lie in the region, (n,).
        point: p, (d,), on the boundary.
        normal: (d,) unit normal that points into the region.
        largest: the radius to return where even that ball fits, such as at a plane.
        directions: number of sampled points per surface.

    References:
        Thesis, Section 5.5.1, Equation 5.7, whose inverse is the curvature of Theorem 2.
        A. Fawzi, S.-M. Moosavi-Dezfooli and P. Frossard, "Robustness of classifiers: from
        adversarial to random noise", NIPS 2016, arXiv:1608.08967.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import inscribed_radius
        >>> disc = lambda points: points.norm(dim=1) < 2
        >>> point = torch.tensor([2.0, 0.0], dtype=torch.float64)
        >>> round(inscribed_radius(disc, point, -point / 2, largest=10.0), 2)
        2.0
    """
    check_positive("largest", largest)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(
        check_count("directions", directions), len(point), generator=generator, dtype=point.dtype
    )
    # The point opposite p is the first to leave the region of a ball that is too large, and random
    # points rarely come close to it.
    unit = torch.cat([normal[None], drawn / drawn.norm(dim=1, keepdim=True)])

    def fits(radius: float) -> bool:
        surface = point + radius * normal + (1 - MARGIN) * radius * unit
        return bool(inside(surface).all())

    # Bracket the radius by balls that grow geometrically, then bisect.
    low, high = 0.0, SMALLEST * largest
    while high < largest and fits(high):
        low, high = high, min(GROWTH * high, largest)
    if high == largest and fits(largest):
        return largest
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
