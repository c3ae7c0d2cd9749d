"""Theorem 2 and Corollary 1 on spherical boundaries, with the lemmas behind them (Section 5.5, Appendix A.2)."""

import math
from collections.abc import Callable
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
from pipeline.tables import columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import (
    RandomSubspaces,
    corollary1_bounds,
    corollary1_excluded,
    curvature_limit,
    inscribed_radius,
    lemma4_bounds,
    lemma7_gap,
    lemma8_gap,
    sphere_step,
    theorem2_bounds,
)
from robustness_geometry.randomness import per_image, seeded
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "theorem2_corollary1"]

SECTION = "Section 5.5, Theorem 2, Corollary 1, Lemmas 4, 7 and 8"

SIDES = {"inside": "x in the ball", "outside": "the ball beyond the boundary"}
"""Where the ball lies whose sphere is the boundary: the region of x, or the other one."""

RADIUS = 2.0
"""Of the spheres whose curvature is measured by inscribed balls."""


@dataclass(frozen=True)
class Settings:
    """The size of the simulation.

    Attributes:
        dimension: d.
        dimensions: the m of Theorem 2 and Corollary 1.
        bends: kappa ||r|| as shares of the largest that Theorem 2 allows.
        classes: L of Corollary 1.
        trials: of each case.
        delta: of Theorem 2.
        corollary_delta: of Corollary 1, whose 1 - 4 (L + 2) delta would be below 0 at 0.05.
        grid: points a side of the grids of the lemmas.
        resamples: of the bootstrap.
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
    """Count how often the bounds for curved boundaries hold on spheres, and check the lemmas on grids.

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
        **_lemmas(settings.grid),
        "curvature_error": exactly(_curvature_error(), 4),
    }
    return Findings(
        numbers=numbers,
        tables={"bounds": _table(theorem, numbers, settings), "lemmas": _lemma_table(numbers)},
        figures={"theorem_2": _figure(theorem, settings), "lemma_4": _lemma_figure()},
        notes=_notes(settings),
    )


def _job(settings: Settings, m: int) -> "partial[dict[str, Tensor]]":
    return partial(
        draw, dimension=settings.dimension, m=m, rivals=settings.classes - 1, trials=settings.trials
    )


