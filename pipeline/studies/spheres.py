"""The lemmas behind Theorem 2 on grids, and curvature by inscribed balls (Appendix A.2)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustness_geometry.geometry import (
    inscribed_radius,
    lemma4_bounds,
    lemma7_gap,
    lemma8_gap,
    sphere_step,
)

__all__ = ["curvature_error", "departure", "lemma_slacks"]

RADIUS = 2.0
"""Radius of the spheres whose curvature is measured by inscribed balls."""


def lemma_slacks(points: int) -> dict[str, tuple[float, int]]:
    """The smallest slack of Lemmas 4, 7 and 8 on grids.

    Where a lemma holds with equality, rounding leaves about 1e-13.

    Args:
        points: number of points along each side of the grids.

    Returns:
        Name -> the slack, negative where the lemma fails, and the number of cases.
    """
    bend = torch.logspace(-4, math.log10(0.999), points, dtype=torch.float64)[:, None]
    tangent = torch.logspace(-3, 3, points, dtype=torch.float64)
    below, above = [], []
    for outside in (True, False):
        values = departure(bend, tangent, outside=outside)
        low, high = lemma4_bounds(bend, tangent)
        below.append((values - low)[values.isfinite()].min())
        above.append((high - values)[values.isfinite()].min())
    x7 = torch.linspace(0, 2 * (math.sqrt(2) - 1), points**2, dtype=torch.float64)
    x8 = torch.logspace(-6, 6, points**2, dtype=torch.float64)
    return {
        "lemma4_lower_slack": (float(min(below)), 2 * points**2),
        "lemma4_upper_slack": (float(min(above)), 2 * points**2),
        "lemma7_slack": (float(lemma7_gap(x7).min()), points**2),
        "lemma8_slack": (float(lemma8_gap(x8).min()), points**2),
    }


def departure(bend: Tensor, tangent: Tensor, *, outside: bool) -> Tensor:
    """||x_gamma - x|| / ||u|| - 1 at an arc at distance 1, which Lemma 4 bounds.

    Args:
        bend: curvature of the arc.
        tangent: tangent of the angle between the line to the arc and the shortest way to it.
        outside: whether the ball lies beyond the arc.
    """
    cosine, radius = 1 / (1 + tangent.square()).sqrt(), 1 / bend
    return sphere_step(radius + 1 if outside else radius - 1, cosine, radius) * cosine - 1


def curvature_error() -> float:
    """The largest relative error of the curvature 1 / q by inscribed balls.

    The boundaries are a plane, a sphere from both sides, and two spheres far apart. A plane and the
    outside of a sphere hold any ball: there the error is that of the largest radius tried.
    """
    point = torch.zeros(3, dtype=torch.float64)
    axis = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    largest = 50 * RADIUS

    def balls(*centres: float) -> Callable[[Tensor], Tensor]:
        """The union of balls around ``centres``, which are given in radii along the axis."""
        return lambda x: torch.stack(
            [(x - c * RADIUS * axis).norm(dim=1) < RADIUS for c in centres]
        ).any(dim=0)

    def both(region: Callable[[Tensor], Tensor]) -> float:
        """min(q_i, q_j) of Section 5.5.1 at the point, which lies on the boundary of ``region``."""
        ahead = inscribed_radius(region, point, axis, largest=largest)
        return min(ahead, inscribed_radius(lambda x: ~region(x), point, -axis, largest=largest))

    plane = inscribed_radius(lambda x: x[:, 0] > 0, point, axis, largest=largest)
    radii = {
        "plane": (plane, largest),
        "sphere": (both(balls(1)), RADIUS),
        "spheres": (both(balls(1, -9)), RADIUS),
    }
    return max(abs(radius - wanted) / wanted for radius, wanted in radii.values())
