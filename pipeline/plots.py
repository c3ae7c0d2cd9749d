"""Figures in one style, made without global plotting state."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from pipeline.statistics import Estimate

__all__ = [
    "COLOURS",
    "Line",
    "Panel",
    "axes_grid",
    "bar_figure",
    "dominant_share",
    "estimate_line",
    "histogram_figure",
    "image_grid",
    "line_figure",
    "save",
    "styled",
]

COLOURS = ("#0b6fa4", "#d1495b", "#3a9270", "#e0a030", "#7a5195", "#5f6b7a", "#b5651d", "#17a2b8")
"""The colours of lines and bars, in order; most colour-blind readers can tell them apart."""

INK, SOFT = "#22282f", "#6b7580"

STYLE = {
    "font.size": 11.0,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 12.0,
    "axes.labelsize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#e3e7eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100.0,
    "savefig.dpi": 130.0,
    "axes.formatter.useoffset": False,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.09,
}


@dataclass(frozen=True)
class Line:
    """One curve: ``y`` over ``x``, with the interval [low, high] as a band where given.

    Attributes:
        x: abscissae.
        y: values.
        low: lower ends.
        high: upper ends.
        style: matplotlib line style, such as ``-`` or ``--``.
        marker: matplotlib marker; empty for none.
        errorbars: draw the interval as bars instead of a band.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: str = "-"
    marker: str = "o"
    errorbars: bool = False


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


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the common style within the block; matplotlib's settings stay as they were."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def axes_grid(
    rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 4.4
) -> tuple[Figure, np.ndarray]:
    """A figure in the common style, in inches, and its axes (rows, columns)."""
    with styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False)


def estimate_line(
    x: Sequence[float], estimates: Sequence[Estimate], *, style: str = "-", marker: str = "o"
) -> Line:
    """The curve of ``estimates`` over ``x`` with their 95% intervals."""
    return Line(
        x,
        [e.value for e in estimates],
        [e.low for e in estimates],
        [e.high for e in estimates],
        style,
        marker,
    )


def line_figure(
    lines: Mapping[str, Line],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    references: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    limits: tuple[float | None, float | None] = (None, None),
    width: float = 7.0,
    height: float = 4.4,
) -> Figure:
    """Curves with bands or error bars and dashed reference levels.

    Args:
        lines: legend entry -> curve.
        xlabel: name and unit of the abscissa.
        ylabel: name and unit of the ordinate.
        title: title of the figure.
        references: legend entry -> level drawn as a dashed horizontal line.
        log_x: logarithmic abscissa.
        log_y: logarithmic ordinate.
        limits: lowest and highest ordinate shown; None leaves it to the data.
        width: width in inches.
        height: height in inches.
    """
    figure, grid = axes_grid(width=width, height=height)
    axes: Axes = grid[0, 0]
    with styled():
        for index, (name, line) in enumerate(lines.items()):
            _draw(axes, line, name, COLOURS[index % len(COLOURS)])
        for index, (name, level) in enumerate((references or {}).items()):
            axes.axhline(
                level, color=SOFT, linestyle=("--", ":", "-.")[index % 3], linewidth=1.4, label=name
            )
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        axes.set_ylim(*limits)
        for axis, is_log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
            if is_log:
                _plain_ticks(axis)
        if len(lines) + len(references or {}) > 1:
            axes.legend()
    return figure


