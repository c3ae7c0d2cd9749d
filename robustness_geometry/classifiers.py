"""A check of a network before any work: whether numbers measured on it mean anything."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from robustness_geometry.checks import (
    NOTHING,
    Described,
    InputError,
    check_images,
    check_logits,
    check_model,
    refuse,
)
from robustness_geometry.models.probabilities import (
    are_probabilities,
    are_saturated,
)
from robustness_geometry.outputs import (
    check_lost_gradient,
    differentiate,
    logits_at,
    refuse_change,
    refuse_lost_gradient,
    refuse_output_layer,
    refuse_probabilities,
)
from robustness_geometry.second_derivatives import note_on_second_derivatives
from robustness_geometry.types import Classifier, Images, Logits, class_logits

__all__ = ["ClassifierReport", "attempt", "check_classifier"]

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError)
"""What a network raises on images that it cannot take."""

FAR = 1e3
"""Factor by which images are scaled to see whether outputs stay in [0, 1]."""


@dataclass(frozen=True)
class ClassifierReport:
    """What :func:`check_classifier` found out about a network that can be measured.

    Attributes:
        classes: number of classes; 2 for logits (N, 1).
        notes: one sentence for each thing that limits what can be measured, or how to read it.
    """

    classes: int
    notes: tuple[str, ...] = ()


def check_classifier(
    model: Classifier,
    images: Images,
    *,
    classes: int | Sequence[str] | None = None,
    trained: bool = True,
) -> ClassifierReport:
    """Check on two images that numbers measured on a network mean something.

    It looks for networks through which no gradient reaches the image, for outputs that are
    probabilities, for answers that differ from call to call or depend on the other images of a
    batch, for images that are changed in place, and for logits that are not finite. Besides the
    images, a random, a black and a white one are tried. This takes five forward passes and a few
    gradients of five images or fewer.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W), at least one; the first two are used.
        classes: number or names of the classes that the network should have; None: any number.
        trained: whether the weights are final. A network that is still to be trained may give all
            images the same logits.

    Returns:
        ClassifierReport, whose notes say what limits the measurements.

    Raises:
        InputError: numbers measured on this network would mean nothing; the text says why, and what
            to change.

    Example:
        >>> import torch
        >>> from robustness_geometry import check_classifier
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Tanh())
        >>> model = model.append(torch.nn.Linear(8, 3)).eval()
        >>> check_classifier(model, torch.rand(2, 1, 4, 4), classes=3)
        ClassifierReport(classes=3, notes=())
        >>> from robustness_geometry.checks import InputError
        >>> try:
        ...     softmax = torch.nn.Sequential(model, torch.nn.Softmax(dim=1)).eval()
        ...     check_classifier(softmax, torch.rand(2, 1, 4, 4))
        ... except InputError as error:
        ...     print(error.key)
        model.output
    """
    check_model(model)
    check_images(images, limits=None)
    if not len(images):
        refuse("images", NOTHING, "at least one image")
    points, bounds = _points(images)
    base = _answers(model, points)
    if classes is not None:
        _check_classes(base, classes)
    edges = _answers(model, bounds)
    notes = _check_repeatable(model, points, base)
    every = torch.cat([base, edges])
    gradients = _check_gradient(model, points, base, trained=trained)
    _check_outputs(model, points, every)
    vanishing = int((gradients.flatten(1) == 0).all(dim=1).sum())
    if trained:
        _check_dependence(every, vanishing, len(points))
    notes += _notes(model, every, vanishing, len(points))
    notes += note_on_second_derivatives(model, points[:1])
    return ClassifierReport(class_logits(base).shape[1], tuple(notes))


def attempt(model: nn.Module, images: Images) -> Logits:
    """The logits of ``images``, without a graph.

    Raises:
        InputError: the network fails on them; the text names their shape and its reason.
    """
    try:
        with torch.no_grad():
            return logits_at(model, images)
    except (InputError, torch.OutOfMemoryError):
        raise
    except FAILURES as error:
        _refuse_failure(error, images)


def _refuse_failure(error: Exception, images: Images) -> NoReturn:
    why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    size = "x".join(map(str, images.shape[1:]))
    refuse(
        "model",
        Described(f"a failure on {len(images)} of them ({why})"),
        f"a network that takes images {size} in batches of any size",
    )


def _points(images: Images) -> tuple[Images, Images]:
    """The first two images and a random one, and a black and a white one."""
    few = images[:2].detach().clone()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(few[:1].shape, generator=generator).to(few)
    return torch.cat([few, noise]), torch.cat([torch.zeros_like(noise), torch.ones_like(noise)])


def _answers(model: nn.Module, points: Images) -> Logits:
    """The logits of ``points``, after a check of their form and that the points stay."""
    given = points.clone()
    logits = attempt(model, given)
    if not torch.equal(given, points):
        refuse_change()
    check_logits(logits, len(points))
    return logits


def _check_classes(logits: Logits, classes: int | Sequence[str]) -> None:
    wanted = classes if isinstance(classes, int) else len(classes)
    given = logits.shape[1]
    if given != wanted and not (given == 1 and wanted <= 2):
        refuse("classes", wanted, f"{given}, the number of logits of the network")


def _check_repeatable(model: nn.Module, points: Images, base: Logits) -> list[str]:
    """Check that an image has one answer: in every call, and whatever else is in its batch."""
    again = attempt(model, points)
    rounding = torch.finfo(base.dtype).eps * float(_spread(base))
    change = float((again - base).abs().max())
    if not change <= 100 * rounding:
        refuse(
            "model",
            Described(f"logits of the same images that differ by {change:.3g} from call to call"),
            "a network that gives the same answer twice (dropout that heeds self.training, no "
            "noise in forward)",
        )
    alone = attempt(model, points[:1])
    change_alone = float((alone - base[:1]).abs().max())
    if not change_alone <= min(1e4 * rounding, 0.05 * float(_spread(base))):
        refuse(
            "model",
            Described(f"logits of an image that differ by {change_alone:.3g} with its batch"),
            "a network that treats every image by itself (batch normalisation with running "
            "statistics, no mean over the batch)",
        )
    if change > 0:
        return [
            "The network's logits differ in their last digits from call to call, so that results "
            "do too."
        ]
    return []


def _spread(logits: Logits) -> Tensor:
    """The size of the logits, up to a constant per image, which means nothing."""
    shifted = logits - logits.mean(dim=1, keepdim=True) if logits.shape[1] > 1 else logits
    return shifted.abs().max().clamp_min(torch.finfo(logits.dtype).tiny)


def _check_gradient(model: nn.Module, points: Images, base: Logits, *, trained: bool) -> Tensor:
    """The gradients of a weighted sum of the logits, after a check that there are some."""
    with torch.enable_grad():
        leaf = points.clone().requires_grad_()
        logits = logits_at(model, leaf)
        weights = torch.arange(1.0, logits.shape[1] + 1).to(logits) / logits.shape[1]
        weights = weights.expand_as(logits)
        if not logits.requires_grad:
            check_lost_gradient(model, points, base)
            if trained:
                refuse_lost_gradient()
            return torch.zeros_like(points)
        refuse_output_layer(logits)
        return differentiate(model, logits, leaf, weights)


def _check_outputs(model: nn.Module, points: Images, outputs: Tensor) -> None:
    """Check that the outputs are no probabilities, as their values tell."""
    if not are_probabilities(outputs):
        return
    # Logits may lie in [0, 1] by chance, but then they leave it far from the images.
    if outputs.shape[1] == 1 and not are_probabilities(
        torch.cat([attempt(model, FAR * points), attempt(model, -FAR * points)])
    ):
        return
    if are_saturated(outputs):
        refuse(
            "model.output",
            Described("probabilities that are exactly 0 or 1 (saturated)"),
            "logits: return what the last softmax or sigmoid is given; no logarithm can restore it",
        )
    refuse_probabilities("a sigmoid" if outputs.shape[1] == 1 else "a softmax")


def _check_dependence(logits: Logits, vanishing: int, count: int) -> None:
    if torch.equal(logits, logits[:1].expand_as(logits)):
        refuse(
            "model",
            Described(f"the same logits for {len(logits)} different images"),
            "a network whose logits depend on the image",
        )
    if vanishing == count:
        refuse(
            "model",
            Described(f"a gradient of exactly zero at {count} of {count} images"),
            "a network whose logits change smoothly with the image (no round, sign, one-hot or "
            "saturated layer between them)",
        )


def _notes(model: nn.Module, logits: Logits, vanishing: int, count: int) -> list[str]:
    notes = []
    if vanishing:
        notes.append(
            f"The gradient of the logits is exactly zero at {vanishing} of {count} images tried, "
            "where no attack that follows gradients can start."
        )
    if len(class_logits(logits).argmax(dim=1).unique()) == 1:
        notes.append(f"All {len(logits)} images tried get the same class.")
    if logits.dtype in (torch.float16, torch.bfloat16):
        digits = math.floor(-math.log10(torch.finfo(logits.dtype).eps))
        notes.append(
            f"The network's logits have {digits} digits ({logits.dtype}), which limits differences "
            "of them, such as curvatures."
        )
    if any(_is_compiled(layer) for layer in model.modules()):
        notes.append(
            "The network is compiled; it runs uncompiled here, as gradients are taken more than "
            "once of one forward pass."
        )
    return notes


def _is_compiled(layer: nn.Module) -> bool:
    compiled: Callable[..., object] | None = getattr(layer, "_compiled_call_impl", None)
    return compiled is not None or type(layer).__name__ == "OptimizedModule"
