"""The nearest of the linearised boundaries around a point (Equations 3.7, 3.11 and 3.16)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from robustness_geometry.attacks.gradients import Pull, difference_gradients
from robustness_geometry.attacks.protocol import per_image
from robustness_geometry.norms import dual, norms
from robustness_geometry.types import Images, Logits, PerImage

__all__ = ["Hyperplanes", "likely_nearest", "nearest_hyperplane"]

BLOCK = 10
"""Largest number of gradients per image that are in memory at once."""


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

    def take_nearer(self, other: "Hyperplanes") -> None:
        """Replace each hyperplane for which ``other`` has a nearer one."""
        nearer = other.distances < self.distances
        self.distances = torch.where(nearer, other.distances, self.distances)
        self.gaps = torch.where(nearer, other.gaps, self.gaps)
        self.normals = torch.where(per_image(nearer, self.normals), other.normals, self.normals)

    def take_nearer_at(self, rows: Tensor, other: "Hyperplanes") -> None:
        """:meth:`take_nearer` for the images ``rows``; ``other`` has one hyperplane for each."""
        nearer = other.distances < self.distances[rows]
        rows = rows[nearer]
        self.distances[rows], self.gaps[rows] = other.distances[nearer], other.gaps[nearer]
        self.normals[rows] = other.normals[nearer]


def nearest_hyperplane(
    logits: Logits,
    pull: Pull,
    plus: Int[Tensor, "batch pairs"],
    minus: Int[Tensor, "batch pairs"],
    *,
    norm: float,
    project: Callable[[Tensor], Tensor],
) -> Hyperplanes:
    """The nearest of the hyperplanes F_k = 0 around each point, F_k = f_plus - f_minus.

    It is that of argmin_k |F_k| / ||P grad F_k||_q (line 10 of Algorithm 2, line 9 of Algorithm 3,
    Equation 3.11). A gradient that is zero or not finite puts its hyperplane at infinity. A gap
    smaller than the rounding of the logits counts as that rounding, so that a step from a point on
    a boundary still crosses it.

    Args:
        logits: (N, classes) at the points.
        pull: from :func:`robustness_geometry.attacks.gradients.linearise` at the same points.
        plus: (N, K) classes.
        minus: (N, K) classes.
        norm: p, of which q is the dual exponent.
        project: P, maps gradients (N, K, C, H, W) into the subspace of the attack.
    """
    rows = torch.arange(len(logits), device=logits.device)
    nearest = None
    # A block of classes at a time, so that the memory does not grow with their number.
    for up, down in zip(plus.split(BLOCK, dim=1), minus.split(BLOCK, dim=1), strict=True):
        gaps = _gaps(logits, up, down)  # |f'_k|
        normals = project(difference_gradients(pull, logits.shape[1], up, down))
        distances = _distances(gaps, norms(normals.flatten(0, 1), dual(norm)).view_as(gaps))
        best = distances.argmin(dim=1)
        found = Hyperplanes(distances[rows, best], gaps[rows, best], normals[rows, best])
        if nearest is None:
            nearest = found
        else:
            nearest.take_nearer(found)
    assert nearest is not None, "there are at least two classes"
    return nearest


def likely_nearest(
    logits: Logits,
    pull: Pull,
    plus: Int[Tensor, "batch pairs"],
    minus: Int[Tensor, "batch pairs"],
    *,
    norm: float,
    project: Callable[[Tensor, Tensor], Tensor],
    prune: float,
    again: Callable[[Tensor], Pull],
) -> Hyperplanes:
    """:func:`nearest_hyperplane` without most of the gradients of boundaries that are not nearest.

    Boundaries are taken in the order of their gaps |F_k|. One with the gap g can only be nearer
    than the distance D of the nearest so far if its gradient is longer than g / D. Once that is
    ``prune`` times the longest gradient of an image so far, its other boundaries are skipped.

    Args:
        logits: (N, classes) at the points.
        pull: from :func:`robustness_geometry.attacks.gradients.linearise` at the same points.
        plus: (N, K) classes.
        minus: (N, K) classes.
        norm: p, of which q is the dual exponent.
        project: P, called with gradients (n, K, C, H, W) and the rows (n,) of their images.
        prune: a boundary is skipped if its gradient would have to be at least this many times as
            long as the longest one seen.
        again: makes ``pull`` for some of the images, once few still have boundaries to look at.
    """
    gaps, order = _gaps(logits, plus, minus).sort(dim=1, stable=True)
    plus, minus = plus.gather(1, order), minus.gather(1, order)
    rows = torch.arange(len(logits), device=logits.device)
    nearest, longest = None, torch.zeros_like(gaps[:, 0])
    for rank in range(gaps.shape[1]):
        if nearest is not None:
            # Negated, so that a distance that is infinite or not a number skips nothing.
            waiting = ~(gaps[rows, rank] >= prune * longest[rows] * nearest.distances[rows])
            count = int(waiting.sum())
            if not count:
                break
            if count <= len(rows) // 2:
                rows = rows[waiting]
                pull = again(rows)
        normals = project(
            _gradients(pull, logits.shape[1], plus[rows, rank], minus[rows, rank]), rows
        )[:, 0]
        sizes = norms(normals, dual(norm))
        found = Hyperplanes(_distances(gaps[rows, rank], sizes), gaps[rows, rank], normals)
        longest[rows] = longest[rows].fmax(sizes)
        if nearest is None:
            nearest = found
        else:
            nearest.take_nearer_at(rows, found)
    assert nearest is not None, "there are at least two classes"
    return nearest


def _gaps(logits: Logits, plus: Tensor, minus: Tensor) -> Tensor:
    """(N, K) |F|, at least the rounding of the logits."""
    rounding = torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1, keepdim=True)
    return (logits.gather(1, plus) - logits.gather(1, minus)).abs().maximum(rounding)


def _distances(gaps: Tensor, sizes: Tensor) -> Tensor:
    """|F| / ||grad F||_q, infinite where a gradient cannot be used."""
    usable = torch.isfinite(sizes) & (sizes > 0) & torch.isfinite(gaps)
    return torch.where(usable, gaps / sizes, torch.inf)


def _gradients(pull: Pull, classes: int, plus: Tensor, minus: Tensor) -> Tensor:
    """(n, 1, C, H, W) the gradients of f_plus - f_minus, one pair per image."""
    return difference_gradients(pull, classes, plus[:, None], minus[:, None])
