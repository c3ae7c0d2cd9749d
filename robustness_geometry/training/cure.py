"""Curvature regularisation, CURE (Section 8.4)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustness_geometry.attacks.fgsm import unit_ascent
from robustness_geometry.attacks.protocol import per_image
from robustness_geometry.checks import (
    NOTHING,
    GivenLabels,
    check_choice,
    check_count,
    check_images,
    check_labels,
    check_model,
    check_positive,
    refuse,
)
from robustness_geometry.models.normalisation import Normalise, Normalised
from robustness_geometry.norms import norms
from robustness_geometry.outputs import check_lost_gradient, logits_at, refuse_output_layer
from robustness_geometry.second_derivatives import check_once, twice_differentiable
from robustness_geometry.training.objectives import CrossEntropy, Loss, Step, evaluating
from robustness_geometry.training.recipe import Recipe
from robustness_geometry.training.second_order import SecondOrder
from robustness_geometry.types import Classifier, Images, PerImage, class_logits

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
"""Layers that compute the same in training and in evaluation mode."""


@dataclass(frozen=True)
class Cure(CrossEntropy):
    """CURE: the cross-entropy plus ``weight`` times :func:`cure_penalty`, to fine-tune a network.

    The cross-entropy is computed in training mode, the penalty in evaluation mode, so that batch
    normalisation does not couple its images. h grows linearly from 0 over the first ``ramp``
    epochs. The thesis gives h and lambda for "pixel values in [0, 255]" and leaves open in which
    unit they count. Here h is an l2 length in pixels of [0, 1], and gradients are with respect to
    such pixels. The training curves hold each of the two terms.

    Attributes:
        weight: lambda >= 0, 4 (ResNet-18) or 8 (WRN-28-10) in the thesis; 0 is plain training.
        h: the distance between the two gradients, in pixel units, above 0; 1.5 in the thesis.
        ramp: number of epochs over which h grows, 5 in the thesis; 0 starts with the full h.
        direction: z, ``sign`` or ``gradient``.

    Raises:
        InputError: an option out of range.

    References:
        Thesis: Section 8.4, Equations 8.5 to 8.7.

        S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
        regularization, and vice versa", CVPR 2019, arXiv:1811.09716.

    Example:
        >>> import torch
        >>> from robustness_geometry.training import Cure, Recipe, train
        >>> from robustness_geometry.types import Split
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> images = torch.rand(40, 1, 4, 4)
        >>> data = Split(images, (images.mean(dim=(1, 2, 3)) > 0.5).long())
        >>> result = train(model, data, Recipe(epochs=2), objective=Cure(weight=4.0, ramp=1))
        >>> sorted(result.history)
        ['cross_entropy', 'penalty', 'train_error', 'train_loss']
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
        """Check that h reaches its full value before the training ends."""
        if self.ramp > recipe.epochs:
            refuse("ramp", self.ramp, f"at most training.epochs={recipe.epochs}")

    def h_at(self, epoch: float) -> float:
        """The h after ``epoch`` epochs, which may be fractional."""
        return self.h * min(1.0, epoch / self.ramp) if self.ramp else self.h

    def loss(self, step: Step) -> Loss:
        """The two terms of one batch; both gradients of the penalty carry their graph."""
        h = self.h_at(step.epoch)  # grows from 0 to self.h
        if h == 0 or self.weight == 0:
            plain = super().loss(step)
            return self._sum(plain, torch.zeros_like(plain.total))
        # The cross-entropy l in training mode. Where the mode changes nothing, the logits of the
        # penalty serve for it too.
        own = None if _has_one_mode(step.model) else super().loss(step)
        # The penalty L_r in evaluation mode (Equation 8.7), and the sum l + lambda L_r.
        with evaluating(step.model):
            changes, logits = _changes(step.model, step.images, step.labels, h, self.direction)
        shared = Loss(nn.functional.cross_entropy(logits, step.labels), logits)
        return self._sum(own or shared, changes.mean())

    def _sum(self, plain: Loss, penalty: Tensor) -> Loss:
        parts = {"cross_entropy": plain.total, "penalty": penalty}
        return Loss(plain.total + self.weight * penalty, plain.logits, parts)


