"""Theorem 1 on affine classifiers (Section 5.4, Figure 5.2).

The constants of the theorem, and how often its bounds hold in a simulation.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import Estimate, Statistic, exactly, median, share
from pipeline.studies.boundary import once
from pipeline.studies.synthetic import Affine
from pipeline.tables import columns
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import (
    RandomSubspaces,
    lemma2_bounds,
    theorem1_bounds,
    zeta_1,
    zeta_2,
)
from robustness_geometry.norms import norms
from robustness_geometry.randomness import per_image, seeded
from robustness_geometry.types import Dataset, Network, predict

__all__ = ["SECTION", "Settings", "theorem1_affine"]

SECTION = "Section 5.4, Theorem 1, Figure 5.2"

LARGEST = 1_000_000
"""The m at which the constants should be 1 up to 0.02."""

OVERSHOOT = 1e-4
"""Overshoot of the DeepFool that is compared with the closed form; divided out again."""


@dataclass(frozen=True)
class Settings:
    """The size of the simulation.

    Attributes:
        dimension: dimension d of the input space, at least 2.
        dimensions: dimensions m of the random subspaces, each from 1 to d.
        classes: number L of classes, at least 2.
        classifiers: number of random affine classifiers.
        points: number of random points of each classifier, each with its own subspace.
        delta: delta of the bounds of Theorem 1, in (0, 1); with 10 classes 0.05 would promise
            nothing.
        figure_delta: delta of Figure 5.2 and of Lemma 2, in (0, 1).
        resamples: number of resamples of the bootstrap behind every interval.
    """

    dimension: int = 1000
    dimensions: tuple[int, ...] = (1, 10, 50, 100, 250, 500)
    classes: int = 10
    classifiers: int = 20
    points: int = 100
    delta: float = 0.002
    figure_delta: float = 0.05
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("classifiers", "points", "resamples"):
            check_count(name, getattr(self, name))
        check_count("classes", self.classes, minimum=2)
        check_count("dimension", self.dimension, minimum=2)
        if not self.dimensions or not all(1 <= m <= self.dimension for m in self.dimensions):
            refuse(
                "dimensions",
                self.dimensions,
                f"whole numbers from 1 to dimension = {self.dimension}",
            )
        for name in ("delta", "figure_delta"):
            if not 0 < getattr(self, name) < 1:
                refuse(name, getattr(self, name), "a number in (0, 1)")


def theorem1_affine(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Draw Figure 5.2 and count how often ||r_S|| / ||r*|| keeps the bounds of Theorem 1.

    r_S is the smallest perturbation inside a random subspace, r* the smallest one in the whole
    space. The network and the data take no part: the classifiers are made up and affine, so that
    both are known in closed form.

    Args:
        network: not used.
        data: not used.
        settings: the size of the simulation.
        executor: keeps the simulation for other networks.

    Returns:
        The constants at 1, 250 and a million dimensions; for each m the share of trials within the
        bounds of Theorem 1 and of Lemma 2, and the median of the ratio, once over sqrt(d / m) and
        once as it is.

    References:
        Section 5.4, Theorem 1, of the thesis; Fawzi, Moosavi-Dezfooli and Frossard, "Robustness of
        classifiers: from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
    """
    drawn = executor.each(
        lambda m: once(_job(settings, m), executor, f"Theorem 1, m = {m}"), settings.dimensions
    )
    trials = dict(zip(settings.dimensions, drawn, strict=True))
    numbers = {**_constants(settings.figure_delta), **_sampled(trials, settings)}
    return Findings(
        numbers=numbers,
        tables={
            "coverage": _table(numbers, settings),
            "constants": _constants_table(settings.figure_delta),
        },
        figures={
            "figure_5_2": _curves(settings.figure_delta),
            "coverage": _coverage(trials, settings),
        },
        notes=_notes(settings),
    )


def _job(settings: Settings, m: int) -> "partial[dict[str, Tensor]]":
    """The simulation of one m, as a function that the executor can key."""
    return partial(
        simulate,
        dimension=settings.dimension,
        m=m,
        classes=settings.classes,
        classifiers=settings.classifiers,
        points=settings.points,
    )