def _plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis 0.1, 0.2, 0.5, 1 ... instead of in powers of ten, if it is short."""
    low, high = axis.get_view_interval()
    if low > 0 and high / low < 3000:
        subs = range(1, 10) if high / low < 6 else (1, 2, 5) if high / low < 100 else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _draw(axes: Axes, line: Line, name: str, colour: str) -> None:
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    axes.plot(x, y, line.style, marker=line.marker or None, color=colour, label=name)
    if line.low is None or line.high is None:
        return
    low, high = np.asarray(line.low, dtype=float), np.asarray(line.high, dtype=float)
    if line.errorbars:
        axes.errorbar(
            x,
            y,
            yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)],
            fmt="none",
            ecolor=colour,
            capsize=3,
        )
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def bar_figure(
    groups: Mapping[str, Mapping[str, Estimate]],
    *,
    ylabel: str,
    title: str = "",
    log_y: bool = False,
    width: float = 7.0,
    height: float = 4.4,
) -> Figure:
    """Grouped bars with 95% intervals.

    Args:
        groups: group, on the abscissa -> bar, in the legend -> estimate.
        ylabel: name and unit of the ordinate.
        title: title of the figure.
        log_y: logarithmic ordinate.
        width: width in inches.
        height: height in inches.
    """
    figure, grid = axes_grid(width=width, height=height)
    axes: Axes = grid[0, 0]
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    size = 0.8 / max(1, len(names))
    with styled():
        for index, name in enumerate(names):
            found = [(at, bars[name]) for at, bars in enumerate(groups.values()) if name in bars]
            x = [at + (index - (len(names) - 1) / 2) * size for at, _ in found]
            y = [e.value for _, e in found]
            spread = [
                [max(e.value - e.low, 0.0) for _, e in found],
                [max(e.high - e.value, 0.0) for _, e in found],
            ]
            axes.bar(x, y, size * 0.92, color=COLOURS[index % len(COLOURS)], label=name)
            axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=INK, capsize=3, linewidth=1.2)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set(ylabel=ylabel, title=title)
        axes.grid(axis="x", visible=False)
        axes.set_yscale("log" if log_y else "linear")
        if len(names) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))  # bars leave no room inside
    return figure


def histogram_figure(
    values: Mapping[str, Tensor],
    *,
    xlabel: str,
    title: str = "",
    log_x: bool = False,
    bins: int = 40,
    width: float = 7.0,
    height: float = 4.4,
) -> Figure:
    """Overlaid histograms on common bins, as shares of the cases; non-finite values are left out.

    Args:
        values: legend entry -> values of any shape.
        xlabel: name and unit of the abscissa.
        title: title of the figure.
        log_x: logarithmic abscissa and bins; values that are not positive are left out.
        bins: number of bins.
        width: width in inches.
        height: height in inches.
    """
    kept = {name: _plain(v, positive=log_x) for name, v in values.items()}
    kept = {name: v for name, v in kept.items() if len(v)}
    everything = np.concatenate(list(kept.values())) if kept else np.array([1.0, 2.0])
    low, high = float(everything.min()), float(everything.max())
    high = high if high > low else low + max(abs(low), 1e-6) * 0.1
    edges = np.geomspace(low, high, bins + 1) if log_x else np.linspace(low, high, bins + 1)
    figure, grid = axes_grid(width=width, height=height)
    axes: Axes = grid[0, 0]
    with styled():
        for index, (name, shown) in enumerate(kept.items()):
            colour, weights = COLOURS[index % len(COLOURS)], np.full(len(shown), 1 / len(shown))
            axes.hist(
                shown,
                edges.tolist(),
                weights=weights,
                histtype="stepfilled",
                color=colour,
                alpha=0.30,
            )
            axes.hist(
                shown,
                edges.tolist(),
                weights=weights,
                histtype="step",
                color=colour,
                linewidth=1.6,
                label=name,
            )
        axes.set(xlabel=xlabel, ylabel="share of images", title=title)
        axes.set_xscale("log" if log_x else "linear")
        if kept:
            axes.legend()
    return figure


def _plain(values: Tensor, *, positive: bool) -> np.ndarray:
    flat: np.ndarray = values.detach().cpu().double().flatten().numpy()
    flat = flat[np.isfinite(flat)]
    return flat[flat > 0] if positive else flat


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


def _common_limit(perturbations: Sequence[Tensor]) -> float:
    values = (
        torch.cat([p.detach().flatten().abs() for p in perturbations])
        if perturbations
        else torch.zeros(1)
    )
    finite = values[torch.isfinite(values)].cpu().double().numpy()
    return float(np.quantile(finite, 0.999)) or 1.0 if len(finite) else 1.0


def _scale_text(rows: Sequence[Sequence[Panel | None]], scale: float) -> str:
    channels = next(p.image.shape[0] for row in rows for p in row if p and p.perturbation)
    if channels == 1:
        return (
            f"perturbations: blue {-scale:.3g}, white 0, red {scale:.3g} (pixels run from 0 to 1)"
        )
    return (
        f"perturbations: grey + {0.5 / scale:.3g} times the perturbation (pixels run from 0 to 1)"
    )


def _show(axes: Axes, panel: Panel, scale: float) -> None:
    image = panel.image.detach().cpu().double()
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


def save(figure: Figure, path: str | Path) -> None:
    """Write ``figure`` as a PNG whose bytes depend on the figure alone."""
    with styled():
        figure.savefig(path, format="png", metadata={"Software": None})


def dominant_share(path: str | Path) -> float:
    """The share of a PNG's pixels that have its commonest colour; above 0.99 it looks blank."""
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB")).reshape(-1, 3).astype(np.int64)
    _, counts = np.unique(pixels @ np.array([65536, 256, 1]), return_counts=True)
    return float(counts.max() / counts.sum()) if counts.size else math.nan
