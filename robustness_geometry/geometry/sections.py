"""Plane sections of the decision regions, and the curves in which boundaries cut them.

Sections 5.6, 5.7 and 7.3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustness_geometry.attacks.crossings import crossings
from robustness_geometry.attacks.protocol import check_input, per_image
from robustness_geometry.checks import Described, GivenLabels, check_count, refuse
from robustness_geometry.geometry.forward import check_given, leads, rows_at_once
from robustness_geometry.norms import norms
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Classifier, Images, Labels, PerImage, class_logits

__all__ = [
    "Section",
    "Stitched",
    "boundary_heights",
    "planar_curvature",
    "plane_sections",
    "stitched_section",
]

BRACKET = 8
"""Doublings of the height in the search for a boundary, up to the largest height."""

SEARCH = 40
"""Largest number of evaluations in the search between two heights; about eight are usual."""


@dataclass(frozen=True)
class Section:
    """Labels and leads on a grid of a plane through each of N points.

    Attributes:
        labels: (N, Y, X) the predicted labels, -1 where the logits are not finite.
        leads: (N, Y, X) f_label - max_k f_k for the label of the point: positive inside its region.

    See :func:`plane_sections`, which returns it, for an example.
    """

    labels: Int[Tensor, "batch y x"]
    leads: Float[Tensor, "batch y x"]


@dataclass(frozen=True)
class Stitched:
    """Sections along the segments of a path, side by side.

    Attributes:
        labels: (Y, X) the predicted labels.
        leads: (Y, X) as in :class:`Section`.
        x: (X,) lengths along the path, in pixel units.
        y: (Y,) heights above it.
        breaks: (n + 2,) the length along the path at each anchor.

    See :func:`stitched_section`, which returns it, for an example.
    """

    labels: Int[Tensor, "y x"]
    leads: Float[Tensor, "y x"]
    x: Float[Tensor, " x"]
    y: Float[Tensor, " y"]
    breaks: Float[Tensor, " anchors"]


def plane_sections(
    model: Classifier,
    origins: Images,
    across: Images,
    upward: Images,
    x: Float[Tensor, " x"],
    y: Float[Tensor, " y"],
    *,
    labels: GivenLabels = None,
) -> Section:
    """The decision regions in the planes origin + x across + y upward.

    Args:
        model: a classifier in evaluation mode.
        origins: (N, C, H, W).
        across: (N, C, H, W), the planes' first axes, of any length.
        upward: (N, C, H, W), their second axes.
        x: (X,) coordinates along the first axis, in its units.
        y: (Y,) coordinates along the second axis.
        labels: (N,) the labels whose lead is wanted; None: those predicted at the origins.

    Returns:
        Section.

    References:
        Thesis, Sections 5.6 and 5.7 (normal sections) and Figure 7.2.
        A. Fawzi, S.-M. Moosavi-Dezfooli and P. Frossard, "Robustness of classifiers: from
        adversarial to random noise", NIPS 2016, arXiv:1608.08967.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, plane_sections
        >>> origin, axes = torch.zeros(1, 1, 1, 2), torch.eye(2).view(2, 1, 1, 1, 2)
        >>> ends = torch.tensor([0.0, 1.5])
        >>> plane_sections(Ball(radius=2.0), origin, axes[0], axes[1], x=ends, y=ends).labels
        tensor([[[0, 0],
                 [0, 1]]])
    """
    model, origins, labels, _ = check_input(model, origins, labels=labels, key="origins")
    own = _predicted(model, origins) if labels is None else labels
    check_given(model, origins, labels=labels)
    rows, columns = y.to(origins), x.to(origins)
    size = len(rows) * len(columns)

    def points(part: Tensor) -> tuple[Tensor, Tensor]:
        # Point number part of all images: row place // X and column place % X of its image.
        image, place = part // size, part % size
        row, column = (
            per_image(rows[place // len(columns)], origins),
            per_image(columns[place % len(columns)], origins),
        )
        return origins[image] + column * across[image] + row * upward[image], own[image]

    lead, label = _look(model, points, size * len(origins), origins)
    shape = (len(origins), len(rows), len(columns))
    return Section(label.view(shape), lead.view(shape))


def stitched_section(
    model: Classifier,
    anchors: Float[Tensor, "points ..."],
    upward: Float[Tensor, "..."],
    y: Float[Tensor, " y"],
    *,
    columns: int = 300,
) -> Stitched:
    """The plane sections along a path, side by side (Figure 7.2, right).

    The plane of each segment is spanned by the segment and ``upward``, which is made orthogonal to
    the segment and of unit length.

    Args:
        model: a classifier in evaluation mode.
        anchors: (n + 2, C, H, W), n >= 0.
        upward: (C, H, W), such as the smallest perturbation of the first anchor.
        y: (Y,) heights, in pixel units.
        columns: number of columns of all sections together, shared out by the segments' lengths;
            each segment gets at least two.

    Returns:
        Stitched; leads are those of the first anchor's label.

    Raises:
        InputError: fewer than two anchors, a segment of length zero or parallel to ``upward``.

    References:
        Thesis, Section 7.3, Figure 7.2.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, stitched_section
        >>> anchors = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]).view(3, 1, 1, 2)
        >>> upward, heights = torch.tensor([1.0, 1.0]).view(1, 1, 2), torch.tensor([0.0, 9.0])
        >>> found = stitched_section(Ball(radius=2.0), anchors, upward, heights, columns=6)
        >>> found.labels, found.breaks
        (tensor([[0, 0, 0, 0, 0, 0],
                [1, 1, 1, 1, 1, 1]]), tensor([0., 2., 3.]))
    """
    check_count("len(anchors)", len(anchors), minimum=2)
    model, anchors, *_ = check_input(model, anchors, key="anchors")
    steps = anchors[1:] - anchors[:-1]
    lengths = norms(steps)
    if not bool((lengths > 0).all()):
        refuse("anchors", Described("two equal neighbours"), "different from point to point")
    axes = steps / per_image(lengths, steps)
    # The second axis of each segment: upward without its part along the segment.
    flat = upward.flatten().expand(len(axes), -1)
    across = axes.flatten(1)
    vertical = flat - (flat * across).sum(dim=1, keepdim=True) * across
    if not bool((norms(vertical) > 1e-6 * norms(flat)).all()):
        refuse(
            "upward",
            Described("a direction parallel to a segment"),
            "a direction that spans a plane with each segment",
        )
    vertical = (vertical / vertical.norm(dim=1, keepdim=True)).view_as(axes)
    own = _predicted(model, anchors[:1])
    breaks = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    # Columns lie in the middle of equal intervals of each segment.
    labels, found, x = [], [], []
    for index, length in enumerate(lengths):
        count = max(2, round(columns * float(length / breaks[-1])))
        along = (
            (torch.arange(count, dtype=lengths.dtype, device=lengths.device) + 0.5) / count * length
        )
        row = slice(index, index + 1)
        section = plane_sections(
            model, anchors[row], axes[row], vertical[row], along, y, labels=own
        )
        labels.append(section.labels[0])
        found.append(section.leads[0])
        x.append(breaks[index] + along)
    return Stitched(
        torch.cat(labels, dim=1), torch.cat(found, dim=1), torch.cat(x), y.to(lengths), breaks
    )


def boundary_heights(
    model: Classifier,
    origins: Images,
    normals: Images,
    tangents: Images,
    offsets: Float[Tensor, "batch offsets"],
    *,
    labels: GivenLabels,
    targets: GivenLabels,
    reach: PerImage,
) -> Float[Tensor, "batch offsets"]:
    """The curve in which the boundary of two classes cuts a normal section.

    It is given by heights over the tangent. For each offset s, the height t is the one of smallest
    size, up to doubling, at which F = f_target - f_label vanishes on origin + s tangent + t normal:
    heights are doubled until F changes its sign, then the crossing is searched for. Boundaries with
    other classes, and so the junctions where they meet, play no part.

    Args:
        model: a classifier in evaluation mode.
        origins: z, (N, C, H, W), on the boundary.
        normals: (N, C, H, W), unit vectors that point out of the region of the labels.
        tangents: (N, C, H, W), unit vectors orthogonal to the normals.
        offsets: (N, K) s, in pixel units.
        labels: (N,) the classes before the boundary.
        targets: (N,) the classes behind it.
        reach: (N,) the largest height to try.

    Returns:
        (N, K) in pixel units, NaN where F does not change its sign within the reach.

    References:
        Thesis, Section 5.7, and Section 7.4, Figure 7.5.
        A. Fawzi, S.-M. Moosavi-Dezfooli and P. Frossard, "Robustness of classifiers: from
        adversarial to random noise", NIPS 2016, arXiv:1608.08967.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_heights
        >>> origin = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
        >>> axes = torch.eye(2).view(2, 1, 1, 1, 2)
        >>> offsets = torch.tensor([[0.0, 1.2]])
        >>> pair = {"labels": torch.tensor([0]), "targets": torch.tensor([1])}
        >>> heights = boundary_heights(
        ...     Ball(radius=2.0), origin, axes[0], axes[1], offsets, **pair, reach=torch.ones(1)
        ... )
        >>> [round(value, 3) for value in heights[0].tolist()]
        [0.0, -0.4]
    """
    given = check_input(model, origins, labels=labels, targets=targets, key="origins")
    model, origins, labels, targets = cast(tuple[Classifier, Images, Labels, Labels], given)
    check_given(model, origins, labels=labels, targets=targets)
    images = torch.arange(len(origins), device=origins.device).repeat_interleave(offsets.shape[1])
    steps, farthest = offsets.flatten().to(origins), reach.to(origins)[images]

    def gaps(heights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        def points(part: Tensor) -> tuple[Tensor, Tensor]:
            image = images[rows[part]]
            across = per_image(steps[rows[part]], origins) * tangents[image]
            return origins[image] + across + per_image(heights[part], origins) * normals[
                image
            ], labels[image]

        return _gaps(model, points, labels[images[rows]], targets[images[rows]])

    # F on the tangent itself says on which side of it the boundary lies.
    level, _ = gaps(torch.zeros_like(steps), torch.arange(len(steps), device=steps.device))
    towards = torch.where(level < 0, 1.0, -1.0).to(steps)
    low, high, below, above = _bracket(gaps, level, towards, farthest)
    rows = high.isfinite().nonzero()[:, 0]

    def along(places: Tensor, few: Tensor) -> tuple[Tensor, Tensor]:
        chosen = rows[few]
        values, rounding = gaps(
            towards[chosen] * torch.lerp(low[chosen], high[chosen], places), chosen
        )
        return towards[chosen] * values, rounding

    places = crossings(along, -below[rows], above[rows], SEARCH)
    heights = torch.where(level == 0, 0.0, torch.nan).to(steps)
    heights[rows] = towards[rows] * torch.lerp(low[rows], high[rows], places)
    return heights.view(offsets.shape)


def _bracket(
    gaps: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    level: Tensor,
    towards: Tensor,
    farthest: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bracket the change of sign of F by doubled heights.

    Returns:
        The last height before it, the first height behind it (NaN where there is none), and |F| at
        both.
    """
    low, high = torch.zeros_like(level), torch.full_like(level, torch.nan)
    below, above = level.abs(), torch.zeros_like(level)
    waiting = (level != 0).nonzero()[:, 0]
    for doubling in range(BRACKET + 1):
        if not len(waiting):
            break
        tried = farthest[waiting] * 2.0 ** (doubling - BRACKET)
        found = towards[waiting] * gaps(towards[waiting] * tried, waiting)[0]
        crossed = found >= 0
        high[waiting[crossed]], above[waiting[crossed]] = tried[crossed], found[crossed]
        low[waiting[~crossed]], below[waiting[~crossed]] = tried[~crossed], found[~crossed].abs()
        waiting = waiting[~crossed]
    return low, high, below, above