def simulate(
    *, dimension: int, m: int, classes: int, classifiers: int, points: int
) -> dict[str, Tensor]:
    """||r_S|| / ||r*|| on random affine classifiers, in closed form, float64.

    Args:
        dimension: dimension d of the input space.
        m: dimension of the random subspaces, one per point.
        classes: number of classes.
        classifiers: number of random affine classifiers.
        points: number of random points of each classifier.

    Returns:
        ``ratio`` (trials,); ``share``, ||P_S z||^2 of a unit normal z, (trials,); ``deepfool``, the
        relative error of DeepFool's ||r_S||, (trials,), NaN beyond the first classifier.
    """
    parts = []
    for index in range(classifiers):
        generator = seeded("theorem 1", dimension, classes, index)
        weight = torch.randn(classes, dimension, generator=generator, dtype=torch.float64)
        model = Affine(weight, torch.randn(classes, generator=generator, dtype=torch.float64))
        places = torch.randn(points, 1, 1, dimension, generator=generator, dtype=torch.float64)
        subspaces = RandomSubspaces(
            (1, 1, dimension),
            m,
            per_image(index, f"theorem 1, m = {m}", range(points)),
            like=weight[:0],
        )
        parts.append(_ratios(model, places, subspaces, compared=index == 0))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _ratios(
    model: Affine, points: Tensor, subspaces: RandomSubspaces, *, compared: bool
) -> dict[str, Tensor]:
    """The results of :func:`simulate` for one classifier; ``compared`` also runs DeepFool."""
    with torch.no_grad():
        logits = model(points)
    own, weight = predict(model, points), model.weight.detach()
    # The other classes of each point, (N, L - 1), and the hyperplanes that part them from its own.
    rivals = torch.stack(
        [torch.cat([torch.arange(k), torch.arange(k + 1, len(weight))]) for k in own.tolist()]
    )
    gaps = (logits.gather(1, rivals) - logits.gather(1, own[:, None])).abs()
    normals = weight[rivals] - weight[own][:, None]
    inside = subspaces.project(
        normals.view(*normals.shape[:2], *points.shape[1:]), torch.arange(len(points))
    )
    # The distance to a hyperplane is |gap| over its normal, within S over the normal's part in S.
    lengths, kept = normals.norm(dim=2), inside.flatten(2).norm(dim=2)
    nearest, within = (gaps / lengths).amin(dim=1), (gaps / kept).amin(dim=1)
    error = torch.full_like(within, math.nan)
    if compared:
        result = deepfool(model, points, overshoot=OVERSHOOT, prune=None, subspace=subspaces)
        error = (norms(result.perturbations) / (1 + OVERSHOOT) - within).abs() / within
    return {
        "ratio": within / nearest,
        "share": (kept[:, 0] / lengths[:, 0]).square(),
        "deepfool": error,
    }


def _constants(delta: float) -> dict[str, Estimate]:
    """The numbers of Figure 5.2.

    zeta_1 rises and zeta_2 falls with m, so that the smallest m of a range decides.
    """
    large = [round(m) for m in np.geomspace(250, LARGEST, 200)]
    return {
        "smallest zeta_1 for m >= 250": exactly(min(zeta_1(m, delta) for m in large), len(large)),
        "largest zeta_2 for m >= 250": exactly(max(zeta_2(m, delta) for m in large), len(large)),
        "|zeta_1 - 1| at a million": exactly(abs(zeta_1(LARGEST, delta) - 1)),
        "|zeta_2 - 1| at a million": exactly(abs(zeta_2(LARGEST, delta) - 1)),
        "width at 1 - width at 250": exactly(
            zeta_2(1, delta) - zeta_1(1, delta) - zeta_2(250, delta) + zeta_1(250, delta)
        ),
    }


def _sampled(trials: dict[int, dict[str, Tensor]], settings: Settings) -> dict[str, Estimate]:
    """The numbers of the simulation: coverage of the bounds, medians, DeepFool's error."""
    found: dict[str, Estimate] = {}
    for m, draws in trials.items():
        bounds = theorem1_bounds(settings.dimension, m, settings.delta, settings.classes)
        lemma = lemma2_bounds(settings.dimension, m, settings.figure_delta)
        ratio = draws["ratio"]
        samples = {
            "covered": ((ratio >= bounds.low) & (ratio <= bounds.high)).double(),
            "lemma": ((draws["share"] >= lemma.low) & (draws["share"] <= lemma.high)).double(),
            "ratio": ratio,
            "scaled": ratio / math.sqrt(settings.dimension / m),
        }
        statistics: dict[str, Statistic] = {
            f"coverage_{m}": share("covered"),
            f"lemma2_{m}": share("lemma"),
            f"ratio_{m}": median("ratio"),
            f"scaled_ratio_{m}": median("scaled"),
        }
        found |= paired_bootstrap(samples, statistics, resamples=settings.resamples)
        error = float(draws["deepfool"].nan_to_num(nan=-1.0).max())
        found[f"deepfool_error_{m}"] = exactly(error, settings.points)
    return found


