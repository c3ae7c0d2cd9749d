"""Grids of images, perturbations and perturbed images."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.plots import SOFT, axes_grid, styled
from pipeline.tables import outcome
from robustness_geometry.types import Dataset, Mask, Perturbed

__all__ = [
    "Panel",
    "image_grid",
    "perturbed_panels",
    "typical",
]


@dataclass(frozen=True)
class Panel:
    """One image of a grid.

    Attributes:
        image: (C, H, W) with one or three channels: pixels in [0, 1], or a perturbation in pixel
            units.
        caption: text below the image.
        perturbation: whether to show it on a centred colour map, in which zero is neutral.
    """

    image: Tensor
    caption: str = ""
    perturbation: bool = False


def perturbed_panels(data: Dataset, image: Tensor, result: Perturbed, index: int) -> list[Panel]:
    """The perturbed image with its label, and the perturbation with its relative norm.

    Args:
        data: names the classes.
        image: (C, H, W), the one that was perturbed.
        result: the perturbations of several images.
        index: the place of this image among them.
    """
    perturbation = result.perturbations[index]
    size = float(perturbation.norm() / image.norm())
    return [
        Panel((image + perturbation).clamp(0, 1), outcome(data, result, index)),
        Panel(perturbation, f"relative norm {size:.3g}", perturbation=True),
    ]


def typical(sizes: Tensor, *preferred: Mask) -> int:
    """The index of the median size among the first non-empty choice, or among all.

    Args:
        sizes: (N,).
        preferred: masks (N,) of images to choose from, the best first.
    """
    every = torch.ones(len(sizes), dtype=torch.bool)
    chosen = next((m for m in (*preferred, every) if bool(m.any())), every).nonzero()[:, 0]
    return int(chosen[sizes[chosen].argsort()[len(chosen) // 2]])


def image_grid(
    rows: Sequence[Sequence[Panel | None]],
    *,
    title: str = "",
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    limit: float | None = None,
    side: float = 2.1,
) -> Figure:
    """Images and perturbations in rows.

    All perturbations share one scale, which is stated below the figure. A one-channel perturbation
    is drawn in blue (negative), white (zero) and red (positive), one of three channels as grey 0.5
    plus the perturbation times the stated magnification.

    Args:
        rows: panels of each row; None leaves a place empty.
        title: title of the figure.
        row_titles: title of each row, at its left.
        column_titles: title of each column, on top.
        limit: absolute value at the ends of the colour map; None: the 99.9% quantile of what is
            shown.
        side: side of a panel in inches.
    """
    rows = [[p and replace(p, caption=_wrapped(p.caption, side)) for p in row] for row in rows]
    columns = max(len(row) for row in rows)
    captions = max((len(p.caption.splitlines()) for row in rows for p in row if p), default=0)
    margins = 0.4 * bool(title) + 0.3 * bool(column_titles) + 0.3
    figure, grid = axes_grid(
        len(rows),
        columns,
        width=side * columns + 0.5,
        height=len(rows) * (side + 0.2 * captions) + margins,
    )
    scale = limit or _common_limit([p.image for row in rows for p in row if p and p.perturbation])
    with styled():
        for axes in grid.flat:
            axes.set_axis_off()
        for i, row in enumerate(rows):
            for j, panel in enumerate(row):
                if panel is not None:
                    _show(grid[i, j], panel, scale)
        for axes, text in zip(grid[0], column_titles, strict=False):
            axes.set_title(text, loc="center", fontsize=11)
        for axes, text in zip(grid[:, 0], row_titles, strict=False):
            axes.text(
                -0.06, 0.5, text, transform=axes.transAxes, rotation=90, ha="right", va="center"
            )
        if title:
            figure.suptitle(title, fontsize=12.5, fontweight="bold")
        if any(p and p.perturbation for row in rows for p in row):
            figure.supxlabel(_scale_text(rows, scale), fontsize=9.5, color=SOFT)
    return figure


def _wrapped(caption: str, side: float) -> str:
    """A caption whose lines are about as wide as a panel, broken between words."""
    width = max(int(13 * side), 1)
    lines = (
        textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
        for line in caption.splitlines()
    )
    return "\n".join(part for parts in lines for part in parts)


def _common_limit(perturbations: Sequence[Tensor]) -> float:
    values = (
        torch.cat([p.detach().flatten().abs() for p in perturbations])
        if perturbations
        else torch.zeros(1)
    )
    finite = values[torch.isfinite(values)].cpu().double().numpy()
    return float(np.quantile(finite, 0.999)) or 1.0 if len(finite) else 1.0


def _scale_text(rows: Sequence[Sequence[Panel | None]], scale: float) -> str:
    channels = next(_picture(p.image).shape[0] for row in rows for p in row if p and p.perturbation)
    if channels == 1:
        return (
            f"perturbations: blue {-scale:.3g}, white 0, red {scale:.3g} (pixels run from 0 to 1)"
        )
    return (
        f"perturbations: grey + {0.5 / scale:.3g} times the perturbation (pixels run from 0 to 1)"
    )


def _picture(image: Tensor) -> Tensor:
    """``image`` as (C, H, W); the values of another kind of input in rows of about equal length."""
    if image.ndim == 3 and image.shape[0] in (1, 3):
        return image
    if image.ndim == 2:
        return image[None]
    width = math.ceil(image.numel() ** 0.5)
    rows = torch.zeros(math.ceil(image.numel() / width) * width, dtype=image.dtype)
    rows[: image.numel()] = image.flatten()
    return rows.view(1, -1, width)


def _show(axes: Axes, panel: Panel, scale: float) -> None:
    image = _picture(panel.image.detach().cpu().double())
    if panel.perturbation and image.shape[0] == 1:
        axes.imshow(
            image[0].numpy(), cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest"
        )
    else:
        shown = (0.5 + 0.5 * image / scale if panel.perturbation else image).clamp(0, 1)
        shown = shown.expand(3, -1, -1) if image.shape[0] == 1 else shown
        axes.imshow(shown.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#c3cad1", linewidth=0.8)
    axes.set_xlabel(panel.caption, fontsize=10)
