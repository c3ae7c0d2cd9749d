"""Theorem 3 on synthetic flat boundaries and on linear classifiers (Section 6.3, Figure 6.1b)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap, smallest
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import Line, estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, exactly, mean, share
from pipeline.studies.boundary import once
from pipeline.studies.curvature import unit
from pipeline.studies.synthetic import Affine
from pipeline.tables import columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import random_subspace, theorem3_radius
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Network, predict

__all__ = [
    "SECTION",
    "Settings",
    "binary_fooled",
    "flat_model",
    "linear_fooled",
    "share_quantile",
    "theorem3_flat",
]

SECTION = "Section 6.3, Theorem 3, Figure 6.1b"

RANK = 1e-9
"""Singular values below this share of the largest count as zero."""


@dataclass(frozen=True)
class Settings:
    """The size of the simulation.

    Attributes:
        dimension: dimension d of the input space, at least 2.
        dimensions: two or more dimensions m of the subspaces that the normals lie near, each from 2
            to d - 1.
        delta: share of the points that may stay unfooled, in (0, 1).
        xi: share of a normal's length that may lie outside the subspace, in [0, 1).
        classes: number L of classes of the linear classifier, from 2 to d.
        points: number of points of each case, at least 2.
        vectors: number of random vectors of each case.
        pairs: number of pairs of a point and a direction, at least 2, for the smallest norms.
        resamples: number of resamples of the bootstrap.
    """

    dimension: int = 300
    dimensions: tuple[int, ...] = (5, 10, 20, 50, 100)
    delta: float = 0.1
    xi: float = 0.1
    classes: int = 10
    points: int = 1000
    vectors: int = 100
    pairs: int = 5000
    resamples: int = 300

    def __post_init__(self) -> None:
        for name in ("vectors", "resamples"):
            check_count(name, getattr(self, name))
        for name in ("dimension", "classes", "points", "pairs"):
            check_count(name, getattr(self, name), minimum=2)
        if len(self.dimensions) < 2 or not all(2 <= m < self.dimension for m in self.dimensions):
            refuse(
                "dimensions",
                self.dimensions,
                f"two or more whole numbers from 2 to d - 1 = {self.dimension - 1}",
            )
        if not 0 < self.delta < 1:
            refuse("delta", self.delta, "a number in (0, 1)")
        if not 0 <= self.xi < 1:
            refuse("xi", self.xi, "a number in [0, 1)")
        if self.classes > self.dimension:
            refuse("classes", self.classes, f"at most dimension = {self.dimension}")


def theorem3_flat(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Draw flat boundaries with normals near a subspace; count the points that v or -v fools.

    The network and the data take no part: the boundaries are made up, so that the answers are
    known.

    Args:
        network: not used.
        data: not used.
        settings: the size of the simulation.
        executor: keeps the simulation for other networks.

    Returns:
        The share fooled at the theorem's radius, less the 1 - delta that it promises, for the worst
        m; the slope of the smallest norm that suffices over m; rank and share of a linear
        classifier; and the two shares of Figure 6.1b.

    References:
        Thesis, Section 6.3, Theorem 3, Remark 1 and Figure 6.1b. S.-M. Moosavi-Dezfooli et al.,
        "Analysis of universal adversarial perturbations", arXiv:1705.09554.
    """
    size, delta = {"points": settings.points, "vectors": settings.vectors}, settings.delta
    flat = partial(
        flat_fooled, settings.dimension, settings.dimensions, delta=delta, xi=settings.xi, **size
    )
    linear = partial(linear_fooled, settings.dimension, settings.classes, delta=delta, **size)
    binary = partial(binary_fooled, settings.dimension, settings.points)
    pairs = partial(
        norms_needed, settings.dimension, settings.dimensions, xi=settings.xi, pairs=settings.pairs
    )
    fooled = once(flat, executor, "flat boundaries")
    lengths = once(pairs, executor, "norms at flat boundaries")
    quantile = partial(share_quantile, 1 - delta)
    needed = paired_bootstrap(
        lengths,
        {name: Statistic((name,), quantile) for name in lengths},
        resamples=settings.resamples,
    )
    numbers = _numbers(fooled, lengths, settings)
    numbers |= _linear_numbers(
        once(linear, executor, "linear classifier"),
        once(binary, executor, "binary linear classifier"),
        settings,
    )
    return Findings(
        numbers=numbers,
        tables={"theorem_3": _table(fooled, needed, settings)},
        figures={"theorem_3": _figure(needed, settings)},
        notes=_notes(settings),
    )


