"""The options of a training that configurations, keys and results name."""

import math
from dataclasses import dataclass

from robustness_geometry.checks import check_choice, check_count, check_positive, refuse

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """The optimiser, its schedule and the order of the images.

    Attributes:
        epochs: number of passes over the training images.
        batch_size: images per step; the last batch of an epoch may be smaller.
        optimiser: ``sgd`` (with ``momentum``) or ``adam`` (which ignores it).
        learning_rate: learning rate at the start.
        momentum: momentum of SGD, in [0, 1).
        weight_decay: coefficient of the l2 penalty on the weights.
        schedule: ``constant``; ``step``, which multiplies the rate by ``decay`` at each of
            ``milestones``; or ``cosine``, which lowers it to ``final_rate``.
        milestones: epochs (counted from 0) at which ``step`` lowers the rate, ascending and below
            ``epochs``.
        decay: factor of ``step``, in (0, 1].
        final_rate: learning rate at which ``cosine`` ends, below ``learning_rate``.
        augmentation: ``none``, or ``crop_flip``: random crops after padding by 4 pixels, and
            random mirroring.

    Raises:
        InputError: a value is out of range.

    Example:
        >>> from robustness_geometry.training import Recipe
        >>> recipe = Recipe(epochs=10, learning_rate=0.1, schedule="step", milestones=(5,))
        >>> [round(recipe.rate(epoch), 4) for epoch in (0, 5)]
        [0.1, 0.01]
    """

    epochs: int = 15
    batch_size: int = 64
    optimiser: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    final_rate: float = 0.0
    augmentation: str = "none"

    def __post_init__(self) -> None:
        check_count("training.epochs", self.epochs)
        check_count("training.batch_size", self.batch_size)
        check_choice("training.optimiser", self.optimiser, ("sgd", "adam"))
        check_positive("training.learning_rate", self.learning_rate)
        if check_positive("training.momentum", self.momentum, zero=True) >= 1:
            refuse("training.momentum", self.momentum, "a number in [0, 1)")
        check_positive("training.weight_decay", self.weight_decay, zero=True)
        check_choice("training.schedule", self.schedule, ("constant", "step", "cosine"))
        check_choice("training.augmentation", self.augmentation, ("none", "crop_flip"))
        if check_positive("training.decay", self.decay) > 1:
            refuse("training.decay", self.decay, "a number in (0, 1]")
        self._check_final_rate()
        object.__setattr__(self, "milestones", tuple(self.milestones))  # configurations give lists
        for milestone in self.milestones:
            check_count("training.milestones", milestone)
        ascending = list(self.milestones) == sorted(set(self.milestones))
        if not ascending or bool(self.milestones) != (self.schedule == "step"):
            refuse(
                "training.milestones",
                list(self.milestones),
                "ascending epochs for training.schedule=step, and none for the other schedules",
            )
        if self.milestones and self.milestones[-1] >= self.epochs:
            refuse(
                "training.milestones",
                list(self.milestones),
                f"epochs below training.epochs={self.epochs}",
            )

    def _check_final_rate(self) -> None:
        final = check_positive("training.final_rate", self.final_rate, zero=True)
        if final >= self.learning_rate or (final and self.schedule != "cosine"):
            refuse(
                "training.final_rate",
                final,
                "a number below training.learning_rate, and 0 without schedule=cosine",
            )

    def rate(self, epoch: float) -> float:
        """The learning rate after ``epoch`` epochs, which may be fractional."""
        if self.schedule == "cosine":
            span = self.learning_rate - self.final_rate
            return self.final_rate + span * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        passed = sum(epoch >= milestone for milestone in self.milestones)
        return self.learning_rate * self.decay**passed
