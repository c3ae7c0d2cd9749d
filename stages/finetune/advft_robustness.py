"""Robustness at each extra epoch of fine-tuning on DeepFool, FGSM and clean images (Figure 3.6)."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, difference, mean, ratio_of_means, stack
from pipeline.studies.finetuning import (
    TITLES,
    RobustnessSettings,
    by_epoch,
    fine_tuning_notes,
    fine_tuning_studies,
    mean_alignments,
    rho_by_epoch,
    rho_note,
    strategies,
    tune_all,
)
from pipeline.tables import interval, value
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "advft_robustness"]

SECTION = "Section 3.3, Figure 3.6"


@dataclass(frozen=True)
class Settings(RobustnessSettings):
    """What to measure."""


def advft_robustness(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure rho_adv (Equation 3.10) by DeepFool after each extra epoch of each fine-tuning.

    The networks are fine-tuned on DeepFool's examples, on FGSM's, on clean images and, unless it is
    a DeepFool, on those of the attack under study.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs attacks and trainings.

    Returns:
        ``rho_original``, ``rho_ft_<strategy>_<epoch>`` and the gains, on the same held-out images.

    References:
        Section 3.3 of the thesis; Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and
        accurate method to fool deep neural networks", CVPR 2016, arXiv:1511.04599.
    """
    test, factor = held_out(data, settings.samples), settings.learning_rate_factor
    studies = fine_tuning_studies(network, data, settings, executor, test=test, factor=factor)
    sets = {f"ft_{strategy}": (strategy, 1.0) for strategy in strategies(settings)}
    tune_all(studies, list(sets.values()), executor)
    samples = stack(executor.each(lambda study: rho_by_epoch(study, sets), studies))
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    return Findings(
        numbers=numbers,
        curves={
            f"rho_ft_{strategy}": [
                rho.value for rho in _points(numbers, strategy, settings).values()
            ]
            for strategy in strategies(settings)
        },
        tables={"figure_3_6": _table(numbers, settings)},
        figures={"figure_3_6": _figure(network, numbers, settings)},
        notes=[*fine_tuning_notes(studies), rho_note(studies, samples)],
    )


def _statistics(settings: Settings) -> dict[str, Statistic]:
    """The numbers: rho of every network first, then its gains, then DeepFool's lead at the end."""
    single = {"rho_original": mean("original")}
    gains: dict[str, Statistic] = {}
    for strategy in strategies(settings):
        for epoch in range(1, settings.epochs + 1):
            tuned, name = f"ft_{strategy} {epoch}", f"rho_ft_{strategy}_{epoch}"
            single[name] = mean(tuned)
            gains[f"{name} / rho_original"] = ratio_of_means(tuned, "original")
            gains[f"{name} - rho_original"] = difference(tuned, "original")
            gains[f"rho_original - {name}"] = difference("original", tuned)
    last = settings.epochs
    for other in ("fgsm", "clean"):
        lead = f"rho_ft_deepfool_{last} - rho_ft_{other}_{last}"
        gains[lead] = difference(f"ft_deepfool {last}", f"ft_{other} {last}")
    tuned_names = {
        f"ft_{strategy}_{epoch}": f"ft_{strategy} {epoch}"
        for strategy in strategies(settings)
        for epoch in range(1, last + 1)
    }
    return single | gains | mean_alignments({"original": "original", **tuned_names})


def _points(numbers: dict[str, Estimate], strategy: str, settings: Settings) -> dict[int, Estimate]:
    """Extra epoch -> rho, from the original network (epoch 0) on."""
    tuned = [f"rho_ft_{strategy}_{epoch}" for epoch in range(1, settings.epochs + 1)]
    return by_epoch(numbers, ["rho_original", *tuned])


def _table(numbers: dict[str, Estimate], settings: Settings) -> pd.DataFrame:
    """One row per strategy and epoch: rho, and its gain over the original network."""
    rows = []
    for strategy in strategies(settings):
        for epoch, rho in _points(numbers, strategy, settings).items():
            row: dict[str, object] = {"network": TITLES[strategy], "epoch": epoch, "rho": rho.value}
            name = f"ft_{strategy}_{epoch}" if epoch else "original"
            row |= {**interval(rho), "cos(r, n)": value(numbers, f"alignment_{name}")}
            gain = numbers.get(f"rho_ft_{strategy}_{epoch} / rho_original")
            if gain is not None:
                row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
            rows.append(row)
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: dict[str, Estimate], settings: Settings) -> Figure:
    """Figure 3.6: rho over the extra epochs, one line per strategy."""
    lines = {}
    for strategy in strategies(settings):
        points = _points(numbers, strategy, settings)
        lines[TITLES[strategy].removeprefix("fine-tuned on ")] = estimate_line(
            list(points), list(points.values())
        )
    return line_figure(
        lines,
        xlabel="extra epochs",
        ylabel="robustness rho (DeepFool)",
        title=f"Robustness after fine-tuning on ..., {network.name}",
    )
