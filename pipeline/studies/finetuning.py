"""What the experiments of Section 3.3 share: perturbed training sets, fine-tunings, the measure of rho."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.evaluation import held_out, judged, valid
from pipeline.executor import Executor
from pipeline.studies.training import fine_tuned
from robustness_geometry.attacks import deepfool, fgsm, fgsm_smallest_eps
from robustness_geometry.attacks.protocol import attack_name, takes_generator
from robustness_geometry.checks import check_count, check_positive, check_training_images, refuse
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.norms import norms, relative_norms
from robustness_geometry.training import Recipe, extra_epochs, perturbed_split, warm_up
from robustness_geometry.types import Attack, Classifier, Dataset, Network, Perturbed, Split

__all__ = [
    "TITLES",
    "Common",
    "Study",
    "notes",
    "recipe_of",
    "some_images",
    "strategies",
    "studies",
    "tune_all",
]

TITLES = {
    "original": "original network",
    "deepfool": "fine-tuned on DeepFool examples",
    "fgsm": "fine-tuned on FGSM examples",
    "clean": "fine-tuned on clean images",
    "attack": "fine-tuned on the attack under study",
}
"""What tables and figures call a network."""

EPS_MAX = 1.0
"""The largest eps of FGSM that is tried: the whole range of a pixel."""

GRID = 24
"""Grid points down to a thousandth of it; bisection then refines the first that fools enough."""


@dataclass(frozen=True)
class Common:
    """The settings that all experiments of this stage share.

    Attributes:
        attack: the attack under study. If it is a DeepFool, its options make DeepFool's examples;
            any other attack is one more set of examples in Figure 3.6 and Table 3.3.
        epochs: extra epochs.
        learning_rate: the rate that is lowered; None takes the one of the training's last epoch, or
            0.01 for a network that came with its weights.
        train_samples: training images to fine-tune on, a stratified choice; None takes all.
        eps_samples: of these, the images on which FGSM's eps is looked for.
        fooling_rate: share of the training images that FGSM's one eps must fool, in (0, 1].
        samples: held-out images on which rho is measured.
        resamples: of the bootstrap.
    """

    attack: Attack = field(default_factory=lambda: partial(deepfool))
    epochs: int = 5
    learning_rate: float | None = None
    train_samples: int | None = None
    eps_samples: int = 500
    fooling_rate: float = 0.9
    samples: int = 200
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("epochs", "eps_samples", "samples", "resamples"):
            check_count(name, getattr(self, name))
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        if self.train_samples is not None:
            check_count("train_samples", self.train_samples)
        if not 0 < self.fooling_rate <= 1:
            refuse("fooling_rate", self.fooling_rate, "a share in (0, 1]")

    trains: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Hold that there is something to tune on."""
        check_training_images(data.name, len(data.train))


@dataclass(frozen=True)
class Study:
    """One training seed of a network, the images it is fine-tuned on and the images it is measured on.

    Nothing here is computed twice: what the experiments of the stage ask for alike has the same
    key.

    Attributes:
        model: the original classifier.
        seed: its training seed.
        clean: the training images (n, C, H, W) and their labels.
        test: the held-out images that rho is measured on.
        settings: the experiment's.
        executor: of the stage, its scope this training seed and no single experiment.
    """

    model: Classifier
    seed: int
    clean: Split
    test: Split
    settings: Common
    executor: Executor

    def deepfool(self, **options: object) -> Attack:
        """The attack under study if it is a DeepFool, else the default one; ``options`` go on top."""
        studied = self.settings.attack
        return partial(studied if attack_name(studied) == "deepfool" else deepfool, **options)

    def run(self, attack: Attack) -> Perturbed:
        """``attack`` on the training images."""
        work = partial(judged, attack, self.model)
        return self.executor.cached(
            work, self.clean.images, randomness=takes_generator(attack)
        ).value

    def fgsm_eps(self) -> Mapping[str, float]:
        """FGSM's one eps for the training images, the share that it fools, and whether that is enough."""
        few = self.clean.images[: self.settings.eps_samples]
        work = partial(_smallest_eps, self.model, few, self.settings.fooling_rate)
        found = self.executor.shared_task(work, name="FGSM's eps on the training images").value
        return {name: float(value) for name, value in found.items()}

    def perturbed(self, strategy: str, scale: float = 1.0) -> Split:
        """The training set of ``strategy``, one of TITLES: made once, with the true labels.

        Args:
            strategy: ``clean``, ``deepfool``, ``fgsm`` or ``attack``.
            scale: by which perturbations are magnified.
        """
        if strategy == "clean":
            return self.clean
        if strategy == "fgsm":
            attack: Attack = partial(fgsm, eps=self.fgsm_eps()["eps"])
        else:
            attack = self.deepfool() if strategy == "deepfool" else self.settings.attack
        return perturbed_split(self.clean, self.run(attack).perturbations, scale=scale)

    def tuned(self, data: Split, recipe: Recipe) -> list[Classifier]:
        """The network after each extra epoch on ``data``."""
        return fine_tuned(self.model, data, recipe, self.seed, self.executor)

    def rho(self, model: Classifier) -> Tensor:
        """(n,) ||r||_2 / ||x||_2 of DeepFool on the held-out images; NaN where it failed or an image is black."""
        work, images = partial(judged, self.deepfool(norm=2.0), model), self.test.images
        found = self.executor.cached(work, images).value
        return valid(
            relative_norms(found.perturbations, images), found.success & (norms(images) > 0)
        )


