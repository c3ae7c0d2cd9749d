"""Theorem 4 on made-up quadratic boundaries, and its planar picture (Section 6.4, Figure 6.5)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import largest, paired_bootstrap, smallest
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, Line, axes_grid, estimate_line, line_figure, styled
from pipeline.statistics import Estimate, Statistic, exactly, of_means
from pipeline.studies.boundary import once
from pipeline.studies.curvature import unit
from pipeline.tables import columns
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.geometry import (
    crosses_quadratic,
    random_subspace,
    sphere_step,
    theorem4_radius,
)
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Network
from stages.curvature.theorem3_flat import share_quantile

__all__ = [
    "SECTION",
    "Settings",
    "arc_distances",
    "curved_fooled",
    "norms_needed",
    "theorem4_curved",
]

SECTION = "Section 6.4, Theorem 4, Figure 6.5"

BENT_BACK = 0.125
"""How strongly the boundary bends away along one direction of S per point, in units of kappa m."""

ARC = 4.0
"""Radius of the arcs of Figure 6.5, in units of the distance to the boundary."""

ANGLES = 40
"""Directions of Figure 6.5, evenly spaced; those along which an arc is missed are left out."""


@dataclass(frozen=True)
class Settings:
    """The size of the simulation.

    Attributes:
        dimension: dimension d of the input space, at least 2.
        dimensions: dimensions m of the subspaces along which boundaries bend, each from 2 to d - 1.
        curvatures: two or more kappa of the quadratic model, in units of 1 / ||r||, ascending and
            below 1: from there on a point would lie beyond its own boundary.
        delta: share of the points that may stay unfooled, in (0, 1).
        points: number of points of each case, at least 2.
        vectors: number of random vectors of each case.
        pairs: number of pairs of a point and a direction, at least 2, for the smallest norms.
        resamples: number of resamples of the bootstrap.
    """

    dimension: int = 100
    dimensions: tuple[int, ...] = (5, 50)
    curvatures: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    delta: float = 0.1
    points: int = 200
    vectors: int = 20
    pairs: int = 5000
    resamples: int = 300

    def __post_init__(self) -> None:
        for name in ("vectors", "resamples"):
            check_count(name, getattr(self, name))
        for name in ("dimension", "points", "pairs"):
            check_count(name, getattr(self, name), minimum=2)
        if not self.dimensions or not all(2 <= m < self.dimension for m in self.dimensions):
            refuse(
                "dimensions",
                self.dimensions,
                f"whole numbers from 2 to d - 1 = {self.dimension - 1}",
            )
        for kappa in self.curvatures:
            check_positive("curvatures", kappa)
        rising = list(self.curvatures) == sorted(set(self.curvatures))
        if len(self.curvatures) < 2 or not rising or self.curvatures[-1] >= 1:
            refuse("curvatures", self.curvatures, "two or more ascending numbers below 1")
        if not 0 < self.delta < 1:
            refuse("delta", self.delta, "a number in (0, 1)")


def theorem4_curved(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Draw quadratic boundaries curved along most directions of S; count the points that v fools.

    The network and the data take no part: the boundaries are made up, so that the answers are
    known.

    Args:
        network: not used.
        data: not used.
        settings: the size of the simulation.
        executor: keeps the simulation for other networks.

    Returns:
        The share fooled at the theorem's radius, less the 1 - delta - beta that it promises, in the
        worst case; how much radius and smallest norm rise from one curvature to the next, at most;
        and the differences of Figure 6.5.

    References:
        Thesis, Section 6.4, Theorem 4 and Figure 6.5. S.-M. Moosavi-Dezfooli et al., "Analysis of
        universal adversarial perturbations", arXiv:1705.09554.
    """
    fooled = once(
        partial(
            curved_fooled,
            settings.dimension,
            settings.dimensions,
            settings.curvatures,
            delta=settings.delta,
            points=settings.points,
            vectors=settings.vectors,
        ),
        executor,
        "quadratic boundaries",
    )
    lengths = once(
        partial(
            norms_needed,
            settings.dimension,
            settings.dimensions[-1],
            settings.curvatures,
            pairs=settings.pairs,
        ),
        executor,
        "norms at quadratic boundaries",
    )
    quantile = partial(share_quantile, 1 - settings.delta)
    statistics = {name: Statistic((name,), quantile) for name in lengths}
    needed = paired_bootstrap(lengths, statistics, resamples=settings.resamples)
    arcs = arc_distances()
    return Findings(
        numbers=_numbers(fooled, lengths, arcs, settings),
        tables={"theorem_4": _table(fooled, settings), "norms": _norms(needed, settings)},
        figures={"theorem_4": _figure(needed, settings), "figure_6_5": _arcs(arcs)},
        notes=_notes(settings, fooled),
    )