def flat_model(
    dimension: int, m: int, xi: float, points: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Unit r (points, d) with ||P_S r|| = 1 - xi, and a basis (m, d) of S, in float64."""
    basis = random_subspace(dimension, m, generator, dtype=torch.float64)
    inside = unit(torch.randn(points, m, generator=generator, dtype=torch.float64)) @ basis
    drawn = torch.randn(points, dimension, generator=generator, dtype=torch.float64)
    outside = unit(drawn - drawn @ basis.T @ basis)
    return (1 - xi) * inside + math.sqrt(1 - (1 - xi) ** 2) * outside, basis


def flat_fooled(
    dimension: int, dimensions: Sequence[int], *, delta: float, xi: float, points: int, vectors: int
) -> dict[str, Tensor]:
    """For each m, ``fooled m`` (points,): the share of random v of norm rho in S with |r'v| >= 1.

    A flat boundary is the plane r'z = 1 of a unit r, so that v or -v crosses it if |r'v| >= 1.
    """
    fooled = {}
    for m in dimensions:
        generator = seeded("theorem 3", dimension, m)
        r, basis = flat_model(dimension, m, xi, points, generator)
        v = unit(torch.randn(vectors, m, generator=generator, dtype=torch.float64)) @ basis
        rho = theorem3_radius(m, delta, xi)
        fooled[f"fooled {m}"] = (rho * (r @ v.T).abs() >= 1).double().mean(dim=1)
    return fooled


def norms_needed(
    dimension: int, dimensions: Sequence[int], *, xi: float, pairs: int
) -> dict[str, Tensor]:
    """The norms at which random directions fool random points.

    Returns:
        ``norm m`` (pairs,) for directions of S, and ``norm d`` for directions of the whole space.
    """
    needed = {}
    for m in dimensions:
        generator = seeded("theorem 3, norms", dimension, m)
        r, basis = flat_model(dimension, m, xi, pairs, generator)
        u = unit(torch.randn(pairs, m, generator=generator, dtype=torch.float64)) @ basis
        needed[f"norm {m}"] = 1 / (r * u).sum(dim=1).abs()
    generator = seeded("theorem 3, norms", dimension)
    r, u = unit(torch.randn(2, pairs, dimension, generator=generator, dtype=torch.float64)).unbind()
    return needed | {"norm d": 1 / (r * u).sum(dim=1).abs()}


def linear_fooled(
    dimension: int, classes: int, *, delta: float, points: int, vectors: int
) -> dict[str, Tensor]:
    """Remark 1 on a linear classifier: what random v in the span of the normals fool.

    Their norm is sqrt(e (L - 1)) / delta. The classifier has no bias, so that each point can be
    scaled to lie at distance 1 from its nearest boundary.

    Returns:
        ``fooled`` (points,): the share of the vectors of which v or -v changes the label; ``rank``
        (): of the normals.
    """
    generator = seeded("remark 1", dimension, classes)
    weight = torch.randn(classes, dimension, generator=generator, dtype=torch.float64)
    model = Affine(weight, torch.zeros(classes, dtype=torch.float64))
    x = torch.randn(points, dimension, generator=generator, dtype=torch.float64)
    labels = predict(model, x.view(points, 1, 1, -1))
    # Distances to the boundary with each class; that with the point's class itself counts as inf.
    differences = weight[None] - weight[labels][:, None]
    sizes = differences.norm(dim=2)
    gaps = -(differences * x[:, None]).sum(dim=2) / sizes.clamp_min(1e-30)
    nearest = gaps.scatter(1, labels[:, None], math.inf).argmin(dim=1)
    rows = torch.arange(points)
    normals = differences[rows, nearest] / sizes[rows, nearest][:, None]
    x = x / gaps[rows, nearest][:, None]
    spectrum = torch.linalg.svdvals(normals)
    basis = torch.linalg.svd(differences[0], full_matrices=False).Vh[: classes - 1]
    v = unit(torch.randn(vectors, classes - 1, generator=generator, dtype=torch.float64)) @ basis
    v = theorem3_radius(classes - 1, delta) * v
    sides = [
        torch.stack([predict(model, (x + sign * w).view(points, 1, 1, -1)) for sign in (1, -1)])
        for w in v
    ]
    changed = [(both != labels).any(dim=0) for both in sides]
    return {
        "fooled": torch.stack(changed).double().mean(dim=0),
        "rank": (spectrum > RANK * spectrum.max()).sum().double(),
    }


def binary_fooled(dimension: int, points: int) -> dict[str, Tensor]:
    """Figure 6.1b: what v = t w fools, t large, on a balanced binary linear classifier.

    Points come in pairs x, -x, so that the classes are balanced exactly.

    Returns:
        For each pair, ``vector``, the share of its points whose label v changes; ``direction``, the
        share for v or -v.
    """
    generator = seeded("figure 6.1b", dimension)
    weight = torch.randn(1, dimension, generator=generator, dtype=torch.float64)
    half = torch.randn((points + 1) // 2, dimension, generator=generator, dtype=torch.float64)
    model = Affine(weight, torch.zeros(1, dtype=torch.float64))
    x = torch.cat([half, -half]).view(-1, 1, 1, dimension)
    v = (2 * half.norm(dim=1).max() * weight / weight.norm()).view(1, 1, 1, dimension)
    labels = predict(model, x)
    ahead, behind = (predict(model, x + sign * v) != labels for sign in (1, -1))
    sets = {"vector": ahead, "direction": ahead | behind}
    return {name: changed.double().view(2, -1).mean(dim=0) for name, changed in sets.items()}


def _numbers(
    fooled: Mapping[str, Tensor], lengths: Mapping[str, Tensor], settings: Settings
) -> dict[str, Estimate]:
    shares = {name: share(name) for name in fooled}
    worst = smallest(paired_bootstrap(fooled, shares, resamples=settings.resamples).values())
    sizes = tuple(f"norm {m}" for m in settings.dimensions)
    slope = Statistic(sizes, partial(_slope, settings.dimensions, 1 - settings.delta))
    return {
        "fooled - (1 - delta), smallest": _beyond(worst, 1 - settings.delta),
        **paired_bootstrap(lengths, {"slope": slope}, resamples=settings.resamples),
    }


def _linear_numbers(
    linear: Mapping[str, Tensor], binary: Mapping[str, Tensor], settings: Settings
) -> dict[str, Estimate]:
    fooled = {"fooled": linear["fooled"]}
    found = paired_bootstrap(fooled, {"fooled": share("fooled")}, resamples=settings.resamples)
    shares = {f"fool_{name}": mean(name) for name in ("vector", "direction")}
    rank = float(linear["rank"])
    return {
        "linear fooled - (1 - delta)": _beyond(found["fooled"], 1 - settings.delta),
        "rank": exactly(rank, settings.points),
        "rank - (classes - 1)": exactly(rank - (settings.classes - 1), settings.points),
        **paired_bootstrap(binary, shares, resamples=settings.resamples),
    }


def _beyond(found: Estimate, promised: float) -> Estimate:
    """A share less what is promised of it."""
    return replace(
        found,
        value=found.value - promised,
        low=found.low - promised,
        high=found.high - promised,
    )


def share_quantile(level: float, values: Tensor) -> Tensor:
    """The smallest of values (..., seeds, n) that a share ``level`` of them does not exceed."""
    flat = values.flatten(-2)
    return flat.kthvalue(math.ceil(level * flat.shape[-1]), dim=-1).values


def _slope(dimensions: Sequence[int], level: float, *values: Tensor) -> Tensor:
    """The least-squares slope of log norm over log m."""
    x = torch.tensor(dimensions, dtype=torch.float64).log()
    y = torch.stack([share_quantile(level, v) for v in values], dim=-1).log()
    x = x - x.mean()
    return (y * x).sum(dim=-1) / x.square().sum()


def _table(
    samples: Mapping[str, Tensor], needed: Mapping[str, Estimate], settings: Settings
) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for m in settings.dimensions:
        rho = theorem3_radius(m, settings.delta, settings.xi)
        row: dict[str, object] = {
            "m": m,
            "rho": rho,
            "share_fooled_at_rho": float(samples[f"fooled {m}"].mean()),
        }
        rows.append(
            row | columns("smallest_norm", needed[f"norm {m}"]) | {"points": settings.points}
        )
    row = {"m": settings.dimension, "rho": math.nan, "share_fooled_at_rho": math.nan}
    return pd.DataFrame(
        [*rows, row | columns("smallest_norm", needed["norm d"]) | {"points": settings.points}]
    )


def _figure(needed: Mapping[str, Estimate], settings: Settings) -> Figure:
    m = list(settings.dimensions)
    rho = [theorem3_radius(each, settings.delta, settings.xi) for each in m]
    return line_figure(
        {
            "smallest norm, random direction of S": estimate_line(
                m, [needed[f"norm {each}"] for each in m]
            ),
            r"Theorem 3: $\sqrt{em}\,/\,(\delta(1-\xi))$": Line(m, rho, style="--", marker=""),
        },
        xlabel="dimension m of the normals' subspace",
        ylabel=r"norm of the direction, in units of $\|r\|_2$",
        title=f"Flat boundaries: directions that fool {1 - settings.delta:.0%} up to their sign",
        references={
            f"random direction of all d = {settings.dimension} dimensions": needed["norm d"].value
        },
        log_x=True,
        log_y=True,
    )


def _notes(settings: Settings) -> list[str]:
    return [
        f"Made-up flat boundaries in d = {settings.dimension} dimensions: {settings.points} points "
        "with unit r, of "
        f"which 1 - xi = {1 - settings.xi:g} lies in S; {settings.vectors} random vectors of S; "
        "delta = "
        f"{settings.delta:g}. The network plays no part.",
        "The theorem's radius has to spare: it comes from Markov's inequality, while the share of "
        "points that a random "
        "direction leaves unfooled there is about half of delta.",
        f"Remark 1: one linear classifier of {settings.classes} classes without bias, its points "
        "scaled to distance 1. "
        "Figure 6.1b: points in pairs x, -x, so that both classes have as many.",
    ]
