"""A short descent that decouples direction and norm, in any l_p norm, box and subspace."""

import math

import torch
from torch import Tensor

from robustness_geometry.attacks.boundary_search import BoundarySearch, leaving
from robustness_geometry.attacks.gradients import (
    Pull,
    difference_gradients,
    linearise,
    loss_weights,
)
from robustness_geometry.attacks.protocol import Clip, confine, is_reached, per_image
from robustness_geometry.attacks.steepest import steepest_curve
from robustness_geometry.attacks.subspaces import Projection
from robustness_geometry.norms import dual, norms
from robustness_geometry.types import Classifier, Images, Labels, Logits, PerImage

__all__ = ["descent"]

RIVALS = 3
"""Classes whose gradients at the image are compared for the first direction."""

FAR, LOOKS = 3.0, 5
"""How far their lines are followed, as a multiple of the distance to the nearest linearised
boundary, and the largest number of evaluations in the search of one line."""

TIE = 1e-3
"""Share of the linearised distance in the comparison, for lines that cross nothing."""

SHARES = 0.9, 0.3
"""Share of the gradient's direction in the next one, at the first and at the last step."""

CHANGES = 0.3, 0.03
"""Relative change of the radius at the first and at the last step."""


def descent(
    model: Classifier,
    images: Images,
    labels: Labels,
    targets: Labels | None,
    *,
    steps: int,
    norm: float = 2.0,
    clip: Clip = None,
    project: Projection | None = None,
) -> Images:
    """Follow gradients on spheres that shrink where the goal is reached and grow elsewhere.

    Each step mixes the perturbation with the point of the sphere and the box that lies farthest
    along the gradient of the cross-entropy. All lengths are relative to the distance of the
    linearised boundary from the image, so that no option depends on the units of the pixels.

    The first direction decides which class is reached. Without targets it is therefore chosen
    among the gradients of the foremost other classes: the line along it crosses the boundary first.

    Args:
        model: a classifier in evaluation mode.
        images: x, (N, ...).
        labels: (N,) the labels to leave.
        targets: (N,) the labels to reach, or None.
        steps: number of steps, at least 2; each takes one gradient, the first up to 3.
        norm: p, 1 <= p <= inf.
        clip: lowest and highest pixel value, or None.
        project: the projection of gradients onto the subspace of the perturbations.

    Returns:
        (N, ...) the smallest perturbation met that reaches the goal; else twice the last one.

    References:
        J. Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial
        attacks and defenses", CVPR 2019, arXiv:1811.09600, whose radius changes by 5% a step and
        whose steps have a length in pixel units.
    """
    rows = torch.arange(len(images), device=images.device)
    moved, best = torch.zeros_like(images), torch.zeros_like(images)
    smallest, radii = images.new_full((2, len(images)), torch.inf)
    for step in range(steps + 1):
        logits, pull = linearise(model, images + moved)
        reached = torch.isfinite(logits).all(dim=1) & is_reached(
            logits.argmax(dim=1), labels, targets
        )
        sizes = norms(moved, norm)
        better = reached & (sizes < smallest)
        smallest = torch.where(better, sizes, smallest)
        best = torch.where(per_image(better, images), moved, best)
        if step == steps:
            break
        if step == 0 and targets is None:
            gradients, radii = _first(model, images, labels, logits, pull, norm, clip, project)
        else:
            gradients = pull(_weights(logits, labels, targets))
            if project is not None:
                gradients = project(gradients[:, None], rows)[:, 0]
            if targets is not None and step == 0:
                radii = _gaps(logits, targets) / norms(gradients, dual(norm))
        change, share = (_cosine(ends, step, steps) for ends in (CHANGES, SHARES))
        if step == 0:
            share = 1.0
        else:
            radii = radii * torch.where(reached, 1 - change, 1 + change)
        steepest = steepest_curve(images, gradients, radii, norm, clip)
        scale = torch.where(sizes > 0, radii / sizes, 0.0)
        mixed = (1 - share) * per_image(scale, moved) * moved + share * steepest(
            torch.ones_like(radii), rows
        )
        lengths = norms(mixed, norm)
        back = torch.where(lengths > 0, radii / lengths, 0.0)
        moved = confine(images, per_image(back, mixed) * mixed, clip)
        moved = torch.where(per_image(torch.isfinite(radii), moved), moved, 0.0)
    return torch.where(per_image(smallest.isinf(), images), confine(images, 2 * moved, clip), best)


def _weights(logits: Logits, labels: Labels, targets: Labels | None) -> Logits:
    """Weights of the logits whose gradient leads away from the label, or to the target."""
    return loss_weights(logits, labels) if targets is None else -loss_weights(logits, targets)


def _gaps(logits: Logits, targets: Labels) -> PerImage:
    """(N,) by how much the targets are missed, in units of the logits."""
    goal = targets[:, None]
    others = logits.scatter(1, goal, -torch.inf).amax(dim=1)
    return (logits.gather(1, goal)[:, 0] - others).abs()


def _cosine(ends: tuple[float, float], step: int, steps: int) -> float:
    """A value that goes from the first end to the other along half a cosine."""
    first, last = ends
    return last + (first - last) * (1 + math.cos(math.pi * step / (steps - 1))) / 2


def _first(
    model: Classifier,
    images: Images,
    labels: Labels,
    logits: Logits,
    pull: Pull,
    norm: float,
    clip: Clip,
    project: Projection | None,
) -> tuple[Images, PerImage]:
    """The gradient to follow first, and the distance of its linearised boundary."""
    rows, own = torch.arange(len(images), device=images.device), labels[:, None]
    count = min(RIVALS, logits.shape[1] - 1)
    rivals = logits.scatter(1, own, -torch.inf).topk(count).indices
    gradients = difference_gradients(pull, logits.shape[1], rivals, own.expand_as(rivals))
    if project is not None:
        gradients = project(gradients, rows)
    gaps = (logits.gather(1, own) - logits.gather(1, rivals)).abs()
    distances = gaps / norms(gradients.flatten(0, 1), dual(norm)).view_as(gaps)
    if count == 1:
        return gradients[:, 0], distances[:, 0]
    far = FAR * distances.amin(dim=1, keepdim=True).expand_as(distances)
    ends = _ends(images, gradients, far, norm, clip)
    search = BoundarySearch(
        model, images.repeat_interleave(count, 0), leaving(labels.repeat_interleave(count)), LOOKS
    )
    search.cross(ends)
    crossed = norms(search.perturbations, norm).view_as(distances)
    chosen = (torch.where(crossed.isnan(), far, crossed) + TIE * distances).argmin(dim=1)
    return gradients[rows, chosen], distances[rows, chosen]


def _ends(images: Images, gradients: Tensor, far: Tensor, norm: float, clip: Clip) -> Tensor:
    """The points at the distances ``far`` (N, K) along the gradients (N, K, ...), (N K, ...)."""
    copies, radii = images.repeat_interleave(far.shape[1], 0), far.flatten()
    curve = steepest_curve(copies, gradients.flatten(0, 1), radii, norm, clip)
    ends = curve(torch.ones_like(radii), torch.arange(len(radii), device=radii.device))
    # A vanishing gradient leads nowhere.
    return torch.where(torch.isfinite(ends), ends, 0.0)
