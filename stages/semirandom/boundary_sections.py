"""Plane sections of the decision boundary (Sections 5.6 and 5.7, Figures 5.5 to 5.7).

Along random directions the boundary is nearly flat; along chosen ones it bends.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import axes_grid, styled
from pipeline.statistics import Estimate, Statistic, median, ratio_of_medians, stack
from pipeline.studies.boundary import BoundarySettings, closest_points
from pipeline.studies.flatness import flatness
from pipeline.studies.regions import draw_regions
from pipeline.studies.subject import placed
from pipeline.tables import class_name, columns
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.geometry import curvature_limit, default_h, plane_sections
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Dataset, Images, Network, predict

__all__ = ["SECTION", "Settings", "boundary_sections"]

SECTION = "Sections 5.6 and 5.7, Figures 5.5, 5.6 and 5.7"

SHARE = 1e-3
"""m / d of the subspace to which Section 5.6 applies Corollary 1."""

FLAT: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    r"$g = y\,\exp(2 \sin 3x)$": lambda x, y: y * np.exp(2 * np.sin(3 * x)),
    r"$g = (y - x/2)\,\exp(2 \cos 3x\,\cos 3y)$": lambda x, y: (
        (y - x / 2) * np.exp(2 * np.cos(3 * x) * np.cos(3 * y))
    ),
}
"""Two strongly nonlinear functions whose zero sets are straight lines, drawn as Figure 5.6.

The thesis does not give its own functions.
"""


@dataclass(frozen=True)
class Settings(BoundarySettings):
    """What to measure.

    Attributes:
        widths: half widths > 0 of the sections, in units of ||r*||, all different; the first is the
            one that the condition of Corollary 1 is compared with.
        h: step of the differences of gradients behind the curvatures, in pixel units; None: the
            default for the size of the images, 0.0195 sqrt(d).
        steps: number of products with each Hessian in the search for the most curved direction; one
            product takes two gradients.
        delta: delta of the condition of Corollary 1, in (0, 1).
        pictures: number of images drawn in Figure 5.5.
        grid: number of points along each side of a picture.
    """

    widths: tuple[float, ...] = (1.0, 0.3, 3.0)
    h: float | None = None
    steps: int = 15
    delta: float = 0.05
    pictures: int = 3
    grid: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pictures", "grid", "steps"):
            check_count(name, getattr(self, name))
        if not self.widths or len(set(self.widths)) < len(self.widths):
            refuse("widths", self.widths, "one or more different numbers > 0")
        for width in self.widths:
            check_positive("widths", width)
        if self.h is not None:
            check_positive("h", self.h)
        if not 0 < self.delta < 1:
            refuse("delta", self.delta, "a number in (0, 1)")


def boundary_sections(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure how much the boundary bends along random directions and along the most curved one.

    Two measures: the parabola through the boundary's curve in the plane of the normal and a random
    direction, over several widths; and curvatures by differences of gradients over a length h,
    along the same random directions and along the principal direction of largest |curvature|. Both
    look at the boundary between the image's class and the nearest one alone, so that junctions with
    a third class are left out.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        The medians of |kappa| ||r*|| and of |kappa|, their ratios, and the distance from the
        condition of Corollary 1.

    References:
        Sections 5.6 and 5.7, Corollary 1, of the thesis; Fawzi, Moosavi-Dezfooli and Frossard,
        "Robustness of classifiers: from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
    """
    images = held_out(data, settings.samples).images
    found = []
    for seed, model in sorted(network.models.items()):
        scope = executor.for_seed(seed)
        nearest = closest_points(model, images, scope)
        names = ("points", "perturbations", "normals", "labels", "targets", "success")
        rows = [getattr(nearest, name) for name in names]
        measure = partial(flatness, settings.widths, settings.h, settings.steps, model)
        found.append(
            {"r": nearest.perturbations, **scope.map(measure, *rows, randomness=True).value}
        )
    samples = stack([_quantities(rows, settings.widths) for rows in found])
    limit = _limit(math.prod(data.shape), settings.delta)
    samples["bend - limit"] = samples[f"bend {settings.widths[0]:g}"] - limit
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings.widths), resamples=settings.resamples)
    )
    return Findings(
        numbers=numbers,
        tables={"curvature": _table(numbers)},
        figures=_figures(network, data, images, found[0], settings),
        tensors={
            f"bend_{width:g}": samples[f"bend {width:g}"].float() for width in settings.widths
        },
        notes=_notes(samples, settings, math.prod(data.shape), limit),
    )


