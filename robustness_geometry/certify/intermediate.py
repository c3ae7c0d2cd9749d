"""Bounds of all nodes of a network in a ball, tightened where a nonlinear operation needs them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from robustness_geometry.certify.hyperplanes import Clip, Reduce, by_row, least
from robustness_geometry.certify.operations import Maximum, Node, Rectifier
from robustness_geometry.certify.receptive import Groups, groups
from robustness_geometry.certify.regions import Region, interval, offsets, rounding
from robustness_geometry.certify.relaxation import Slopes, descend, start_slopes, to_nonlinear

__all__ = ["Network", "bent_inputs", "climb"]

AT_ONCE = 2**22
"""Entries of the largest tensor in one backward pass: 32 MiB."""

KEPT = 2**24
"""Largest number of rows times units of a node whose functionals are kept."""

FEW = 2**20
"""Largest number of free slopes of a node's bounds in one image for which they are improved."""

RATE = 0.1
"""First step of the ascent in slopes, which lie in [0, 1]; later ones are shorter."""


@dataclass
class Network:
    """A network as read, and what is found out about it once.

    Attributes:
        nodes: its operations.
        groupings: node -> how its places are grouped; filled as needed.
        starts: node -> its units as functionals of the nonlinear nodes before it; likewise.
        constants: the offsets of the nodes and their sizes, as of :class:`Region`; likewise.
    """

    nodes: list[Node]
    groupings: dict[int, Groups | None] = field(default_factory=dict)
    starts: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    constants: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))

    def region(
        self,
        images: Tensor,
        radii: Tensor,
        norm: float,
        clip: Clip = None,
        steps: int = 0,
        splits: Mapping[int, Tensor] | None = None,
        plane: tuple[Tensor, Tensor] | None = None,
    ) -> Region:
        """Bounds of all nodes in balls around images.

        Args:
            images: (N, *shape), float64.
            radii: (N,) of the balls.
            norm: exponent p.
            clip: lowest and highest pixel value, or None.
            steps: gradient steps in the slopes of nodes that have few.
            splits: node -> (N, *shape) the sign that a unit is assumed to have, 0 for either. Where
                the assumptions cannot hold, a lower bound may lie above an upper one.
            plane: as of :class:`Region`, for norms 2 and inf.
        """
        constants = self._offsets(images)
        region = Region(images, radii, norm, clip, [], [], [], [], *constants, plane)
        bent = bent_inputs(self.nodes)
        point = not bool(radii.any())  # of a single point, intervals say all
        for place in range(len(self.nodes)):
            for table, values in zip(
                (region.lower, region.upper, region.sizes),
                interval(self.nodes, place, region),
                strict=True,
            ):
                table.append(values)
            region.errors.append(rounding(self.nodes, place, region))
            if place in bent and place > 0 and not point:
                below, above = self._rows(place, region, steps)
                region.lower[place] = torch.maximum(region.lower[place], below)
                region.upper[place] = torch.minimum(region.upper[place], above)
                if splits is not None and place in splits:
                    low, high = region.lower[place], region.upper[place]
                    region.lower[place] = torch.where(splits[place] > 0, low.clamp_min(0), low)
                    region.upper[place] = torch.where(splits[place] < 0, high.clamp_max(0), high)
        return region

    def _rows(self, place: int, region: Region, steps: int) -> tuple[Tensor, Tensor]:
        node = self.nodes[place]
        if place not in self.groupings:
            self.groupings[place] = groups(self.nodes, place)
        grouping = self.groupings[place]
        largest = max(n.size for n in self.nodes[: place + 1])
        most = max(1, AT_ONCE // (largest * len(region.images)))
        found: list[list[Tensor]] = [[], []]
        for pending, units in self._starts(place, grouping, most, region.images):
            offset, error = (v[place].flatten(1)[:, units] for v in (region.offsets, region.errors))
            for side, sign in enumerate((1.0, -1.0)):
                rows = {i: sign * v for i, v in pending.items()}
                low = self._least(place, rows, sign * offset - error, region, grouping, steps)
                found[side].append(low)
        lower, upper = (torch.cat(parts, dim=1).unflatten(1, node.shape) for parts in found)
        return lower, -upper

    def _offsets(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if not self.constants[0]:
            for place in range(len(self.nodes)):
                offsets(self.nodes, place, *self.constants, like)
        return self.constants

    def _starts(
        self, place: int, grouping: Groups | None, most: int, like: Tensor
    ) -> Iterator[tuple[dict[int, Tensor], slice]]:
        """The units of a node as functionals of nonlinear ones, at most ``most`` at a time.

        Yields:
            Nonlinear node -> (1, R, *shape), and which of the node's units these are.
        """
        node = self.nodes[place]
        # A grouping's rows come channel by channel.
        each = 1 if grouping is None else len(grouping.members)
        units = 1 if grouping is None else grouping.members[0].numel()
        step, count = max(1, most // each), node.size // units
        if place not in self.starts and count * each * node.size <= KEPT:
            (seeds,) = _units(node, grouping, count * each)
            self.starts[place] = to_nonlinear(self.nodes, place, seeds.to(like))
        seeds_of = iter(()) if place in self.starts else _units(node, grouping, step * each)
        for start in range(0, count, step):
            which = slice(start * units, (start + step) * units)
            if place not in self.starts:
                yield to_nonlinear(self.nodes, place, next(seeds_of).to(like)), which
                continue
            rows = slice(start * each, (start + step) * each)
            yield {i: v[:, rows] for i, v in self.starts[place].items()}, which

    def _least(
        self,
        place: int,
        pending: dict[int, Tensor],
        constants: Tensor,
        region: Region,
        grouping: Groups | None,
        steps: int,
    ) -> Tensor:
        """The least values of functionals, (N, R) or by unit."""
        box = None if region.clip is None else (region.lower[0], region.upper[0])
        slopes = start_slopes(self.nodes, place, region, len(next(iter(pending.values()))[0]))

        def lowest(free: Slopes) -> Tensor:
            found = descend(self.nodes, pending, [constants], region, free, grouping=grouping)
            reduce: Reduce = by_row
            if grouping is not None:
                reduce = partial(_by_unit, grouping)
            return least(
                *found, region.images, region.radii, region.norm, box, reduce, region.plane
            )

        free = sum(v[0, 0].numel() for v in slopes.values()) * self.nodes[place].size
        climbs = slopes and grouping is None and free <= FEW
        return climb(lowest, slopes, steps if climbs else 0)[0]


def _by_unit(grouping: Groups, pixels: Tensor, how: str) -> Tensor:
    return grouping.split(0, pixels, how)


def bent_inputs(nodes: list[Node]) -> set[int]:
    """The nodes whose values a nonlinear operation takes."""
    return {node.inputs[0] for node in nodes if isinstance(node.operation, Rectifier | Maximum)}


def climb(
    value: Callable[[Slopes], Tensor], start: Slopes, steps: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """Raise values by gradient steps (Adam) in free slopes; every slope in [0, 1] is valid.

    Args:
        value: slopes -> (N, R), each value a function of its own row of slopes.
        start: where to start.
        steps: number of steps.

    Returns:
        The largest values on the way, (N, R), and the slopes that gave them.
    """
    kept = {i: v.clone() for i, v in start.items()}
    with torch.no_grad():
        best = value(kept)
    slopes = {i: v.clone() for i, v in kept.items()}
    means = {i: torch.zeros_like(v) for i, v in kept.items()}
    squares = {i: torch.zeros_like(v) for i, v in kept.items()}
    for step in range(1, steps + 1):
        rate = RATE * (1 - (step - 1) / steps) / (1 - 0.9**step)
        for v in slopes.values():
            v.requires_grad_()
        with torch.enable_grad():
            now = value(slopes)
            finite = torch.where(torch.isfinite(now), now, 0.0)
            gradients = torch.autograd.grad(finite.sum(), list(slopes.values()))
        _keep(best, kept, now.detach(), slopes)
        for (i, v), g in zip(slopes.items(), gradients, strict=True):
            g = g.nan_to_num(0.0, 0.0, 0.0)
            means[i].lerp_(g, 0.1)
            squares[i].lerp_(g.square(), 0.01)
            size = (squares[i] / (1 - 0.99**step)).sqrt() + 1e-30
            slopes[i] = (v.detach() + rate * means[i] / size).clamp_(0, 1)
    if steps:
        with torch.no_grad():
            _keep(best, kept, value(slopes), slopes)
    return best, kept


def _keep(best: Tensor, kept: dict[int, Tensor], now: Tensor, slopes: Slopes) -> None:
    """Take over, row by row, what is better than the best so far."""
    better = now > best
    best[better] = now[better]
    for i, v in slopes.items():
        kept[i][better] = v.detach()[better]


def _units(node: Node, grouping: Groups | None, most: int) -> Iterator[Tensor]:
    """The units of a node as seeds (1, R, *shape), at most ``most`` rows at a time."""
    if grouping is not None:
        channels = max(1, most // len(grouping.members))
        for start in range(0, node.shape[0], channels):
            chosen = range(start, min(start + channels, node.shape[0]))
            yield grouping.seeds(chosen, node.shape)
        return
    for start in range(0, node.size, most):
        rows = torch.arange(start, min(start + most, node.size))
        seeds = torch.zeros(len(rows), node.size, dtype=torch.float64)
        seeds[torch.arange(len(rows)), rows] = 1.0
        yield seeds.view(1, -1, *node.shape)
