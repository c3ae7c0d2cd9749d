"""The fast gradient sign method, at a given eps and at the smallest eps that fools a share of the images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.attacks.gradients import linearise, loss_weights
from pipeline.attacks.protocol import (
    Clip,
    as_logits,
    check_clip,
    check_input,
    confine,
    judge,
    labels_at,
    nothing,
    per_image,
)
from pipeline.checks import check_count, check_norm, check_positive, refuse
from pipeline.norms import norms
from pipeline.types import Classifier, Images, Labels, Perturbed

__all__ = ["SmallestEps", "fgsm", "fgsm_direction", "fgsm_smallest_eps"]

LARGEST_RISE = 1.15
"""Ratio of neighbours in the coarse grid of eps: a crossing between two of them may be missed, a broad one is not."""


def fgsm(
    model: Classifier,
    images: Images,
    *,
    eps: float | str,
    norm: float | str = math.inf,
    clip: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> Perturbed:
    """One step of length ``eps`` that raises the loss: r = eps sign(grad J(x, y)) (Section 3.2.3).

    With ``norm=2``: r = eps grad J / ||grad J||_2. J is the cross-entropy; y is ``labels``.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        eps: length of the step in ``norm``, in pixel units, > 0; may be written as a fraction such as ``8/255``.
        norm: inf or 2.
        clip: lowest and highest pixel value of the perturbed images; None does not clip.
        labels: (N,) the labels to leave; None: the classifier's own.

    Returns:
        Perturbed, with one step an image. A vanishing gradient gives r = 0, which counts as failed.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.
    """
    length, bounds = check_positive("eps", eps), check_clip(clip)
    kind = _check_kind(norm)
    check_input(model, images, clip=bounds, labels=labels)
    images = images.detach()
    if not len(images):
        return nothing(images)
    chosen, direction = fgsm_direction(model, images, norm=kind, labels=labels)
    return judge(model, images, confine(images, length * direction, bounds), chosen, torch.ones_like(chosen))


def fgsm_direction(
    model: Classifier, images: Images, *, norm: float = math.inf, labels: Labels | None = None
) -> tuple[Labels, Images]:
    """The labels (N,) under attack, and the step of length 1 in ``norm`` (N, C, H, W) along the loss gradient."""
    raw, pull = linearise(model, images)
    logits = as_logits(raw, labels)
    chosen = logits.argmax(dim=1) if labels is None else labels
    gradient = pull(loss_weights(logits, chosen))
    if math.isinf(norm):
        return chosen, gradient.sign()
    size = norms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
    return chosen, gradient / per_image(size, gradient)


@dataclass(frozen=True)
class SmallestEps:
    """The outcome of the search for one eps.

    Attributes:
        eps: the smallest eps found whose share reaches ``rate``; where none does, the one with the highest share.
        rate: share of the images that ``eps`` fools.
        reachable: whether the wanted rate was reached.
        curve: the coarse grid, pairs (eps, share fooled).
    """

    eps: float
    rate: float
    reachable: bool
    curve: tuple[tuple[float, float], ...]


def fgsm_smallest_eps(
    model: Classifier,
    images: Images,
    *,
    rate: float = 0.9,
    eps_min: float | str = 1e-3,
    eps_max: float | str = 10.0,
    tolerance: float = 1e-3,
    norm: float | str = math.inf,
    clip: Sequence[float] | None = None,
    labels: Labels | None = None,
    batch: int = 250,
) -> SmallestEps:
    """The smallest single eps with which FGSM misclassifies a share ``rate`` of the images (Section 3.2.3, Table 3.1).

    The share is not monotone in eps: a long step can lead back into the image's own region. So a geometric grid from
    ``eps_min`` to ``eps_max`` finds the first crossing, and bisection narrows it down. The share may never reach
    ``rate`` (footnote 4 of Section 3.2.3); ``reachable`` then is False. The gradient is taken once.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W), N >= 1.
        rate: wanted share of misclassified images, in (0, 1].
        eps_min: smallest eps of the grid, in pixel units.
        eps_max: largest eps of the grid.
        tolerance: the returned eps is within this relative distance of the crossing.
        norm: inf or 2.
        clip: as in :func:`fgsm`.
        labels: (N,) the labels to leave; None: the classifier's own.
        batch: images a forward pass.

    Returns:
        SmallestEps.

    Raises:
        InputError: an option that cannot be used, or no images.
    """
    low, high, bounds = check_positive("eps_min", eps_min), check_positive("eps_max", eps_max), check_clip(clip)
    if not 0 < rate <= 1:
        refuse("rate", rate, "a share in (0, 1]")
    if low >= high:
        refuse("eps_max", high, f"a number above eps_min={low:g}")
    check_positive("tolerance", tolerance)
    check_count("batch", batch)
    kind = _check_kind(norm)
    check_input(model, images, clip=bounds, labels=labels)
    if not len(images):
        refuse("images", "0 images", "at least one image")
    parts = _directions(model, images.detach(), kind, labels, batch)
    count = math.ceil(math.log(high / low) / math.log(LARGEST_RISE)) + 1
    grid = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64).tolist()
    curve = tuple((eps, _share(model, parts, eps, bounds)) for eps in grid)
    first = next((i for i, (_, share) in enumerate(curve) if share >= rate), None)
    if first is None:
        best = max(curve, key=lambda point: point[1])
        return SmallestEps(best[0], best[1], False, curve)
    eps, share = curve[first]
    below = curve[first - 1][0] if first else 0.0
    while eps - below > tolerance * eps:
        middle = (below + eps) / 2
        reached = _share(model, parts, middle, bounds)
        if reached >= rate:
            eps, share = middle, reached
        else:
            below = middle
    return SmallestEps(eps, share, True, curve)


def _check_kind(norm: float | str) -> float:
    kind = check_norm("norm", norm)
    if kind not in (2.0, math.inf):
        refuse("norm", norm, "2 or inf")
    return kind


def _directions(
    model: Classifier, images: Images, norm: float, labels: Labels | None, batch: int
) -> list[tuple[Images, Labels, Images]]:
    """Images, labels and unit steps, a batch at a time."""
    parts = []
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        given = None if labels is None else labels[start : start + batch]
        parts.append((some, *fgsm_direction(model, some, norm=norm, labels=given)))
    return parts


def _share(model: Classifier, parts: list[tuple[Images, Labels, Images]], eps: float, clip: Clip) -> float:
    """The share of the images that a step of length ``eps`` misclassifies; non-finite logits count as failed."""
    fooled = total = 0
    for images, labels, direction in parts:
        found, finite = labels_at(model, images + confine(images, eps * direction, clip))
        fooled += int(((found != labels) & finite).sum())
        total += len(images)
    return fooled / total

