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

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import correct
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, of_means, share, stack
from pipeline.studies.training import fine_tuned
from pipeline.studies.universal import Case, Common, Plan, cases, made_of
from pipeline.tables import columns, norm_name, norm_sign
from robustness_geometry.attacks.protocol import labels_at
from robustness_geometry.checks import check_count, check_positive, check_training_images, refuse
from robustness_geometry.datasets.sampling import choose
from robustness_geometry.randomness import seeded
from robustness_geometry.training import Recipe, extra_epochs, warm_up
from robustness_geometry.types import Classifier, Dataset, Network, Split, predict

__all__ = ["SECTION", "Settings", "smallest_multiples", "uap_defence"]

SECTION = "Section 4.5"

FIXED = "ft_fixed"
"""The arm in which vectors are added as they are."""


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        ball: p of the vectors, 2 or inf; the thesis': inf.
        pool: vectors that a training set is perturbed with.
        judges: new vectors whose fooling is averaged when a network is judged; the thesis: one.
        pool_samples: of X, the images that these vectors are made of; None takes all.
        pool_passes: the most passes that Algorithm 4 makes for them; None: as for the stage's other
            vectors.
        share: probability that a training image is perturbed.
        cap: the largest multiple of a vector that is tried; an image that none fools stays clean.
        steps: multiples that are tried, evenly spaced up to the cap.
        rounds: how often pool and fine-tuning are repeated, each time from the network before.
        epochs: extra epochs a round.
        learning_rate_factor: what the learning rate of the training's end is multiplied with.
        tune_samples: training images to fine-tune on, a stratified choice; None takes all.
        networks: those to measure; None takes all.
    """

    ball: float = math.inf
    pool: int = 10
    judges: int = 1
    pool_samples: int | None = None
    pool_passes: int | None = None
    share: float = 0.5
    cap: float = 2.0
    steps: int = 20
    rounds: int = 3
    epochs: int = 5
    learning_rate_factor: float = 0.5
    tune_samples: int | None = None
    networks: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pool", "judges", "steps", "epochs"):
            check_count(name, getattr(self, name))
        check_count("rounds", self.rounds, minimum=2)
        for name in ("pool_samples", "pool_passes", "tune_samples"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.ball not in (2, math.inf):
            refuse("ball", self.ball, "2 or inf")
        for name in ("cap", "learning_rate_factor"):
            check_positive(name, getattr(self, name))
        if not 0 < self.share <= 1:
            refuse("share", self.share, "a probability in (0, 1]")

    trains: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Hold that there is something to tune on."""
        check_training_images(data.name, len(data.train))


