"""Pictures of decision regions in a plane."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor

from pipeline.plots import COLOURS, styled

__all__ = ["draw_regions"]

OWN = "#dcebf3"
"""The colour of the region whose boundary is drawn."""


def draw_regions(
    axes: Axes,
    labels: Tensor,
    leads: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    own: int,
    name: Callable[[int], str],
) -> None:
    """Fill the regions of a plane with the colours of their classes; draw one boundary in black.

    Args:
        axes: where to draw; each class gets an entry in the legend, which the caller draws.
        labels: (Y, X) the predicted classes.
        leads: (Y, X) by how much ``own`` leads, negative outside its region.
        x: (X,) abscissae.
        y: (Y,) ordinates.
        own: the class whose boundary is drawn.
        name: the legend's name of a class.
    """
    present = sorted(set(labels.unique().tolist()), key=lambda label: (label != own, label))
    colours = _colours(present, own)
    codes = np.zeros(tuple(labels.shape))
    for code, label in enumerate(present):
        codes[(labels == label).cpu().numpy()] = code
    levels = np.arange(len(present) + 1) - 0.5
    across, upward = x.cpu().numpy(), y.cpu().numpy()
    with styled():
        axes.pcolormesh(
            across,
            upward,
            codes,
            cmap=ListedColormap(colours),
            vmin=-0.5,
            vmax=levels[-1],
            shading="nearest",
            rasterized=True,
        )
        inside = leads.cpu().numpy()
        if inside.min() < 0 < inside.max():
            axes.contour(across, upward, inside, levels=[0.0], colors=["#22282f"], linewidths=1.6)
        for colour, label in zip(colours, present, strict=True):
            axes.plot([], [], "s", color=colour, markersize=9, label=name(label))
        axes.grid(visible=False)


def _colours(present: Sequence[int], own: int) -> list[str]:
    """The colour of each class: its usual one, or the next that is free in this picture."""
    others = COLOURS[1:]
    taken: dict[int, int] = {}
    for label in present:
        place = label % len(others)
        while label != own and place in taken.values() and len(taken) < len(others):
            place = (place + 1) % len(others)
        if label != own:
            taken[label] = place
    return [OWN if label == own else _pale(others[taken[label]]) for label in present]


def _pale(colour: str) -> str:
    """A colour mixed with white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - 0.45 * (255 - part)):02x}" for part in parts)
