"""Theorem 5: bounds on the smallest perturbation from the gradient and curvature of the loss.

They are checked on quadratic losses (Section 8.3, Figures 8.4 and 8.5).

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.3.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, Line, axes_grid, line_figure, styled
from pipeline.statistics import (
    Estimate,
    Statistic,
    maximum,
    mean,
    minimum,
    of_means,
    ratio_of_means,
)
from pipeline.tables import interval
from robustness_geometry.checks import check_count
from robustness_geometry.geometry import quadratic_robustness, theorem5_bounds
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "theorem5"]

SECTION = "Section 8.3, Theorem 5, Figures 8.4 and 8.5, Equation 8.5"

CURVATURES = torch.linspace(0.1, 10, 100, dtype=torch.float64)
"""The nu of Figure 8.4, where ||g|| = c = 1 and g.u = 0.5."""

SCALES = torch.logspace(-1, 1, 60, dtype=torch.float64)[1:-1]
"""What g is multiplied with for Remark 2, within (0.1, 10)."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        draws: number of random quadratic losses (g, H, c), at least 2.
        dimension: their dimension d, at least 2.
        normal_draws: number of random z for each matrix in the check of Equation 8.5, at least 2.
        matrices: number of random H in the check of Equation 8.5, at least 2.
        resamples: number of bootstrap resamples behind every interval, at least 1.
    """

    draws: int = 1000
    dimension: int = 20
    normal_draws: int = 400
    matrices: int = 100
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("draws", "dimension", "normal_draws", "matrices"):
            check_count(name, getattr(self, name), minimum=2)
        check_count("resamples", self.resamples)


def theorem5(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Check Theorem 5's bounds against the exact solution on random quadratic losses.

    No network takes part.

    Args:
        network: not used.
        data: not used.
        settings: what to draw.
        executor: not used.

    Returns:
        ``margin_*``: the smallest relative distance by which a bound is kept, below 0 where one is
        broken;
        ``largest_step_*``: the largest change from one value of nu (or of ||g||) to the next, below
        0 where the bound decreases; ``gap_parallel`` and ``error_parallel``: |upper - lower| and
        |exact - lower| for g parallel to u;
        ``frobenius_ratio``: mean ||H z||^2 over the sum of the squared eigenvalues.
    """
    samples = _random_losses(settings)
    statistics: dict[str, Statistic] = {
        name: minimum(name) for name in samples if name.startswith("margin")
    }
    statistics |= {name: maximum(name) for name in ("gap_parallel", "error_parallel")}
    statistics["tightness"] = ratio_of_means("lower", "upper")
    numbers = paired_bootstrap(samples, statistics, resamples=settings.resamples)
    for name, steps in _steps().items():  # of curves without any random draw
        largest = float(steps.max())
        numbers[name] = Estimate(largest, largest, largest, len(steps))
    ratio = {"ratio": _frobenius_ratios(settings)}
    identity = {"frobenius_ratio": mean("ratio"), "|frobenius_ratio - 1|": _off(1.0)}
    numbers |= paired_bootstrap(ratio, identity, resamples=settings.resamples)
    return Findings(
        numbers=numbers,
        tables={"theorem_5": _table(numbers)},
        figures={"figure_8_4": _bounds_figure(), "figure_8_5": _line_figure()},
        notes=[
            f"{settings.draws} random quadratic losses in {settings.dimension} dimensions: normal "
            "g, a symmetric normal H with a positive largest eigenvalue, c uniform in (0, 2); the "
            "exact minimum by the secular equation.",
            f"Equation 8.5 on {settings.matrices} random H with {settings.normal_draws} normal z "
            "each.",
            "The figure's text calls the eigenvector v where u is meant. No network takes part: "
            "the numbers are the same for all.",
        ],
    )


def _off(level: float) -> Statistic:
    """How far the mean ratio is from ``level``."""
    return replace(of_means(("ratio",), partial(_off_mean, level)), joint=True)


def _off_mean(level: float, value: Tensor) -> Tensor:
    return (value - level).abs()


