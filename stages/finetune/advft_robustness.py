"""Robustness at each extra epoch of fine-tuning on DeepFool, FGSM and clean images (Figure 3.6)."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, difference, mean, ratio_of_means, stack
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
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "advft_robustness"]

SECTION = "Section 3.3, Figure 3.6"


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        learning_rate_factor: what the learning rate is multiplied with, 0.5 in Section 3.3.
    """

    learning_rate_factor: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("learning_rate_factor", self.learning_rate_factor)


def advft_robustness(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure rho_adv (Equation 3.10) by DeepFool after each extra epoch of each fine-tuning.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs attacks and trainings.

    Returns:
        ``rho_original``, ``rho_ft_<strategy>_<epoch>`` and the gains, on the same held-out images.
    """
    found = studies(network, data, settings, executor)
    recipe = recipe_of(network, settings, settings.learning_rate_factor)
    tune_all(found, [(strategy, 1.0) for strategy in strategies(settings)], recipe, executor)
    samples = stack(executor.each(lambda study: _rho(study, recipe), found))
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    failed = int(sum(values.isnan().sum() for values in samples.values()))
    cases = sum(values.numel() for values in samples.values())
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
        notes=[
            *notes(found, recipe),
            f"rho is measured on {len(found[0].test)} held-out images; DeepFool failed in {failed} "
            f"of {cases} "
            "cases, which are left out.",
        ],
    )


def _rho(study: Study, recipe: Recipe) -> dict[str, Tensor]:
    """Network -> (n,) relative norms."""
    rho = {"original": study.rho(study.model)}
    for strategy in strategies(study.settings):
        for epoch, model in enumerate(study.tuned(study.perturbed(strategy), recipe), 1):
            rho[f"ft_{strategy}_{epoch}"] = study.rho(model)
    return rho


def _statistics(settings: Settings) -> dict[str, Statistic]:
    names = ["original"]
    found: dict[str, Statistic] = {}
    for strategy in strategies(settings):
        tuned = [f"ft_{strategy}_{epoch}" for epoch in range(1, settings.epochs + 1)]
        names += tuned
        for name in tuned:
            found[f"rho_{name} / rho_original"] = ratio_of_means(name, "original")
            found[f"rho_{name} - rho_original"] = difference(name, "original")
            found[f"rho_original - rho_{name}"] = difference("original", name)
    last = settings.epochs
    for other in ("fgsm", "clean"):
        pair = (f"ft_deepfool_{last}", f"ft_{other}_{last}")
        found[f"rho_{pair[0]} - rho_{pair[1]}"] = difference(*pair)
    return {f"rho_{name}": mean(name) for name in names} | found


def _points(numbers: dict[str, Estimate], strategy: str, settings: Settings) -> dict[int, Estimate]:
    """Extra epoch -> rho, from the original network (epoch 0) on; an epoch without a value is missing."""
    names = [
        "rho_original",
        *(f"rho_ft_{strategy}_{epoch}" for epoch in range(1, settings.epochs + 1)),
    ]
    return {epoch: numbers[name] for epoch, name in enumerate(names) if name in numbers}


def _table(numbers: dict[str, Estimate], settings: Settings) -> pd.DataFrame:
    """One row for each strategy and epoch: rho with its interval, and the gain over the original network."""
    rows = []
    for strategy in strategies(settings):
        for epoch, rho in _points(numbers, strategy, settings).items():
            row: dict[str, object] = {"network": TITLES[strategy], "epoch": epoch, "rho": rho.value}
            row |= interval(rho)
            gain = numbers.get(f"rho_ft_{strategy}_{epoch} / rho_original")
            if gain is not None:
                row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
            rows.append(row)
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: dict[str, Estimate], settings: Settings) -> Figure:
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