def uap_defence(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Fine-tune on training images of which half carry a universal vector, and judge with new vectors.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs Algorithm 4 and trainings.

    Returns:
        ``fool_<network>`` and ``err_<network>`` of the original, of ``ft1`` to ``ft<rounds>`` and
        of ``ft_fixed``, which was tuned for one round on vectors added as they are; and their
        differences.

    Raises:
        InputError: the data set has no training images.
    """
    chosen = choose(data.train.labels, settings.tune_samples, "fine-tuning")
    tune = Split(data.train.images[chosen], data.train.labels[chosen])
    recipe = extra_epochs(
        network.training, epochs=settings.epochs, factor=settings.learning_rate_factor
    )
    found = cases(network, data, settings, executor)
    warm_up()
    arms = executor.each(lambda case: _arms(case, tune, recipe, settings), found)
    samples = stack([_measure(own, data.test, settings) for own in arms])
    statistics = _statistics([f"ft{k}" for k in range(1, settings.rounds + 1)])
    numbers = measured(paired_bootstrap(samples, statistics, resamples=settings.resamples))
    return Findings(
        numbers=numbers,
        tables={"rounds": _table(numbers, arms[0])},
        figures={"rounds": _figure(network, numbers, arms[0], settings)},
        notes=_notes(found, arms, recipe, len(tune), settings),
    )


@dataclass(frozen=True)
class Arm:
    """A network of the experiment.

    Attributes:
        case: the classifier, X and the executor.
        radius: of the vectors, the original network's xi.
        pool: vectors of the pool for a further round; 0 where there is none.
        perturbed: share of the training images that carried a vector; 0 for the original.
        beyond: share of those drawn to carry one that no multiple up to the cap fooled.
    """

    case: Case
    radius: float
    pool: int
    perturbed: float = 0.0
    beyond: float = 0.0

    def vectors(self, settings: Settings) -> Tensor:
        """(judges + pool, C, H, W): first those that judge, which no training set has seen."""
        plans = [Plan(settings.ball, self.radius, k) for k in range(settings.judges + self.pool)]
        return torch.cat([made.perturbation for made in self.case.make(plans)])


def _arms(case: Case, tune: Split, recipe: Recipe, settings: Settings) -> dict[str, Arm]:
    """Name -> the original network, the rounds, and the arm of unscaled vectors, for one training seed."""
    few = replace(case, images=case.images[: settings.pool_samples])
    if settings.pool_passes is not None:
        few = replace(
            few,
            settings=replace(
                settings, attack=partial(settings.attack, passes=settings.pool_passes)
            ),
        )
    arms = {"original": Arm(few, case.xi(settings.ball), settings.pool)}
    last = arms["original"]
    for number in range(1, settings.rounds + 1):
        last = arms[f"ft{number}"] = _tuned(last, tune, recipe, settings, number)
    return arms | {FIXED: _tuned(arms["original"], tune, recipe, settings, 1, fixed=True)}


def _tuned(
    arm: Arm, tune: Split, recipe: Recipe, settings: Settings, number: int, *, fixed: bool = False
) -> Arm:
    """The network after round ``number``; ``fixed`` adds the vectors unscaled and ends the arm."""
    case = arm.case
    pool = arm.vectors(settings)[settings.judges :]
    generator = seeded(case.seed, "universal defence", number)
    drawn = torch.rand(len(tune), generator=generator) < settings.share
    which = torch.randint(len(pool), (len(tune),), generator=generator)
    multiples = torch.ones(len(tune))
    if not fixed:
        search = partial(smallest_multiples, case.model, pool, settings.cap, settings.steps)
        multiples = case.executor.map(search, tune.images, which).value.float()
    beyond = drawn & ~multiples.isfinite()
    scale = torch.where(drawn & ~beyond, multiples, 0.0).view(-1, 1, 1, 1)
    images = tune.images + scale.nan_to_num(posinf=0.0) * pool[which]
    carrying = Split(images, tune.labels)
    model = fine_tuned(case.model, carrying, recipe, case.seed, case.executor)[-1]
    perturbed, lost = (
        float((drawn & ~beyond).double().mean()),
        float(beyond.sum() / drawn.sum().clamp_min(1)),
    )
    following = 0 if fixed or number == settings.rounds else settings.pool
    return Arm(replace(case, model=model), arm.radius, following, perturbed, lost)


def smallest_multiples(
    model: Classifier, pool: Tensor, cap: float, steps: int, images: Tensor, which: Tensor
) -> Tensor:
    """The smallest alpha = cap k / steps, k = 1, 2 ..., for which the label of x + alpha v differs from that of x.

    Args:
        model: the classifier.
        pool: vectors (K, C, H, W).
        cap: the largest alpha.
        steps: how many are tried.
        images: x, (N, C, H, W).
        which: (N,) the vector v of each image.

    Returns:
        (N,), infinite where none changes the label.
    """
    labels = predict(model, images)
    found = torch.full((len(images),), math.inf, dtype=torch.float64, device=images.device)
    waiting = torch.arange(len(images), device=images.device)
    for step in range(1, steps + 1):
        alpha = cap * step / steps
        other, finite = labels_at(model, images[waiting] + alpha * pool[which[waiting]])
        changed = finite & (other != labels[waiting])
        found[waiting[changed]] = alpha
        waiting = waiting[~changed]
        if not len(waiting):
            break
    return found


def _measure(arms: Mapping[str, Arm], test: Split, settings: Settings) -> dict[str, Tensor]:
    """``fool <network>`` and ``err <network>`` -> one value a held-out image."""
    found = {}
    for name, arm in arms.items():
        case = arm.case
        judges = arm.vectors(settings)[: settings.judges]
        found[f"fool {name}"] = case.fooled(case.unseen, judges).mean(dim=1)
        right = case.executor.cached(partial(correct, case.model), test.images, test.labels).value
        found[f"err {name}"] = 1 - right.double()
    return found


def _statistics(rounds: Sequence[str]) -> dict[str, Statistic]:
    names = ["original", *rounds, FIXED]
    found = {f"fool_{name}": of_means([f"fool {name}"], _same) for name in names}
    found |= {f"err_{name}": share(f"err {name}") for name in names}
    later = [f"fool {name}" for name in rounds[1:]]
    return found | {
        "fool_original - fool_ft1": difference("fool original", "fool ft1"),
        "fool_ft2 - fool_ft1 + 0.02": of_means(["fool ft1", "fool ft2"], _no_gain),
        "fool_ft_k - fool_ft1 + 0.02, smallest": of_means(["fool ft1", *later], _no_gain),
        "fool_ft_fixed - fool_ft1": difference(f"fool {FIXED}", "fool ft1"),
        "err_ft1 - err_original": difference("err ft1", "err original"),
        "err_ft_fixed - err_original": difference(f"err {FIXED}", "err original"),
    }


def _same(value: Tensor) -> Tensor:
    return value


def _no_gain(first: Tensor, *later: Tensor) -> Tensor:
    return torch.stack(later).amin(dim=0) - first + 0.02


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
        title=f"Fine-tuning on universally perturbed images ({norm_sign(settings.ball)}), {network.name}",
        width=8.5,
    )


def _notes(
    found: Sequence[Case],
    arms: Sequence[Mapping[str, Arm]],
    recipe: Recipe,
    images: int,
    settings: Settings,
) -> list[str]:
    rounds = [name for name in arms[0] if name not in ("original", FIXED)]
    beyond = {name: sum(own[name].beyond for own in arms) / len(arms) for name in rounds}
    first = arms[0]["original"].case
    made, passes = (
        len(first.images),
        getattr(first.settings.algorithm, "keywords", {}).get("passes"),
    )
    lost = ", ".join(f"{value:.1%}" for value in beyond.values())
    return [
        *made_of(found),
        f"{norm_name(settings.ball)} vectors of {made} images of X and at most {passes} passes, "
        "their radius the "
        f"original network's xi throughout; a pool of {settings.pool} a round, and "
        f"{settings.judges} new one(s) to "
        "judge each network, whose fooling is averaged.",
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
