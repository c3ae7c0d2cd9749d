"""Distances to the boundary between proved lower bounds and found upper ones, and their figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.tables import norm_name, norm_sign

__all__ = ["Judged", "bracket_figure"]


@dataclass(frozen=True)
class Judged:
    """What is known of the distances of one network's images in one norm.

    Attributes:
        norm: exponent p of the norm.
        samples: quantity -> (seeds, n); NaN where it was not measured.
        certified: number of images with a proved lower bound.
        cuts: number of parts of balls that were tried for them.
        refusal: why there is none, if so.
        small: name of the small network; empty for the network under study.
    """

    norm: float
    samples: Mapping[str, Tensor]
    certified: int
    cuts: int
    refusal: str
    small: str = ""

    @property
    def suffix(self) -> str:
        """What tells its numbers from those of other networks and norms."""
        name = norm_name(self.norm)
        return f"({self.small}, {name})" if self.small else f"({name})"


def bracket_figure(found: Sequence[Judged], title: str) -> Figure:
    """The distances of each image, of the first training seed, sorted by what nearest found."""
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    figure, grid = axes_grid(rows, columns, width=5.2 * columns + 1.4, height=3.6 * rows + 0.4)
    with styled():
        for axes, judged in zip(grid.flat, found, strict=False):
            _panel(axes, judged)
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        handles: dict[str, Artist] = {}
        for axes in grid.flat:
            artists, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, artists, strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside right upper")
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure


def _panel(axes: Axes, judged: Judged) -> None:
    first = {name: values[0].numpy() for name, values in judged.samples.items()}
    order = first["nearest"].argsort()
    ranks = range(1, len(order) + 1)
    closed = first.get("exact")
    if np.isfinite(first["lower"]).any():
        axes.plot(ranks, first["lower"][order], "v", color=COLOURS[2], label="proved lower bound")
    if closed is not None:
        axes.vlines(
            ranks, first["low"][order], first["high"][order], color=COLOURS[5], linewidth=1.5
        )
        axes.plot(ranks, closed[order], "_", color="black", markersize=9, label="exact")
    axes.plot(ranks, first["nearest"][order], "o", color=COLOURS[0], markersize=4, label="nearest")
    axes.plot(ranks, first["df"][order], "x", color=COLOURS[1], markersize=4, label="DeepFool")
    name = f"{judged.small}, {norm_sign(judged.norm)}" if judged.small else norm_sign(judged.norm)
    axes.set(title=name, xlabel="image, sorted by nearest", ylabel="distance to the boundary")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
