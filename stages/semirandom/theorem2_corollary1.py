"""Theorem 2 and Corollary 1 on spherical boundaries (Section 5.5, Appendix A.2).

How often their bounds hold in a simulation, and the lemmas behind them on grids.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import Estimate, exactly, share
from pipeline.studies.boundary import once
from pipeline.studies.spheres import curvature_error, departure, lemma_slacks
from pipeline.tables import columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import (
    RandomSubspaces,
    corollary1_bounds,
    corollary1_excluded,
    curvature_limit,
    lemma4_bounds,
    sphere_step,
    theorem2_bounds,
)
from robustness_geometry.randomness import per_image, seeded
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "theorem2_corollary1"]

SECTION = "Section 5.5, Theorem 2, Corollary 1, Lemmas 4, 7 and 8"

SIDES = {"inside": "x in the ball", "outside": "the ball beyond the boundary"}
"""Where the ball lies whose sphere is the boundary: around x, or in the other region."""


@dataclass(frozen=True)
class Settings:
    """The size of the simulation.

    Attributes:
        dimension: dimension d of the input space.
        dimensions: dimensions m of the random subspaces, each from 2 to d.
        bends: kappa ||r|| as shares of the largest that Theorem 2 allows, each in (0, 1].
        classes: number L of classes of Corollary 1, at least 3.
        trials: number of random subspaces of each case.
        delta: delta of Theorem 2, in (0, 1).
        corollary_delta: delta of Corollary 1, in (0, 1); at 0.05 its 1 - 4 (L + 2) delta would be
            below 0.
        grid: number of points along each side of the lemmas' grids, at least 10.
        resamples: number of resamples of the bootstrap behind every interval.
    """

    dimension: int = 1000
    dimensions: tuple[int, ...] = (10, 100, 250)
    bends: tuple[float, ...] = (0.25, 1.0)
    classes: int = 10
    trials: int = 2000
    delta: float = 0.05
    corollary_delta: float = 0.002
    grid: int = 400
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("trials", "resamples"):
            check_count(name, getattr(self, name))
        check_count("classes", self.classes, minimum=3)
        check_count("grid", self.grid, minimum=10)
        if not self.dimensions or not all(2 <= m <= self.dimension for m in self.dimensions):
            refuse(
                "dimensions",
                self.dimensions,
                f"whole numbers from 2 to dimension = {self.dimension}",
            )
        if not self.bends or not all(0 < bend <= 1 for bend in self.bends):
            refuse("bends", self.bends, "shares in (0, 1]")
        for name in ("delta", "corollary_delta"):
            if not 0 < getattr(self, name) < 1:
                refuse(name, getattr(self, name), "a number in (0, 1)")


def theorem2_corollary1(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Count how often the bounds for curved boundaries hold on spheres; check the lemmas on grids.

    The network and the data take no part: the boundaries are made up, so that the distances are
    known in closed form.

    Args:
        network: not used.
        data: not used.
        settings: the size of the simulation.
        executor: keeps the simulation for other networks.

    Returns:
        The shares of trials within the bounds of Theorem 2 and of Corollary 1, the smallest slack
        of Lemmas 4, 7 and 8 on their grids, and the largest relative error of the curvature by
        inscribed balls.

    References:
        Section 5.5 and Appendix A.2 of the thesis; Fawzi, Moosavi-Dezfooli and Frossard,
        "Robustness of classifiers: from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
    """
    drawn = executor.each(
        lambda m: once(_job(settings, m), executor, f"Theorem 2, m = {m}"), settings.dimensions
    )
    draws = dict(zip(settings.dimensions, drawn, strict=True))
    theorem = {
        (m, bend, side): _ratios(draws[m]["cosines"][:, 0], settings, m, bend, side)
        for m in settings.dimensions
        for bend in settings.bends
        for side in SIDES
    }
    numbers = {
        **_covered(theorem, settings),
        **_corollary(draws, settings),
        **{name: exactly(*slack) for name, slack in lemma_slacks(settings.grid).items()},
        "curvature_error": exactly(curvature_error(), 4),
    }
    return Findings(
        numbers=numbers,
        tables={"bounds": _table(theorem, numbers, settings), "lemmas": _lemma_table(numbers)},
        figures={"theorem_2": _figure(theorem, settings), "lemma_4": _lemma_figure()},
        notes=_notes(settings),
    )


def _job(settings: Settings, m: int) -> "partial[dict[str, Tensor]]":
    """The draws of one m, as a function that the executor can key."""
    return partial(
        draw, dimension=settings.dimension, m=m, rivals=settings.classes - 1, trials=settings.trials
    )


