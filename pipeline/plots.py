"""Figures in one style, made without global plotting state."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from pipeline.statistics import Estimate

__all__ = [
    "COLOURS",
    "Line",
    "axes_grid",
    "bar_figure",
    "dominant_share",
    "estimate_line",
    "histogram_figure",
    "line_figure",
    "literal",
    "save",
    "styled",
]

COLOURS = ("#0b6fa4", "#d1495b", "#3a9270", "#e0a030", "#7a5195", "#5f6b7a", "#b5651d", "#17a2b8")
"""The colours of lines and bars, in order; most colour-blind readers can tell them apart."""

LONGEST = 24
"""Largest number of characters of somebody's own name in a figure."""

FONT = "DejaVu Sans"
INK, SOFT = "#22282f", "#6b7580"

STYLE = {
    "font.size": 11.0,
    "font.family": FONT,
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


def literal(name: str) -> str:
    r"""Somebody's own name as matplotlib draws it: as it is, on one line, and not too long.

    A dollar sign would start a formula. The name is empty if the figures' font lacks a letter of
    it.

    Example:
        >>> from pipeline.plots import literal
        >>> literal("$5_and $6"), literal("a" * 40), literal("\u732b")
        ('\\$5_and \\$6', 'aaaaaaaaaaaaaaaaaaaaaaa…', '')
    """
    text = " ".join(name.split())
    if not all(_has_glyph(letter) for letter in text):
        return ""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return text.replace("$", r"\$")


@cache
def _has_glyph(letter: str) -> bool:
    font = get_font(findfont(FONT))
    return letter.isprintable() and font.get_char_index(ord(letter)) != 0


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
