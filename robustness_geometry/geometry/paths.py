"""Paths between two points of a decision region that stay in it (Section 7.3, Algorithm 5)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.protocol import Number, check_input, clean_labels
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.geometry.forward import leads, rows_at_once
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Images, Labels, Perturbed

__all__ = ["Path", "deviation", "find_path", "find_paths"]

COARSE = 64
"""Intervals into which a path is cut before anything is refined."""

Projection: TypeAlias = Callable[..., Perturbed]
"""A targeted attack: called with the model, points and ``targets=``."""


@dataclass(frozen=True)
class Path:
    """A piecewise linear path, or how far the search for one came.

    Attributes:
        anchors: (n + 2, C, H, W) start, anchor points in order, end.
        found: whether every segment was seen to stay in the region.
        straight: whether the straight segment from start to end stays in it. failure: empty,
            ``depth`` (a segment still left the region at the largest depth) or ``projection`` (no
            point of the region was found near a midpoint).
        depth: how often the deepest segment was halved.
        samples: points at which the label was looked at.
    """

    anchors: Float[Tensor, "points channels height width"]
    found: bool
    straight: bool
    failure: str
    depth: int
    samples: int

    @property
    def deviation(self) -> float:
        """D(p) of the anchors, at least 1."""
        return deviation(self.anchors)


def deviation(anchors: Float[Tensor, "points channels height width"]) -> float:
    """D(p) = sum_i ||p_i - p_(i+1)|| / ||p_0 - p_(n+1)||, the path's length over the straight line's (Section 7.3)."""
    points = anchors.double()
    direct = float((points[-1] - points[0]).norm())
    return float(norms(points[1:] - points[:-1]).sum()) / direct if direct > 0 else 1.0


def find_path(
    model: Classifier,
    start: Float[Tensor, "channels height width"],
    end: Float[Tensor, "channels height width"],
    **options: object,
) -> Path:
    """A path between two points of one region; see :func:`find_paths`, which takes the same options."""
    return find_paths(model, start[None], end[None], **options)[0]  # type: ignore[arg-type]


def find_paths(
    model: Classifier,
    starts: Images,
    ends: Images,
    *,
    labels: Labels | None = None,
    attack: Projection = deepfool,
    spacing: Number = 1e-4,
    depth: int = 12,
    safety: Number | None = None,
) -> list[Path]:
    """Join pairs of points by paths that stay in their region (Algorithm 5), all pairs at once.

    A segment that leaves the region is halved at its midpoint, which a targeted attack first moves
    into the region if it lies outside; the same is done with both halves. Segments that stay inside
    are left alone, where the thesis' pseudocode halves them too: that adds anchors on the straight
    line and changes nothing else.

    A segment counts as inside if the label is right at points ``spacing`` times the distance of the
    *original* pair apart. They are looked at coarsely first, so that most bad segments are found
    out by a few of them.

    Args:
        model: a classifier in evaluation mode.
        starts: x_1, (N, C, H, W), any finite values.
        ends: x_2, (N, C, H, W), of the same labels.
        labels: (N,) the labels of the regions; None: those predicted at the starts.
        attack: moves points into the region: a DeepFool, called with ``targets``. Its overshoot
            puts them strictly inside. Along a smooth boundary that bends away from the region it
            has to be above 1/4, or the halves of a segment leave the region as the segment did.
        spacing: of the sampled points, as a share of ||x_1 - x_2||; 1e-4 in Section 7.3.
        depth: largest number of halvings of a segment, at least 10.
        safety: None looks at every sample. A number leaves the samples between two neighbours out
            where the lead of the label would have to change that many times as fast as anywhere
            seen on the segment to vanish in between.

    Returns:
        A Path for each pair, found or not.

    Raises:
        InputError: an option, or input that cannot be used, or a pair whose points have different
            labels.

    Example:
        >>> path = find_path(model, images[0], images[1])
        >>> path.found, path.deviation
    """
    options = _Options(
        check_positive("spacing", spacing),
        check_count("depth", depth, minimum=10),
        None if safety is None else check_positive("safety", safety),
    )
    if options.spacing > 1:
        refuse("spacing", spacing, "a share in (0, 1]")
    if starts.shape != ends.shape:
        refuse("ends.shape", tuple(ends.shape), f"that of the starts, {tuple(starts.shape)}")
    check_input(model, starts, labels=labels)
    check_input(model, ends)
    if not len(starts):
        return []
    region = clean_labels(model, starts, labels)
    _check_labels(model, starts, ends, region)
    return _Search(model, starts.detach(), ends.detach(), region, attack, options).run()


@dataclass(frozen=True)
class _Options:
    spacing: float
    depth: int
    safety: float | None


def _check_labels(model: Classifier, starts: Images, ends: Images, region: Labels) -> None:
    for key, points in (("starts", starts), ("ends", ends)):
        parts = torch.arange(len(points), device=points.device).split(rows_at_once(points.device))
        found = torch.cat([leads(model, points[part], region[part])[1] for part in parts])
        wrong = (found != region).nonzero()[:, 0].tolist()
        if wrong:
            first = wrong[0]
            refuse(
                f"{key}[{first}]",
                f"a point of label {int(found[first])}",
                f"one of label {int(region[first])}",
            )


@dataclass(frozen=True)
class _Segments:
    """Segments of the paths: whose, from where to where, and where on the path, as j / 2^level."""

    owners: Tensor
    starts: Tensor
    ends: Tensor
    places: Tensor

    def __getitem__(self, kept: Tensor) -> "_Segments":
        return _Segments(self.owners[kept], self.starts[kept], self.ends[kept], self.places[kept])

    def halves(self, middles: Tensor) -> "_Segments":
        """Both halves of each segment, cut at ``middles``."""
        return _Segments(
            torch.cat([self.owners, self.owners]),
            torch.cat([self.starts, middles]),
            torch.cat([middles, self.ends]),
            torch.cat([2 * self.places, 2 * self.places + 1]),
        )


@dataclass
class _Search:
    """The state of the search for all pairs."""

    model: Classifier
    starts: Images
    ends: Images
    labels: Labels
    attack: Projection
    options: _Options
    samples: Tensor = field(init=False)
    depths: list[int] = field(init=False)
    failures: list[str] = field(init=False)
    anchors: list[dict[float, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.starts)
        self.samples = torch.zeros(count, dtype=torch.int64, device=self.starts.device)
        self.depths, self.failures = [0] * count, [""] * count
        self.anchors = [{0.0: self.starts[i], 1.0: self.ends[i]} for i in range(count)]

    def run(self) -> list[Path]:
        every = torch.arange(len(self.starts), device=self.starts.device)
        segments = _Segments(every, self.starts, self.ends, torch.zeros_like(every))
        inside = self._inside(segments)
        straight = inside.tolist()
        for level in range(1, self.options.depth + 1):
            outside = segments[~inside]
            if not len(outside.owners):
                break
            segments = self._halved(outside, level)
            inside = self._inside(segments)
        self._fail(segments.owners[~inside], "depth")
        return [self._path(index, straight[index]) for index in range(len(self.starts))]

    def _path(self, index: int, straight: bool) -> Path:
        failure = self.failures[index]
        anchors = torch.stack(
            [point for _, point in sorted(self.anchors[index].items(), key=lambda item: item[0])]
        )
        return Path(
            anchors, not failure, straight, failure, self.depths[index], int(self.samples[index])
        )

    def _fail(self, owners: Tensor, why: str) -> None:
        for owner in owners.tolist():
            self.failures[owner] = self.failures[owner] or why

    def _halved(self, segments: _Segments, level: int) -> _Segments:
        """The halves of segments that leave the region, without those of pairs that failed."""
        middles, reached = self._middles(segments)
        self._fail(segments.owners[~reached], "projection")
        lost = torch.tensor([bool(failure) for failure in self.failures], device=self.starts.device)
        kept = ~lost[segments.owners]
        segments, middles = segments[kept], middles[kept]
        for owner, place, middle in zip(
            segments.owners.tolist(), segments.places.tolist(), middles, strict=True
        ):
            self.anchors[owner][(2 * place + 1) / 2**level] = middle
            self.depths[owner] = level
        return segments.halves(middles)

    def _middles(self, segments: _Segments) -> tuple[Tensor, Tensor]:
        """The midpoints, moved into the region where they lie outside, and whether that succeeded."""
        middles = (segments.starts + segments.ends) / 2
        labels = self.labels[segments.owners]
        reached = self._labels(middles, labels) == labels
        outside = ~reached
        if bool(outside.any()):
            found = self.attack(self.model, middles[outside], targets=labels[outside])
            middles[outside] = middles[outside] + found.perturbations
            reached[outside] = self._labels(middles[outside], labels[outside]) == labels[outside]
        return middles, reached

    def _labels(self, points: Tensor, labels: Tensor) -> Tensor:
        parts = torch.arange(len(points), device=points.device).split(rows_at_once(points.device))
        return torch.cat([leads(self.model, points[part], labels[part])[1] for part in parts])

    def _inside(self, segments: _Segments) -> Tensor:
        """Whether each segment stays in its region, as far as the samples show."""
        if not len(segments.owners):
            return torch.ones_like(segments.owners, dtype=torch.bool)
        lengths = norms(segments.ends - segments.starts)
        whole = norms(self.ends - self.starts)[segments.owners]
        share = torch.where(whole > 0, lengths / whole, 0.0).double()
        pieces = (share / self.options.spacing - 1e-6).ceil().long().clamp_min(1)
        grid = _Grid(self.model, segments, self.labels[segments.owners], pieces)
        inside = grid.refine(self.options)
        self.samples.index_add_(0, segments.owners, grid.looked_at)
        return inside


class _Grid:
    """The samples of segments, k / pieces of the way along each, and how far the label leads there."""

    def __init__(
        self, model: Classifier, segments: _Segments, labels: Labels, pieces: Tensor
    ) -> None:
        self.model, self.segments, self.labels, self.pieces = model, segments, labels, pieces
        self.bad = torch.zeros_like(labels, dtype=torch.bool)
        self.looked_at = torch.zeros_like(pieces)

    def refine(self, options: _Options) -> Tensor:
        """Look between neighbouring samples until none are left, or a sample of a segment is outside."""
        largest = max(1, round(1 / options.spacing / COARSE))
        owners, places = self._coarse(largest)
        heights = self._look(owners, places)
        while True:
            kept = ~self.bad[owners]
            owners, places, heights = owners[kept], places[kept], heights[kept]
            gaps = torch.where(owners[1:] == owners[:-1], places[1:] - places[:-1], 0)
            open_ = (gaps > 1) & self._may_vanish(owners, heights, gaps, options.safety)
            if not bool(open_.any()):
                return ~self.bad
            new_owners, new_places = owners[:-1][open_], places[:-1][open_] + gaps[open_] // 2
            owners, places = torch.cat([owners, new_owners]), torch.cat([places, new_places])
            heights = torch.cat([heights, self._look(new_owners, new_places)])
            order = (owners * (int(self.pieces.max()) + 1) + places).argsort()
            owners, places, heights = owners[order], places[order], heights[order]

    def _coarse(self, largest: int) -> tuple[Tensor, Tensor]:
        """Owners and places of the first samples: both ends, and points at most ``largest`` pieces apart."""
        parts = (self.pieces + largest - 1).div(largest, rounding_mode="floor")
        owners = torch.arange(len(parts), device=parts.device).repeat_interleave(parts + 1)
        first = (parts + 1).cumsum(0) - (parts + 1)
        steps = torch.arange(len(owners), device=parts.device) - first[owners]
        return owners, (steps * self.pieces[owners]).div(parts[owners], rounding_mode="floor")

    def _look(self, owners: Tensor, places: Tensor) -> Tensor:
        """The leads at samples; a segment with a sample outside its region is marked."""
        found = []
        for part in torch.arange(len(owners), device=owners.device).split(
            rows_at_once(owners.device)
        ):
            own = owners[part]
            share = (places[part] / self.pieces[own]).to(self.segments.starts).view(-1, 1, 1, 1)
            points = torch.lerp(self.segments.starts[own], self.segments.ends[own], share)
            lead, label = leads(self.model, points, self.labels[own])
            self.bad[own[label != self.labels[own]]] = True
            found.append(lead)
        self.looked_at.index_add_(0, owners, torch.ones_like(owners))
        return torch.cat(found)

    def _may_vanish(
        self, owners: Tensor, heights: Tensor, gaps: Tensor, safety: float | None
    ) -> Tensor:
        """Whether the lead could vanish between neighbours, if it changes at most ``safety`` times as fast as seen."""
        if safety is None:
            return torch.ones_like(gaps, dtype=torch.bool)
        slopes = torch.where(gaps > 0, (heights[1:] - heights[:-1]).abs() / gaps.clamp_min(1), 0.0)
        steepest = heights.new_zeros(len(self.pieces)).scatter_reduce_(
            0, owners[:-1], slopes, "amax"
        )
        return heights[1:] + heights[:-1] <= safety * steepest[owners[:-1]] * gaps