def draw(*, dimension: int, m: int, rivals: int, trials: int) -> dict[str, Tensor]:
    """Random boundaries and one random subspace S per trial.

    Args:
        dimension: dimension d of the input space.
        m: dimension of S.
        rivals: number of boundaries, one for each other class.
        trials: number of trials.

    Returns:
        ``cosines`` (trials, rivals), ||P_S n_k|| of the unit normals n_k of the boundaries;
        ``distances`` (trials, rivals), the first 1 and the others in [1, 3]; ``outside`` (trials,
        rivals), whether the ball lies beyond the boundary.
    """
    parts = []
    for start in range(0, trials, 100):
        count = min(100, trials - start)
        generator = seeded("theorem 2", dimension, m, start)
        normals = torch.randn(
            count, rivals, 1, 1, dimension, generator=generator, dtype=torch.float64
        )
        generators = per_image(0, f"theorem 2, m = {m}", range(start, start + count))
        subspaces = RandomSubspaces((1, 1, dimension), m, generators, like=normals[:0])
        kept = subspaces.project(normals, torch.arange(count)).flatten(2).norm(dim=2)
        distances = 1 + 2 * torch.rand(count, rivals, generator=generator, dtype=torch.float64)
        distances[:, 0] = 1.0
        outside = torch.rand(count, rivals, generator=generator, dtype=torch.float64) < 0.5
        parts.append(
            {
                "cosines": kept / normals.flatten(2).norm(dim=2),
                "distances": distances,
                "outside": outside,
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _ratios(cosines: Tensor, settings: Settings, m: int, bend: float, side: str) -> Tensor:
    """||r_S|| / ||r|| at a sphere with kappa ||r|| = bend * limit, (trials,)."""
    radius = 1 / (
        bend * curvature_limit(settings.dimension, m, settings.delta)
    )  # in units of ||r||
    offset = torch.full_like(cosines, radius - 1 if side == "inside" else radius + 1)
    return sphere_step(offset, cosines, radius)


def _covered(
    theorem: dict[tuple[int, float, str], Tensor], settings: Settings
) -> dict[str, Estimate]:
    """The share of trials within the bounds of Theorem 2, for each case."""
    samples, statistics = {}, {}
    for (m, bend, side), ratios in theorem.items():
        limit = curvature_limit(settings.dimension, m, settings.delta)
        bounds = theorem2_bounds(settings.dimension, m, settings.delta, bend * limit)
        name = f"coverage_{m}_{side}_{bend:g}"
        samples[name] = ((ratios >= bounds.low) & (ratios <= bounds.high)).double()
        statistics[name] = share(name)
    return paired_bootstrap(samples, statistics, resamples=settings.resamples)


def _corollary(draws: dict[int, dict[str, Tensor]], settings: Settings) -> dict[str, Estimate]:
    """The share of trials within the bounds of Corollary 1, for each m.

    The boundaries are spheres of the largest allowed curvature; the last one is far enough away for
    the corollary to exclude its class, and is five times as curved.
    """
    samples, statistics = {}, {}
    for m, drawn in draws.items():
        limit = curvature_limit(settings.dimension, m, settings.corollary_delta)
        bounds = corollary1_bounds(
            settings.dimension, m, settings.corollary_delta, settings.classes
        )
        distances = drawn["distances"].clone()
        distances[:, -1] = 1.5 * bounds.high
        excluded = corollary1_excluded(distances, settings.dimension, m, settings.corollary_delta)
        radii = distances / limit / torch.where(excluded, 5.0, 1.0)
        offsets = torch.where(drawn["outside"], radii + distances, radii - distances)
        steps = sphere_step(offsets, drawn["cosines"], radii).amin(dim=1)
        samples[f"corollary_{m}"] = ((steps >= bounds.low) & (steps <= bounds.high)).double()
        statistics[f"corollary_{m}"] = share(f"corollary_{m}")
    return paired_bootstrap(samples, statistics, resamples=settings.resamples)


def _table(
    theorem: dict[tuple[int, float, str], Tensor], numbers: dict[str, Estimate], settings: Settings
) -> pd.DataFrame:
    """One row per case: the bounds, the median ratio, and the share of trials within them."""
    rows = []
    for (m, bend, side), ratios in theorem.items():
        limit = curvature_limit(settings.dimension, m, settings.delta)
        bounds = theorem2_bounds(settings.dimension, m, settings.delta, bend * limit)
        number = numbers[f"coverage_{m}_{side}_{bend:g}"]
        row = {"result": "Theorem 2", "m": m, "ball": SIDES[side], "kappa_r": bend * limit}
        row |= {"low": bounds.low, "median_ratio": float(ratios.median()), "high": bounds.high}
        rows.append(
            row
            | columns("share_within", number)
            | {"promised": bounds.probability, "trials": number.n}
        )
    for m in settings.dimensions:
        bounds = corollary1_bounds(
            settings.dimension, m, settings.corollary_delta, settings.classes
        )
        number = numbers[f"corollary_{m}"]
        row = {
            "result": "Corollary 1",
            "m": m,
            "ball": "both",
            "low": bounds.low,
            "high": bounds.high,
        }
        rows.append(
            row
            | columns("share_within", number)
            | {"promised": bounds.probability, "trials": number.n}
        )
    return pd.DataFrame(rows)


def _lemma_table(numbers: dict[str, Estimate]) -> pd.DataFrame:
    """The worst case of each lemma, and of the curvature by inscribed balls."""
    names = [name for name in numbers if name.startswith("lemma")] + ["curvature_error"]
    return pd.DataFrame(
        [
            {"quantity": name, "worst": numbers[name].value, "cases": numbers[name].n}
            for name in names
        ]
    )


def _figure(theorem: dict[tuple[int, float, str], Tensor], settings: Settings) -> Figure:
    """The ratios over sqrt(d / m) at the largest curvature, between the bounds of Theorem 2."""
    figure, grid = axes_grid()
    axes, bend = grid[0, 0], max(settings.bends)
    names = [
        f"m = {m}\n{'inside' if side == 'inside' else 'outside'}"
        for m in settings.dimensions
        for side in SIDES
    ]
    with styled():
        for place, (m, side) in enumerate((m, side) for m in settings.dimensions for side in SIDES):
            scale = math.sqrt(settings.dimension / m)
            low, middle, high = np.quantile(
                theorem[m, bend, side].numpy() / scale, (0.01, 0.5, 0.99)
            )
            limit = curvature_limit(settings.dimension, m, settings.delta)
            bounds = theorem2_bounds(settings.dimension, m, settings.delta, bend * limit)
            own = {"label": "98% of the trials, median"} if place == 0 else {}
            spread = [[middle - low], [high - middle]]
            axes.errorbar([place], [middle], spread, fmt="o", capsize=5, color=COLOURS[0], **own)
            own = {"label": "bounds of Theorem 2"} if place == 0 else {}
            edges = [bounds.low / scale, bounds.high / scale]
            axes.hlines(edges, place - 0.3, place + 0.3, color=COLOURS[1], linewidth=2, **own)
        axes.set_xticks(range(len(names)), names)
        axes.set(yscale="log", ylabel=r"$\sqrt{m/d}\;\|r_S\|_2\,/\,\|r\|_2$")
        axes.set_title("Spheres of the largest curvature allowed, x inside or outside")
        axes.set_yticks([0.5, 1, 2, 3], ["0.5", "1", "2", "3"])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="x", visible=False)
        axes.legend()
    return figure


def _lemma_figure() -> Figure:
    """Lemma 4: the departure of arcs from their tangent over kappa r tan^2, and its bounds."""
    figure, grid = axes_grid()
    axes = grid[0, 0]
    slant = torch.linspace(0, 0.2, 200, dtype=torch.float64)
    with styled():
        for index, bend in enumerate((0.02, 0.2, 0.9)):
            tangent = (slant / bend).sqrt()
            for outside in (True, False):
                own = {"label": rf"arc, $\kappa r$ = {bend:g}"} if outside else {}
                found = departure(torch.full_like(slant, bend), tangent, outside=outside)
                axes.plot(slant, found, color=COLOURS[index], linestyle="-", **own)
        bounds = lemma4_bounds(torch.ones_like(slant), slant.sqrt())
        for bound, name in zip(bounds, ("", "bounds of Lemma 4"), strict=True):
            axes.plot(slant, bound, "--", color="#22282f", linewidth=1.6, label=name or None)
        axes.set(
            xlabel=r"$\kappa\, r\, \tan^2\theta$", ylabel=r"$\|x_\gamma - x\|_2\,/\,\|u\|_2 - 1$"
        )
        axes.set_title("Arcs and their tangent: convex above 0, concave below")
        axes.legend()
    return figure


def _notes(settings: Settings) -> list[str]:
    """Notes on the simulation, Corollary 1, Lemma 4 and the inscribed balls."""
    promised = corollary1_bounds(
        settings.dimension, settings.dimensions[0], settings.corollary_delta, settings.classes
    )
    return [
        f"Spheres in d = {settings.dimension} dimensions, {settings.trials} random subspaces for "
        "each case, distances in closed form; the network plays no part. Theorem 2 at delta = "
        f"{settings.delta:g} promises {1 - 4 * settings.delta:.4g}.",
        f"Corollary 1 at delta = {settings.corollary_delta:g} promises {promised.probability:.4g}: "
        f"{settings.classes - 1} spheres of the largest allowed curvature, on either side, the "
        "last one far enough to be excluded and five times as curved.",
        "The slack of Lemma 4 uses the square on the sine that Equations A.21 and A.30 lack; a "
        "slack is negative where a lemma fails.",
        "Curvature by inscribed balls: a plane, a sphere, and two spheres whose gap is wider than "
        "their diameter.",
    ]
