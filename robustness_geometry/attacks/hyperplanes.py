"""The nearest of the linearised boundaries around a point (Equations 3.7, 3.11 and 3.16)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustness_geometry.attacks.gradients import Pull, difference_gradients
from robustness_geometry.attacks.protocol import per_image
from robustness_geometry.norms import dual, norms
from robustness_geometry.randomness import normal
from robustness_geometry.types import Images, Logits, PerImage

__all__ = ["AUTO", "Hyperplanes", "Prune", "first_spread", "nearest_hyperplane"]

Prune: TypeAlias = float | Literal["auto"]
"""Which boundaries are skipped, see :func:`nearest_hyperplane`."""

AUTO: Literal["auto"] = "auto"

BLOCK = 10
"""Largest number of gradients per image that are in memory at once."""

FEW = 4
"""Gradients per image at once on a CPU, after the first BLOCK of them."""

SPREAD = 0.25
"""How much the logarithms of one image's gradient lengths are first taken to vary.

It is a standard deviation. On the packaged networks it is 0.13 to 0.21.
"""

DRIFT = 0.3
"""How much the logarithm of one class's length is first taken to change in a step, likewise."""

KEEP = 0.75
"""Share of the images of a pass; once fewer than that still wait, the others leave the pass."""

WIDE = 3.1
"""Number of standard deviations up to the bound."""

WEIGHT = 2
"""Number of lengths that the two values above count for, beside those that are seen."""


@dataclass
class Hyperplanes:
    """One hyperplane per image, {x + r : <normal, r> = gap}.

    Attributes:
        distances: (N,) gap / ||normal||_q, the l_p distance; infinite where no boundary has a
            usable gradient.
        gaps: (N,) |F|, in the units of the logits.
        normals: (N, C, H, W) the gradients of F, projected.
    """

    distances: PerImage
    gaps: PerImage
    normals: Images

    def take_nearer(self, rows: Tensor, other: "Hyperplanes") -> None:
        """Replace the hyperplanes of the images ``rows`` for which ``other`` has a nearer one."""
        nearer = other.distances < self.distances[rows]
        here = self.normals[rows]
        self.distances[rows] = torch.where(nearer, other.distances, self.distances[rows])
        self.gaps[rows] = torch.where(nearer, other.gaps, self.gaps[rows])
        self.normals[rows] = torch.where(per_image(nearer, here), other.normals, here)


def nearest_hyperplane(
    logits: Logits,
    pull: Pull,
    plus: Int[Tensor, "batch pairs"],
    minus: Int[Tensor, "batch pairs"],
    *,
    norm: float,
    project: Callable[[Tensor, Tensor], Tensor],
    again: Callable[[Tensor], Pull],
    prune: Prune = math.inf,
    known: Float[Tensor, "batch pairs"] | None = None,
    spread: float = SPREAD,
) -> tuple[Hyperplanes, Float[Tensor, "batch pairs"]]:
    """The nearest of the hyperplanes F_k = 0 around each point, F_k = f_plus - f_minus.

    It is that of argmin_k |F_k| / ||P grad F_k||_q (line 10 of Algorithm 2, line 9 of Algorithm 3,
    Equation 3.11). A gradient that is zero or not finite puts its hyperplane at infinity. A gap
    smaller than the rounding of the logits counts as that rounding, so that a step from a point on
    a boundary still crosses it.

    Gradients are what takes time. A boundary with the gap g can only be nearer than the distance D
    of the nearest so far if its gradient is longer than g / D. The boundaries are taken in the
    order in which they could be the nearest, and an image is done once all that are left would need
    a gradient longer than a bound:

    - a number ``prune``: that many times the longest gradient of the image so far. With infinity
      every gradient is taken.
    - ``auto``: WIDE standard deviations above the mean of the logarithms of the lengths. The mean
      and the deviation are those of the image's own lengths, here and at its last step, so that
      each length that is seen corrects the bound. A boundary whose length was ``known`` at the last
      step has a bound around that length.

    Args:
        logits: (N, classes) at the points.
        pull: from :func:`robustness_geometry.attacks.gradients.linearise` at the same points.
        plus: (N, K) classes.
        minus: (N, K) classes.
        norm: p, of which q is the dual exponent.
        project: P, called with gradients (n, B, C, H, W) and the rows (n,) of their images.
        again: makes ``pull`` for some of the images, once few still have boundaries to look at.
        prune: at least 1, or ``auto``.
        known: (N, K) the lengths at the images' last step; NaN where unknown, None: all unknown.
        spread: standard deviation of the logarithms of the lengths, before any are seen.

    Returns:
        The hyperplanes, and the lengths ||P grad F_k||_q (N, K), NaN for gradients not taken.
    """
    gaps = _gaps(logits, plus, minus)
    lengths = torch.full_like(gaps, torch.nan)
    known = lengths.clone() if known is None else known
    rows = torch.arange(len(gaps), device=gaps.device)
    nearest, keep = None, KEEP if prune == AUTO else 0.5
    for size in _blocks(gaps, prune):
        bounds, nearness = _bounds(gaps[rows], lengths[rows], known[rows], prune, spread)
        picks = _smallest(nearness, size)
        if nearest is not None and prune != math.inf:
            # Negated, so that a distance that is infinite or not a number skips nothing.
            first = gaps[rows].gather(1, picks[:, :1])[:, 0]
            waiting = ~(first >= bounds.gather(1, picks[:, :1])[:, 0] * nearest.distances[rows])
            count = int(waiting.sum())  # the only time in a block to wait for the device
            if not count:
                break
            if count <= keep * len(rows):
                left = waiting.long().sort(descending=True, stable=True).indices[:count]
                rows, picks = rows[left], picks[left]
                pull = again(rows)
        up, down = plus[rows].gather(1, picks), minus[rows].gather(1, picks)
        normals = project(difference_gradients(pull, logits.shape[1], up, down), rows)
        found, sizes = _nearest_of(gaps[rows].gather(1, picks), normals, norm)
        lengths[rows[:, None], picks] = sizes
        if nearest is None:
            nearest = found
        else:
            nearest.take_nearer(rows, found)
    assert nearest is not None, "there are at least two classes"
    return nearest, lengths


