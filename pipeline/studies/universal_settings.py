"""Settings of the experiments that make universal perturbations, in parts that they compose."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from robustness_geometry.attacks.universal import Universal, universal_perturbation
from robustness_geometry.attacks.universal_gradient import universal_gradient
from robustness_geometry.checks import check_count, check_positive, number, refuse
from robustness_geometry.datasets.sampling import choose
from robustness_geometry.training import Recipe, extra_epochs
from robustness_geometry.types import Dataset, Network, Split

__all__ = [
    "Checked",
    "Maker",
    "MakingSettings",
    "Retraining",
    "UniversalSettings",
    "maker_name",
]

Maker: TypeAlias = Callable[..., Universal]
"""An attack that makes a universal vector, such as Algorithm 4, with its options bound."""


def maker_name(maker: Maker) -> str:
    """The name of a maker's function."""
    function = getattr(maker, "func", maker)
    return str(getattr(function, "__name__", type(function).__name__))


class Checked:
    """Root of the parts: each part checks its own fields, then calls the next one."""

    def __post_init__(self) -> None:
        """Nothing is left to check."""


@dataclass(frozen=True)
class MakingSettings(Checked):
    """How universal vectors are made and judged.

    Attributes:
        attack: Algorithm 4. Its ``norm`` is that of an experiment for which the thesis names none.
            Its ``radius``, in pixel units, holds for that norm alone; None: xi is derived, a tenth
            of the norm that random noise needs, as it is measured.
        gradient: the second maker of vectors, of the same radius: it takes whole batches into
            account and judges what a vector can do. ``norm`` and ``radius`` are those of the
            vector beside it.
        train_samples: number of images in X, at least 2, a stratified choice of the training images
            (all if there are fewer).
        algorithm_samples: number of images of X, at least 2, that Algorithm 4 is given (all if
            there are fewer).
        noise_samples: number of these on which the norm that random noise needs is measured.
        samples: number of held-out images on which a vector is judged (all if there are fewer).
        resamples: number of resamples of the bootstrap.
    """

    attack: Maker = field(default_factory=lambda: partial(universal_perturbation))
    gradient: Maker = field(default_factory=lambda: partial(universal_gradient, iterations=1000))
    train_samples: int = 10_000
    algorithm_samples: int = 10_000
    noise_samples: int = 1000
    samples: int = 50_000
    resamples: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_samples", "algorithm_samples"):
            check_count(name, getattr(self, name), minimum=2)
        for name in ("noise_samples", "samples", "resamples"):
            check_count(name, getattr(self, name))
        if self.radius is not None:
            check_positive("attack.radius", self.radius)

    def shufflings(self, norm: float) -> int:
        """How many vectors of a norm a maker makes, each for one order of X."""
        return 1

    @property
    def norm(self) -> float:
        """The exponent p of the attack's ball."""
        return number("attack.norm", self._options().get("norm", 2.0))

    @property
    def radius(self) -> float | None:
        """The attack's own radius; None where xi is derived."""
        given = self._options().get("radius")
        return None if given is None else number("attack.radius", given)

    @property
    def algorithm(self) -> Maker:
        """Algorithm 4 with its options spelled out, but for norm and radius, for equal keys."""
        return _spelled(self.attack)

    @property
    def ascent(self) -> Maker:
        """The gradient maker, likewise."""
        return _spelled(self.gradient)

    def _options(self) -> dict[str, Any]:
        return dict(getattr(self.attack, "keywords", {}))


def _spelled(maker: Maker) -> Maker:
    function = getattr(maker, "func", maker)
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    left_out = ("norm", "radius", "labels", "generator")
    options = {
        name: value
        for name, value in (defaults | dict(getattr(maker, "keywords", {}))).items()
        if name not in left_out
    }
    return partial(function, **options)


@dataclass(frozen=True)
class UniversalSettings(MakingSettings):
    """How the vectors are made that most experiments of Chapter 4 share.

    Attributes:
        orders: number of shufflings of X, at least 1, for each of which a vector is made; the one
            that fools most of X is taken. Algorithm 4 makes those of norms other than the attack's
            for the first one alone.
    """

    orders: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("orders", self.orders)

    def shufflings(self, norm: float) -> int:
        """How many vectors of a norm a maker makes, each for one order of X."""
        return self.orders if norm == self.norm else 1


class Retraining(Checked):
    """How a network is fine-tuned on training images of which some carry a universal vector.

    A part without defaults: an experiment declares its fields, which are options of it alone.

    Attributes:
        pool: number of vectors that the training images may carry.
        share: probability that a training image carries one, in (0, 1].
        epochs: number of extra epochs (of each round).
        learning_rate_factor: learning rate over that of the training's end, above 0.
        tune_samples: number of training images to fine-tune on, a stratified choice; None: all.
    """

    pool: int
    share: float
    epochs: int
    learning_rate_factor: float
    tune_samples: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pool", "epochs"):
            check_count(name, getattr(self, name))
        if self.tune_samples is not None:
            check_count("tune_samples", self.tune_samples)
        if not 0 < self.share <= 1:
            refuse("share", self.share, "a probability in (0, 1]")
        check_positive("learning_rate_factor", self.learning_rate_factor)

    def images(self, data: Dataset) -> Split:
        """The training images to fine-tune on."""
        chosen = choose(data.train.labels, self.tune_samples, "fine-tuning")
        return Split(data.train.images[chosen], data.train.labels[chosen])

    def recipe(self, network: Network) -> Recipe:
        """The extra epochs of the network's own training."""
        return extra_epochs(network.training, epochs=self.epochs, factor=self.learning_rate_factor)

    def draw(self, images: int, vectors: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(images,) whether each image carries a vector, and (images,) the index of which one."""
        carries = torch.rand(images, generator=generator) < self.share
        return carries, torch.randint(vectors, (images,), generator=generator)
