"""The losses that a training can minimise."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustness_geometry.attacks.protocol import per_image, takes_generator
from robustness_geometry.checks import check_choice
from robustness_geometry.outputs import logits_at
from robustness_geometry.training.recipe import Recipe
from robustness_geometry.types import Attack, class_logits

__all__ = ["Adversarial", "CrossEntropy", "Loss", "Step", "evaluating"]

BATCH = 250
"""Batch size of the attack where it perturbs all images before each epoch."""


@dataclass(frozen=True)
class Step:
    """One step of a training.

    Attributes:
        model: the network, in training mode.
        images: the batch (N, C, H, W), augmented.
        labels: (N,) its true labels.
        epoch: number of epochs that have passed, with the fraction of the current one.
        generator: source of all random numbers of the step; a CPU generator whose state
            checkpoints keep.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    epoch: float
    generator: torch.Generator


@dataclass(frozen=True)
class Loss:
    """The loss of one step.

    Attributes:
        total: the scalar whose gradient the weights follow.
        logits: (N, classes) logits of the images trained on, for the training error.
        parts: name -> scalar; each becomes a training curve.
    """

    total: Tensor
    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy at the true labels; other objectives extend it."""

    def check(self, recipe: Recipe) -> None:
        """Check, before any work, that the objective fits ``recipe``."""

    def epoch_images(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The images to train on in one epoch; the network is in evaluation mode here."""
        return images

    def loss(self, step: Step) -> Loss:
        """The loss of one batch, with its graph."""
        logits = class_logits(logits_at(step.model, step.images))
        return Loss(nn.functional.cross_entropy(logits, step.labels), logits)


@dataclass(frozen=True)
class Adversarial(CrossEntropy):
    """Adversarial training: the cross-entropy of images that ``attack`` perturbs.

    The attack sees the current network. Only perturbed images are trained on, with their true
    labels. An image whose perturbation is not finite stays clean.

    Attributes:
        attack: makes the perturbations, on the network in evaluation mode.
        every: ``step`` perturbs each batch anew, as PGD and FGSM training do; ``epoch`` perturbs
            all images before each epoch.
        true_labels: attack the true labels; if False, the network's own, as DeepFool is defined.

    Raises:
        InputError: ``every`` has another value.

    References:
        Thesis: Section 8.2 (its effect on curvature) and Section 8.5 (the comparison with CURE).

        A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards deep learning models
        resistant to adversarial attacks", ICLR 2018, arXiv:1706.06083.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from robustness_geometry.attacks import pgd
        >>> from robustness_geometry.training import Adversarial, Recipe, train
        >>> from robustness_geometry.types import Split
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> images = torch.rand(40, 1, 4, 4)
        >>> data = Split(images, (images.mean(dim=(1, 2, 3)) > 0.5).long())
        >>> objective = Adversarial(partial(pgd, eps=0.1, steps=5))
        >>> result = train(model, data, Recipe(epochs=2), objective=objective)
        >>> len(result.history["train_loss"])
        2
    """

    attack: Attack
    every: str = "step"
    true_labels: bool = True

    def __post_init__(self) -> None:
        check_choice("every", self.every, ("step", "epoch"))

    def epoch_images(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The perturbed training images, or the clean ones where each step perturbs its batch."""
        if self.every == "step":
            return images
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([self._examples(model, *part, generator) for part in parts])

    def loss(self, step: Step) -> Loss:
        """The cross-entropy of the batch, perturbed here unless ``epoch_images`` did it."""
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
        return images + torch.where(per_image(finite, images), perturbations, 0.0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode inside the block; restore each layer's mode afterwards."""
    layers = [layer for layer in model.modules() if layer.training]
    model.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True