def cure_penalty(
    model: Classifier,
    images: Images,
    labels: GivenLabels,
    *,
    h: float | str,
    direction: str = "sign",
) -> Tensor:
    """CURE's regulariser, the batch mean of ||grad l(x + h z) - grad l(x)||_2^2.

    l is the cross-entropy of one image, and z = sign(grad l(x)) / ||sign(grad l(x))||_2, or the
    normalised gradient itself. The result carries its graph through both gradients, but not
    through z. The term of an image depends on that image alone.

    Args:
        model: a classifier in evaluation mode; the penalty can be differentiated by its weights.
        images: x, (N, C, H, W), at least one.
        labels: (N,) the true labels.
        h: the l2 distance between the two points, in pixel units.
        direction: z, ``sign`` or ``gradient``.

    Returns:
        A scalar. An image whose gradient vanishes contributes 0.

    Raises:
        InputError: an option or a tensor that cannot be used, or a model in training mode
            or without second derivatives.

    References:
        Thesis: Section 8.4, Equation 8.7.

        S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
        regularization, and vice versa", CVPR 2019, arXiv:1811.09716.

    Example:
        >>> import torch
        >>> from robustness_geometry.training import cure_penalty
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
        >>> loss = torch.nn.functional.cross_entropy(model(images), labels)
        >>> loss = loss + 4 * cure_penalty(model, images, labels, h=1.5)
        >>> loss.backward()
        >>> bool(model[1].weight.grad.isfinite().all())
        True
    """
    length = check_positive("h", h)
    check_choice("direction", direction, DIRECTIONS)
    check_model(model)
    check_images(images, limits=None)
    if not len(images):
        refuse("images", NOTHING, "at least one image")
    with torch.no_grad():
        classes = class_logits(logits_at(model, images[:1])).shape[1]
    labels = check_labels(labels, len(images), classes=classes, device=images.device)
    changes, _ = _changes(model, images, labels, length, direction)
    return changes.mean()


def _changes(
    model: nn.Module, images: Tensor, labels: Tensor, h: float, direction: str
) -> tuple[PerImage, Tensor]:
    """The squared norm of each image's change of gradient, and the logits, with their graphs."""
    check_once(model, images)
    with torch.enable_grad():
        # grad l(x), z from it, and grad l(x + h z).
        here, logits = _gradients(model, images, labels)
        there, _ = _gradients(model, images + h * _unit(here.detach(), direction), labels)
        return (there - here).flatten(1).square().sum(dim=1), logits


def _gradients(model: nn.Module, points: Tensor, labels: Tensor) -> tuple[Images, Tensor]:
    """The gradient of each image's own cross-entropy (the batch is summed), and the logits."""
    leaf = points.detach().requires_grad_()
    with SecondOrder() as mode, twice_differentiable():
        raw = logits_at(model, leaf)
        refuse_output_layer(raw)
        if not raw.requires_grad:
            check_lost_gradient(model, leaf, raw)
        logits = class_logits(raw)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return mode.gradient(loss, leaf), logits


def _unit(gradients: Images, direction: str) -> Images:
    """The z of each image, of l2 norm 1; zero where the gradient is zero."""
    if direction == "gradient":
        return unit_ascent(gradients, 2.0)
    signs = unit_ascent(gradients, math.inf)
    return signs / per_image(norms(signs).clamp_min(1), signs)


def _has_one_mode(model: nn.Module) -> bool:
    """Whether training and evaluation mode are known to give the same logits.

    One forward pass then serves both.
    """
    return all(type(layer) in ONE_MODE for layer in model.modules())