def planar_curvature(
    heights: Float[Tensor, "batch offsets"], offsets: Float[Tensor, "batch offsets"]
) -> PerImage:
    """The curvature at s = 0 of curves that are given as heights h(s).

    It is that of the least-squares parabola a + b s + c s^2: kappa = -2 c / (1 + b^2)^(3/2),
    positive where the curve bends away from positive heights, so that the region below it lies,
    locally, inside a disc.

    Args:
        heights: (N, K), NaN where unknown.
        offsets: (N, K).

    Returns:
        (N,) in 1 / the unit of the offsets; NaN for curves with fewer than three known points.

    References:
        Thesis, Section 5.7, measures the flatness of such curves.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import planar_curvature
        >>> offsets = torch.linspace(-0.1, 0.1, 9)[None]
        >>> round(planar_curvature((4 - offsets**2).sqrt() - 2, offsets).item(), 2)
        0.5
    """
    # Fit in units of the largest known offset; unknown points get weight zero.
    known = heights.isfinite()
    scale = (
        torch.where(known, offsets.abs(), 0.0).amax(dim=1, keepdim=True).clamp_min(1e-30).double()
    )
    s = (offsets / scale).double()
    design = torch.stack([torch.ones_like(s), s, s.square()], dim=2) * known[..., None]
    values = torch.where(known, heights, 0.0).double() / scale
    enough = known.sum(dim=1) >= 3
    # Curves without three points get a solvable system, whose result is dropped.
    design[~enough] = torch.eye(3, dtype=torch.float64, device=s.device)[
        torch.arange(s.shape[1]) % 3
    ]
    _, slope, bend = torch.linalg.lstsq(design, values[..., None]).solution[..., 0].unbind(dim=1)
    curvature = -2 * bend / (1 + slope.square()) ** 1.5 / scale[:, 0]
    return torch.where(enough, curvature, torch.nan).to(heights.dtype)


def _predicted(model: Classifier, points: Tensor) -> Tensor:
    zeros = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    return _look(model, lambda part: (points[part], zeros[part]), len(points), points)[1]


def _look(
    model: Classifier, points: Callable[[Tensor], tuple[Tensor, Tensor]], count: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Leads and labels at ``count`` points that are made a few at a time."""
    parts = torch.arange(count, device=like.device).split(rows_at_once(like.device))
    found = [leads(model, *points(part)) for part in parts]
    return torch.cat([lead for lead, _ in found]), torch.cat([label for _, label in found])


def _gaps(
    model: Classifier,
    points: Callable[[Tensor], tuple[Tensor, Tensor]],
    labels: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor]:
    """F = f_target - f_label, and bounds on its rounding errors, at points made a few at a time."""
    found = []
    for part in torch.arange(len(labels), device=labels.device).split(rows_at_once(labels.device)):
        with torch.no_grad():
            logits = class_logits(logits_at(model, points(part)[0]))
        values = (logits.gather(1, targets[part, None]) - logits.gather(1, labels[part, None]))[
            :, 0
        ]
        found.append((values, 4 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)))
    return torch.cat([values for values, _ in found]), torch.cat(
        [rounding for _, rounding in found]
    )
