"""The nearest of the linearised boundaries around a point (Equations 3.7, 3.11 and 3.16)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.attacks.gradients import Pull, difference_gradients
from pipeline.attacks.protocol import per_image
from pipeline.norms import dual, norms
from pipeline.types import Images, Logits, PerImage

__all__ = ["Hyperplanes", "nearest_hyperplane"]

BLOCK = 10
"""Gradients of an image that are held at once, however many classes there are."""


@dataclass
class Hyperplanes:
    """One hyperplane an image, {x + r : <normal, r> = gap}.

    Attributes:
        distances: (N,) gap / ||normal||_q, the l_p distance; infinite where no boundary has a usable gradient.
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


def nearest_hyperplane(
    logits: Logits,
    pull: Pull,
    plus: Int[Tensor, "batch pairs"],
    minus: Int[Tensor, "batch pairs"],
    *,
    norm: float,
    project: Callable[[Tensor], Tensor],
) -> Hyperplanes:
    """argmin_k |F_k| / ||P grad F_k||_q for F_k = f_plus - f_minus, all gradients taken at one point.

    A gradient that is zero or not finite puts its boundary at infinity. A gap below what rounding does to the logits
    counts as that much, so that a step from a point on a boundary still crosses it.

    Args:
        logits: (N, classes) at the points.
        pull: from :func:`pipeline.attacks.gradients.linearise` at the same points.
        plus: (N, K) classes.
        minus: (N, K) classes.
        norm: p, of which q is the dual exponent.
        project: P, maps gradients (N, K, C, H, W) into the subspace of the attack.
    """
    rounding = torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1, keepdim=True)
    rows = torch.arange(len(logits), device=logits.device)
    nearest = None
    for up, down in zip(plus.split(BLOCK, dim=1), minus.split(BLOCK, dim=1), strict=True):
        gaps = (logits.gather(1, up) - logits.gather(1, down)).abs().maximum(rounding)
        normals = project(difference_gradients(pull, logits.shape[1], up, down))
        sizes = norms(normals.flatten(0, 1), dual(norm)).view_as(gaps)
        usable = torch.isfinite(sizes) & (sizes > 0) & torch.isfinite(gaps)
        distances = torch.where(usable, gaps / sizes, torch.inf)
        best = distances.argmin(dim=1)
        found = Hyperplanes(distances[rows, best], gaps[rows, best], normals[rows, best])
        if nearest is None:
            nearest = found
        else:
            nearest.take_nearer(found)
    assert nearest is not None, "there are at least two classes"
    return nearest
