"""Samples of the segments of paths, on ever finer grids."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustness_geometry.attacks.protocol import per_image
from robustness_geometry.geometry.forward import leads, rows_at_once
from robustness_geometry.types import Classifier, Labels

__all__ = ["Grid", "Segments"]

COARSE = 64
"""Intervals into which a path is cut before any of them is refined."""


@dataclass(frozen=True)
class Segments:
    """Segments of all paths that are looked at together.

    Attributes:
        owners: (k,) the indices of their pairs.
        starts: (k, C, H, W).
        ends: (k, C, H, W).
        places: (k,) j, for a segment from j / 2^level to (j + 1) / 2^level of its path.
    """

    owners: Tensor
    starts: Tensor
    ends: Tensor
    places: Tensor

    def __getitem__(self, kept: Tensor) -> "Segments":
        return Segments(self.owners[kept], self.starts[kept], self.ends[kept], self.places[kept])

    def halves(self, middles: Tensor) -> "Segments":
        """Both halves of each segment, cut at ``middles``."""
        return Segments(
            torch.cat([self.owners, self.owners]),
            torch.cat([self.starts, middles]),
            torch.cat([middles, self.ends]),
            torch.cat([2 * self.places, 2 * self.places + 1]),
        )


class Grid:
    """The samples of segments, k / pieces of the way along each, and the label's leads there."""

    def __init__(
        self, model: Classifier, segments: Segments, labels: Labels, pieces: Tensor
    ) -> None:
        self.model, self.segments, self.labels, self.pieces = model, segments, labels, pieces
        self.bad = torch.zeros_like(labels, dtype=torch.bool)
        self.looked_at = torch.zeros_like(pieces)

    def refine(self, spacing: float, safety: float | None) -> Tensor:
        """Sample ever finer, until no sample is left out or one of a segment lies outside.

        Returns:
            (k,) whether each segment stays inside.
        """
        largest = max(1, round(1 / spacing / COARSE))
        owners, places = self._coarse(largest)
        heights = self._look(owners, places)
        while True:
            # Segments with a sample outside are settled.
            kept = ~self.bad[owners]
            owners, places, heights = owners[kept], places[kept], heights[kept]
            gaps = torch.where(owners[1:] == owners[:-1], places[1:] - places[:-1], 0)
            # Between neighbours of one segment that are not adjacent, the middle one comes next.
            open_ = (gaps > 1) & self._may_vanish(owners, heights, gaps, safety)
            if not bool(open_.any()):
                return ~self.bad
            new_owners, new_places = owners[:-1][open_], places[:-1][open_] + gaps[open_] // 2
            owners, places = torch.cat([owners, new_owners]), torch.cat([places, new_places])
            heights = torch.cat([heights, self._look(new_owners, new_places)])
            # Sort the new samples in among the old ones.
            order = (owners * (int(self.pieces.max()) + 1) + places).argsort()
            owners, places, heights = owners[order], places[order], heights[order]

    def _coarse(self, largest: int) -> tuple[Tensor, Tensor]:
        """Owners and places of the first samples: both ends, and every ``largest`` pieces."""
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
            starts = self.segments.starts[own]
            share = per_image((places[part] / self.pieces[own]).to(starts), starts)
            points = torch.lerp(starts, self.segments.ends[own], share)
            lead, label = leads(self.model, points, self.labels[own])
            self.bad[own[label != self.labels[own]]] = True
            found.append(lead)
        self.looked_at.index_add_(0, owners, torch.ones_like(owners))
        return torch.cat(found)

    def _may_vanish(
        self, owners: Tensor, heights: Tensor, gaps: Tensor, safety: float | None
    ) -> Tensor:
        """Whether the lead could vanish between two neighbouring samples.

        It is taken to change at most ``safety`` times as fast as anywhere seen on its segment.
        """
        if safety is None:
            return torch.ones_like(gaps, dtype=torch.bool)
        # From heights a and b over a gap g, the lead reaches zero at a slope of (a + b) / g.
        slopes = torch.where(gaps > 0, (heights[1:] - heights[:-1]).abs() / gaps.clamp_min(1), 0.0)
        steepest = heights.new_zeros(len(self.pieces)).scatter_reduce_(
            0, owners[:-1], slopes, "amax"
        )
        return heights[1:] + heights[:-1] <= safety * steepest[owners[:-1]] * gaps
