"""The settings of chapter 8, in parts: each experiment takes those that it reads."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from robustness_geometry.attacks import pgd
from robustness_geometry.attacks.protocol import attack_name
from robustness_geometry.checks import (
    check_choice,
    check_count,
    check_positive,
    check_training_images,
    number,
    refuse,
)
from robustness_geometry.training import Cure, Recipe
from robustness_geometry.types import Attack, Dataset

__all__ = ["AdversarySettings", "BallSettings", "CureSettings", "PenaltySettings", "TableSettings"]

ADAM = Recipe(
    epochs=20,
    batch_size=128,
    optimiser="adam",
    learning_rate=1e-4,
    final_rate=1e-6,
    schedule="cosine",
    weight_decay=0.0,
)
"""Section 8.4; the shape of the schedule and the batch size are not stated."""


@dataclass(frozen=True)
class BallSettings:
    """The attack that judges networks and the ball that it stays in.

    Attributes:
        attack: the attack under which networks are judged, of norm 2 or inf; its eps is ``eps``.
        eps: radius of attacks and of adversarial training, in pixel units, > 0; None: the radius at
            which the attack leaves the first seed's original network ``eps_share`` of the
            validation images that it labels right, between two radii of ``eps_grid``.
        eps_grid: radii that are tried where eps is None, each > 0, in ascending order; if none of
            them suffices, the last is taken.
        eps_share: share of the clean accuracy that the attack leaves at eps, in (0, 1).
        eps_samples: number of validation images, at least 1, the same ones in every experiment: the
            last of the stratified order of the training images, at most a fifth of them. eps and
            the sweep over h and lambda are judged on them, and no network is fine-tuned on them;
            every network must label them better than chance.
    """

    attack: Attack = field(default_factory=lambda: partial(pgd, eps=8 / 255, steps=20))
    eps: float | str | None = "8/255"
    eps_grid: tuple[float, ...] = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3)
    eps_share: float = 0.5
    eps_samples: int = 200

    binds: ClassVar[Mapping[str, Mapping[str, str]]] = {"attack": {"eps": "cure.eps"}}
    """Attack -> its options that the experiment sets itself, each with the key that sets it."""

    @property
    def norm(self) -> float:
        """The norm of the attack that judges."""
        return number("norm", inspect.signature(self.attack).parameters["norm"].default)

    def __post_init__(self) -> None:
        known = inspect.signature(self.attack).parameters
        if "eps" not in known or "norm" not in known:
            refuse(
                "attack",
                attack_name(self.attack),
                "an attack within a ball, with the options eps and norm",
            )
        if self.norm not in (2, math.inf):
            refuse(
                "attack.norm",
                known["norm"].default,
                "2 or inf, as PGD is trained on in the same ball",
            )
        if self.eps is not None:
            check_positive("eps", self.eps)
        elif not self.eps_grid or list(self.eps_grid) != sorted(set(self.eps_grid)):
            refuse("eps_grid", self.eps_grid, "one or more ascending numbers where eps is null")
        for eps in self.eps_grid:
            check_positive("eps_grid", eps)
        if not 0 < self.eps_share < 1:
            refuse("eps_share", self.eps_share, "a share in (0, 1)")
        check_count("eps_samples", self.eps_samples)


@dataclass(frozen=True)
class PenaltySettings:
    """The penalty of CURE (Section 8.4).

    Attributes:
        h: step of the penalty's difference of gradients, in ``unit``, > 0.
        weight: lambda, the weight of the penalty, per squared gradient in ``unit``, >= 0.
        ramp: number of epochs over which h grows from 0, at most the epochs of the training.
        unit: unit of h and lambda: ``pixel``, with pixels in [0, 1], or ``std``, the standard
            deviation of the data's pixels, which the thesis' h = 1.5 and lambda = 4 or 8 are taken
            to be in.
    """

    h: float = 1.5
    weight: float = 4.0
    ramp: int = 5
    unit: str = "std"

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, ("pixel", "std"))

    def cure(self, std: float, direction: str = "sign") -> Cure:
        """CURE in pixel units, on data whose pixels have the standard deviation ``std``."""
        unit = 1.0 if self.unit == "pixel" else std
        # The gradient by a pixel is 1 / std times that by a normalised one, and the penalty is its
        # square.
        return Cure(self.weight * unit**2, self.h * unit, self.ramp, direction)


@dataclass(frozen=True)
class CureSettings(BallSettings, PenaltySettings):
    """The settings that all experiments of this stage on networks share.

    Attributes:
        training: the recipe of every fine-tuning.
        finetune_epochs: number of epochs of fine-tuning on DeepFool's examples, at least 1; 20 on
            CIFAR-10 and 10 on SVHN in the thesis.
        train_samples: number of training images to fine-tune on, a stratified choice, at least 1;
            None: all but the validation images.
        training_seeds: number of training seeds, the first ones, at least 1; None: all.
        samples: number of held-out images on which networks are judged, at least 1.
        resamples: number of bootstrap resamples behind every interval, at least 1.
        networks: names of the suite's networks to measure; None: all.
    """

    training: Recipe = ADAM
    finetune_epochs: int = 20
    train_samples: int | None = None
    training_seeds: int | None = None
    samples: int = 1000
    resamples: int = 2000

    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.training, Mapping):  # configurations give plain values
            object.__setattr__(self, "training", Recipe(**self.training))
        BallSettings.__post_init__(self)
        PenaltySettings.__post_init__(self)
        self.cure(1.0).check(self.training)
        for name in ("finetune_epochs", "samples", "resamples"):
            check_count(name, getattr(self, name))
        for name in ("train_samples", "training_seeds"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))

    def check(self, data: Dataset) -> None:
        """Check that there are images to fine-tune on.

        Raises:
            InputError: the data set has no training images.
        """
        check_training_images(data.name, len(data.train))


@dataclass(frozen=True)
class AdversarySettings(CureSettings):
    """The settings of the experiments that also train on PGD's examples.

    Attributes:
        adversary_steps: number of steps of the PGD that is trained on, at least 1.
    """

    adversary_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("adversary_steps", self.adversary_steps)


@dataclass(frozen=True)
class TableSettings(AdversarySettings):
    """The settings of the tables of clean and robust accuracy.

    Attributes:
        far: radius of a second, larger ball as a multiple of eps, > 1; networks are judged in both.
    """

    far: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("far", self.far)
        if self.far <= 1:
            refuse("far", self.far, "a number > 1")
