"""Fine-tuning on universally perturbed images (Section 4.5)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap, smallest
from pipeline.evaluation import correct
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, mean_share, share, stack
from pipeline.studies.training import fine_tuned
from pipeline.studies.universal import (
    MAKERS,
    Plan,
    UniversalStudy,
    made_of,
    universal_studies,
)
from pipeline.studies.universal_settings import MakingSettings, Retraining, maker_name
from pipeline.tables import columns, norm_name, norm_sign
from robustness_geometry.attacks.protocol import labels_at
from robustness_geometry.checks import check_count, check_positive, check_training_images, refuse
from robustness_geometry.randomness import seeded
from robustness_geometry.training import Recipe, warm_up
from robustness_geometry.types import Classifier, Dataset, Network, Split, predict

__all__ = ["SECTION", "Settings", "smallest_multiples", "uap_defence"]

SECTION = "Section 4.5"

FIXED = "ft_fixed"
"""The arm in which vectors are added as they are."""


@dataclass(frozen=True)
class Settings(MakingSettings, Retraining):
    """What to measure, beyond the settings of :class:`MakingSettings` and :class:`Retraining`.

    Attributes:
        ball: exponent p of the vectors' ball, 2 or inf; the thesis: inf.
        pool_samples: number of images of X that the pool's vectors are made of; None: all that
            Algorithm 4 is given.
        pool_passes: number of passes that Algorithm 4 makes for them at most; None: that of
            ``attack``. The vectors that judge are made with all effort.
        cap: largest multiple of a vector that is tried, above 0; an image that none fools stays
            clean.
        steps: number of multiples that are tried, evenly spaced up to the cap.
        rounds: number of rounds, at least 2, each with a new pool and a fine-tuning of the network
            before.
        pool: number of vectors by Algorithm 4 that the training images may carry.
        share: probability that a training image carries one, in (0, 1].
        epochs: number of extra epochs of each round.
        learning_rate_factor: learning rate over that of the training's end, above 0.
        tune_samples: number of training images to fine-tune on, a stratified choice; None: all.
    """

    ball: float = math.inf
    pool_samples: int | None = None
    pool_passes: int | None = None
    cap: float = 2.0
    steps: int = 20
    rounds: int = 3
    pool: int = 10
    share: float = 0.5
    epochs: int = 5
    learning_rate_factor: float = 0.5
    tune_samples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("rounds", self.rounds, minimum=2)
        for name in ("pool_samples", "pool_passes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.ball not in (2, math.inf):
            refuse("ball", self.ball, "2 or inf")
        check_positive("cap", self.cap)

    trains: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Check that there are images to fine-tune on."""
        check_training_images(data.name, len(data.train))


