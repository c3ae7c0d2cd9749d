"""Paths between two points of a decision region that stay in it (Section 7.3, Algorithm 5)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.protocol import Number, check_input, clean_labels
from robustness_geometry.checks import Described, GivenLabels, check_count, check_positive, refuse
from robustness_geometry.geometry.forward import leads, rows_at_once
from robustness_geometry.geometry.path_samples import Grid, Segments
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Images, Labels, Perturbed

__all__ = ["Path", "deviation", "find_path", "find_paths"]

Projection: TypeAlias = Callable[..., Perturbed]
"""A targeted attack: called with the model, points and ``targets=``."""


@dataclass(frozen=True)
class Path:
    """A piecewise linear path, or how far the search for one came.

    Attributes:
        anchors: (n + 2, C, H, W) start, anchor points in order, end.
        found: whether all samples of all segments lie in the region.
        straight: whether all samples of the straight segment from start to end do.
        failure: why there is no path: ``depth`` (a segment still left the region at the largest
            depth) or ``projection`` (no point of the region was found near a midpoint); else empty.
        depth: how often the deepest segment was halved.
        samples: number of points at which the label was computed.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, find_path
        >>> start, end = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2)
        >>> path = find_path(Ball(radius=2.0), start, end)
        >>> path.found, path.straight, path.deviation, len(path.anchors)
        (True, True, 1.0, 2)
    """

    anchors: Float[Tensor, "points ..."]
    found: bool
    straight: bool
    failure: str
    depth: int
    samples: int

    @property
    def deviation(self) -> float:
        """D(p) of the anchors, at least 1."""
        return deviation(self.anchors)


def deviation(anchors: Float[Tensor, "points ..."]) -> float:
    """How much longer a path is than the straight line between its ends (Section 7.3).

    D(p) = sum_i ||p_i - p_(i+1)|| / ||p_0 - p_(n+1)||, and 1 for ends that coincide.

    Args:
        anchors: p, (n + 2, C, H, W).

    References:
        Thesis, Section 7.3.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import deviation
        >>> deviation(torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]).view(3, 1, 1, 2))
        1.4
    """
    points = anchors.double()
    direct = float((points[-1] - points[0]).norm())
    return float(norms(points[1:] - points[:-1]).sum()) / direct if direct > 0 else 1.0


def find_path(
    model: Classifier,
    start: Float[Tensor, "..."],
    end: Float[Tensor, "..."],
    **options: object,
) -> Path:
    """A path between two points of one region (Algorithm 5).

    Args:
        model: a classifier in evaluation mode.
        start: x_1, (C, H, W).
        end: x_2, (C, H, W), of the same label.
        **options: as for :func:`find_paths`.

    Returns:
        A Path, found or not.

    Raises:
        InputError: as :func:`find_paths`.

    References:
        Thesis, Section 7.3, Algorithm 5.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, find_path
        >>> start, end = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2)
        >>> find_path(Ball(radius=2.0), start, end, spacing=0.01).samples
        101
    """
    return find_paths(model, start[None], end[None], **options)[0]  # type: ignore[arg-type]


def find_paths(
    model: Classifier,
    starts: Images,
    ends: Images,
    *,
    labels: GivenLabels = None,
    attack: Projection = deepfool,
    spacing: Number = 1e-4,
    depth: int = 12,
    safety: Number | None = None,
) -> list[Path]:
    """Join pairs of points by paths that stay in their region (Algorithm 5), all pairs at once.

    A segment that leaves the region is halved at its midpoint, after a targeted attack has moved
    that point into the region if it lies outside; the same is done with both halves. Segments that
    stay inside are left alone. The thesis' pseudocode halves them too, which only adds anchors on
    the straight line.

    A segment counts as inside if the label is right at samples whose distance is ``spacing`` times
    that of the *original* pair. A coarse grid of them comes first, since a few samples give most
    bad segments away.

    Args:
        model: a classifier in evaluation mode.
        starts: x_1, (N, C, H, W), any finite values.
        ends: x_2, (N, C, H, W), of the same labels.
        labels: (N,) the labels of the regions; None: those predicted at the starts.
        attack: moves points into the region: a DeepFool, called with ``targets``. Its overshoot
            puts them strictly inside. Along a smooth boundary that bends away from the region the
            overshoot has to be above 1/4, or the halves of a segment leave the region as the
            segment did.
        spacing: distance of the samples as a share of ||x_1 - x_2||; 1e-4 in Section 7.3.
        depth: largest number of halvings of a segment, at least 10.
        safety: None computes every sample. With a number, the samples between two neighbours are
            left out if the lead of the label could vanish between them only by changing that many
            times as fast as anywhere seen on the segment.

    Returns:
        One Path per pair, found or not.

    Raises:
        InputError: an option, or input that cannot be used, or a pair whose points have different
            labels.

    References:
        Thesis, Section 7.3, Algorithm 5.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, find_paths
        >>> starts = torch.tensor([[-1.0, 0.0], [0.0, 0.5]]).view(2, 1, 1, 2)
        >>> paths = find_paths(Ball(radius=2.0), starts, -starts)
        >>> [path.found for path in paths]
        [True, True]
    """
    options = _Options(
        check_positive("spacing", spacing),
        check_count("depth", depth, minimum=10),
        None if safety is None else check_positive("safety", safety),
    )
    if options.spacing > 1:
        refuse("spacing", spacing, "a share in (0, 1]")
    if starts.shape != ends.shape:
        refuse("ends.shape", tuple(ends.shape), f"that of starts, {tuple(starts.shape)}")
    model, starts, labels, _ = check_input(model, starts, labels=labels)
    model, ends, *_ = check_input(model, ends)
    if not len(starts):
        return []
    region = clean_labels(model, starts, labels)
    _check_labels(model, starts, ends, region)
    return _Search(model, starts, ends, region, attack, options).run()


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
                Described(f"a point of label {int(found[first])}"),
                f"a point of label {int(region[first])}",
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
        """Algorithm 5 for all pairs, one level of halvings after the other."""
        every = torch.arange(len(self.starts), device=self.starts.device)
        segments = Segments(every, self.starts, self.ends, torch.zeros_like(every))
        # First the straight segments, as they are.
        inside = self._inside(segments)
        straight = inside.tolist()
        # Then halve the segments that leave their region, until none does or the depth is reached.
        for level in range(1, self.options.depth + 1):
            outside = segments[~inside]
            if not len(outside.owners):
                break
            segments = self._halved(outside, level)
            inside = self._inside(segments)
        # What still leaves its region at the largest depth has failed.
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

    def _halved(self, segments: Segments, level: int) -> Segments:
        """The halves of segments that leave the region, without those of pairs that failed."""
        middles, reached = self._middles(segments)
        self._fail(segments.owners[~reached], "projection")
        # A pair that has failed once takes no further part.
        lost = torch.tensor([bool(failure) for failure in self.failures], device=self.starts.device)
        kept = ~lost[segments.owners]
        segments, middles = segments[kept], middles[kept]
        # The midpoint of segment j lies at (2 j + 1) / 2^level of the path.
        for owner, place, middle in zip(
            segments.owners.tolist(), segments.places.tolist(), middles, strict=True
        ):
            self.anchors[owner][(2 * place + 1) / 2**level] = middle
            self.depths[owner] = level
        return segments.halves(middles)

    def _middles(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """The midpoints, moved into the region if outside, and whether each is inside now."""
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

    def _inside(self, segments: Segments) -> Tensor:
        """Whether each segment stays in its region, as far as the samples show."""
        if not len(segments.owners):
            return torch.ones_like(segments.owners, dtype=torch.bool)
        # Samples per segment: its share of the original distance over the spacing, without one
        # more that only rounding would add.
        lengths = norms(segments.ends - segments.starts)
        whole = norms(self.ends - self.starts)[segments.owners]
        share = torch.where(whole > 0, lengths / whole, 0.0).double()
        pieces = (share / self.options.spacing - 1e-6).ceil().long().clamp_min(1)
        grid = Grid(self.model, segments, self.labels[segments.owners], pieces)
        inside = grid.refine(self.options.spacing, self.options.safety)
        self.samples.index_add_(0, segments.owners, grid.looked_at)
        return inside
