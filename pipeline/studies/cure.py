"""What the experiments of chapter 8 share: the fine-tuned networks, the eps they are judged at, and the judging."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

from torch import Tensor

from pipeline.evaluation import correct, held_out, recomputed_success
from pipeline.executor import Executor
from pipeline.studies.finetuning import some_images
from pipeline.studies.training import training, with_weights
from robustness_geometry.attacks import deepfool, fgsm, pgd
from robustness_geometry.attacks.protocol import attack_name, takes_generator
from robustness_geometry.checks import (
    check_choice,
    check_count,
    check_positive,
    check_training_images,
    number,
    refuse,
)
from robustness_geometry.training import Adversarial, CrossEntropy, Cure, Recipe, warm_up
from robustness_geometry.types import (
    Attack,
    Classifier,
    Dataset,
    Images,
    Labels,
    Mask,
    Network,
    Split,
)

__all__ = [
    "TITLES",
    "Common",
    "Study",
    "Tuned",
    "notes",
    "studies",
    "withstood",
]

TITLES = {
    "original": "normal training",
    "cure": "CURE",
    "cure_gradient": "CURE, z along the gradient",
    "advtrain": "PGD training",
    "fgsm": "FGSM training",
    "deepfool": "fine-tuned on DeepFool examples",
}
"""What tables and figures call a network."""

BOX = (0.0, 1.0)
CHANCE = 0.05
"""How far above chance the accuracy of a trained network must lie."""

PRUNE = 2
"""Of the DeepFool whose examples are trained on, anew in each epoch: the same perturbations for less work."""

ADAM = Recipe(
    epochs=20,
    batch_size=128,
    optimiser="adam",
    learning_rate=1e-4,
    final_rate=1e-6,
    schedule="cosine",
    weight_decay=0.0,
)
"""Section 8.4; the shape of the schedule and the size of a batch are not stated."""


@dataclass(frozen=True)
class Common:
    """The settings that all experiments of this stage share.

    Attributes:
        attack: judges the networks, at ``eps``.
        eps: the radius of attacks and of adversarial training, in pixel units; None: the smallest
            of ``eps_grid`` at which the attack leaves the first seed's original network at most
            ``eps_accuracy`` of the images.
        eps_grid: ascending; if none of it suffices, its last.
        eps_accuracy: a share.
        eps_samples: held-out images on which eps is looked for, the same ones in every experiment;
            a network must label them better than chance.
        training: the recipe of every fine-tuning here.
        h: of CURE, in ``unit``.
        weight: lambda of CURE, per squared gradient in ``unit``.
        ramp: epochs over which h grows.
        unit: ``pixel`` of [0, 1], or ``std``: the standard deviation of the data's pixels, in which
            the thesis' h = 1.5 and lambda = 4 or 8 are taken to count.
        adversary_steps: of the PGD that is trained on.
        finetune_epochs: of fine-tuning on DeepFool's examples, 20 on CIFAR-10 and 10 on SVHN.
        train_samples: training images, a stratified choice; None takes all.
        samples: held-out images.
        resamples: of the bootstrap.
        networks: the suite's networks to spend the time on; None takes all.
        overrides: network -> settings of its own, of which the experiment's own are some.
    """

    attack: Attack = field(default_factory=lambda: partial(pgd, eps=8 / 255, steps=20))
    eps: float | str | None = "8/255"
    eps_grid: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    eps_accuracy: float = 0.05
    eps_samples: int = 200
    training: Recipe = ADAM
    h: float = 1.5
    weight: float = 4.0
    ramp: int = 5
    unit: str = "std"
    adversary_steps: int = 10
    finetune_epochs: int = 20
    train_samples: int | None = None
    samples: int = 1000
    resamples: int = 2000
    networks: tuple[str, ...] | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.training, Mapping):  # configurations give plain values
            object.__setattr__(self, "training", Recipe(**self.training))
        known = inspect.signature(self.attack).parameters
        if "eps" not in known or "norm" not in known:
            refuse(
                "attack",
                attack_name(self.attack),
                "an attack within a ball, with the options eps and norm",
            )
        if number("norm", known["norm"].default) not in (2, math.inf):
            refuse(
                "attack.norm",
                known["norm"].default,
                "2 or inf, as PGD is trained on in the same ball",
            )
        if self.eps is not None:
            check_positive("eps", self.eps)
        elif not self.eps_grid or list(self.eps_grid) != sorted(set(self.eps_grid)):
            refuse("eps_grid", self.eps_grid, "one or more numbers, ascending, where eps is null")
        for eps in self.eps_grid:
            check_positive("eps_grid", eps)
        if not 0 <= self.eps_accuracy < 1:
            refuse("eps_accuracy", self.eps_accuracy, "a share in [0, 1)")
        check_choice("unit", self.unit, ("pixel", "std"))
        self.cure(1.0).check(self.training)
        for name in ("adversary_steps", "finetune_epochs", "eps_samples", "samples", "resamples"):
            check_count(name, getattr(self, name))
        if self.train_samples is not None:
            check_count("train_samples", self.train_samples)

    trains: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Hold that there is something to tune on."""
        check_training_images(data.name, len(data.train))

    def cure(self, std: float, direction: str = "sign") -> Cure:
        """CURE in pixel units, on data whose pixels have the standard deviation ``std``."""
        unit = 1.0 if self.unit == "pixel" else std
        # The gradient by a pixel is 1 / std times that by a normalised one, and the penalty is its
        # square.
        return Cure(self.weight * unit**2, self.h * unit, self.ramp, direction)

    def of(self, network: Network) -> Self:
        """The settings with what ``overrides`` gives this network."""
        own = self.overrides.get(network.name, {})
        for key in own:
            if key not in self.__dataclass_fields__:
                refuse(f"overrides.{network.name}.{key}", own[key], "a setting of this experiment")
        return replace(self, **own)


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned network.

    Attributes:
        model: after the last epoch.
        history: its curves.
        epochs: the network after each epoch, where it was asked for.
    """

    model: Classifier
    history: Mapping[str, list[float]]
    epochs: tuple[Classifier, ...] = ()


@dataclass(frozen=True)
class Study:
    """One training seed of a network, the images it is fine-tuned on and those it is judged on.

    Nothing here is computed twice: what the experiments of the stage ask for alike has the same
    key.

    Attributes:
        original: the network before any fine-tuning.
        seed: its training seed.
        clean: the training images (n, C, H, W) and their labels.
        test: the held-out images.
        tried: those that eps is looked for on.
        settings: the experiment's, for this network.
        executor: of the stage, its scope this training seed and no single experiment.
        std: of the data's pixels, the mean over the channels.
        eps: what attacks and adversarial training are given.
        first: whether this is the first seed, whose network after each epoch of CURE is kept.
    """

    original: Classifier
    seed: int
    clean: Split
    test: Split
    tried: Split
    settings: Common
    executor: Executor
    std: float
    eps: float
    first: bool

    def judge(self, **options: object) -> Attack:
        """The attack that judges, at this study's eps; ``options`` go on top."""
        return partial(self.settings.attack, **{"eps": self.eps, **options})

    @property
    def norm(self) -> float:
        """The norm of the attack that judges."""
        return number("norm", inspect.signature(self.settings.attack).parameters["norm"].default)

    def pgd(self, **options: Any) -> Attack:
        """PGD at this study's eps, in the norm of the attack that judges."""
        return partial(pgd, **{"eps": self.eps, "norm": self.norm, **options})

    def objective(self, name: str) -> CrossEntropy:
        """What the fine-tuning ``name``, one of TITLES, minimises."""
        match name:
            case "cure":
                return self.settings.cure(self.std)
            case "cure_gradient":
                return self.settings.cure(self.std, "gradient")
            case "advtrain":
                return Adversarial(self.pgd(steps=self.settings.adversary_steps))
            case "fgsm":
                return Adversarial(partial(fgsm, eps=self.eps, norm=self.norm, clip=BOX))
            case _:
                return Adversarial(partial(deepfool, prune=PRUNE), every="epoch", true_labels=False)

    def tuned(self, name: str) -> Tuned:
        """The network fine-tuned in the way ``name``, one of TITLES; trained once, and resumed after a crash."""
        if name == "original":
            return Tuned(self.original, {})
        epochs = (
            self.settings.finetune_epochs if name == "deepfool" else self.settings.training.epochs
        )
        recipe = replace(self.settings.training, epochs=epochs)
        return self.trained(
            self.objective(name), recipe, TITLES[name], keep=self.first and name == "cure"
        )

    def trained(
        self, objective: CrossEntropy, recipe: Recipe, label: str, *, keep: bool = False
    ) -> Tuned:
        """The original network after ``recipe`` with ``objective``; ``keep`` also gives it after each epoch."""
        folder = str(self.executor.work / "checkpoints")
        start = (self.original, self.clean, recipe, self.seed, folder)
        work = partial(training, *start, objective=objective, keep_states=keep)
        named = f"{label}: {recipe.epochs} epochs on {len(self.clean)} images, seed {self.seed}"
        found = self.executor.shared_task(work, name=named).value
        history = {name: values.tolist() for name, values in found["history"].items()}
        states = [found["states"][str(epoch)] for epoch in range(1, len(found["states"]) + 1)]
        return Tuned(
            with_weights(self.original, found["weights"]),
            history,
            tuple(with_weights(self.original, state) for state in states),
        )

    def right(
        self, model: Classifier, attack: Attack | None = None, data: Split | None = None
    ) -> Tensor:
        """(n,) 1 where an image has its label, before and after ``attack``; None: before alone, the held-out ones."""
        test = data or self.test
        work = partial(correct, model) if attack is None else partial(withstood, attack, model)
        random = attack is not None and takes_generator(attack)
        return self.executor.cached(
            work, test.images, test.labels, randomness=random
        ).value.double()


