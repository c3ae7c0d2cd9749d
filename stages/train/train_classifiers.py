"""Test errors and learning curves of the networks (Section 3.2.3, first column of Table 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.bootstrap import paired_bootstrap
from pipeline.evaluation import correct
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import Line, line_figure
from pipeline.statistics import Estimate, share
from robustness_geometry.checks import check_count
from robustness_geometry.types import Dataset, Network

__all__ = [
    "SECTION",
    "Settings",
    "train_classifiers",
]

Curves: TypeAlias = Mapping[str, list[float]]
"""Curve name -> one value per epoch."""

SECTION = "Section 3.2.3, Table 3.1"

CURVES = {"train_error": "training images", "test_error": "held-out images"}
"""Curve -> its entry in the figure's legend."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        resamples: number of resamples of the bootstrap behind every interval.
    """

    resamples: int = 2000

    def __post_init__(self) -> None:
        check_count("resamples", self.resamples)


def train_classifiers(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure the share of held-out images that the network labels wrongly.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the networks.

    Returns:
        ``test_error`` and ``accuracy`` over all held-out images and training seeds, and the
        learning curves.

    References:
        Section 3.2.3, Table 3.1 of the thesis; Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a
        simple and accurate method to fool deep neural networks", CVPR 2016, arXiv:1511.04599.
    """
    seeds = sorted(network.models)
    right = [
        executor.for_seed(seed)
        .map(partial(correct, network.models[seed]), data.test.images, data.test.labels)
        .value
        for seed in seeds
    ]
    hits = torch.stack(right).double()
    samples = {"right": hits, "wrong": 1 - hits}
    statistics = {"test_error": share("wrong"), "accuracy": share("right")}
    numbers = paired_bootstrap(samples, statistics, resamples=settings.resamples)
    single = [
        paired_bootstrap(
            {"wrong": 1 - row}, {"test_error": share("wrong")}, resamples=settings.resamples
        )
        for row in hits
    ]
    history = [network.history[seed] for seed in seeds if seed in network.history]
    curves = _averaged(history)
    return Findings(
        numbers=numbers,
        curves=dict(curves),
        tables={
            "table_3_1_test_error": _table(
                seeds, [e["test_error"] for e in single], numbers["test_error"]
            ),
            **(
                {"learning_curves": pd.DataFrame({"epoch": _epochs(curves), **curves})}
                if curves
                else {}
            ),
        },
        figures={"learning_curves": _figure(network, history, curves)} if curves else {},
        notes=_notes(network, data, numbers["test_error"]),
    )


def _averaged(history: Sequence[Curves]) -> dict[str, list[float]]:
    """Each curve's mean over the training seeds."""
    names = history[0] if history else {}
    return {name: np.mean([curves[name] for curves in history], axis=0).tolist() for name in names}


def _epochs(curves: Curves) -> list[int]:
    """The epochs of the curves, from 1."""
    return list(range(1, len(next(iter(curves.values()))) + 1))


def _table(seeds: list[int], single: list[Estimate], together: Estimate) -> pd.DataFrame:
    """Test error by training seed and over all of them, with 95% intervals."""
    rows = [*zip(map(str, seeds), single, strict=True), ("all", together)]
    columns = ["seed", "test_error", "low", "high", "images", "seeds"]
    return pd.DataFrame(
        [[seed, e.value, e.low, e.high, e.n, e.seeds] for seed, e in rows], columns=columns
    )


def _figure(network: Network, history: Sequence[Curves], curves: Curves) -> Figure:
    """Errors by epoch: the mean over the training seeds, in a band from the best to the worst."""
    epochs = _epochs(curves)
    lines = {}
    for name, title in CURVES.items():
        every = np.array([one[name] for one in history]) * 100
        mean, low, high = every.mean(axis=0), every.min(axis=0), every.max(axis=0)
        lines[title] = Line(epochs, mean.tolist(), low.tolist(), high.tolist())
    count = len(history)
    figure = line_figure(
        lines,
        xlabel="epoch",
        ylabel="error in %",
        title=f"Learning curves, {network.name}, {count} training seed{'s' if count > 1 else ''}",
        limits=(0.0, None),
    )
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _notes(network: Network, data: Dataset, measured: Estimate) -> list[str]:
    """Notes on the images, the recipe and the band of the figure."""
    notes = [
        f"Test error on all {measured.n} held-out images of {data.name}, {measured.seeds} training "
        "seed(s); the interval is over images and seeds."
    ]
    if network.history:
        recipe = ", ".join(f"{name}={value}" for name, value in network.training.items())
        notes.append(f"Trained on {len(data.train)} images: {recipe}.")
        notes.append(
            "The band of the learning curves runs from the best to the worst training seed."
        )
    else:
        notes.append("The network came with its weights; there are no learning curves.")
    return notes
