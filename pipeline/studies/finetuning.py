"""Fine-tuning on perturbed training images (Section 3.3): settings, training sets, recipes, rho."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import Tensor

from pipeline.executor import Executor
from pipeline.statistics import Estimate, Statistic, mean
from pipeline.studies.attacking import (
    EPS_MAX,
    SharedEps,
    alignments,
    deepfool_of,
    relative,
    run,
    smallest_eps,
)
from pipeline.studies.subject import Subject
from pipeline.studies.training import fine_tuned
from robustness_geometry.attacks import deepfool, fgsm
from robustness_geometry.attacks.protocol import attack_name
from robustness_geometry.checks import check_count, check_positive, check_training_images, refuse
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.training import Recipe, extra_epochs, perturbed_split, warm_up
from robustness_geometry.types import Attack, Classifier, Dataset, Network, Perturbed, Split

__all__ = [
    "TITLES",
    "FineTuningSettings",
    "FineTuningStudy",
    "HalvedRateSettings",
    "RobustnessSettings",
    "by_epoch",
    "fine_tuning_notes",
    "fine_tuning_studies",
    "mean_alignments",
    "recipe_of",
    "rho_by_epoch",
    "rho_note",
    "some_images",
    "strategies",
    "tune_all",
]

TITLES = {
    "original": "original network",
    "deepfool": "fine-tuned on DeepFool examples",
    "fgsm": "fine-tuned on FGSM examples",
    "clean": "fine-tuned on clean images",
    "attack": "fine-tuned on the attack under study",
}
"""The original network and each strategy of fine-tuning -> its name in tables and figures."""


@dataclass(frozen=True)
class FineTuningSettings:
    """The settings that all experiments of Section 3.3 share.

    Attributes:
        attack: the attack under study. If it is a DeepFool, its options make DeepFool's examples;
            any other attack is one more set of examples in Figure 3.6 and Table 3.3.
        epochs: number of extra epochs.
        learning_rate: the learning rate that is lowered; None: that of the training's last epoch,
            or 0.01 for a network that came with its weights.
        train_samples: number of training images to fine-tune on, a stratified choice; None: all.
        eps_samples: number of these images on which FGSM's one eps is searched.
        fooling_rate: share of these images that FGSM's one eps must fool, in (0, 1].
        resamples: number of resamples of the bootstrap behind every interval.
    """

    attack: Attack = field(default_factory=lambda: partial(deepfool))
    epochs: int = 5
    learning_rate: float | None = None
    train_samples: int | None = None
    eps_samples: int = 500
    fooling_rate: float = 0.9
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("epochs", "eps_samples", "resamples"):
            check_count(name, getattr(self, name))
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        if self.train_samples is not None:
            check_count("train_samples", self.train_samples)
        if not 0 < self.fooling_rate <= 1:
            refuse("fooling_rate", self.fooling_rate, "a share in (0, 1]")

    trains: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Check that there are images to fine-tune on.

        Raises:
            InputError: the data set has no training images.
        """
        check_training_images(data.name, len(data.train))


@dataclass(frozen=True)
class HalvedRateSettings(FineTuningSettings):
    """The settings where the learning rate is lowered as in Section 3.3.

    Attributes:
        learning_rate_factor: what the learning rate is multiplied with; 0.5 in Section 3.3.
    """

    learning_rate_factor: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("learning_rate_factor", self.learning_rate_factor)


@dataclass(frozen=True)
class RobustnessSettings(HalvedRateSettings):
    """The settings where robustness is measured after each extra epoch.

    Attributes:
        samples: number of held-out images on which rho is measured.
    """

    samples: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples)


@dataclass(frozen=True)
class FineTuningStudy(Subject):
    """One training seed of a network, fine-tuned on ``train`` and measured on ``test``.

    Training sets, fine-tunings and attacks have keys that name no experiment: what several
    experiments ask for alike is computed once.

    Attributes:
        settings: the settings of the experiment.
        recipe: the recipe of the extra epochs.
    """

    settings: FineTuningSettings
    recipe: Recipe

    def attacked(self, attack: Attack) -> Perturbed:
        """``attack`` on the clean training images, against the original network."""
        return run(attack, self.model, self.train.images, self.executor).value

    def fgsm_eps(self) -> SharedEps:
        """FGSM's one eps for the training images."""
        few = self.train.images[: self.settings.eps_samples]
        return smallest_eps(self.model, few, self.settings.fooling_rate, self.executor)

    def perturbed(self, strategy: str, scale: float = 1.0) -> Split:
        """The training set of a strategy: made once, with the true labels.

        Args:
            strategy: ``clean``, ``deepfool``, ``fgsm`` or ``attack``.
            scale: factor by which the perturbations are magnified.
        """
        if strategy == "clean":
            return self.train
        studied = self.settings.attack
        attacks = {"deepfool": deepfool_of(studied), "attack": studied}
        attack = partial(fgsm, eps=self.fgsm_eps().eps) if strategy == "fgsm" else attacks[strategy]
        return perturbed_split(self.train, self.attacked(attack).perturbations, scale=scale)

    def tuned(self, strategy: str, scale: float = 1.0) -> list[Classifier]:
        """The network after each extra epoch on the training set :meth:`perturbed` makes."""
        images = self.perturbed(strategy, scale)
        return fine_tuned(self.model, images, self.recipe, self.seed, self.executor)

    def rho(self, model: Classifier, name: str) -> dict[str, Tensor]:
        """DeepFool on each test image, (m,): ||r||_2 / ||x||_2 as ``name``, and ``cos <name>``.

        The latter is cos(r, n). NaN where DeepFool failed or the image is black.
        """
        images, attack = self.test.images, deepfool_of(self.settings.attack, norm=2.0)
        found = run(attack, model, images, self.executor).value
        return {
            name: relative(found.perturbations, images, found.success),
            f"cos {name}": alignments(attack, found, model, images, self.executor),
        }