def withstood(
    attack: Attack, model: Classifier, images: Images, labels: Labels, **options: object
) -> Mask:
    """(N,) whether each image has its true label, and still has it after ``attack`` on that label.

    Success is judged anew from the returned tensors; a perturbation that is not finite has not
    fooled.
    """
    given: dict[str, object] = {"labels": labels, **options}
    result = attack(model, images, **given)
    return correct(model, images, labels) & ~recomputed_success(model, images, result)


def studies(network: Network, data: Dataset, settings: Common, executor: Executor) -> list[Study]:
    """One study for each training seed.

    Raises:
        InputError: the data set has no training images, or the network is not trained.
    """
    clean, test = some_images(data.train, settings.train_samples), held_out(data, settings.samples)
    tried = held_out(data, settings.eps_samples)
    std = sum(data.std) / len(data.std)
    eps = 0.0 if settings.eps is None else number("eps", settings.eps)
    first = min(network.models)
    found = [
        Study(
            model,
            seed,
            clean,
            test,
            tried,
            settings,
            executor.for_seed(seed),
            std,
            eps,
            seed == first,
        )
        for seed, model in sorted(network.models.items())
    ]
    warm_up()
    for study in found:
        share = float(study.right(study.original, data=tried).mean())
        if share <= 1 / len(data.classes) + CHANCE:
            refuse(
                "network",
                f"{network.name} with an accuracy of {share:.3f}",
                "a trained network to fine-tune",
            )
    if settings.eps is None:
        eps = _smallest_eps(found[0])
        found = [replace(study, eps=eps) for study in found]
    return found