def curved_fooled(
    dimension: int,
    dimensions: Sequence[int],
    curvatures: Sequence[float],
    *,
    delta: float,
    points: int,
    vectors: int,
) -> dict[str, Tensor]:
    """Quadratic boundaries with H / alpha = 3/2 kappa I - 1/8 kappa m w w'.

    w is a random unit vector of S, another one for each point. The boundary bends by kappa or more
    towards the point along all directions but those near w: along a share beta of them the smallest
    eigenvalue of the Hessian on span(r, v) is below kappa.

    Returns:
        For each m and kappa, ``fooled`` (points,), the share of random v of norm rho in S that
        cross the boundary, and ``below`` (points,), the share of the v along which the condition
        fails, whose mean is beta.
    """
    shares = {}
    for m in dimensions:
        for kappa in curvatures:
            generator = seeded("theorem 4", dimension, m, kappa)
            basis = random_subspace(dimension, m, generator, dtype=torch.float64)
            r = unit(torch.randn(points, dimension, generator=generator, dtype=torch.float64))
            w = unit(torch.randn(points, m, generator=generator, dtype=torch.float64)) @ basis
            v = unit(torch.randn(vectors, m, generator=generator, dtype=torch.float64)) @ basis
            hessian = 1.5 * kappa * torch.eye(dimension, dtype=torch.float64).expand(points, -1, -1)
            hessian = hessian - BENT_BACK * kappa * m * w[:, :, None] * w[:, None]
            rho = theorem4_radius(kappa, m, delta)
            crossed = torch.stack(
                [crosses_quadratic((rho * each).expand_as(r), r, hessian) for each in v]
            )
            shares[f"fooled {m} {kappa}"] = crossed.double().mean(dim=0)
            shares[f"below {m} {kappa}"] = _fails(r, v, hessian, kappa).double().mean(dim=1)
    return shares


def _fails(r: Tensor, v: Tensor, hessian: Tensor, kappa: float) -> Tensor:
    """(points, vectors) whether the Hessian on span(r, v) has an eigenvalue below kappa.

    In the basis of r and the part of v across it, the Hessian is [[first, mixed], [mixed, second]].
    """
    across = unit(v[None] - (r @ v.T)[:, :, None] * r[:, None])
    first = torch.einsum("pi,pij,pj->p", r, hessian, r)[:, None]
    second = torch.einsum("pvi,pij,pvj->pv", across, hessian, across)
    mixed = torch.einsum("pi,pij,pvj->pv", r, hessian, across)
    smallest = (first + second) / 2 - (((first - second) / 2).square() + mixed.square()).sqrt()
    return smallest < kappa * (1 - 1e-9)


