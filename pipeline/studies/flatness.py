"""How much a decision boundary bends at points of it (Section 5.6), and without any structure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustness_geometry.geometry import (
    boundary_heights,
    extreme_curvatures,
    normal_curvatures,
    planar_curvature,
    random_directions,
)
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Images, Labels, Mask

__all__ = [
    "FLAT",
    "drawn_mean",
    "flat_share",
    "flatness",
    "shuffled_top",
    "structureless_flat",
    "structureless_top",
]

POINTS = 9
"""Offsets at which the curve of the boundary in a section is measured."""

REACH = 8.0
"""The largest height at which that curve is searched, in half widths of the section."""


FLAT = 0.05
"""A curvature of at most this share of the largest one counts as near zero, as in the claims."""

MEDIAN_SIZE = 0.6744897501960817
"""The median of |x| for a standard normal x."""


def flat_share(profiles: Tensor) -> Tensor:
    """(...,) the share of curvatures (..., K) whose size is at most 5% of the largest size."""
    sizes = profiles.abs()
    return (sizes <= FLAT * sizes.amax(dim=-1, keepdim=True)).double().mean(dim=-1)


def structureless_flat(share: float) -> float:
    """The share of a structureless Hessian's curvatures of at most ``share`` of the largest size.

    Structureless is a symmetric matrix of independent Gaussian entries, the same in every basis:
    the null hypothesis beside which a spectrum looks flat. Its eigenvalues follow the semicircle
    law.

    Args:
        share: in [0, 1].

    Example:
        >>> from pipeline.studies.flatness import structureless_flat
        >>> round(structureless_flat(0.05), 4), structureless_flat(1.0)
        (0.0636, 1.0)
    """
    return 2 / math.pi * (share * math.sqrt(1 - share * share) + math.asin(share))


def structureless_top(dimension: int) -> float:
    """The largest size of a structureless Hessian's curvatures over the median size along random v.

    Args:
        dimension: d - 1, that of the tangent space.

    Example:
        >>> from pipeline.studies.flatness import structureless_top
        >>> round(structureless_top(783), 1)
        58.7
    """
    # Entries of variance 1 on the diagonal and 1/2 beside it: v'Hv is standard normal, and the
    # largest eigenvalue goes to sqrt(2 (d - 1)).
    return math.sqrt(2 * dimension) / MEDIAN_SIZE


def drawn_mean(curvatures: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """The mean of v'Gv over random unit v, and its standard error, for matrices of known spectrum.

    v is uniform on the sphere in the eigenvectors' coordinates too, among which the normal has the
    eigenvalue 0.

    Args:
        curvatures: (n, d - 1) the eigenvalues of G but for that of the normal.
        draws: number T of random v.
        seed: training seed, which names the stream of random numbers.
    """
    values = _drawn(curvatures, draws, seed)
    return values.mean(dim=1), values.std(dim=1) / math.sqrt(draws)


def shuffled_top(curvatures: Tensor, draws: int, seed: int) -> Tensor:
    """(n,) the largest size of each spectrum over the median size along random tangent vectors.

    The eigenvectors are turned at random, as random vectors are: so would the ratio be if the
    Hessian were a matrix of this spectrum. Arguments as for :func:`drawn_mean`.
    """
    sizes = _drawn(curvatures, draws, seed, tangent=True).abs()
    return curvatures.abs().amax(dim=1) / sizes.quantile(0.5, dim=1)


def _drawn(curvatures: Tensor, draws: int, seed: int, *, tangent: bool = False) -> Tensor:
    """(n, draws) v'Gv of random unit v, of the whole space or of the tangent space."""
    generator = seeded("equation 7.4", seed)
    drawn = []
    for row in curvatures:
        squares = torch.randn(
            draws, len(row) + 1, generator=generator, dtype=torch.float64
        ).square()
        along = squares[:, 1:]  # the first coordinate is the normal's
        drawn.append(along @ row / (along if tangent else squares).sum(dim=1))
    return torch.stack(drawn)


@dataclass(frozen=True)
class _Places:
    """Points of the boundary, with ||r||, the normals and the classes on both sides."""

    points: Images
    lengths: Tensor
    normals: Images
    labels: Labels
    targets: Labels


def flatness(
    widths: Sequence[float],
    h: float | None,
    steps: int,
    model: Classifier,
    points: Images,
    perturbations: Images,
    normals: Images,
    labels: Labels,
    targets: Labels,
    success: Mask,
    *,
    generator: list[torch.Generator],
) -> dict[str, Tensor]:
    """How the boundary bends at points of it, along a random direction and the most curved one.

    Args:
        widths: half widths of the sections, in units of ||r||.
        h: step of the differences of gradients, in pixel units; None: the default.
        steps: dimension of the Krylov space in which the most curved direction is searched.
        model: the classifier.
        points: z = x + r, (N, C, H, W), NaN where there is none.
        perturbations: r, (N, C, H, W).
        normals: (N, C, H, W).
        labels: (N,) the classes before the boundary.
        targets: (N,) the classes behind it.
        success: (N,) whether there is a point.
        generator: one generator per image; draws the random tangent direction.

    Returns:
        ``success`` (N,); ``random``, the random tangent direction, (N, C, H, W); ``planar`` (N,
        widths), the curvature of the section along it; ``along`` (N,), the curvature in the same
        direction by differences of gradients; ``top`` (N,), the principal curvature of largest
        size, and its direction ``top direction``. NaN where there is none.
    """
    rows = success.nonzero()[:, 0]
    nowhere = points.new_full((len(points),), torch.nan)
    found = {
        "success": success,
        "random": torch.full_like(points, torch.nan),
        "planar": points.new_full((len(points), len(widths)), torch.nan),
        "along": nowhere,
        "top": nowhere.clone(),
        "top direction": torch.full_like(points, torch.nan),
    }
    if not len(rows):
        return found
    near = _Places(
        points[rows], norms(perturbations[rows]), normals[rows], labels[rows], targets[rows]
    )
    draws = [generator[row] for row in rows.tolist()]
    tangents = random_directions(near.points, draws, normals=near.normals)
    options: dict[str, Any] = {"labels": near.labels, "targets": near.targets, "h": h}
    found["random"][rows] = tangents
    found["planar"][rows] = _planar(model, near, tangents, widths)
    found["along"][rows] = normal_curvatures(model, near.points, tangents[:, None], **options)[:, 0]
    top = extreme_curvatures(model, near.points, steps=steps, generator=draws, **options).by_size(1)
    found["top"][rows] = top.values[:, 0].to(points)
    found["top direction"][rows] = top.vectors[:, 0].view_as(tangents).to(points)
    return found


def _planar(model: Classifier, near: _Places, tangents: Images, widths: Sequence[float]) -> Tensor:
    """The curvatures of the sections along ``tangents``, (n, widths).

    In the plane of the normal and a tangent the boundary is a curve of heights over offsets from
    the point; a parabola is fitted through it over each width.
    """
    curvatures = []
    for width in widths:
        offsets = width * near.lengths[:, None] * torch.linspace(-1, 1, POINTS).to(near.lengths)
        heights = boundary_heights(
            model,
            near.points,
            near.normals,
            tangents,
            offsets,
            labels=near.labels,
            targets=near.targets,
            reach=REACH * width * near.lengths,
        )
        known = heights.isfinite().all(dim=1)
        curvatures.append(planar_curvature(heights, offsets).masked_fill(~known, torch.nan))
    return torch.stack(curvatures, dim=1)