def fine_tuning_studies(
    network: Network,
    data: Dataset,
    settings: FineTuningSettings,
    executor: Executor,
    *,
    test: Split,
    factor: float,
) -> list[FineTuningStudy]:
    """One study for each training seed.

    Args:
        network: the trained classifiers.
        data: the data set whose training images are fine-tuned on.
        settings: the settings of the experiment.
        executor: runs attacks and trainings.
        test: the held-out images and labels to measure on.
        factor: what the learning rate is multiplied with.
    """
    train = some_images(data.train, settings.train_samples)
    recipe = recipe_of(network, settings, factor)
    return [
        FineTuningStudy(model, seed, train, test, executor.for_seed(seed), settings, recipe)
        for seed, model in sorted(network.models.items())
    ]


def tune_all(
    studies: Sequence[FineTuningStudy], sets: Sequence[tuple[str, float]], executor: Executor
) -> None:
    """Fine-tune the networks of all seeds, so that the processes of a CPU share the trainings.

    The results are asked for a second time afterwards, and are then taken from the disk.

    Args:
        studies: one for each training seed.
        sets: strategy and scale of each training set.
        executor: shares the trainings between its processes.
    """
    warm_up()
    # Neighbours in this list share no attack on the training images, so none waits for another.
    jobs = [(study, strategy, scale) for strategy, scale in sets for study in studies]
    executor.each(lambda job: job[0].tuned(*job[1:]), jobs)


def recipe_of(network: Network, settings: FineTuningSettings, factor: float) -> Recipe:
    """The recipe of the extra epochs: the network's own, at a constant rate times ``factor``."""
    return extra_epochs(
        network.training,
        epochs=settings.epochs,
        factor=factor,
        learning_rate=settings.learning_rate,
    )


def strategies(settings: FineTuningSettings) -> list[str]:
    """The training sets of Figure 3.6 and Table 3.3."""
    studied = [] if attack_name(settings.attack) == "deepfool" else ["attack"]
    return ["deepfool", "fgsm", "clean", *studied]


def rho_by_epoch(
    study: FineTuningStudy, sets: Mapping[str, tuple[str, float]]
) -> dict[str, Tensor]:
    """Measure rho of the original network and after each extra epoch of each fine-tuning.

    Args:
        study: one training seed.
        sets: name -> strategy and scale of a training set.

    Returns:
        ``original`` and ``<name> <epoch>``, (m,) per-image values each, and ``cos <...>``.
    """
    found = study.rho(study.model, "original")
    for name, (strategy, scale) in sets.items():
        for epoch, model in enumerate(study.tuned(strategy, scale), 1):
            found |= study.rho(model, f"{name} {epoch}")
    return found


def mean_alignments(names: Mapping[str, str]) -> dict[str, Statistic]:
    """The mean cos(r, n) behind some rho.

    Args:
        names: suffix of the number -> the name of the quantity whose ``cos`` it is.
    """
    return {f"alignment_{suffix}": mean(f"cos {name}") for suffix, name in names.items()}


def by_epoch(estimates: Mapping[str, Estimate], names: Sequence[str]) -> dict[int, Estimate]:
    """Extra epoch -> its estimate; an epoch that was not measured is missing.

    Args:
        estimates: the estimates by name.
        names: the name of each epoch's number, the original network's (epoch 0) first.
    """
    return {epoch: estimates[name] for epoch, name in enumerate(names) if name in estimates}


def fine_tuning_notes(studies: Sequence[FineTuningStudy]) -> list[str]:
    """Notes on how the networks were fine-tuned, and on FGSM's eps."""
    one, recipe = studies[0], studies[0].recipe
    searched = min(one.settings.eps_samples, len(one.train))
    eps = [study.fgsm_eps() for study in studies]
    lines = [
        f"Fine-tuned for {recipe.epochs} epochs on {len(one.train)} training images, perturbed "
        f"once and with their true labels; the learning rate is {recipe.learning_rate:.4g} "
        f"throughout (batches of {recipe.batch_size}, {recipe.optimiser}, momentum "
        f"{recipe.momentum:g}).",
        f"FGSM's one eps, looked for on {searched} training images: "
        + ", ".join(f"{each.eps:.4g} (fools {each.rate:.3f})" for each in eps)
        + " for the training seeds.",
    ]
    short = sum(not each.reachable for each in eps)
    if short:
        lines.append(
            f"For {short} of {len(eps)} training seeds no eps up to {EPS_MAX:g} fools "
            f"{one.settings.fooling_rate:g} of them: the eps that fools most is taken."
        )
    return lines


def rho_note(studies: Sequence[FineTuningStudy], samples: Mapping[str, Tensor]) -> str:
    """A note on how many images rho rests on."""
    every = [values for name, values in samples.items() if not name.startswith("cos ")]
    failed = int(sum(values.isnan().sum() for values in every))
    cases = sum(values.numel() for values in every)
    return (
        f"rho is measured on {len(studies[0].test)} held-out images; DeepFool failed in {failed} "
        f"of {cases} cases, which are left out. cos(r, n), in the mean, tells how nearly its "
        "perturbations are smallest ones."
    )


def some_images(data: Split, count: int | None) -> Split:
    """A stratified choice of training images, the same everywhere.

    Args:
        data: the training images and labels.
        count: how many to take; None, or more than there are: all of them, in their own order.
    """
    if count is None or count >= len(data):
        return data
    order = stratified_order(data.labels, "fine-tuning")[:count]
    return Split(data.images[order], data.labels[order])