def studies(network: Network, data: Dataset, settings: Common, executor: Executor) -> list[Study]:
    """One study for each training seed.

    Raises:
        InputError: the data set has no training images.
    """
    clean = some_images(data.train, settings.train_samples)
    test = held_out(data, settings.samples)
    return [
        Study(model, seed, clean, test, settings, executor.for_seed(seed))
        for seed, model in sorted(network.models.items())
    ]


def tune_all(
    found: Sequence[Study], sets: Sequence[tuple[str, float]], recipe: Recipe, executor: Executor
) -> None:
    """Fine-tune the networks of all seeds on training sets (strategy, scale), so that no process waits for the last."""
    warm_up()
    jobs = [
        (study, *chosen) for chosen in sets for study in found
    ]  # neighbours share no attack on the training images
    executor.each(lambda job: job[0].tuned(job[0].perturbed(*job[1:]), recipe), jobs)


def recipe_of(network: Network, settings: Common, factor: float) -> Recipe:
    """The recipe of the extra epochs: the network's own, at a constant rate lowered by ``factor``."""
    return extra_epochs(
        network.training,
        epochs=settings.epochs,
        factor=factor,
        learning_rate=settings.learning_rate,
    )


def strategies(settings: Common) -> list[str]:
    """The training sets of Figure 3.6 and Table 3.3."""
    own = [] if attack_name(settings.attack) == "deepfool" else ["attack"]
    return ["deepfool", "fgsm", "clean", *own]


def notes(found: Sequence[Study], recipe: Recipe) -> list[str]:
    """What was trained and measured on how many images."""
    first = found[0]
    searched = min(first.settings.eps_samples, len(first.clean))
    eps = [study.fgsm_eps() for study in found]
    lines = [
        f"Fine-tuned for {recipe.epochs} epochs on {len(first.clean)} training images, perturbed "
        "once and with "
        f"their true labels; the learning rate is {recipe.learning_rate:.4g} throughout (batches "
        "of "
        f"{recipe.batch_size}, {recipe.optimiser}, momentum {recipe.momentum:g}).",
        f"FGSM's one eps, looked for on {searched} training images: "
        + ", ".join(f"{one['eps']:.4g} (fools {one['rate']:.3f})" for one in eps)
        + " for the training seeds.",
    ]
    short = sum(not one["reachable"] for one in eps)
    if short:
        lines.append(
            f"For {short} of {len(eps)} training seeds no eps up to {EPS_MAX:g} fools "
            f"{first.settings.fooling_rate:g} of them: the eps that fools most is taken."
        )
    return lines


def some_images(data: Split, count: int | None) -> Split:
    """``count`` training images, a stratified choice that is the same everywhere; None or too many: all of them."""
    if count is None or count >= len(data):
        return data
    order = stratified_order(data.labels, "fine-tuning")[:count]
    return Split(data.images[order], data.labels[order])


def _smallest_eps(model: Classifier, images: Tensor, rate: float) -> dict[str, Tensor]:
    weight = next(model.parameters())
    found = fgsm_smallest_eps(model, images.to(weight), rate=rate, eps_max=EPS_MAX, grid=GRID)
    values = {"eps": found.eps, "rate": found.rate, "reachable": float(found.reachable)}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