def _quantities(rows: Mapping[str, Tensor], widths: Sequence[float]) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed from what :func:`flatness` returned."""
    lengths = norms(rows["r"]).double()
    success = rows["success"]
    bends = {
        f"bend {width:g}": rows["planar"][:, i].double().abs() * lengths
        for i, width in enumerate(widths)
    }
    curvatures = {name: valid(rows[name].double().abs(), success) for name in ("along", "top")}
    return {
        **{name: valid(values, success) for name, values in bends.items()},
        **curvatures,
        "bend along": curvatures["along"] * lengths,
        "bend top": curvatures["top"] * lengths,
    }


def _limit(d: int, delta: float) -> float:
    """(0.2 / zeta_2) m / d at m = d / 1,000; zeta_2 is that of at least one dimension."""
    m = max(1, round(SHARE * d))
    return curvature_limit(d, m, delta) * SHARE * d / m


def _statistics(widths: Sequence[float]) -> dict[str, Statistic]:
    """The numbers: medians over images and training seeds."""
    first = f"bend {widths[0]:g}"
    return {
        "kappa_r": median(first),
        **{f"kappa_r_{width:g}": median(f"bend {width:g}") for width in widths},
        "kappa_r_gradients": median("bend along"),
        "kappa_r_top": median("bend top"),
        "kappa_r - limit": median("bend - limit"),
        "kappa_random": median("along"),
        "kappa_top": median("top"),
        "kappa_top / kappa_random": ratio_of_medians("top", "along"),
    }


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """One row per number, with its interval."""
    return pd.DataFrame(
        [
            {"number": name, **columns("median", e), "images": e.n, "seeds": e.seeds}
            for name, e in numbers.items()
        ]
    )


def _figures(
    network: Network, data: Dataset, images: Images, rows: Mapping[str, Tensor], settings: Settings
) -> dict[str, Figure]:
    """Figure 5.6, and Figures 5.5 and 5.7 of the first training seed where it has a boundary."""
    figures = {"figure_5_6": _drawings()}
    found = rows["success"].nonzero()[:, 0]
    if len(found):
        chosen = found[: settings.pictures]
        figures["figure_5_5"] = _random_planes(
            network.model, data, images, rows, chosen.tolist(), settings.grid
        )
        bent = rows["top"].abs().nan_to_num(nan=-1.0)[found].argsort(descending=True)[:3]
        figures["figure_5_7"] = _chosen_planes(
            network.model, data, images, rows, found[bent].tolist(), settings.grid
        )
    return figures


def _draw(
    axes: Axes,
    model: Classifier,
    data: Dataset,
    image: Tensor,
    across: Tensor,
    upward: Tensor,
    x: Tensor,
    y: Tensor,
) -> None:
    """The decision regions on a plane through an image."""
    origin = placed(image[None], model)
    first, second = across[None].to(origin), upward[None].to(origin)
    section = plane_sections(model, origin, first, second, x.to(origin), y.to(origin))
    own = int(predict(model, origin))
    draw_regions(
        axes, section.labels[0], section.leads[0], x, y, own=own, name=partial(class_name, data)
    )
    with styled():
        axes.plot([0], [0], "o", color="#22282f", markersize=4)
        axes.annotate("x", (0, 0), xytext=(4, -12), textcoords="offset points")
        axes.legend(loc="lower right", fontsize=8.5, frameon=True, framealpha=0.8)


def _random_planes(
    model: Classifier,
    data: Dataset,
    images: Images,
    rows: Mapping[str, Tensor],
    chosen: Sequence[int],
    grid: int,
) -> Figure:
    """Figure 5.5: the planes of r* and a random direction, both in units of ||r*||."""
    figure, panels = axes_grid(1, len(chosen), width=4.0 * len(chosen), height=4.0)
    wide, high = torch.linspace(-10, 10, grid), torch.linspace(-1, 3, grid)
    for axes, index in zip(panels[0], chosen, strict=True):
        r, across = rows["r"][index], rows["random"][index]
        length = float(r.norm())
        _draw(axes, model, data, images[index], length * across, r, wide, high)
        with styled():
            axes.set(xlabel=r"random direction / $\|r^*\|_2$", ylabel=r"$r^*$ / $\|r^*\|_2$")
            axes.set_title(rf"$\|r^*\|_2$ = {length:.3g}")
    with styled():
        figure.suptitle(
            "Sections along random directions; mind the scales", fontsize=12.5, fontweight="bold"
        )
    return figure


def _chosen_planes(
    model: Classifier,
    data: Dataset,
    images: Images,
    rows: Mapping[str, Tensor],
    chosen: Sequence[int],
    grid: int,
) -> Figure:
    """Figure 5.7: sections along the most curved directions and a random one, at equal scales."""
    figure, panels = axes_grid(1, len(chosen) + 1, width=3.6 * (len(chosen) + 1), height=4.0)
    cases = [(index, "top direction") for index in chosen] + [(chosen[0], "random")]
    span = torch.linspace(-2.5, 2.5, grid)
    for axes, (index, name) in zip(panels[0], cases, strict=True):
        r = rows["r"][index]
        length = float(r.norm())
        kappa = float(rows["top" if name == "top direction" else "along"][index])
        _draw(axes, model, data, images[index], length * rows[name][index], r, span, span)
        with styled():
            title = "most curved direction" if name == "top direction" else "random direction"
            axes.set(
                xlabel=rf"{title} / $\|r^*\|_2$", ylabel=r"$r^*$ / $\|r^*\|_2$", aspect="equal"
            )
            axes.set_title(rf"$\kappa\,\|r^*\|_2$ = {kappa * length:.3g}")
    with styled():
        figure.suptitle("Chosen sections and a random one", fontsize=12.5, fontweight="bold")
    return figure


def _drawings() -> Figure:
    """Figure 5.6: two strongly nonlinear functions whose zero sets are straight."""
    figure, panels = axes_grid(1, len(FLAT), width=4.6 * len(FLAT), height=4.2)
    x, y = np.meshgrid(np.linspace(-2, 2, 201), np.linspace(-2, 2, 201))
    for axes, (name, function) in zip(panels[0], FLAT.items(), strict=True):
        g = function(x, y)
        bound = float(np.abs(g).max())
        with styled():
            axes.contourf(x, y, g, levels=np.linspace(-bound, bound, 19), cmap="BrBG")
            axes.contour(x, y, g, levels=[0.0], colors=["#22282f"], linewidths=2.0)
            axes.set_title(name, fontsize=10)
            axes.set(aspect="equal")
            axes.grid(visible=False)
    with styled():
        figure.suptitle(
            "Nonlinear functions with straight boundaries (g = 0)", fontsize=12.5, fontweight="bold"
        )
    return figure


def _notes(samples: Mapping[str, Tensor], settings: Settings, d: int, limit: float) -> list[str]:
    """Notes on the failures, both measures, and the condition of Corollary 1."""
    along = samples["along"]
    lost = int(along.isnan().sum())
    open_ = int(samples[f"bend {settings.widths[0]:g}"].isnan().sum()) - lost
    h = default_h(d) if settings.h is None else settings.h
    others = ", ".join(f"{width:g}" for width in settings.widths[1:])
    return [
        f"{along.shape[1]} held-out images, one random direction each; no boundary point was found "
        f"in {lost} of {along.numel()} cases, and no crossing somewhere on the section in {open_}: "
        "they are left out.",
        f"The most curved direction is looked for in a Krylov space of {settings.steps} "
        "dimensions: the largest curvature is at least what stands here.",
        f"Sections are {settings.widths[0]:g} ||r*|| wide on either side (and "
        f"({others}) for comparison); curvatures by gradients are over h = {h:.3g} "
        "pixel units, so that the two measures differ where the boundary bends at smaller scales.",
        f"Corollary 1 asks for kappa ||r*|| <= {limit:.3g} at m = d / 1,000 and delta = "
        f"{settings.delta:g} (the thesis names no delta); d / 1,000 is {d / 1000:.3g} here, zeta_2 "
        f"that of {max(1, round(SHARE * d))} dimension(s).",
        "Figure 5.6 shows two functions of our own: the thesis does not give its own.",
    ]
