"""Test error after fine-tuning on adversarial examples (Table 3.3)."""

from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import correct
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, difference, share, stack
from pipeline.studies.finetuning import (
    TITLES,
    Common,
    Study,
    notes,
    recipe_of,
    strategies,
    studies,
    tune_all,
)
from pipeline.tables import interval
from robustness_geometry.checks import check_positive
from robustness_geometry.training import Recipe
from robustness_geometry.types import Dataset, Network, Split

__all__ = ["SECTION", "Settings", "advft_error"]

SECTION = "Section 3.3, Table 3.3"


@dataclass(frozen=True)
class Settings(Common):
    """What to measure; the error is measured on all held-out images.

    Attributes:
        learning_rate_factor: what the learning rate is multiplied with, 0.5 in Section 3.3.
    """

    learning_rate_factor: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("learning_rate_factor", self.learning_rate_factor)


def advft_error(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure the share of held-out images that each network labels wrongly after the last extra epoch.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs attacks and trainings.

    Returns:
        ``err_original``, ``err_ft_<strategy>`` and their differences, as shares of the same images.
    """
    found = studies(network, data, settings, executor)
    recipe = recipe_of(network, settings, settings.learning_rate_factor)
    tune_all(found, [(strategy, 1.0) for strategy in strategies(settings)], recipe, executor)
    samples = stack(executor.each(lambda study: _wrong(study, recipe, data.test), found))
    statistics = {f"err_{name}": share(name) for name in samples}
    for strategy in strategies(settings):
        tuned = f"ft_{strategy}"
        statistics[f"err_original - err_{tuned}"] = difference("original", tuned)
        statistics[f"err_{tuned} - err_original"] = difference(tuned, "original")
    numbers = measured(paired_bootstrap(samples, statistics, resamples=settings.resamples))
    return Findings(
        numbers=numbers,
        tables={"table_3_3": _table(numbers, settings)},
        figures={"table_3_3": _figure(network, numbers, settings)},
        notes=[
            *notes(found, recipe),
            f"Errors are measured on all {len(data.test)} held-out images. The thesis does not say "
            "whether its "
            "baseline is the original network or one with as many more epochs on clean images: "
            "both are here.",
        ],
    )


def _wrong(study: Study, recipe: Recipe, test: Split) -> dict[str, Tensor]:
    """Network -> (n,) 1 where it is wrong."""
    networks = {"original": study.model}
    for strategy in strategies(study.settings):
        networks[f"ft_{strategy}"] = study.tuned(study.perturbed(strategy), recipe)[-1]
    return {
        name: 1
        - study.executor.cached(partial(correct, model), test.images, test.labels).value.double()
        for name, model in networks.items()
    }


def _rows(numbers: dict[str, Estimate], settings: Settings) -> dict[str, Estimate]:
    names = {"original": "err_original"} | {s: f"err_ft_{s}" for s in strategies(settings)}
    return {strategy: numbers[name] for strategy, name in names.items() if name in numbers}


def _table(numbers: dict[str, Estimate], settings: Settings) -> pd.DataFrame:
    rows = []
    for strategy, error in _rows(numbers, settings).items():
        row: dict[str, object] = {
            "network": TITLES[strategy],
            "test_error": error.value,
            **interval(error),
        }
        change = numbers.get(f"err_ft_{strategy} - err_original")
        if change is not None:
            row |= {"change": change.value, "change_low": change.low, "change_high": change.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: dict[str, Estimate], settings: Settings) -> Figure:
    bars = {
        TITLES[strategy].removeprefix("fine-tuned on "): {"error": e}
        for strategy, e in _rows(numbers, settings).items()
    }
    return bar_figure(
        bars,
        ylabel="test error",
        title=f"Test error after {settings.epochs} extra epochs, {network.name}",
    )