def _blocks(gaps: Tensor, prune: Prune) -> Iterator[int]:
    """How many gradients to take at once, until all K are taken.

    Where some may be skipped, a CPU looks after each, and ``auto`` after a few once there were
    many. Where looking means waiting for the device, blocks double.
    """
    total, taken, size = gaps.shape[1], 0, 2
    while taken < total:
        if prune == math.inf:
            size = BLOCK
        elif gaps.device.type == "cpu":
            size = FEW if prune == AUTO and taken >= BLOCK else 1
        yield min(size, total - taken)
        taken += size
        size = min(2 * size, BLOCK)


def _bounds(
    gaps: Tensor, lengths: Tensor, known: Tensor, prune: Prune, spread: float
) -> tuple[Tensor, Tensor]:
    """Bounds on the lengths (n, K), and what grows with the distance that they allow (n, K).

    The latter is infinite where the gradient is taken.
    """
    taken = ~torch.isnan(lengths)
    if prune == math.inf:  # all, as they come
        bounds, nearness = torch.full_like(gaps, torch.inf), torch.zeros_like(gaps)
    elif prune == AUTO:
        bounds = _likely_bounds(lengths, known, spread)
        nearness = torch.where(torch.isinf(bounds), gaps, gaps / bounds)
    else:
        longest = torch.where(taken, lengths, 0.0).amax(dim=1, keepdim=True)
        bounds, nearness = (prune * longest).expand_as(gaps), gaps
    return bounds, nearness.masked_fill(taken, torch.inf)


def _smallest(values: Tensor, count: int) -> Tensor:
    """(n, count) the places of the smallest of each row; of equal ones, the first."""
    if count == 1:
        return values.argmin(dim=1, keepdim=True)
    return values.sort(dim=1, stable=True).indices[:, :count]


def _likely_bounds(lengths: Tensor, known: Tensor, spread: float) -> Tensor:
    """Lengths (n, K) that are most unlikely to be exceeded, infinite while none is known."""
    now, before = lengths.log(), known.log()
    seen = torch.where(torch.isfinite(now), now, before)
    usable = torch.isfinite(seen)
    count = usable.sum(dim=1, keepdim=True)
    mean = torch.where(usable, seen, 0.0).sum(dim=1, keepdim=True) / count
    deviation = _deviation(torch.where(usable, seen - mean, 0.0), count - 1, spread)
    any_one = (mean + WIDE * deviation * (1 + 1 / count).sqrt()).exp()
    any_one = torch.where(count > 0, any_one, torch.inf)
    change = now - before
    again = torch.isfinite(change)
    drift = _deviation(torch.where(again, change, 0.0), again.sum(dim=1, keepdim=True), DRIFT)
    return torch.where(torch.isfinite(before), (before + WIDE * drift).exp(), any_one)


def first_spread(project: Callable[[Tensor, Tensor], Tensor], images: Images) -> float:
    """The ``spread`` of lengths after a projection P of gradients at ``images``.

    In a random subspace of m dimensions, the logarithm of a length varies by another 1 / (2 m).
    """
    probe = normal(images.new_empty(1, 1, *images.shape[1:]), None)
    inside = project(probe, torch.zeros(1, dtype=torch.int64, device=images.device))
    share = float(inside.square().sum() / probe.square().sum())
    return math.sqrt(SPREAD**2 + 0.5 / max(share * probe.numel(), 0.5))


def _deviation(deviations: Tensor, count: Tensor, prior: float) -> Tensor:
    """(n, 1) the standard deviation of ``count`` values, to which ``prior`` adds WEIGHT more."""
    total = deviations.square().sum(dim=1, keepdim=True) + WEIGHT * prior**2
    return (total / (WEIGHT + count)).sqrt()


def _nearest_of(gaps: Tensor, normals: Tensor, norm: float) -> tuple[Hyperplanes, Tensor]:
    """The nearest of B hyperplanes (n, B) and the lengths (n, B) of their normals."""
    rows = torch.arange(len(gaps), device=gaps.device)
    lengths = norms(normals.flatten(0, 1), dual(norm)).view_as(gaps)
    # |F| / ||grad F||_q, infinite where a gradient cannot be used.
    usable = torch.isfinite(lengths) & (lengths > 0) & torch.isfinite(gaps)
    distances = torch.where(usable, gaps / lengths, torch.inf)
    best = distances.argmin(dim=1)
    return Hyperplanes(distances[rows, best], gaps[rows, best], normals[rows, best]), lengths


def _gaps(logits: Logits, plus: Tensor, minus: Tensor) -> Tensor:
    """(N, K) |F|, at least the rounding of the logits."""
    rounding = torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1, keepdim=True)
    return (logits.gather(1, plus) - logits.gather(1, minus)).abs().maximum(rounding)