def _random_losses(settings: Settings) -> dict[str, Tensor]:
    """Name -> (draws,) the margin of each inequality, and the bounds for a gradient along u."""
    values, vectors = torch.linalg.eigh(_matrices(settings.draws, settings.dimension))
    generator = seeded("theorem 5", settings.dimension)
    gradients = torch.randn(
        settings.draws, settings.dimension, generator=generator, dtype=torch.float64
    )
    gaps = 2 * torch.rand(settings.draws, generator=generator, dtype=torch.float64)
    slopes = torch.einsum("nij,ni->nj", vectors, gradients)
    exact = quadratic_robustness(slopes, values, gaps)
    top, norm = values[:, -1], gradients.norm(dim=1)
    bounds = theorem5_bounds(norm, slopes[:, -1], top, gaps)
    # g = ||g|| u, in the basis of the eigenvectors.
    along = torch.einsum("nij,ni->nj", vectors, norm[:, None] * vectors[:, :, -1])
    parallel = theorem5_bounds(norm, along[:, -1], top, gaps)
    return {
        "margin_lower": (exact - bounds.lower) / exact,
        "margin_upper": (bounds.upper - exact) / exact,
        "margin_simple_lower": (bounds.lower - bounds.simple_lower) / exact,
        "margin_simple_upper": (bounds.simple_upper - bounds.upper) / exact,
        "gap_parallel": (parallel.upper - parallel.lower).abs(),
        "error_parallel": (quadratic_robustness(along, values, gaps) - parallel.lower).abs(),
        "lower": bounds.lower,
        "upper": bounds.upper,
    }


def _matrices(count: int, dimension: int) -> Tensor:
    """Symmetric normal matrices (count, d, d) with a positive largest eigenvalue.

    A negative definite matrix is replaced by its negative.
    """
    generator = seeded("theorem 5, matrices", dimension)
    drawn = torch.randn(count, dimension, dimension, generator=generator, dtype=torch.float64)
    matrices = (drawn + drawn.mT) / 2
    top = torch.linalg.eigvalsh(matrices)[:, -1]
    return torch.where((top > 0)[:, None, None], matrices, -matrices)


def _steps() -> dict[str, Tensor]:
    """The changes of the bounds and of the solution on a line between neighbouring nu or ||g||."""
    one, half = torch.ones_like(CURVATURES), torch.full_like(CURVATURES, 0.5)
    by_curvature = theorem5_bounds(one, half, CURVATURES, one)
    unit = torch.ones_like(SCALES)
    by_gradient = theorem5_bounds(SCALES, SCALES / 2, 2 * unit, unit)
    on_a_line = quadratic_robustness(one[:, None], CURVATURES[:, None], one)
    return {
        "largest_step_lower": by_curvature.lower.diff(),
        "largest_step_upper": by_curvature.upper.diff(),
        "largest_step_line": on_a_line.diff(),
        "largest_step_lower_gradient": by_gradient.lower.diff(),
        "largest_step_upper_gradient": by_gradient.upper.diff(),
    }


def _frobenius_ratios(settings: Settings) -> Tensor:
    """(matrices,) mean ||H z||^2 over normal z, divided by the sum of H's squared eigenvalues."""
    matrices = _matrices(settings.matrices, settings.dimension)
    shape = (settings.matrices, settings.dimension, settings.normal_draws)
    z = torch.randn(shape, generator=seeded("equation 8.5"), dtype=torch.float64)
    squares = (matrices @ z).square().sum(dim=1).mean(dim=1)
    return squares / torch.linalg.eigvalsh(matrices).square().sum(dim=1)


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"number": name, "value": e.value, **interval(e)} for name, e in numbers.items()]
    )


def _bounds_figure() -> Figure:
    """Figure 8.4."""
    one = torch.ones_like(CURVATURES)
    bounds = theorem5_bounds(one, one / 2, CURVATURES, one)
    x = CURVATURES.tolist()
    lines = {
        "upper bound (Equation 8.3)": Line(x, bounds.upper.tolist(), marker=""),
        "lower bound (Equation 8.2)": Line(x, bounds.lower.tolist(), marker=""),
    }
    return line_figure(
        lines,
        xlabel=r"largest eigenvalue $\nu$",
        ylabel=r"bounds on $\|r^*\|_2$",
        title=r"Theorem 5 at $\|g\| = c = 1$, $g\cdot u = 0.5$",
        limits=(0.0, None),
    )


def _line_figure() -> Figure:
    """Figure 8.5: losses with the same value and slope at 0, and where they reach the threshold."""
    figure, grid = axes_grid(width=6.6, height=4.2)
    axes, x = grid[0, 0], torch.linspace(-0.2, 1.2, 200, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    with styled():
        for curvature, colour in zip((0.2, 2.0, 6.0), COLOURS, strict=False):
            reached = float(quadratic_robustness(one[:, None], curvature * one[:, None], one))
            axes.plot(
                x, x + curvature * x.square() / 2, color=colour, label=rf"$\nu = {curvature:g}$"
            )
            axes.plot([reached], [1.0], "o", color=colour)
            axes.plot([reached, reached], [0.0, 1.0], ":", color=colour, linewidth=1.2)
        axes.axhline(1.0, color=COLOURS[5], linestyle="--", linewidth=1.2, label="threshold t")
        axes.set(xlabel=r"$x - x_0$", ylabel=r"loss above that at $x_0$", ylim=(-0.2, 2.0))
        axes.set_title("More curvature, a closer adversarial point")
        axes.legend()
    return figure
