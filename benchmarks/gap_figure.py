"""The figure of minimum l2 norms against passes: gap above, AttackBench's optimality below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from pipeline.plots import COLOURS, axes_grid, save, styled

__all__ = ["draw"]

Plain = Mapping[str, Any]

FLOOR, CEILING = 1e-4, 3.0
"""Smallest and largest gap shown; what lies beyond stands at the edge."""

FULL = 0.99
"""Share of fooled images below which a marker is hollow."""

PASSES = (6, 600)
MARKERS = "osD^vPX*<>ph"


def draw(networks: Sequence[Plain], path: Path) -> None:
    """Draw the rows of each network.

    Args:
        networks: what ``measure_task`` returned, with at least one row each.
        path: PNG file.
    """
    columns = len(networks)
    figure, grid = axes_grid(2, columns, width=max(3.7 * columns, 8.0), height=9.0)
    names = list(dict.fromkeys(_name(row) for each in networks for row in each["rows"]))
    with styled():
        for column, network in enumerate(networks):
            for place, quantity in enumerate(("gap", "optimality")):
                axes = grid[place, column]
                for index, name in enumerate(names):
                    rows = [row for row in network["rows"] if _name(row) == name]
                    _line(axes, rows, quantity, name, index)
                axes.set_xscale("log")
                axes.set_xlim(*PASSES)
                axes.set_xticks([10, 30, 100, 300], labels=["10", "30", "100", "300"])
                axes.set_xticks([], minor=True)
            _titles(grid[0, column], grid[1, column], network, first=column == 0)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    save(figure, path)


def _name(row: Plain) -> str:
    library = row["library"].split()[0]
    return row["attack"] if library == "this" else f"{row['attack']} ({library})"


def _line(axes: Axes, rows: Sequence[Plain], quantity: str, name: str, index: int) -> None:
    """The line of one attack with its intervals; hollow where it fails on some images."""
    rows = sorted(
        (row for row in rows if row[quantity]["value"] is not None),
        key=lambda row: row["forward"] + row["backward"],
    )
    x = [row["forward"] + row["backward"] for row in rows]
    shown = [[_shown(row[quantity], end, quantity) for row in rows] for end in _ENDS]
    own, colour = "(" not in name, COLOURS[index % len(COLOURS)]
    style: dict[str, Any] = {"color": colour, "marker": MARKERS[index % len(MARKERS)]}
    axes.plot(
        x,
        shown[0],
        "-" if own else "--",
        linewidth=2.2 if own else 1.2,
        markersize=6 if own else 4.5,
        label=name,
        **style,
    )
    axes.vlines(x, shown[1], shown[2], color=colour, linewidth=1.0, alpha=0.7)
    hollow = [k for k, row in enumerate(rows) if row["ASR"]["value"] < FULL]
    axes.plot(
        [x[k] for k in hollow],
        [shown[0][k] for k in hollow],
        linestyle="none",
        markerfacecolor="white",
        markersize=6 if own else 4.5,
        **style,
    )


_ENDS = ("value", "low", "high")


def _shown(interval: Plain, end: str, quantity: str) -> float:
    value = interval[end] if interval[end] is not None else interval["value"]
    low, high = (FLOOR, CEILING) if quantity == "gap" else (0.0, 1.0)
    return min(max(value, low), high)


def _titles(gap: Axes, area: Axes, network: Plain, *, first: bool) -> None:
    reference = "exact" if network["reference"] == "exact" else "best known"
    gap.set_title(f"{network['network']}\nto {reference}, {network['images']} digits")
    gap.set_yscale("log")
    gap.set_ylim(FLOOR / 1.3, CEILING * 1.3)
    ticks = [1e-4, 1e-3, 1e-2, 1e-1, 1]
    gap.set_yticks(ticks, labels=["0.01%", "0.1%", "1%", "10%", "100%"])
    area.set_ylim(0.0, 1.02)
    area.set_xlabel("passes, forward + backward")
    if first:
        gap.set_ylabel("mean gap (hollow: fools under 99%)")
        area.set_ylabel("optimality, failures counted")