def draw(*, dimension: int, m: int, rivals: int, trials: int) -> dict[str, Tensor]:
    """||P_S n_k|| for unit normals n_k of several boundaries and a random subspace S a trial, and their distances.

    Returns:
        ``cosines`` (trials, rivals); ``distances`` (trials, rivals), the first 1 and the others in
        [1, 3]; ``outside`` (trials, rivals), whether the ball lies beyond the boundary.
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
    samples, statistics = {}, {}
    for (m, bend, side), ratios in theorem.items():
        limit = curvature_limit(settings.dimension, m, settings.delta)
        bounds = theorem2_bounds(settings.dimension, m, settings.delta, bend * limit)
        name = f"coverage_{m}_{side}_{bend:g}"
        samples[name] = ((ratios >= bounds.low) & (ratios <= bounds.high)).double()
        statistics[name] = share(name)
    return paired_bootstrap(samples, statistics, resamples=settings.resamples)


def _corollary(draws: dict[int, dict[str, Tensor]], settings: Settings) -> dict[str, Estimate]:
    """Several spheres at their largest curvature, and one class that is excluded, five times as curved."""
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


def _lemmas(points: int) -> dict[str, Estimate]:
    """The smallest slack of each lemma on its grid; where a lemma holds with equality, rounding leaves some 1e-13."""
    bend = torch.logspace(-4, math.log10(0.999), points, dtype=torch.float64)[:, None]
    tangent = torch.logspace(-3, 3, points, dtype=torch.float64)
    below, above = [], []
    for outside in (True, False):
        departure = _departure(bend, tangent, outside=outside)
        low, high = lemma4_bounds(bend, tangent)
        below.append((departure - low)[departure.isfinite()].min())
        above.append((high - departure)[departure.isfinite()].min())
    x7 = torch.linspace(0, 2 * (math.sqrt(2) - 1), points**2, dtype=torch.float64)
    x8 = torch.logspace(-6, 6, points**2, dtype=torch.float64)
    return {
        "lemma4_lower_slack": exactly(float(min(below)), 2 * points**2),
        "lemma4_upper_slack": exactly(float(min(above)), 2 * points**2),
        "lemma7_slack": exactly(float(lemma7_gap(x7).min()), points**2),
        "lemma8_slack": exactly(float(lemma8_gap(x8).min()), points**2),
    }


def _departure(bend: Tensor, tangent: Tensor, *, outside: bool) -> Tensor:
    """||x_gamma - x|| / ||u|| - 1 at an arc of curvature ``bend`` at distance 1, along lines of slope ``tangent``."""
    cosine, radius = 1 / (1 + tangent.square()).sqrt(), 1 / bend
    return sphere_step(radius + 1 if outside else radius - 1, cosine, radius) * cosine - 1


def _curvature_error() -> float:
    """The largest relative error of 1 / q by inscribed balls: a plane, a sphere from both sides, two far spheres.

    A plane, and the outside of a sphere, hold any ball: there the error is that of the largest
    radius looked at.
    """
    point, axis = (
        torch.zeros(3, dtype=torch.float64),
        torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
    )
    largest = 50 * RADIUS

    def balls(*centres: float) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.stack(
            [(x - c * RADIUS * axis).norm(dim=1) < RADIUS for c in centres]
        ).any(dim=0)

    def both(region: Callable[[Tensor], Tensor]) -> float:
        """min(q_i, q_j) of Section 5.5.1 at the point, which lies on the boundary of ``region``."""
        ahead = inscribed_radius(region, point, axis, largest=largest)
        return min(ahead, inscribed_radius(lambda x: ~region(x), point, -axis, largest=largest))

    plane = inscribed_radius(lambda x: x[:, 0] > 0, point, axis, largest=largest)
    found = {
        "plane": (plane, largest),
        "sphere": (both(balls(1)), RADIUS),
        "spheres": (both(balls(1, -9)), RADIUS),
    }
    return max(abs(radius - wanted) / wanted for radius, wanted in found.values())


def _table(
    theorem: dict[tuple[int, float, str], Tensor], numbers: dict[str, Estimate], settings: Settings
) -> pd.DataFrame:
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
    """Lemma 4: the departure from the tangent's distance over kappa r tan^2, for arcs of both kinds, and its bounds."""
    figure, grid = axes_grid()
    axes = grid[0, 0]
    slant = torch.linspace(0, 0.2, 200, dtype=torch.float64)
    with styled():
        for index, bend in enumerate((0.02, 0.2, 0.9)):
            tangent = (slant / bend).sqrt()
            for outside in (True, False):
                own = {"label": rf"arc, $\kappa r$ = {bend:g}"} if outside else {}
                found = _departure(torch.full_like(slant, bend), tangent, outside=outside)
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
    promised = corollary1_bounds(
        settings.dimension, settings.dimensions[0], settings.corollary_delta, settings.classes
    )
    return [
        f"Spheres in d = {settings.dimension} dimensions, {settings.trials} random subspaces for "
        "each case, distances "
        f"in closed form; the network plays no part. Theorem 2 at delta = {settings.delta:g} "
        "promises "
        f"{1 - 4 * settings.delta:.4g}.",
        f"Corollary 1 at delta = {settings.corollary_delta:g} promises {promised.probability:.4g}: "
        f"{settings.classes - 1} spheres of the largest allowed curvature, on either side, the "
        "last one far enough to "
        "be excluded and five times as curved.",
        "The slack of Lemma 4 uses the square on the sine that Equations A.21 and A.30 lack; a "
        "slack is negative where "
        "a lemma fails.",
        "Curvature by inscribed balls: a plane, a sphere, and two spheres whose gap is wider than "
        "their diameter.",
    ]
