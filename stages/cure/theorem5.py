"""Theorem 5: bounds on the smallest perturbation from the gradient and curvature of the loss.

They are checked on quadratic losses (Section 8.3, Figures 8.4 and 8.5), and set beside distances
that are measured on networks, whose losses are not quadratic.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.3.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, Line, axes_grid, line_figure, styled
from pipeline.statistics import (
    Estimate,
    Statistic,
    maximum,
    mean,
    median,
    minimum,
    of_means,
    ratio_of_means,
    share,
    stack,
)
from pipeline.studies.boundary import closest_points
from pipeline.studies.loss_hessian import power_curvature
from pipeline.tables import interval
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.geometry import quadratic_robustness, theorem5_bounds
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "bounds_at", "theorem5"]

SECTION = "Section 8.3, Theorem 5, Figures 8.4 and 8.5, Equation 8.5"

CURVATURES = torch.linspace(0.1, 10, 100, dtype=torch.float64)
"""The nu of Figure 8.4, where ||g|| = c = 1 and g.u = 0.5."""

SCALES = torch.logspace(-1, 1, 60, dtype=torch.float64)[1:-1]
"""What g is multiplied with for Remark 2, within (0.1, 10)."""


VACUOUS = 0.01
"""A lower bound below this share of the distance is called vacuous."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        draws: number of random quadratic losses (g, H, c), at least 2.
        dimension: their dimension d, at least 2.
        normal_draws: number of random z for each matrix in the check of Equation 8.5, at least 2.
        matrices: number of random H in the check of Equation 8.5, at least 2.
        samples: number of held-out images at which the bounds are computed on the networks, at
            least 1.
        training_seeds: number of training seeds, the first ones, at least 1; None: all.
        power_steps: number of steps of the power iteration for the largest eigenvalue, at least 1.
        curvature_h: step of its differences, in pixel l2, > 0; None:
            :func:`robustness_geometry.geometry.default_h`.
        resamples: number of bootstrap resamples behind every interval, at least 1.
    """

    draws: int = 1000
    dimension: int = 20
    normal_draws: int = 400
    matrices: int = 100
    samples: int = 1000
    training_seeds: int | None = None
    power_steps: int = 20
    curvature_h: float | None = None
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("draws", "dimension", "normal_draws", "matrices"):
            check_count(name, getattr(self, name), minimum=2)
        for name in ("samples", "power_steps", "resamples"):
            check_count(name, getattr(self, name))
        if self.training_seeds is not None:
            check_count("training_seeds", self.training_seeds)
        if self.curvature_h is not None:
            check_positive("curvature_h", self.curvature_h)


def theorem5(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Check Theorem 5's bounds against the exact solution on random quadratic losses.

    Also set the bounds at held-out images beside the measured distances to the boundary.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to draw, and what to measure.
        executor: runs networks.

    Returns:
        ``margin_*``: the smallest relative distance by which a bound is kept, below 0 where one is
        broken;
        ``largest_step_*``: the largest change from one value of nu (or of ||g||) to the next, below
        0 where the bound decreases; ``gap_parallel`` and ``error_parallel``: |upper - lower| and
        |exact - lower| for g parallel to u;
        ``frobenius_ratio``: mean ||H z||^2 over the sum of the squared eigenvalues. No network
        takes part in these. On the networks, ``share_*`` of the images: where the lower, the upper
        and both bounds hold, and where they are vacuous; ``lower / distance`` and ``upper /
        distance``, medians.
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
    real = _at_images(network, data, settings, executor)
    seeds, count = real["lower_holds"].shape
    left_out = int(real["lower_holds"].isnan().sum())
    found = paired_bootstrap(real, _image_statistics(), resamples=settings.resamples)
    tables = {"theorem_5": _table(numbers), "networks": _table(found)}
    return Findings(
        numbers=numbers | measured(found),
        tables=tables,
        figures={"figure_8_4": _bounds_figure(), "figure_8_5": _line_figure()},
        notes=[
            f"{settings.draws} random quadratic losses in {settings.dimension} dimensions: normal "
            "g, a symmetric normal H with a positive largest eigenvalue, c uniform in (0, 2); the "
            "exact minimum by the secular equation.",
            f"Equation 8.5 on {settings.matrices} random H with {settings.normal_draws} normal z "
            "each.",
            "The figure's text calls the eigenvector v where u is meant. No network takes part in "
            "these numbers: they are the same for all.",
            f"On {network.name}: {count} held-out images of {seeds} training seed(s), the "
            "cross-entropy at the true label and the threshold t = log 2, which the loss reaches "
            "at the boundary between two classes; nu and u by power iteration. The distance is "
            "that of the closest point of the boundary (`nearest` and further projections). "
            f"{left_out} cases with a probability of at most 1/2 for the true label, or without "
            "such a point, are left out.",
            "The lower bound is called vacuous below a hundredth of the distance, the upper one "
            "beyond the image's farthest point of [0, 1]^d. A network's loss is quadratic at best "
            "near the image: that a bound fails says that it is not, and nothing about Theorem 5.",
        ],
    )


def bounds_at(
    values: Mapping[str, Tensor], distances: Tensor, farthest: Tensor
) -> dict[str, Tensor]:
    """Theorem 5's bounds at images beside the distances that were measured there.

    Args:
        values: ``loss``, ``gradient`` (||g||), ``power`` (nu) and ``alignment`` (|g.u| / ||g||) of
            each image, (N,), as :func:`pipeline.studies.loss_hessian.power_curvature` gives them.
        distances: (N,) ||r|| of the closest boundary points, in pixel l2; NaN where none is known.
        farthest: (N,) the distance of the image from the farthest point of [0, 1]^d.

    Returns:
        ``lower_holds``, ``upper_holds``, ``both_hold``, ``lower_vacuous``, ``upper_vacuous`` (N,),
        1 or 0, and ``lower`` and ``upper`` (N,), the bounds over the distance; NaN at images whose
        loss is at least log 2 or whose distance is not known.
    """
    gap = math.log(2) - values["loss"]
    size, nu = values["gradient"], values["power"].clamp_min(0)
    along = (values["alignment"] * size).nan_to_num(nan=0.0)
    bounds = theorem5_bounds(size, along, nu, gap.clamp_min(0))
    found = {
        "lower_holds": bounds.lower <= distances,
        "upper_holds": bounds.upper >= distances,
        "both_hold": (bounds.lower <= distances) & (bounds.upper >= distances),
        "lower_vacuous": bounds.lower < VACUOUS * distances,
        "upper_vacuous": bounds.upper > farthest,
        "lower": bounds.lower / distances,
        "upper": bounds.upper / distances,
    }
    known = (gap > 0) & distances.isfinite()
    return {name: valid(each.double(), known) for name, each in found.items()}


def _at_images(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> dict[str, Tensor]:
    """:func:`bounds_at` held-out images of each training seed, (seeds, n)."""
    test = held_out(data, settings.samples)
    farthest = norms(torch.maximum(test.images, 1 - test.images)).double().cpu()
    rows = []
    for seed, model in sorted(network.models.items())[: settings.training_seeds]:
        own = executor.for_seed(seed)
        work = partial(
            power_curvature,
            model,
            steps=settings.power_steps,
            h=settings.curvature_h,
            scheme="forward",
        )
        values = own.cached(work, test.images, test.labels, randomness=True).value
        near = closest_points(model, test.images, own)
        distances = valid(norms(near.perturbations).double(), near.success)
        rows.append(
            bounds_at(
                {key: each.double().cpu() for key, each in values.items()},
                distances.cpu(),
                farthest,
            )
        )
    return stack(rows)


def _image_statistics() -> dict[str, Statistic]:
    shares = ("lower_holds", "upper_holds", "both_hold", "lower_vacuous", "upper_vacuous")
    numbers = {f"share_{name}": share(name) for name in shares}
    return numbers | {f"{name} / distance": median(name) for name in ("lower", "upper")}


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