def norms_needed(
    dimension: int, m: int, curvatures: Sequence[float], *, pairs: int
) -> dict[str, Tensor]:
    """The smallest norms at which random directions of S cross, for H / alpha = kappa I.

    Such a norm is the root t > 0 of kappa t^2 + (1 - 2 kappa) c t + kappa - 1 = 0 with c = r'v.

    Returns:
        ``norm kappa`` (pairs,), of the same pairs for every kappa.
    """
    generator = seeded("theorem 4, norms", dimension, m)
    basis = random_subspace(dimension, m, generator, dtype=torch.float64)
    r = unit(torch.randn(pairs, dimension, generator=generator, dtype=torch.float64))
    c = (r * (unit(torch.randn(pairs, m, generator=generator, dtype=torch.float64)) @ basis)).sum(
        dim=1
    )
    needed = {}
    for kappa in curvatures:
        half = (1 - 2 * kappa) * c
        needed[f"norm {kappa}"] = ((half.square() + 4 * kappa * (1 - kappa)).sqrt() - half) / (
            2 * kappa
        )
    return needed


def arc_distances() -> dict[str, Tensor]:
    """Figure 6.5: how far a boundary at distance 1 is along directions at an angle.

    The angle is to the direction of the boundary's nearest point.

    Returns:
        ``angle`` (k,) in radians, and the distances ``positive``, ``flat`` and ``negative`` (k,) to
        an arc around the point, to a line and to an arc around the other side, infinite where they
        are not met.
    """
    angle = torch.linspace(0, math.pi / 2, ANGLES + 1, dtype=torch.float64)[1:-1]
    cosine = angle.cos()
    around, beyond = torch.full_like(cosine, ARC - 1), torch.full_like(cosine, ARC + 1)
    return {
        "angle": angle,
        "positive": sphere_step(around, cosine, ARC),
        "flat": 1 / cosine,
        "negative": sphere_step(beyond, cosine, ARC),
    }


def _numbers(
    fooled: Mapping[str, Tensor],
    lengths: Mapping[str, Tensor],
    arcs: Mapping[str, Tensor],
    settings: Settings,
) -> dict[str, Estimate]:
    cases = [f"{m} {kappa}" for m in settings.dimensions for kappa in settings.curvatures]
    margin = partial(_margin, 1 - settings.delta)
    margins = {case: of_means([f"fooled {case}", f"below {case}"], margin) for case in cases}
    rise = partial(_rise, 1 - settings.delta)
    rises = {names[1]: Statistic(names, rise) for names in pairwise(lengths)}
    resamples = settings.resamples
    rho = [
        theorem4_radius(kappa, m, settings.delta)
        for m in settings.dimensions
        for kappa in settings.curvatures
    ]
    steps = torch.tensor(rho).view(len(settings.dimensions), -1).diff(dim=1)
    kept = arcs["negative"].isfinite()
    return {
        "fooled - (1 - delta - beta), smallest": smallest(
            paired_bootstrap(fooled, margins, resamples=resamples).values()
        ),
        "rho's rise with kappa, largest": exactly(float(steps.max()), len(rho)),
        "norm's rise with kappa, largest": largest(
            paired_bootstrap(lengths, rises, resamples=resamples).values()
        ),
        "t_flat - t_positive, smallest": exactly(
            float((arcs["flat"] - arcs["positive"]).min()), len(kept)
        ),
        "t_negative - t_flat, smallest": exactly(
            float((arcs["negative"] - arcs["flat"])[kept].min()), int(kept.sum())
        ),
    }


def _margin(promised: float, fooled: Tensor, beta: Tensor) -> Tensor:
    return fooled + beta - promised


def _rise(level: float, before: Tensor, after: Tensor) -> Tensor:
    return share_quantile(level, after) - share_quantile(level, before)


def _table(fooled: Mapping[str, Tensor], settings: Settings) -> pd.DataFrame:
    rows = []
    for m in settings.dimensions:
        for kappa in settings.curvatures:
            beta = float(fooled[f"below {m} {kappa}"].mean())
            row = {
                "m": m,
                "kappa": kappa,
                "rho": theorem4_radius(kappa, m, settings.delta),
                "beta": beta,
            }
            row["promised"] = 1 - settings.delta - beta
            row["share_fooled_at_rho"] = float(fooled[f"fooled {m} {kappa}"].mean())
            rows.append(row | {"points": settings.points, "vectors": settings.vectors})
    return pd.DataFrame(rows)


