"""What every attack does first and last: check its input, find labels, judge its result."""

import inspect
import math
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from robustness_geometry.checks import Described, check_images, check_logits, check_model, refuse
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import (
    Attack,
    Classifier,
    Images,
    Labels,
    Logits,
    Mask,
    Perturbed,
    Steps,
    class_logits,
)

__all__ = [
    "Bounds",
    "Clip",
    "Number",
    "as_logits",
    "attack_name",
    "check_clip",
    "check_input",
    "clean_labels",
    "confine",
    "is_reached",
    "judge",
    "labels_at",
    "nothing",
    "per_image",
    "takes_generator",
]

Number: TypeAlias = int | float | str
"""A number as options take it: ``8/255`` and ``inf`` are read as well."""

Bounds: TypeAlias = Sequence[int | float]
"""Lowest and highest pixel value, as options take them."""

Clip: TypeAlias = tuple[float, float] | None
"""Lowest and highest pixel value that a perturbed image may take; None leaves it free."""


def check_clip(clip: Bounds | None) -> Clip:
    """Return ``clip`` as two finite numbers, the lower one first, or None."""
    if clip is None:
        return None
    if len(clip) != 2 or not all(map(math.isfinite, clip)) or clip[0] >= clip[1]:
        refuse("clip", tuple(clip), "None or two finite numbers, the lower one first")
    return float(clip[0]), float(clip[1])


def check_input(
    model: Classifier,
    images: Images,
    *,
    clip: Clip = None,
    labels: Labels | None = None,
    targets: Labels | None = None,
) -> None:
    """Check that model, images, labels and targets can be attacked.

    Args:
        model: the classifier, which must be in evaluation mode.
        images: the images, which must lie within ``clip``, if given.
        clip: lowest and highest pixel value, or None.
        labels: (N,) whole numbers, or None.
        targets: (N,) whole numbers, or None.
    """
    check_model(model)
    check_images(images, limits=clip)
    for key, value in (("labels", labels), ("targets", targets)):
        if value is not None and (value.dtype != torch.int64 or value.shape != images.shape[:1]):
            refuse(
                key,
                Described(f"{value.dtype} {tuple(value.shape)}"),
                f"whole numbers (int64) of shape ({len(images)},)",
            )


def as_logits(raw: Tensor, *given: Labels | None) -> Logits:
    """The output of a model on clean images as logits (N, classes).

    Args:
        raw: (N, classes), or (N, 1).
        given: labels (N,) that were handed to the attack.

    Raises:
        InputError: logits of a wrong shape or not finite, or a given label that is no class.
    """
    check_logits(raw, len(raw))
    logits = class_logits(raw)
    for labels in given:
        if labels is not None and not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
            refuse(
                "labels",
                labels.unique().tolist()[:5],
                f"whole numbers from 0 to {logits.shape[1] - 1}",
            )
    return logits


def clean_labels(
    model: Classifier, images: Images, labels: Labels | None, *given: Labels | None
) -> Labels:
    """The labels under attack: ``labels``, or the classifier's own; the logits must be finite."""
    with torch.no_grad():
        logits = as_logits(logits_at(model, images), labels, *given)
    return logits.argmax(dim=1) if labels is None else labels


def labels_at(model: Classifier, points: Images) -> tuple[Labels, Mask]:
    """The labels (N,) at ``points``, and whether the logits there are finite.

    Where they are not, the label means nothing.
    """
    with torch.no_grad():
        logits = class_logits(logits_at(model, points))
    return logits.argmax(dim=1), torch.isfinite(logits).all(dim=1)


def is_reached(found: Labels, labels: Labels, targets: Labels | None) -> Mask:
    """Whether an attack has its goal: the target label, or any but the label under attack."""
    return found != labels if targets is None else found == targets


def judge(
    model: Classifier,
    images: Images,
    perturbations: Images,
    labels: Labels,
    steps: Steps,
    targets: Labels | None = None,
) -> Perturbed:
    """The result of an attack, with labels and success as seen on the tensors that it returns."""
    found, finite = labels_at(model, images + perturbations)
    finite &= torch.isfinite(perturbations).flatten(1).all(dim=1)
    return Perturbed(
        perturbations, labels, found, finite & is_reached(found, labels, targets), steps
    )


def nothing(images: Images) -> Perturbed:
    """The result of an attack on an empty batch, for which no model is called."""
    none = torch.zeros(0, dtype=torch.int64, device=images.device)
    return Perturbed(images.detach().clone(), none, none.clone(), none.bool(), none.clone())


def confine(images: Images, perturbations: Images, clip: Clip) -> Images:
    """``perturbations``, changed so that ``images + perturbations`` lies within ``clip``."""
    return perturbations if clip is None else (images + perturbations).clamp(*clip) - images


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (N,) shaped (N, 1, 1, 1), to be multiplied with images."""
    return values.view(-1, *[1] * (like.ndim - 1))


def attack_name(attack: Attack) -> str:
    """The name of the function under the options, such as ``deepfool``."""
    function: object = attack
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def takes_generator(attack: Attack) -> bool:
    """Whether ``attack`` draws random numbers, that is, has a ``generator`` option."""
    return "generator" in inspect.signature(attack).parameters