def _table(numbers: dict[str, Estimate], settings: Settings) -> pd.DataFrame:
    """One row per m: the bounds, the median ratio, and the shares within the bounds."""
    rows = []
    for m in settings.dimensions:
        bounds = theorem1_bounds(settings.dimension, m, settings.delta, settings.classes)
        rows.append(
            {
                "m": m,
                "low": bounds.low,
                "median_ratio": numbers[f"ratio_{m}"].value,
                "high": bounds.high,
                **columns("share_within", numbers[f"coverage_{m}"]),
                "promised": bounds.probability,
                **columns("lemma2_share", numbers[f"lemma2_{m}"]),
                "lemma2_promised": 1 - 2 * settings.figure_delta,
                "deepfool_error": numbers[f"deepfool_error_{m}"].value,
                "trials": numbers[f"coverage_{m}"].n,
            }
        )
    return pd.DataFrame(rows)


def _constants_table(delta: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"m": m, "zeta_1": zeta_1(m, delta), "zeta_2": zeta_2(m, delta)}
            for m in (1, 10, 100, 250, 1000, LARGEST)
        ]
    )


def _curves(delta: float) -> Figure:
    """Figure 5.2: zeta_1 and zeta_2 over m."""
    m = sorted({round(value) for value in np.geomspace(1, 10_000, 200)})
    figure, grid = axes_grid()
    axes = grid[0, 0]
    with styled():
        axes.plot(m, [zeta_2(k, delta) for k in m], color=COLOURS[1], label=r"$\zeta_2(m, \delta)$")
        axes.plot(m, [zeta_1(k, delta) for k in m], color=COLOURS[0], label=r"$\zeta_1(m, \delta)$")
        axes.axhspan(0.8, 1.3, color="#6b7580", alpha=0.15, linewidth=0, label="[0.8, 1.3]")
        axes.axvline(250, color="#6b7580", linestyle=":", linewidth=1.4, label="m = 250")
        axes.set(
            xscale="log", yscale="log", xlabel="dimension m of the subspace", ylabel="constant"
        )
        axes.set_title(rf"The constants of Theorem 1, $\delta$ = {delta:g}")
        axes.legend()
    return figure


def _coverage(trials: dict[int, dict[str, Tensor]], settings: Settings) -> Figure:
    """The simulated ratios over sqrt(d / m), between the bounds."""
    figure, grid = axes_grid()
    axes = grid[0, 0]
    shown = list(trials)
    scaled = {m: trials[m]["ratio"].numpy() / math.sqrt(settings.dimension / m) for m in shown}
    middle, outer = ([np.quantile(scaled[m], q) for m in shown] for q in (0.5, 0.99))
    inner = [np.quantile(scaled[m], 0.01) for m in shown]
    with styled():
        axes.fill_between(
            shown,
            inner,
            outer,
            color=COLOURS[0],
            alpha=0.25,
            linewidth=0,
            label="98% of the trials",
        )
        axes.plot(shown, middle, "o-", color=COLOURS[0], label="median")
        for name, zeta in ((r"$\sqrt{\zeta_2}$", zeta_2), (r"$\sqrt{\zeta_1}$", zeta_1)):
            bound = [math.sqrt(zeta(m, settings.delta)) for m in shown]
            axes.plot(shown, bound, "--", color=COLOURS[1], label=f"bound {name}")
        axes.set(xscale="log", yscale="log", xlabel="dimension m of the subspace")
        axes.set_ylabel(r"$\sqrt{m/d}\;\|r_S\|_2\,/\,\|r^*\|_2$")
        axes.set_title(
            f"Affine classifiers of {settings.classes} classes, d = {settings.dimension}"
        )
        axes.legend()
    return figure


def _notes(settings: Settings) -> list[str]:
    """Notes on the size of the simulation, the deltas and DeepFool."""
    total = settings.classifiers * settings.points
    promised = theorem1_bounds(settings.dimension, 1, settings.delta, settings.classes).probability
    return [
        f"{total} trials for each m: {settings.classifiers} random affine classifiers of "
        f"{settings.classes} classes in d = {settings.dimension} dimensions, {settings.points} "
        "points each with a random subspace of its own, in closed form in float64; the network "
        "plays no part.",
        f"Theorem 1 at delta = {settings.delta:g} promises {promised:.4g} (at delta = 0.05 it "
        "would promise nothing for 9 classes or more); Lemma 2 and Figure 5.2 are at delta = "
        f"{settings.figure_delta:g}.",
        "DeepFool inside the subspaces is held against the closed form on the points of the first "
        "classifier.",
    ]
