"""Tables 8.2 and 8.3: clean and robust accuracy of normal, CURE and adversarial training.

References:
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
    F. Croce, M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", arXiv:2003.01690, 2020 (AutoAttack).
    M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, "Square Attack: a query-efficient black-box
    adversarial attack via random search", arXiv:1912.00049, 2020 (Square).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, share, stack
from pipeline.studies.cure import TITLES, CureStudy, train_side_by_side
from pipeline.studies.cure_settings import TableSettings
from pipeline.tables import interval
from robustness_geometry.attacks import autoattack, square
from robustness_geometry.types import Attack, Perturbed

__all__ = ["NETWORKS", "accuracies", "by_autoattack", "by_square", "figure", "table"]

NETWORKS = ("original", "cure", "advtrain")
MEASURES = {
    "clean": "clean images",
    "adv": "under attack",
    "far": "under attack, larger ball",
    "square": "under Square",
    "aa": "under AutoAttack",
}
"""Prefix of the numbers -> name of the measure in tables and figures."""

Own = TypeVar("Own", bound=TableSettings)


def accuracies(
    studies: Sequence[CureStudy[Own]],
    judge: Callable[[CureStudy[Own], float], Attack],
    resamples: int,
) -> dict[str, Estimate]:
    """Accuracies of the networks on clean images and under attack, over all seeds.

    Args:
        studies: one study for each training seed.
        judge: the attack that judges the networks of a study in a ball of a given radius.
        resamples: number of bootstrap resamples.

    Returns:
        ``clean_<network>``, ``adv_<network>`` and, in the larger ball, ``far_<network>`` of
        NETWORKS, and their differences.
    """
    train_side_by_side(studies, NETWORKS)

    def judged(study: CureStudy[Own]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for name in NETWORKS:
            model, far = study.tuned(name).model, study.settings.far * study.eps
            values[f"clean_{name}"] = study.right(model)
            values[f"adv_{name}"] = study.right(model, judge(study, study.eps))
            values[f"far_{name}"] = study.right(model, judge(study, far))
        return values

    samples = stack(studies[0].executor.each(judged, studies))
    statistics = _statistics("clean") | _statistics("adv") | _statistics("far")
    return measured(paired_bootstrap(samples, statistics, resamples=resamples))


def by_autoattack(
    studies: Sequence[CureStudy[Own]], count: int, resamples: int
) -> dict[str, Estimate]:
    """``aa_<network>``: accuracy under AutoAttack in the same ball on ``count`` held-out images."""
    return _by(studies, "aa", autoattack, count, resamples)


def by_square(
    studies: Sequence[CureStudy[Own]], queries: int, resamples: int
) -> dict[str, Estimate]:
    """``square_<network>``: accuracy under Square in the same ball, which uses no gradients.

    Its windows are parts of pictures: on other inputs nothing is run.
    """
    if studies[0].test.images.ndim != 4:
        return {}
    attack = partial(square, queries=queries)
    return _by(studies, "square", attack, len(studies[0].test), resamples)


def _by(
    studies: Sequence[CureStudy[Own]],
    measure: str,
    attack: Callable[..., Perturbed],
    count: int,
    resamples: int,
) -> dict[str, Estimate]:
    """``<measure>_<network>``: accuracy under an attack on ``count`` images, and the differences.

    Without a study nothing is run.
    """
    if not studies:
        return {}

    def right(pair: tuple[CureStudy[Own], str]) -> Tensor:
        study, name = pair
        own = partial(attack, eps=study.eps, norm=study.norm)
        return study.right(study.tuned(name).model, own, study.test.first(count))

    pairs = [(study, name) for study in studies for name in NETWORKS]
    values = studies[0].executor.each(right, pairs)
    samples = [
        {
            f"{measure}_{name}": value
            for (one, name), value in zip(pairs, values, strict=True)
            if one is study
        }
        for study in studies
    ]
    return measured(paired_bootstrap(stack(samples), _statistics(measure), resamples=resamples))


def _statistics(measure: str) -> dict[str, Statistic]:
    original, cure, advtrain = (f"{measure}_{name}" for name in NETWORKS)
    single = {name: share(name) for name in (original, cure, advtrain)}
    pairs = [(cure, original), (original, cure), (original, advtrain)] if measure == "clean" else []
    pairs += [(cure, original), (advtrain, cure)]
    return single | {f"{first} - {second}": difference(first, second) for first, second in pairs}


def table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """One row per network and measure."""
    rows = []
    for name in NETWORKS:
        for measure, title in MEASURES.items():
            estimate = numbers.get(f"{measure}_{name}")
            if estimate is not None:
                row = {"training": TITLES[name], "measured_on": title, "accuracy": estimate.value}
                rows.append({**row, **interval(estimate)})
    return pd.DataFrame(rows)


def figure(numbers: Mapping[str, Estimate], title: str) -> Figure:
    """A group of bars per network."""
    bars = {
        TITLES[name]: {
            text: numbers[f"{measure}_{name}"]
            for measure, text in MEASURES.items()
            if f"{measure}_{name}" in numbers
        }
        for name in NETWORKS
    }
    return bar_figure(bars, ylabel="accuracy", title=title)
