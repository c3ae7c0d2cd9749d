"""What a training minimises, step by step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustness_geometry.attacks.protocol import takes_generator
from robustness_geometry.checks import check_choice
from robustness_geometry.training.recipe import Recipe
from robustness_geometry.types import Attack, class_logits

__all__ = ["Adversarial", "CrossEntropy", "Loss", "Step", "evaluating"]

BATCH = 250
"""Images for which examples are made together, where they are made once an epoch."""


@dataclass(frozen=True)
class Step:
    """One step of a training.

    Attributes:
        model: the network, in training mode.
        images: the batch (N, C, H, W), augmented.
        labels: (N,) its true labels.
        epoch: how many epochs have passed, with the share of the one under way.
        generator: of all that the step draws; a CPU generator that checkpoints carry.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    epoch: float
    generator: torch.Generator


@dataclass(frozen=True)
class Loss:
    """What a step minimises.

    Attributes:
        total: the scalar whose gradient the weights follow.
        logits: (N, classes) of what was trained on, for the training error.
        parts: name -> scalar; each becomes a curve of the training.
    """

    total: Tensor
    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy at the true labels; other objectives extend it."""

    def check(self, recipe: Recipe) -> None:
        """Hold, before any work, that the objective can be reached with ``recipe``."""

    def epoch_images(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The images of one epoch, made of all training images by the network, which is in evaluation mode."""
        return images

    def loss(self, step: Step) -> Loss:
        """The loss of one batch, with its graph."""
        logits = class_logits(step.model(step.images))
        return Loss(nn.functional.cross_entropy(logits, step.labels), logits)


@dataclass(frozen=True)
class Adversarial(CrossEntropy):
    """The cross-entropy of examples that ``attack`` makes of the network as it then is (Sections 8.2 and 8.5).

    Only perturbed images are trained on, with their true labels. One that is not finite gives way
    to the clean image.

    Attributes:
        attack: makes the perturbations; on a network in evaluation mode.
        every: ``step``: anew for each batch, as in PGD and FGSM training; ``epoch``: for all images
            before each epoch.
        true_labels: attack the true labels; if False, the network's own, as DeepFool is defined.

    Raises:
        InputError: ``every`` is neither.
    """

    attack: Attack
    every: str = "step"
    true_labels: bool = True

    def __post_init__(self) -> None:
        check_choice("every", self.every, ("step", "epoch"))

    def epoch_images(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The perturbed training images, or the clean ones where each step perturbs its own."""
        if self.every == "step":
            return images
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([self._examples(model, *part, generator) for part in parts])

    def loss(self, step: Step) -> Loss:
        """The cross-entropy of the batch, perturbed here unless the whole epoch was."""
        if self.every == "epoch":
            return super().loss(step)
        with evaluating(step.model):
            images = self._examples(step.model, step.images, step.labels, step.generator)
        return super().loss(Step(step.model, images, step.labels, step.epoch, step.generator))

    def _examples(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        options: dict[str, object] = (
            {"generator": generator} if takes_generator(self.attack) else {}
        )
        if self.true_labels:
            options["labels"] = labels
        perturbations = self.attack(model, images, **options).perturbations
        finite = torch.isfinite(perturbations).flatten(1).all(dim=1)
        return images + torch.where(finite.view(-1, 1, 1, 1), perturbations, 0.0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode inside the block, every layer in its own mode afterwards."""
    layers = [layer for layer in model.modules() if layer.training]
    model.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True
