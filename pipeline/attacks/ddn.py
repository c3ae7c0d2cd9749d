"""Decoupled direction and norm: an accurate minimum-l_2 attack to judge others by (Rony et al., 2019)."""

import math
from collections.abc import Sequence

import torch

from pipeline.attacks.gradients import linearise, loss_weights
from pipeline.attacks.protocol import check_clip, check_input, clean_labels, confine, judge, nothing, per_image
from pipeline.checks import check_count, check_positive, refuse
from pipeline.norms import norms
from pipeline.types import Classifier, Images, Labels, Perturbed

__all__ = ["ddn"]


def ddn(
    model: Classifier,
    images: Images,
    *,
    steps: int = 1000,
    init_norm: float | str = 1.0,
    gamma: float = 0.05,
    clip: Sequence[float] | None = (0.0, 1.0),
    labels: Labels | None = None,
) -> Perturbed:
    """Minimise ||r||_2 under misclassification, with direction and norm of r decoupled.

    Each step moves r by a normalised gradient step of the loss, whose length falls from 1 to 0.01 along a cosine, and
    sets its norm to a sphere that shrinks by 1 - gamma where the image is misclassified and grows by 1 + gamma where
    it is not. The smallest misclassified r is kept.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        steps: gradient steps; with 1000 of them the norms of small networks are within a few percent of the best known.
        init_norm: first norm, in pixel units.
        gamma: relative change of the norm a step, in (0, 1).
        clip: lowest and highest pixel value; None does not clip.
        labels: (N,) the labels to leave; None: the classifier's own.

    Returns:
        Perturbed; an image that was never misclassified keeps its last r and counts as failed.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.
    """
    check_count("steps", steps)
    first = check_positive("init_norm", init_norm)
    if not 0 < gamma < 1:
        refuse("gamma", gamma, "a number in (0, 1)")
    bounds = check_clip(clip)
    check_input(model, images, clip=bounds, labels=labels)
    images = images.detach()
    if not len(images):
        return nothing(images)
    own = clean_labels(model, images, labels)
    offsets, best = torch.zeros_like(images), torch.zeros_like(images)
    smallest = images.new_full((len(images),), math.inf)
    sphere = images.new_full((len(images),), first)
    for step in range(steps):
        logits, pull = linearise(model, images + offsets)
        fooled = (logits.argmax(dim=1) != own) & torch.isfinite(logits).all(dim=1)
        size = norms(offsets)
        better = fooled & (size < smallest)
        smallest = torch.where(better, size, smallest)
        best = torch.where(per_image(better, best), offsets, best)
        gradient = pull(loss_weights(logits.nan_to_num(), own))
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
        offsets = offsets + rate * _unit(gradient)
        sphere = sphere * torch.where(fooled, 1 - gamma, 1 + gamma)
        offsets = confine(images, per_image(sphere, images) * _unit(offsets), bounds)
    found = judge(model, images, offsets, own, torch.full_like(own, steps))
    last = found.success & (norms(offsets) < smallest) | smallest.isinf()
    return judge(model, images, torch.where(per_image(last, best), offsets, best), own, found.steps)


def _unit(vectors: Images) -> Images:
    """Each of ``vectors`` (N, C, H, W) at norm 1; a zero vector stays zero."""
    return vectors / per_image(norms(vectors).clamp_min(torch.finfo(vectors.dtype).tiny), vectors)
