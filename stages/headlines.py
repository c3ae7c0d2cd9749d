"""The first numbers of every experiment of a run, as a table for a terminal."""

import math
from collections.abc import Mapping

from pipeline.findings import Findings
from pipeline.statistics import Estimate

__all__ = ["headlines"]

WIDTH = 80
LINES = 12
"""Numbers in a table, below its heading."""


def headlines(findings: Mapping[str, Findings]) -> str:
    """A table with the first numbers of each experiment: value, 95% interval and n.

    Of many experiments each shows one number, of a single one it shows twelve. Differences and
    ratios of other numbers come last. All numbers are in ``metrics.json``.

    Args:
        findings: experiment -> its results.

    Returns:
        Lines of at most 80 characters; an empty text if nothing was measured.
    """
    each = max(1, LINES // max(1, len(findings)))
    rows = [row for name, found in findings.items() for row in _rows(name, found, each)]
    if not any(row[2] for row in rows):
        return ""
    rows = [("", "", "value", "95% interval", "n"), *rows[:LINES]]
    widths = [max(len(row[column]) for row in rows if row[2]) for column in range(5)]
    widths[0] = max(len(row[0]) for row in rows)
    widths[1] = min(widths[1], WIDTH - sum(widths) + widths[1] - 8)
    return "\n".join(_line(row, widths) for row in rows)


def _rows(experiment: str, found: Findings, limit: int) -> list[tuple[str, str, str, str, str]]:
    """One row a number; an experiment without numbers has one with its first note."""
    if not found.numbers:
        return [(experiment, found.notes[0] if found.notes else "no numbers", "", "", "")]
    names = sorted(found.numbers, key=_place)[:limit]
    firsts = [experiment, *[""] * (len(names) - 1)]
    return [
        (first, name, *_texts(found.numbers[name]))
        for first, name in zip(firsts, names, strict=True)
    ]


def _place(name: str) -> tuple[bool, bool]:
    """Where a number stands: the attack that was asked for first, comparisons last."""
    return any(sign in name for sign in (" - ", " / ")), not name.endswith("_attack")


def _texts(estimate: Estimate) -> tuple[str, str, str]:
    if math.isnan(estimate.value):
        return "none", "", str(estimate.n)
    ends = [f"{end:.3g}" for end in (estimate.low, estimate.high) if not math.isnan(end)]
    return f"{estimate.value:.4g}", f"[{', '.join(ends)}]" if ends else "", str(estimate.n)


def _line(row: tuple[str, str, str, str, str], widths: list[int]) -> str:
    experiment, name, value, interval, n = row
    if not value:
        return f"{experiment:<{widths[0]}}  {name}"[:WIDTH]
    return (
        f"{experiment:<{widths[0]}}  {_cut(name, widths[1]):<{widths[1]}}  "
        f"{value:>{widths[2]}}  {interval:<{widths[3]}}  {n:>{widths[4]}}"
    )


def _cut(text: str, width: int) -> str:
    """The text without its middle where it is too long: names differ at their ends."""
    left = (width - 3) // 2
    return text if len(text) <= width else f"{text[:left]}...{text[len(text) - width + 3 + left :]}"
