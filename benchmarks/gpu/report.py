"""The tables of a run as markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LIMIT", "markdown"]

Plain = Mapping[str, Any]

LIMIT = 1e-3
"""Largest relative difference of a norm between GPU and CPU that counts as agreement."""

LEGEND = (
    "ResNets with random weights and the batch statistics of random images, on random smooth "
    "images. The rows of one block take turns, round after round; time is the median over the "
    "rounds (minimum to maximum), after a first call in which passes and memory are measured; a "
    "ratio is that of two times of one round. `first` marks the time of the first call alone. Peak "
    "is all that PyTorch had allocated at once on the card, the networks and what the rows before "
    "keep included. Forward and backward are passes an image; plain gradients come at most 512 at "
    "once, where curvatures take more of small images. Beside the peers, DeepFool is the variant "
    "`overshot` clipped to [0, 1], which they compute too. TF32 stands for both matrix products "
    "and convolutions."
)
AGREEMENT = (
    "network",
    "precision",
    "what",
    "images",
    "found on both",
    "median",
    "largest",
    "within the limit",
)
SPEED = (
    "what",
    "images",
    "seconds",
    "time / reference",
    "forward",
    "backward",
    "peak MiB",
    "mean norm",
    "success",
)
STYLES = {
    "forward": ".1f",
    "backward": ".1f",
    "peak_mib": ".0f",
    "mean_norm": ".4g",
    "success": ".0%",
}


def markdown(results: Plain) -> str:
    """The tables of a run, complete or interrupted."""
    machine = results["machine"]
    versions = [f"torch {machine['torch']}", f"Python {machine['python']}"]
    versions += [f"{key} {machine[key]}" for key in ("driver", "cuda", "cudnn") if machine.get(key)]
    lines = [f"# Speed on {machine['device']}", "", ", ".join(versions) + ".", "", LEGEND]
    lines += ["", f"## Norms beside those of the CPU, limit {LIMIT:g}", ""]
    lines += _table(AGREEMENT, [_agreement_cells(row) for row in results["agreement"]])
    for place in dict.fromkeys((row["network"], row["precision"]) for row in results["rows"]):
        rows = [row for row in results["rows"] if (row["network"], row["precision"]) == place]
        lines += ["", f"## {place[0]}, {place[1]}", ""]
        lines += _table(SPEED, [_speed_cells(row) for row in rows])
    if results["skipped"]:
        lines += ["", "## Not measured", "", *[f"- {what}" for what in results["skipped"]]]
    return "\n".join([*lines, ""])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def _agreement_cells(row: Plain) -> list[str]:
    cells = [str(row[key]) for key in ("network", "precision", "name", "images", "compared")]
    return [*cells, *(_number(row[key], ".1e") for key in ("median", "max")), f"{row['agree']:.0%}"]


def _speed_cells(row: Plain) -> list[str]:
    cells = [row["name"], str(row["images"]), _seconds(row), _ratios(row)]
    return [*cells, *(_number(row.get(key), style) for key, style in STYLES.items())]


def _seconds(row: Plain) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "seconds" not in row:
        return f"{row['first_seconds']:.3g} (first)"
    return "{median:.3g} ({min:.3g} to {max:.3g})".format(**row["seconds"])


def _ratios(row: Plain) -> str:
    return ", ".join(
        f"{ratio['median']:.2f} of {other}" for other, ratio in row.get("ratio", {}).items()
    )


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)