def _norms(needed: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "kappa": kappa,
                **columns("smallest_norm", needed[f"norm {kappa}"]),
                "pairs": settings.pairs,
            }
            for kappa in settings.curvatures
        ]
    )


def _figure(needed: Mapping[str, Estimate], settings: Settings) -> Figure:
    m, kappas = settings.dimensions[-1], list(settings.curvatures)
    theorem = r"Theorem 4: $\sqrt{2\ln(2/\delta)/m}\,/\,\kappa + \kappa^{-1/2}$"
    rho = [theorem4_radius(kappa, m, settings.delta) for kappa in kappas]
    return line_figure(
        {
            f"smallest norm, random direction of S (m = {m})": estimate_line(
                kappas, [needed[f"norm {kappa}"] for kappa in kappas]
            ),
            theorem: Line(kappas, rho, style="--", marker=""),
        },
        xlabel=r"curvature $\kappa$ of the quadratic model, in units of $1/\|r\|_2$",
        ylabel=r"norm, in units of $\|r\|_2$",
        title=f"Curved boundaries: vectors that fool {1 - settings.delta:.0%}",
        log_x=True,
        log_y=True,
    )


def _arcs(arcs: Mapping[str, Tensor]) -> Figure:
    """Figure 6.5: the boundaries around a point, and the distances along a direction."""
    figure, grid = axes_grid(1, 2, width=10.0, height=4.2)
    turn = torch.linspace(-0.9, 0.9, 200)
    titles = {"positive": "positive curvature", "flat": "flat", "negative": "negative curvature"}
    shapes = {
        "positive": (ARC * turn.sin(), 1 - ARC + ARC * turn.cos()),
        "flat": (3 * turn, torch.ones_like(turn)),
        "negative": (ARC * turn.sin(), 1 + ARC - ARC * turn.cos()),
    }
    with styled():
        left, right = grid[0]
        for colour, (name, title) in zip(COLOURS, titles.items(), strict=False):
            left.plot(*shapes[name], color=colour, label=title)
            seen = arcs[name] < 8
            right.plot(arcs["angle"][seen].rad2deg(), arcs[name][seen], color=colour, label=title)
        left.plot([0], [0], "o", color="#22282f")
        left.annotate("x", (0, 0), xytext=(6, -4), textcoords="offset points")
        left.annotate("", (0, 1), (0, 0), arrowprops={"arrowstyle": "->", "color": "#22282f"})
        left.annotate(r"$r^*$", (0, 0.45), xytext=(5, 0), textcoords="offset points")
        left.set(
            xlim=(-2.6, 2.6), ylim=(-0.6, 2.4), aspect="equal", title="Boundaries at distance 1"
        )
        left.set(xlabel="tangent direction", ylabel="normal direction")
        right.set(
            xlabel=r"angle between v and $r^*$ (degrees)",
            ylabel=r"norm to reach the boundary / $\|r^*\|_2$",
        )
        right.set(title="How far it is along v", ylim=(0, 8))
        right.legend()
    return figure


def _notes(settings: Settings, fooled: Mapping[str, Tensor]) -> list[str]:
    betas = [float(values.mean()) for name, values in fooled.items() if name.startswith("below")]
    return [
        f"Made-up quadratic boundaries in d = {settings.dimension} dimensions: {settings.points} "
        "points with unit r "
        f"and {settings.vectors} random vectors of each subspace; delta = {settings.delta:g}. "
        "Along one direction of S "
        "a point the boundary bends the other way, so that the condition fails for beta = "
        f"{min(betas):.3f} to "
        f"{max(betas):.3f} of the directions. The network plays no part.",
        "The quadratic model is that of the proof, (v - r)'H(v - r)/alpha + r'(v - r) >= 0, "
        "without a factor of 1/2: "
        "its kappa is a sphere of radius 1 / (2 kappa).",
        f"Figure 6.5: arcs of radius {ARC:g} times the distance; angles at which the outer arc is "
        "missed are left out.",
    ]
