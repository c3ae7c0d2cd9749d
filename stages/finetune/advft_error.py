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
    FineTuningStudy,
    HalvedRateSettings,
    fine_tuning_notes,
    fine_tuning_studies,
    strategies,
    tune_all,
)
from pipeline.tables import interval
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "advft_error"]

SECTION = "Section 3.3, Table 3.3"


@dataclass(frozen=True)
class Settings(HalvedRateSettings):
    """What to measure; the error is measured on all held-out images."""


def advft_error(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure the test error of each fine-tuned network after its last extra epoch.

    The error is the share of held-out images that a network labels wrongly. The networks are the
    original one and those fine-tuned on DeepFool's examples, on FGSM's, on clean images and, unless
    it is a DeepFool, on those of the attack under study.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs attacks and trainings.

    Returns:
        ``err_original``, ``err_ft_<strategy>`` and their differences, as shares of the same images.

    References:
        Section 3.3 of the thesis; Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and
        accurate method to fool deep neural networks", CVPR 2016, arXiv:1511.04599.
    """
    factor = settings.learning_rate_factor
    studies = fine_tuning_studies(network, data, settings, executor, test=data.test, factor=factor)
    tune_all(studies, [(strategy, 1.0) for strategy in strategies(settings)], executor)
    samples = stack(executor.each(_wrong, studies))
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
            *fine_tuning_notes(studies),
            f"Errors are measured on all {len(data.test)} held-out images. The thesis does not say "
            "whether its baseline is the original network or one with as many more epochs on clean "
            "images: both are here.",
            *_few(len(studies[0].train), len(data.train)),
        ],
    )


def _wrong(study: FineTuningStudy) -> dict[str, Tensor]:
    """Network -> (n,) 1 where it labels a held-out image wrongly, else 0."""
    networks = {"original": study.model}
    for strategy in strategies(study.settings):
        networks[f"ft_{strategy}"] = study.tuned(strategy)[-1]
    wrong = {}
    for name, model in networks.items():
        work = partial(correct, model)
        right = study.executor.cached(work, study.test.images, study.test.labels).value
        wrong[name] = 1 - right.double()
    return wrong


def _few(used: int, every: int) -> list[str]:
    """A note where fewer images are fine-tuned on than the networks were trained on."""
    if used == every:
        return []
    return [
        f"Only {used} of the {every} training images are fine-tuned on. What the "
        "network knew of the others it may forget, so that these errors may be higher than after "
        "fine-tuning on all of them (settings.advft_error.train_samples=null)."
    ]


def _errors(numbers: dict[str, Estimate], settings: Settings) -> dict[str, Estimate]:
    """Strategy, or ``original`` -> its test error."""
    names = {"original": "err_original"} | {s: f"err_ft_{s}" for s in strategies(settings)}
    return {strategy: numbers[name] for strategy, name in names.items() if name in numbers}


def _table(numbers: dict[str, Estimate], settings: Settings) -> pd.DataFrame:
    """Table 3.3 for one network: each test error, and its change from the original network."""
    rows = []
    for strategy, error in _errors(numbers, settings).items():
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
        for strategy, e in _errors(numbers, settings).items()
    }
    return bar_figure(
        bars,
        ylabel="test error",
        title=f"Test error after {settings.epochs} extra epochs, {network.name}",
    )
