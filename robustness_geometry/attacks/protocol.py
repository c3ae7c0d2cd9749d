"""What every attack does first and last: check its input, find labels, judge its result."""

import inspect
import math
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robustness_geometry.checks import (
    Described,
    GivenLabels,
    InputError,
    check_classes,
    check_images,
    check_labels,
    check_logits,
    check_model,
    refuse,
)
from robustness_geometry.norms import HALF
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import (
    Attack,
    Classifier,
    Images,
    Labels,
    Logits,
    Mask,
    PerImage,
    Perturbed,
    Steps,
    class_logits,
)

__all__ = [
    "Bounds",
    "Clip",
    "GivenLabels",
    "Matched",
    "Number",
    "as_logits",
    "at_least_rounding",
    "attack_name",
    "check_clip",
    "check_input",
    "check_precise",
    "clean_labels",
    "confine",
    "is_reached",
    "judge",
    "labels_at",
    "matched",
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
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    key: str = "images",
) -> tuple[Classifier, Images, Labels | None, Labels | None]:
    """Check that model, images, labels and targets can be used, and return them ready for use.

    Args:
        model: the classifier, which must be in evaluation mode.
        images: the images, (N, ...), which must lie within ``clip``, if given.
        clip: lowest and highest pixel value, or None.
        labels: N whole numbers in any form that :func:`robustness_geometry.checks.check_labels`
            takes, or None.
        targets: likewise.
        key: the name of the images in messages.

    Returns:
        The classifier as a :class:`Matched`, the images without a graph, and labels and targets as
        tensors (N,) of int64 on the images' device, or None.

    Raises:
        InputError: something that cannot be used, or a model on another device than the images.
    """
    check_model(model)
    check_images(images, key=key, limits=clip)
    home = next((each.device for each in model.parameters()), images.device)
    if home != images.device:
        refuse(
            key,
            Described(f"a tensor on {images.device}"),
            f'on the device of the model: {key}.to("{home}")',
        )
    return (
        matched(model, images),
        images.detach(),
        None if labels is None else check_labels(labels, len(images), device=images.device),
        None
        if targets is None
        else check_labels(targets, len(images), key="targets", device=images.device),
    )


class Matched(nn.Module):
    """A classifier for images of one type: it gets them in its own type and answers in theirs.

    So float32 images can be given to a network of float64 or bfloat16 weights, one that works in
    mixed precision, or one whose output has another type. Under ``torch.autocast`` alone, nothing
    else than the network runs in the lower precision.

    Args:
        model: the classifier.
        images: images of the type.

    Raises:
        InputError: when called with images that the classifier cannot take.
    """

    def __init__(self, model: Classifier, images: Images) -> None:
        super().__init__()
        self.model, self.dtype = model, images.dtype
        found = {each.dtype for each in model.parameters() if each.is_floating_point()}
        self.own = found.pop() if len(found) == 1 else images.dtype
        self.eps = 0.0  # machine epsilon of the logits, where it is not that of the images
        self.training = False

    def forward(self, images: Images) -> Tensor:
        """The logits of the classifier, in the type of the images."""
        try:
            given = images if self.own == images.dtype else images.to(self.own)
            raw = logits_at(self.model, given)
        except (InputError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            shown = Described(f"{images.dtype} {tuple(images.shape)}")
            refuse("images", shown, f"a batch (N, ...) that the network takes; it says: {why}")
        if raw.dtype == images.dtype:
            return raw
        self.eps = torch.finfo(raw.dtype).eps
        return raw.to(images.dtype)


def at_least_rounding(gaps: PerImage, model: Classifier, logits: Logits) -> PerImage:
    """``gaps`` between logits, no smaller than these are rounded in the network's own type.

    A step over a smaller gap would not cross the boundary that the network sees.
    """
    if not isinstance(model, Matched) or model.eps <= torch.finfo(logits.dtype).eps:
        return gaps
    return gaps.maximum(model.eps * logits.abs().amax(dim=1))


def matched(model: Classifier, images: Images) -> Classifier:
    """``model`` as a :class:`Matched` for the type of ``images``."""
    while isinstance(model, Matched):
        if model.dtype == images.dtype:
            return model
        model = model.model
    return Matched(model, images)


def check_precise(model: Classifier, images: Images) -> None:
    """Check that nothing is in half precision, in which differences of gradients are rounding.

    Args:
        model: a classifier as :func:`check_input` returned it, or any other.
        images: the images or points.

    Raises:
        InputError: images or weights of float16 or bfloat16, or an autocast to them.
    """
    why = "for curvatures, which are differences of gradients"
    if images.dtype in HALF:
        refuse("images", Described(str(images.dtype)), f"float32 or float64 {why}")
    halves = [each.dtype for each in model.parameters() if each.dtype in HALF]
    if halves:
        refuse("model", Described(f"weights of {halves[0]}"), f"a float32 or float64 network {why}")
    if torch.is_autocast_enabled(images.device.type):
        refuse("torch.autocast", Described("autocast"), f"off {why}")


def as_logits(raw: Tensor, *given: Labels | None) -> Logits:
    """The output of a model on clean images as logits (N, classes).

    Args:
        raw: (N, classes), or (N, 1).
        given: labels (N,) and targets (N,) that were handed to the attack.

    Raises:
        InputError: logits of a wrong shape or not finite, or a given label that is no class.
    """
    check_logits(raw, len(raw))
    logits = class_logits(raw)
    for key, labels in zip(("labels", "targets"), given, strict=False):
        if labels is not None:
            check_classes(labels, logits.shape[1], key=key)
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
