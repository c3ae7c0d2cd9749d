"""Which images one vector fools."""

import torch
from torch import Tensor

from robustness_geometry.attacks._look_ahead import moved
from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    as_logits,
    check_clip,
    check_input,
    is_reached,
    labels_at,
)
from robustness_geometry.checks import GivenLabels, refuse
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Classifier, Images, Labels, Mask

__all__ = ["fooled", "fooled_by", "labels_to_change"]

BATCH = 256
"""Batch size for labels and fooling rates; it does not affect results."""


def fooled(
    model: Classifier,
    images: Images,
    perturbation: Tensor,
    *,
    labels: GivenLabels = None,
    clip: Bounds | None = None,
) -> Mask:
    """Which images change their label when one vector is added to all of them.

    The mean of the result is the fooling rate Err(X_v).

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        perturbation: v, (1, C, H, W), in pixel units.
        labels: (N,) the labels to change; None: the classifier's own.
        clip: lowest and highest pixel value of x + v; None does not clip.

    Returns:
        (N,); False where the logits at x + v are not finite.

    Raises:
        InputError: an option, an image or a clean logit that cannot be used, or a model in training
            mode.

    References:
        Thesis: Section 4.2.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import fooled
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2)).eval()
        >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> _ = model[1].bias.data.zero_()
        >>> images = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1)
        >>> fooled(model, images, torch.full((1, 1, 1, 1), -0.5)).tolist()
        [True, False]
    """
    box = check_clip(clip)
    model, images, labels, _ = check_input(model, images, clip=box, labels=labels)
    if perturbation.shape != (1, *images.shape[1:]):
        refuse(
            "perturbation.shape",
            tuple(perturbation.shape),
            f"(1, C, H, W) = {(1, *images.shape[1:])}",
        )
    labels = labels_to_change(model, images, labels)
    return fooled_by(model, images, perturbation, labels, box)


def labels_to_change(model: Classifier, images: Images, labels: Labels | None) -> Labels:
    """The labels to change: those given, else the classifier's own; checks the clean logits."""
    own = []
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        with torch.no_grad():
            logits = as_logits(
                logits_at(model, images[part]), None if labels is None else labels[part]
            )
        own.append(logits.argmax(dim=1))
    if labels is not None:
        return labels
    return torch.cat(own) if own else torch.zeros(0, dtype=torch.int64, device=images.device)


def fooled_by(
    model: Classifier, images: Images, vector: Tensor, labels: Labels, clip: Clip
) -> Mask:
    """(N,) whether x + v has another label than ``labels``, by finite logits."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        other, finite = labels_at(model, moved(images[part], vector, clip))
        found[part] = finite & is_reached(other, labels[part], None)
    return found
