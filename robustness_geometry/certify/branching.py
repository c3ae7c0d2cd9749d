"""Branch and bound over the signs of a ReLU network's units."""

import heapq
import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustness_geometry.certify.hyperplanes import Clip, halfspace_distance, ratio
from robustness_geometry.certify.intermediate import Network, climb
from robustness_geometry.certify.leaves import Dense, least_distance
from robustness_geometry.certify.operations import Input, Linear, Node, Rectifier
from robustness_geometry.certify.relaxation import Slopes, backward, start_slopes
from robustness_geometry.norms import hyperplane_step

__all__ = ["Tree"]

BATCH = 128
"""Subproblems that are split at once."""

STEPS = 5
"""Gradient steps in slopes and multipliers for each subproblem."""


@dataclass(frozen=True)
class _Part:
    """A subproblem.

    Attributes:
        rival: which functional of the logits is to reach zero.
        signs: layer -> (units,) the fixed signs, 0 for either.
        split: layer and unit to split next.
        free: the slopes and multipliers that gave the parent's bound; empty at the root.
    """

    rival: int
    signs: tuple[Tensor, ...]
    split: tuple[int, int]
    free: dict[int, Tensor]


class Tree:
    """The search around one image.

    Args:
        network: the network as a function of the step.
        rows: (R, outputs) functionals of the logits that are positive at the image; the boundary is
            where the first one reaches zero.
        norm: 2 or inf.
        clip: lowest and highest pixel value, or None.
        tolerance: relative distance of the bounds at which the search ends.
    """

    def __init__(
        self, network: Dense, rows: np.ndarray, norm: float, clip: Clip, tolerance: float
    ) -> None:
        self.dense, self.rows, self.norm, self.clip = network, rows, norm, clip
        self.tolerance = tolerance
        self.upper, self.rival, self.nodes = math.inf, 0, 0
        self.step = np.full(network.layers[0][0].shape[1], math.nan)
        self.closed = math.inf
        self.heap: list[tuple[float, int, _Part]] = []
        self.order = itertools.count()
        nodes = [Node(Input(), (), (network.layers[0][0].shape[1],))]
        # The relaxations take images where the dense network takes steps from one.
        first, shift = network.layers[0]
        for weight, bias in [(first, shift - first @ network.image), *network.layers[1:]]:
            linear = Linear(torch.from_numpy(weight), torch.from_numpy(bias))
            nodes.append(Node(linear, (len(nodes) - 1,), (len(bias),)))
            nodes.append(Node(Rectifier(0.0), (len(nodes) - 1,), (len(bias),)))
        self.network = Network(nodes[:-1])
        self.image = torch.from_numpy(network.image)[None]

    @property
    def found(self) -> bool:
        """Whether some step reaches the other side."""
        return math.isfinite(self.upper)

    @property
    def lower(self) -> float:
        """The proved lower bound."""
        return max(0.0, min([self.closed, *(part[0] for part in self.heap[:1])]))

    def offer(self, step: np.ndarray) -> None:
        """Take over a step, and what a walk from it finds, if they are the shortest yet.

        The walk goes from linear region to linear region: to the nearest point of each, and on
        through one of the kinks that it lies on, as long as the step gets shorter.
        """
        if not np.isfinite(step).all():
            return
        self._take(step)
        k = int((self.rows @ self.dense.logits(step)).argmin())
        pattern, length = self.dense.pattern(step), math.inf
        while True:
            _, found = self._least(pattern, k)
            if found is None or np.linalg.norm(found, ord=self.norm) >= length * (1 - 1e-9):
                return
            self._take(found)
            length, best = float(np.linalg.norm(found, ord=self.norm)), None
            # Where a region costs a linear program, or limits of pixels, one is enough.
            if length > 1.2 * self.upper or math.isinf(self.norm) or self.clip is not None:
                return
            for flipped in self._across(pattern, found):
                bound, other = self._least(flipped, k)
                if other is not None and bound < length * (1 - 1e-9):
                    length, best = bound * (1 + 1e-8), flipped
            if best is None:
                return
            pattern = best

    def _least(self, pattern: list[np.ndarray], k: int) -> tuple[float, np.ndarray | None]:
        return least_distance(self.dense, pattern, self.rows[k], self.norm, self.clip)

    def _across(self, pattern: list[np.ndarray], step: np.ndarray) -> list[list[np.ndarray]]:
        """The patterns on the other side of each kink that a step lies on."""
        found, value = [], step
        for layer, (weight, bias) in enumerate(self.dense.layers[:-1]):
            value = weight @ value + bias
            for unit in np.flatnonzero(np.abs(value) <= 1e-9 * (1 + np.abs(value).max())):
                other = [p.copy() for p in pattern]
                other[layer][unit] ^= True
                found.append(other)
            value = np.where(pattern[layer], value, 0.0)
        return found

    def _take(self, step: np.ndarray) -> None:
        values = self.rows @ self.dense.logits(step)
        size = float(np.linalg.norm(step, ord=self.norm))
        scale = 1e-9 * (1 + np.abs(self.dense.logits(step)).max())
        if values.min() <= scale and size < self.upper:
            self.upper, self.step, self.rival = size, step, int(values.argmin())

    def search(self, until: float, most: float) -> None:
        """Split subproblems, the one of the lowest bound first, until the bounds meet.

        Args:
            until: when to stop, as of ``time.monotonic``.
            most: number of subproblems at which to stop.
        """
        if (self.rows @ self.dense.logits(np.zeros_like(self.step)) <= 0).any():
            self._take(np.zeros_like(self.step))
            self.closed = 0.0
            return
        if not self.found:
            self.closed = 0.0
            return
        none = tuple(torch.zeros(len(b)) for _, b in self.dense.layers[:-1])
        self._bound(
            [_Part(k, none, (-1, -1), {}) for k in range(len(self.rows))], [0.0] * len(self.rows)
        )
        while self.heap and self.heap[0][0] < self._enough():
            if self.nodes >= most or time.monotonic() > until:
                return
            batch = [heapq.heappop(self.heap) for _ in range(min(BATCH, len(self.heap)))]
            batch = [entry for entry in batch if entry[0] < self._enough()]
            children, bounds = [], []
            for bound, _, part in batch:
                for sign in (-1.0, 1.0):
                    layer, unit = part.split
                    signs = [s.clone() if i == layer else s for i, s in enumerate(part.signs)]
                    signs[layer][unit] = sign
                    children.append(_Part(part.rival, tuple(signs), part.split, part.free))
                    bounds.append(bound)
            self._bound(children, bounds)
        self.heap = []
        self.closed = min(self.closed, self._enough())

    def _enough(self) -> float:
        """The lower bound at which a subproblem is closed."""
        return self.upper * (1 - self.tolerance / 2)

    def _bound(self, parts: list[_Part], parents: list[float]) -> None:
        """Bound subproblems, close those that are done, and keep the others with their split."""
        self.nodes += len(parts)
        nodes, count = self.network.nodes, len(parts)
        signs = {
            1 + 2 * layer: torch.stack([part.signs[layer] for part in parts]).double()
            for layer in range(len(self.dense.layers) - 1)
        }
        radii = torch.full((count,), self.upper, dtype=torch.float64)
        images = self.image.expand(count, -1)
        with torch.no_grad():
            region = self.network.region(images, radii, self.norm, self.clip, 0, signs)
            seeds = torch.from_numpy(self.rows[[part.rival for part in parts]])[:, None]
            free = dict(start_slopes(nodes, len(nodes) - 1, region, 1))
            free |= {-i - 1: torch.zeros_like(v) for i, v in free.items()}
            if parts[0].free:
                free = {i: torch.cat([part.free[i] for part in parts]) for i in free}
            seen: dict[int, Tensor] = {}

            def rows(slopes: Slopes) -> tuple[Tensor, Tensor]:
                # Multipliers from 0 to any size, by a variable in [0, 1].
                by = {
                    i: -signs[i - 1][:, None] * (slopes[-i - 1] / (1.001 - slopes[-i - 1]))
                    for i in slopes
                    if i > 0
                }
                return backward(nodes, len(nodes) - 1, seeds, region, slopes, by, seen)

            def value(slopes: Slopes) -> Tensor:
                return ratio(*rows(slopes), images, self.norm)

            best, free = climb(value, free, STEPS if free else 0)
            functional = rows(free)
            if self.clip is not None:
                best = halfspace_distance(*functional, images, self.norm, self.clip)
        empty = torch.zeros(count, dtype=torch.bool)
        scores = []
        for place in signs:
            lower, upper = region.lower[place], region.upper[place]
            empty |= (lower > upper).any(dim=1)
            open_units = (lower < 0) & (upper > 0) & (signs[place] == 0)
            gap = -lower * upper / (upper - lower).clamp_min(1e-300)
            use = seen[place + 1][:, 0].abs() + 1e-6
            scores.append(torch.where(open_units, gap * use, 0.0))
        self._keep(parts, parents, best[:, 0], empty, scores, free)
        gaps, normals = functional[1][:, 0], functional[0][:, 0]
        nearest = int(best[:, 0].argmin())
        value_there = gaps[nearest] + normals[nearest] @ self.image[0]
        move = hyperplane_step(-value_there[None], normals[nearest][None], self.norm)[0]
        if self.clip is not None:
            move = (self.image[0] + move).clamp(*self.clip) - self.image[0]
        self.offer(move.numpy())

    def _keep(
        self,
        parts: list[_Part],
        parents: list[float],
        bounds: Tensor,
        empty: Tensor,
        scores: list[Tensor],
        free: dict[int, Tensor],
    ) -> None:
        widths = [s.shape[1] for s in scores]
        table = torch.cat(scores, dim=1) if scores else torch.zeros(len(parts), 1)
        top, chosen = table.max(dim=1)
        for k, part in enumerate(parts):
            bound = max(parents[k], float(bounds[k]))
            if bool(empty[k]) or bound >= self._enough():
                continue
            if float(top[k]) <= 0:
                self._close(part, bound)
                continue
            unit, layer = int(chosen[k]), 0
            while unit >= widths[layer]:
                unit, layer = unit - widths[layer], layer + 1
            kept = {i: v[k : k + 1] for i, v in free.items()}
            entry = _Part(part.rival, part.signs, (layer, unit), kept)
            heapq.heappush(self.heap, (bound, next(self.order), entry))

    def _close(self, part: _Part, bound: float) -> None:
        """Solve a subproblem in which every unit has its sign."""
        pattern = self._pattern(part)
        lower, step = self._least(pattern, part.rival)
        if step is not None:
            self._take(step)
        self.closed = min(self.closed, max(bound, lower))

    def _pattern(self, part: _Part) -> list[np.ndarray]:
        """The signs of all units in a ball of the radius of the upper bound."""
        signs = {1 + 2 * i: s[None].double() for i, s in enumerate(part.signs)}
        radius = torch.tensor([self.upper], dtype=torch.float64)
        with torch.no_grad():
            region = self.network.region(self.image, radius, self.norm, self.clip, 0, signs)
        return [
            (torch.where(signs[i][0] != 0, signs[i][0], region.lower[i][0]) >= 0).numpy()
            for i in signs
        ]
