"""Curvature regularisation, CURE (Section 8.4)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustness_geometry.attacks.fgsm import unit_ascent
from robustness_geometry.checks import (
    NOTHING,
    Described,
    check_choice,
    check_count,
    check_images,
    check_model,
    check_positive,
    refuse,
)
from robustness_geometry.models.normalisation import Normalise, Normalised
from robustness_geometry.norms import norms
from robustness_geometry.training.objectives import CrossEntropy, Loss, Step, evaluating
from robustness_geometry.training.recipe import Recipe
from robustness_geometry.training.second_order import SecondOrder
from robustness_geometry.types import Classifier, Images, Labels, PerImage, class_logits

__all__ = ["Cure", "cure_penalty"]

DIRECTIONS = ("sign", "gradient")

ONE_MODE = {
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.Conv2d,
    nn.Flatten,
    nn.Identity,
    nn.Linear,
    nn.MaxPool2d,
    nn.ReLU,
    nn.Sequential,
    nn.Tanh,
    Normalise,
    Normalised,
}
"""Layers that do not know in which mode they are."""


@dataclass(frozen=True)
class Cure(CrossEntropy):
    """The cross-entropy plus ``weight`` times :func:`cure_penalty` (Section 8.4): fine-tunes a trained network.

    The cross-entropy is taken in training mode, the penalty in evaluation mode, so that batch
    normalisation does not couple its images. h grows linearly from 0 over the first ``ramp``
    epochs. The thesis gives h and lambda for "pixel values in [0, 255]" and leaves open in which
    unit they count; here h is an l2 length in pixels of [0, 1], and the gradients are those by such
    pixels. A curve of the training holds each of the two terms.

    Attributes:
        weight: lambda >= 0, 4 (ResNet-18) or 8 (WRN-28-10) in the thesis; 0 is plain training.
        h: the distance between the two gradients, in pixel units, above 0; 1.5 in the thesis.
        ramp: epochs over which h grows, 5 in the thesis; 0 starts with all of it.
        direction: z, ``sign`` or ``gradient`` (footnote 5).

    Raises:
        InputError: an option out of range.
    """

    weight: float = 4.0
    h: float = 1.5
    ramp: int = 5
    direction: str = "sign"

    def __post_init__(self) -> None:
        check_positive("lambda", self.weight, zero=True)
        check_positive("h", self.h)
        check_count("ramp", self.ramp, minimum=0)
        check_choice("direction", self.direction, DIRECTIONS)

    def check(self, recipe: Recipe) -> None:
        """Hold that h has grown before the training ends."""
        if self.ramp > recipe.epochs:
            refuse("ramp", self.ramp, f"at most training.epochs={recipe.epochs}")

    def h_at(self, epoch: float) -> float:
        """The h after ``epoch`` epochs, which may be a fraction."""
        return self.h * min(1.0, epoch / self.ramp) if self.ramp else self.h

    def loss(self, step: Step) -> Loss:
        """The two terms of one batch; both gradients of the penalty carry their graph."""
        h = self.h_at(step.epoch)
        if h == 0 or self.weight == 0:
            plain = super().loss(step)
            return self._sum(plain, torch.zeros_like(plain.total))
        own = None if _has_one_mode(step.model) else super().loss(step)
        with evaluating(step.model):
            changes, logits = _changes(step.model, step.images, step.labels, h, self.direction)
        shared = Loss(nn.functional.cross_entropy(logits, step.labels), logits)
        return self._sum(own or shared, changes.mean())

    def _sum(self, plain: Loss, penalty: Tensor) -> Loss:
        parts = {"cross_entropy": plain.total, "penalty": penalty}
        return Loss(plain.total + self.weight * penalty, plain.logits, parts)


def cure_penalty(
    model: Classifier, images: Images, labels: Labels, *, h: float | str, direction: str = "sign"
) -> Tensor:
    """The batch mean of ||grad l(x + h z) - grad l(x)||_2^2, with its graph through both gradients (Equation 8.7).

    l is the cross-entropy of one image, and z = sign(grad l(x)) / ||sign(grad l(x))||_2, or the
    normalised gradient itself; z is taken as given. Images do not enter each other's terms.

    Args:
        model: a classifier in evaluation mode; the penalty can be differentiated by its weights.
        images: x, (N, C, H, W), at least one.
        labels: (N,) the true labels.
        h: the l2 distance between the two points, in pixel units.
        direction: z, ``sign`` or ``gradient``.

    Returns:
        A scalar. An image whose gradient vanishes contributes 0.

    Raises:
        InputError: an option or a tensor that cannot be used, or a model in training mode.

    Example:
        >>> loss = cross_entropy(model(images), labels) + 4 * cure_penalty(model, images, labels, h=1.5)
        >>> loss.backward()
    """
    length = check_positive("h", h)
    check_choice("direction", direction, DIRECTIONS)
    check_model(model)
    check_images(images, limits=None)
    if not len(images):
        refuse("images", NOTHING, "at least one image")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        refuse(
            "labels",
            Described(f"{labels.dtype} {tuple(labels.shape)}"),
            f"whole numbers (int64) of shape ({len(images)},)",
        )
    changes, _ = _changes(model, images, labels, length, direction)
    return changes.mean()


def _changes(
    model: nn.Module, images: Tensor, labels: Tensor, h: float, direction: str
) -> tuple[PerImage, Tensor]:
    """The squared norm of each image's change of gradient, and the logits at the images, both with their graphs."""
    with torch.enable_grad():
        here, logits = _gradients(model, images, labels)
        there, _ = _gradients(model, images + h * _unit(here.detach(), direction), labels)
        return (there - here).flatten(1).square().sum(dim=1), logits


def _gradients(model: nn.Module, points: Tensor, labels: Tensor) -> tuple[Images, Tensor]:
    """The gradient of each image's own cross-entropy, a sum over the batch and no mean, and the logits."""
    leaf = points.detach().requires_grad_()
    with SecondOrder() as mode:
        logits = class_logits(model(leaf))
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return mode.gradient(loss, leaf), logits


def _unit(gradients: Images, direction: str) -> Images:
    """The z of each image, of l2 norm 1; zero where the gradient is."""
    if direction == "gradient":
        return unit_ascent(gradients, 2.0)
    signs = unit_ascent(gradients, math.inf)
    return signs / norms(signs).clamp_min(1).view(-1, 1, 1, 1)


def _has_one_mode(model: nn.Module) -> bool:
    """Whether training and evaluation mode are known to give the same logits, so that one forward pass serves both."""
    return all(type(layer) in ONE_MODE for layer in model.modules())