def _smallest_eps(study: Study) -> float:
    """The smallest eps of the grid at which the attack leaves few of the original network's images."""
    for eps in study.settings.eps_grid:
        if _left(study, eps) <= study.settings.eps_accuracy:
            return eps
    return study.settings.eps_grid[-1]


def _left(study: Study, eps: float) -> float:
    """The share of images that the attack leaves the original network at ``eps``."""
    return float(study.right(study.original, study.judge(eps=eps), study.tried).mean())


def notes(found: Sequence[Study]) -> list[str]:
    """What was trained and how it is judged."""
    first = found[0]
    settings, cure, recipe = first.settings, first.settings.cure(first.std), first.settings.training
    printed = f" (h = {settings.h:g}, lambda = {settings.weight:g} in units of the pixels' deviation {first.std:.3g})"
    return [
        f"Every fine-tuning starts from the trained network and takes {recipe.epochs} epochs "
        f"({settings.finetune_epochs} on DeepFool's examples) on {len(first.clean)} training "
        "images: "
        f"{recipe.optimiser}, {recipe.learning_rate:g} to {recipe.final_rate:g} "
        f"({recipe.schedule}), batches of "
        f"{recipe.batch_size}; {len(found)} training seed(s).",
        f"CURE: lambda = {cure.weight:.4g}, h = {cure.h:.4g} in pixel l2 after {cure.ramp} epochs"
        f"{'' if settings.unit == 'pixel' else printed}.",
        f"eps = {first.eps:.4g} in pixel units of [0, "
        f"1]{_searched(first) if settings.eps is None else ''}. An image "
        "that is wrong before an attack counts as wrong after it.",
    ]


def _searched(study: Study) -> str:
    """How eps was found."""
    settings, left = study.settings, _left(study, study.eps)
    grid = ", ".join(f"{eps:g}" for eps in settings.eps_grid)
    wanted = f"at which the attack leaves the first seed's original network at most {settings.eps_accuracy:.0%}"
    left_over = f"of {len(study.tried)} held-out images ({left:.1%})"
    if left > settings.eps_accuracy:
        return f", the last of {grid}: there is none {wanted} {left_over}"
    return f": the smallest of {grid} {wanted} {left_over}"
