"""The measurements in Markdown, for the file and the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import cure, curvature, detection, subspace, universal

__all__ = ["SECTIONS", "markdown"]

Plain = Mapping[str, Any]
SECTIONS = {
    "universal": universal.paragraphs,
    "subspaces": subspace.paragraphs,
    "curvature": curvature.paragraphs,
    "detection": detection.paragraphs,
    "cure": cure.paragraphs,
}
"""What was measured beside the comparison -> the function that describes it."""

LEGEND = (
    "All libraries take turns, round after round, after a round in which the passes are counted. A "
    "ratio is "
    "that of two times of one round on the same images: median (minimum to maximum) over the "
    "rounds. "
    "Libraries that are measured on all images have the batch size, out of three, with which each "
    "is fastest "
    "without clipping; a slow one takes its few images at once. Forward and backward are the "
    "images in all passes "
    "through the network for each image attacked, counted by hooks: they depend on no machine."
)


def markdown(results: Plain) -> str:
    """The whole report of one run."""
    machine = results["machine"]
    lines = [
        f"# l2 DeepFool on {results['network']}: {machine['device']}",
        "",
        _machine(machine),
        "",
        LEGEND,
    ]
    lines += _alone(results, "comparisons")
    for title, rows in results.get("comparisons", {}).items():
        lines += ["", f"## {title}", "", *_comparison(rows), "", _summary(rows)]
    lines += ["", *[f"{name}: not installed: not measured." for name in results["missing"]]]
    if "bound" in results:
        lines += ["", "## Against the bound", "", *_bound(results["bound"])]
    for name, paragraphs in SECTIONS.items():
        if name in results:
            lines += ["", *paragraphs(results[name]), *_alone(results, name)]
    return "\n".join([*lines, ""])


def _alone(results: Plain, part: str) -> list[str]:
    """The machine of a part that was measured by itself."""
    machine = results.get("machines", {}).get(part)
    return ["", f"Measured by itself: {_machine(machine)}"] if machine else []


def _machine(machine: Plain) -> str:
    load = ", ".join(map(str, machine["load_average"]))
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"{threads} of {machine['cpus']} processors, torch {machine['torch']}, "
        f"Python {machine['python']}; load average at the start {load}."
    )


def _comparison(rows: Sequence[Plain]) -> list[str]:
    header = [
        "library",
        "images",
        "batch",
        "images/s",
        "time / ours",
        "forward",
        "backward",
        "mean norm",
    ]
    header += ["fooled", ""]
    body = [
        [
            row["name"],
            str(row["images"]),
            str(row["batch"]),
            f"{row['images_per_second']:.1f}",
            _ratio(row["ratio"]),
            f"{row['forward']:.2f}",
            f"{row['backward']:.2f}",
            f"{row['mean_norm']:.4f}",
            f"{row['success']:.1%}",
            row["note"],
        ]
        for row in rows
    ]
    return _table([header, *body])


def _summary(rows: Sequence[Plain]) -> str:
    """How much faster this project is than each library that takes all images."""
    most, ours = max(row["images"] for row in rows), rows[0]["mean_norm"]
    peers = [
        f"{row['name']} takes **{row['ratio']['median']:.2f}** times as long "
        f"({row['ratio']['min']:.2f} to {row['ratio']['max']:.2f}), at a mean norm "
        f"{row['mean_norm'] / ours - 1:+.2%} of ours"
        for row in rows
        if row["images"] == most and not row["name"].startswith("this project")
    ]
    return "; ".join(peers) + "." if peers else "No library took all images."


def _bound(bound: Plain) -> list[str]:
    share = bound["share_of_bound"]
    return [
        f"{bound['images']} images, {bound['batch']} at once, need {bound['mean_steps']:.2f} steps "
        "on "
        "average. At the batch sizes of these steps plain autograd gives "
        f"{bound['jacobians_per_second']:.0f} Jacobians of all classes a second "
        f"(fastest: {bound['fastest_jacobian']}). DeepFool runs at **{share['median']:.0%}** "
        f"({share['min']:.0%} to {share['max']:.0%}) of the speed that this allows; "
        "above 100% it took fewer gradients.",
    ]


def _ratio(values: Mapping[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in padded]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
