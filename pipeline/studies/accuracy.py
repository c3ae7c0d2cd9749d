"""Tables 8.2 and 8.3: clean and robust accuracy of normal training, CURE and adversarial training."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, share, stack
from pipeline.studies.cure import TITLES, Study
from pipeline.tables import interval
from robustness_geometry.attacks import autoattack
from robustness_geometry.types import Attack

__all__ = ["NETWORKS", "accuracies", "by_autoattack", "figure", "table"]

NETWORKS = ("original", "cure", "advtrain")
MEASURES = {"clean": "clean images", "adv": "under attack", "aa": "under AutoAttack"}
"""Prefix of the numbers -> what tables and figures call it."""


def accuracies(
    found: Sequence[Study], judge: Callable[[Study], Attack], resamples: int
) -> dict[str, Estimate]:
    """``clean_<network>`` and ``adv_<network>`` of NETWORKS over all seeds, and the differences that claims name."""
    each = found[0].executor.each
    each(
        lambda pair: pair[0].tuned(pair[1]), [(study, name) for name in NETWORKS for study in found]
    )
    samples = stack(each(lambda study: _judged(study, judge(study)), found))
    return measured(
        paired_bootstrap(samples, _statistics("clean") | _statistics("adv"), resamples=resamples)
    )


def _judged(study: Study, attack: Attack) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for name in NETWORKS:
        model = study.tuned(name).model
        values[f"clean_{name}"] = study.right(model)
        values[f"adv_{name}"] = study.right(model, attack)
    return values


def by_autoattack(found: Sequence[Study], count: int, resamples: int) -> dict[str, Estimate]:
    """``aa_<network>``: accuracy under AutoAttack in the same ball on ``count`` held-out images."""
    if not found:
        return {}

    def right(pair: tuple[Study, str]) -> Tensor:
        study, name = pair
        attack = partial(autoattack, eps=study.eps, norm=study.norm)
        return study.right(study.tuned(name).model, attack, study.test.first(count))

    pairs = [(study, name) for study in found for name in NETWORKS]
    values = found[0].executor.each(right, pairs)
    samples = [
        {
            f"aa_{name}": value
            for (one, name), value in zip(pairs, values, strict=True)
            if one is study
        }
        for study in found
    ]
    return measured(paired_bootstrap(stack(samples), _statistics("aa"), resamples=resamples))


def _statistics(measure: str) -> dict[str, Statistic]:
    original, cure, advtrain = (f"{measure}_{name}" for name in NETWORKS)
    single = {name: share(name) for name in (original, cure, advtrain)}
    pairs = [(cure, original), (original, cure), (original, advtrain)] if measure == "clean" else []
    pairs += [(cure, original), (advtrain, cure)]
    return single | {f"{first} - {second}": difference(first, second) for first, second in pairs}


def table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """One row for each network and measure."""
    rows = []
    for name in NETWORKS:
        for measure, title in MEASURES.items():
            estimate = numbers.get(f"{measure}_{name}")
            if estimate is not None:
                row = {"training": TITLES[name], "measured_on": title, "accuracy": estimate.value}
                rows.append({**row, **interval(estimate)})
    return pd.DataFrame(rows)


def figure(numbers: Mapping[str, Estimate], title: str) -> Figure:
    """Bars for each network."""
    bars = {
        TITLES[name]: {
            text: numbers[f"{measure}_{name}"]
            for measure, text in MEASURES.items()
            if f"{measure}_{name}" in numbers
        }
        for name in NETWORKS
    }
    return bar_figure(bars, ylabel="accuracy", title=title)
