"""Sections 8.4 and 8.5: the cost of a CURE step, and the effect of its direction z.

Also accuracy after single-step adversarial training.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Sections 8.4 and 8.5.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards deep learning models resistant
    to adversarial attacks", arXiv:1706.06083, 2018 (PGD).
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure
from pipeline.statistics import (
    Estimate,
    difference,
    median,
    median_of_ratios,
    of_means,
    share,
    stack,
)
from pipeline.studies.cure import TITLES, CureStudy, cure_studies, notes
from pipeline.studies.cure_settings import AdversarySettings
from pipeline.tables import interval
from robustness_geometry.checks import check_count
from robustness_geometry.training import CrossEntropy, Recipe, train
from robustness_geometry.types import Classifier, Dataset, Network, Split

__all__ = ["SECTION", "Settings", "cure_cost_ablation"]

SECTION = "Sections 8.4 and 8.5"

NETWORKS = ("original", "cure", "cure_gradient", "fgsm", "advtrain")
TIMED = ("original", "cure", "fgsm", "advtrain")


@dataclass(frozen=True)
class Settings(AdversarySettings):
    """What to measure.

    Attributes:
        along_gradient: whether CURE is also trained with z along the gradient, at the price of one
            more training a seed.
        timed_steps: number of steps of an epoch that is timed, at least 1.
        rounds: number of rounds, at least 2; each times one epoch of every training.
    """

    along_gradient: bool = True
    timed_steps: int = 10
    rounds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("timed_steps", self.timed_steps)
        check_count("rounds", self.rounds, minimum=2)

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of the networks whose accuracies are compared."""
        return tuple(name for name in NETWORKS if self.along_gradient or name != "cure_gradient")


def cure_cost_ablation(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure accuracies with other directions and weaker adversaries, and the cost of a step.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and attacks.

    Returns:
        ``adv_*`` and their differences; ``gradients_*``, the gradients by the images that a step
        takes; ``t_*``, the seconds of a step, and ``t_cure / t_*`` over the rounds.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    samples = stack(executor.each(_judged, studies))
    statistics = {name: share(name) for name in samples}
    for first, second in (("adv_cure", "adv_fgsm"), ("adv_cure", "adv_advtrain")):
        statistics[f"{first} - {second}"] = difference(first, second)
    if settings.along_gradient:
        pair = ("adv_cure_gradient", "adv_cure")
        statistics["adv_cure_gradient - adv_cure"] = difference(*pair)
        statistics["|adv_cure_gradient - adv_cure|"] = replace(
            of_means(pair, _apart), joint=True, within=(0.0, math.inf)
        )
    numbers = measured(paired_bootstrap(samples, statistics, resamples=settings.resamples))
    numbers |= _counted(settings.adversary_steps)
    timings = _timed(studies[0])
    return Findings(
        numbers=numbers,
        timings=timings,
        tables={"ablation": _table(numbers)},
        figures={"ablation": _figure(numbers, network)},
        notes=[
            *notes(studies),
            f"Seconds are those of a step on {settings.training.batch_size} images with its "
            f"optimiser, over {settings.rounds} rounds in turns; PGD training takes "
            f"{settings.adversary_steps} steps an image.",
            "Gradients counted are those by the images; every step also takes one by the weights, "
            "which for CURE goes back through both of its gradients.",
        ],
    )


def _apart(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs()


def _judged(study: CureStudy[Settings]) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for name in study.settings.compared:
        model = study.tuned(name).model
        values[f"clean_{name}"], values[f"adv_{name}"] = (
            study.right(model),
            study.right(model, study.judge()),
        )
    return values


def _counted(steps: int) -> dict[str, Estimate]:
    """The number of gradients by the images that a step takes: known, not measured."""
    known = {
        "gradients_cure": 2.0,
        "gradients_advtrain": float(steps),
        "gradients_cure / gradients_advtrain": 2 / steps,
    }
    return {name: Estimate(value, value, value, 1) for name, value in known.items()}


def _timed(study: CureStudy[Settings]) -> dict[str, Estimate]:
    """Seconds of a step of each training, and their ratios within a round."""
    settings = study.settings
    count = settings.timed_steps * settings.training.batch_size
    rows = torch.arange(count) % len(study.train)
    data = Split(study.train.images[rows], study.train.labels[rows])
    recipe = replace(settings.training, epochs=1)
    objectives = {name: _at_full_strength(study, name) for name in TIMED}
    work = partial(_seconds, study.model, data, recipe, objectives, settings.rounds)
    seconds = study.executor.task(work, name="the cost of a step").value
    samples = {name: values / settings.timed_steps for name, values in seconds.items()}
    statistics = {f"t_{name}": median(name) for name in samples}
    statistics |= {
        f"t_cure / t_{name}": median_of_ratios("cure", name) for name in samples if name != "cure"
    }
    return paired_bootstrap(samples, statistics, resamples=settings.resamples)


def _at_full_strength(study: CureStudy[Settings], name: str) -> CrossEntropy:
    """The objective of a training, with h as it is after the ramp."""
    if name == "original":
        return CrossEntropy()
    return (
        replace(study.settings.cure(study.std), ramp=0) if name == "cure" else study.objective(name)
    )


def _seconds(
    model: Classifier,
    data: Split,
    recipe: Recipe,
    objectives: Mapping[str, CrossEntropy],
    rounds: int,
) -> dict[str, Tensor]:
    """Seconds of an epoch of each training, (rounds,), measured in turns.

    A first, short round is not counted.
    """
    device = next(model.parameters()).device
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    for round_ in range(-1, rounds):
        part = data.first(recipe.batch_size) if round_ < 0 else data
        for name, objective in objectives.items():
            start = time.perf_counter()
            train(model, part, recipe, objective=objective)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in seconds.items()}


def _bars(numbers: Mapping[str, Estimate]) -> dict[str, dict[str, Estimate]]:
    measures = {"clean": "clean images", "adv": "under attack"}
    return {
        TITLES[name]: {
            title: numbers[f"{measure}_{name}"]
            for measure, title in measures.items()
            if f"{measure}_{name}" in numbers
        }
        for name in NETWORKS
        if f"clean_{name}" in numbers
    }


def _figure(numbers: Mapping[str, Estimate], network: Network) -> Figure:
    bars = {name.replace(", ", ",\n"): group for name, group in _bars(numbers).items()}
    return bar_figure(bars, ylabel="accuracy", title=f"Choices of CURE, {network.name}", width=11.0)


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows: Sequence[dict[str, object]] = [
        {
            "training": title,
            "measured_on": measure,
            "accuracy": estimate.value,
            **interval(estimate),
        }
        for title, bars in _bars(numbers).items()
        for measure, estimate in bars.items()
    ]
    return pd.DataFrame(rows)