def uap_defence(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Fine-tune on images of which half carry a universal vector, and judge with new vectors.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: makes the vectors and runs trainings.

    Returns:
        ``fool_<network>``, by the one of two new vectors that fools more of X, and with the maker's
        name at the end by each of the two; ``err_<network>``; of the original, of ``ft1`` to
        ``ft<rounds>`` and of ``ft_fixed``, which was tuned for one round on vectors added as they
        are; and their differences.

    References:
        Thesis, Section 4.5. S.-M. Moosavi-Dezfooli et al., "Universal adversarial perturbations",
        arXiv:1610.08401.
    """
    tune, recipe = settings.images(data), settings.recipe(network)
    studies = universal_studies(network, data, settings, executor)
    warm_up()
    arms = executor.each(lambda study: _arms(study, tune, recipe, settings), studies)
    samples = stack([_measure(each, data.test, settings) for each in arms])
    rounds = [f"ft{k}" for k in range(1, settings.rounds + 1)]
    found = paired_bootstrap(samples, _statistics(rounds), resamples=settings.resamples)
    found["fool_ft_k - fool_ft1, smallest"] = smallest(found[_gain(name)] for name in rounds[1:])
    numbers = measured(found)
    return Findings(
        numbers=numbers,
        tables={"rounds": _table(numbers, arms[0])},
        figures={"rounds": _figure(network, numbers, arms[0], settings)},
        notes=_notes(studies, arms, recipe, len(tune), settings),
    )


@dataclass(frozen=True)
class Arm:
    """A network of the experiment.

    Attributes:
        study: the classifier, X and the executor.
        radius: radius of the vectors, the original network's xi.
        perturbed: share of the training images that carried a vector; 0 for the original.
        beyond: share of the images drawn to carry one that no multiple up to the cap fooled.
    """

    study: UniversalStudy
    radius: float
    perturbed: float = 0.0
    beyond: float = 0.0

    def pool(self, settings: Settings) -> Tensor:
        """(pool, C, H, W) vectors by Algorithm 4, of other orders of X than the one that judges."""
        study = self.study
        if settings.pool_passes is not None:
            attack = partial(settings.attack, passes=settings.pool_passes)
            study = replace(study, settings=replace(settings, attack=attack))
        if settings.pool_samples is not None:
            study = replace(study, train=study.train.first(settings.pool_samples))
        plans = [Plan(settings.ball, self.radius, 1 + k) for k in range(settings.pool)]
        return torch.cat([made.perturbation for made in study.make(plans)])

    def judges(self, settings: Settings) -> dict[str, Tensor]:
        """Maker -> a new vector (1, C, H, W), which no training set has seen."""
        plan = Plan(settings.ball, self.radius)
        return {maker: self.study.make([plan], maker)[0].perturbation for maker in MAKERS}


def _arms(study: UniversalStudy, tune: Split, recipe: Recipe, settings: Settings) -> dict[str, Arm]:
    """Name -> the original network, the rounds, and the arm of unscaled vectors, of one seed."""
    arms = {"original": Arm(study, study.xi(settings.ball))}
    last = arms["original"]
    for number in range(1, settings.rounds + 1):
        last = arms[f"ft{number}"] = _tuned(last, tune, recipe, settings, number)
    return arms | {FIXED: _tuned(arms["original"], tune, recipe, settings, 1, fixed=True)}


def _tuned(
    arm: Arm, tune: Split, recipe: Recipe, settings: Settings, number: int, *, fixed: bool = False
) -> Arm:
    """The network after round ``number``; ``fixed`` adds the vectors unscaled and ends the arm."""
    study = arm.study
    pool = arm.pool(settings)
    generator = seeded(study.seed, "universal defence", number)
    drawn, which = settings.draw(len(tune), len(pool), generator)
    multiples = torch.ones(len(tune))
    if not fixed:
        search = partial(smallest_multiples, study.model, pool, settings.cap, settings.steps)
        multiples = study.executor.map(search, tune.images, which).value.float()
    # An image that no multiple up to the cap fools carries nothing, although it was drawn.
    beyond = drawn & ~multiples.isfinite()
    scale = torch.where(drawn & ~beyond, multiples, 0.0)
    scale = scale.view(-1, *[1] * (pool.ndim - 1))
    images = tune.images + scale.nan_to_num(posinf=0.0) * pool[which]
    carrying = Split(images, tune.labels)
    model = fine_tuned(study.model, carrying, recipe, study.seed, study.executor)[-1]
    perturbed = float((drawn & ~beyond).double().mean())
    lost = float(beyond.sum() / drawn.sum().clamp_min(1))
    return Arm(replace(study, model=model), arm.radius, perturbed, lost)


def smallest_multiples(
    model: Classifier, pool: Tensor, cap: float, steps: int, images: Tensor, which: Tensor
) -> Tensor:
    """The smallest alpha = cap k / steps for which the label of x + alpha v differs from that of x.

    Args:
        model: the classifier.
        pool: vectors (K, C, H, W).
        cap: the largest alpha.
        steps: number of alphas, k = 1 ... steps.
        images: x, (N, C, H, W).
        which: (N,) the vector v of each image.

    Returns:
        (N,), infinite where none changes the label.
    """
    labels = predict(model, images)
    smallest = torch.full((len(images),), math.inf, dtype=torch.float64, device=images.device)
    waiting = torch.arange(len(images), device=images.device)
    for step in range(1, steps + 1):
        alpha = cap * step / steps
        other, finite = labels_at(model, images[waiting] + alpha * pool[which[waiting]])
        changed = finite & (other != labels[waiting])
        smallest[waiting[changed]] = alpha
        waiting = waiting[~changed]
        if not len(waiting):
            break
    return smallest


def _measure(arms: Mapping[str, Arm], test: Split, settings: Settings) -> dict[str, Tensor]:
    """``fool <network>`` and ``err <network>`` -> one value per held-out image."""
    values = {}
    for name, arm in arms.items():
        study = arm.study
        judges = arm.judges(settings)
        vectors = torch.cat(list(judges.values()))
        on_x = study.fooled(study.train.images, vectors).mean(dim=0)
        fooled = study.fooled(study.test.images, vectors)
        values[f"fool {name}"] = fooled[:, int(on_x.argmax())]
        values |= {f"fool {name} ({maker})": fooled[:, k] for k, maker in enumerate(judges)}
        judge = partial(correct, study.model)
        right = study.executor.cached(judge, test.images, test.labels).value
        values[f"err {name}"] = 1 - right.double()
    return values


def _statistics(rounds: Sequence[str]) -> dict[str, Statistic]:
    names = ["original", *rounds, FIXED]
    statistics = {f"fool_{name}": mean_share(f"fool {name}") for name in names}
    statistics |= {
        f"fool_{name} ({maker})": mean_share(f"fool {name} ({maker})")
        for name in names
        for maker in MAKERS
    }
    statistics |= {f"err_{name}": share(f"err {name}") for name in names}
    later = {_gain(name): difference(f"fool {name}", "fool ft1") for name in rounds[1:]}
    return (
        statistics
        | later
        | {
            "fool_original - fool_ft1": difference("fool original", "fool ft1"),
            "fool_ft_fixed - fool_ft1": difference(f"fool {FIXED}", "fool ft1"),
            "err_ft1 - err_original": difference("err ft1", "err original"),
            "err_ft_fixed - err_original": difference(f"err {FIXED}", "err original"),
        }
    )


def _gain(name: str) -> str:
    return f"fool_{name} - fool_ft1"


def _title(name: str) -> str:
    if name == FIXED:
        return "one round, vectors unscaled"
    number = name.removeprefix("ft")
    return name if name == "original" else f"{number} round{'' if number == '1' else 's'}"


def _table(numbers: Mapping[str, Estimate], arms: Mapping[str, Arm]) -> pd.DataFrame:
    rows = []
    for name in arms:
        fooled, wrong = numbers[f"fool_{name}"], numbers[f"err_{name}"]
        row: dict[str, object] = {
            "network": _title(name),
            **columns("fool_val", fooled),
            **{f"fool_val ({m})": numbers[f"fool_{name} ({m})"].value for m in MAKERS},
            **columns("err", wrong),
        }
        rows.append(row | {"images_fooled": fooled.n, "images_err": wrong.n, "seeds": fooled.seeds})
    return pd.DataFrame(rows)


def _figure(
    network: Network, numbers: Mapping[str, Estimate], arms: Mapping[str, Arm], settings: Settings
) -> Figure:
    titles = {name: _title(name).replace(", ", ",\n") for name in arms}
    bars = {
        titles[name]: {
            "fooled by a new vector": numbers[f"fool_{name}"],
            "clean error": numbers[f"err_{name}"],
        }
        for name in arms
    }
    return bar_figure(
        bars,
        ylabel="share of held-out images",
        title=f"Fine-tuning on universally perturbed images ({norm_sign(settings.ball)}), "
        f"{network.name}",
        width=8.5,
    )


def _notes(
    studies: Sequence[UniversalStudy],
    arms: Sequence[Mapping[str, Arm]],
    recipe: Recipe,
    images: int,
    settings: Settings,
) -> list[str]:
    rounds = [name for name in arms[0] if name not in ("original", FIXED)]
    beyond = {name: sum(each[name].beyond for each in arms) / len(arms) for name in rounds}
    first = arms[0]["original"].study
    made = min(settings.pool_samples or len(first.few), len(first.few))
    passes = getattr(settings.algorithm, "keywords", {}).get("passes")
    lost = ", ".join(f"{value:.1%}" for value in beyond.values())
    options = getattr(settings.ascent, "keywords", {})
    return [
        *made_of(studies),
        f"Each network is judged by two new {norm_name(settings.ball)} vectors, of Algorithm 4 "
        f"with the effort of Table 4.1 and of {maker_name(settings.ascent)} "
        f"({options.get('iterations')} steps on all of X): the one that fools more of X counts, as "
        "a defence is judged by the strongest attack at hand. The radius is the original "
        f"network's xi throughout. A pool of {settings.pool} vectors a round is made by Algorithm "
        f"4 of {made} images and at most {settings.pool_passes or passes} passes.",
        f"{recipe.epochs} extra epochs a round on {images} training images at a learning rate of "
        f"{recipe.learning_rate:.4g} (the thesis names none); each image carries a vector with "
        "probability "
        f"{settings.share:g}, the same one in every epoch, with its true label.",
        f"A vector is scaled by the smallest of {settings.steps} multiples up to {settings.cap:g} "
        "that changes the "
        f"label (the thesis names no cap); images that none changes stay clean: {lost} of those "
        "drawn, by round.",
        f"'{FIXED}' is one round from the original network, with the vectors of its pool added as "
        "they are.",
    ]
