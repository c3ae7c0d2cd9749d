"""Pictures of the boundary in planes through an image (Figures 5.5, 5.6 and 5.7)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.plots import axes_grid, styled
from pipeline.studies.regions import draw_regions
from pipeline.studies.subject import placed
from pipeline.tables import class_name
from robustness_geometry.geometry import plane_sections
from robustness_geometry.types import Classifier, Dataset, Images, predict

__all__ = ["chosen_planes", "flat_drawings", "random_planes"]

FLAT: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    r"$g = y\,\exp(2 \sin 3x)$": lambda x, y: y * np.exp(2 * np.sin(3 * x)),
    r"$g = (y - x/2)\,\exp(2 \cos 3x\,\cos 3y)$": lambda x, y: (
        (y - x / 2) * np.exp(2 * np.cos(3 * x) * np.cos(3 * y))
    ),
}
"""Two strongly nonlinear functions whose zero sets are straight lines, drawn as Figure 5.6.

The thesis does not give its own functions.
"""


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


def random_planes(
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


def chosen_planes(
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


def flat_drawings() -> Figure:
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
