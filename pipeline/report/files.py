"""The figures and tables of an experiment, ready to be put into one HTML file."""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.report.embedding import data_uri
from pipeline.report.results import Measured

__all__ = ["Figure", "Table", "caption", "figures", "tables"]

SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
NUMBERED = re.compile(r"(figure|table)_(\d)_(\d+[a-z]?)_?(.*)")
"""Files named after a figure or table of the thesis."""

ROWS = 60
"""Largest number of rows of a table on the page; the file has all of them."""


@dataclass(frozen=True)
class Figure:
    """A figure as a data URI; without one, ``problem`` says what is wrong with the file."""

    title: str
    network: str
    uri: str
    problem: str = ""
    file: Path | None = None


@dataclass(frozen=True)
class Table:
    """The header and first rows of a table, and the number of rows that were left off."""

    title: str
    network: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_off: int
    file: Path | None = None


def figures(measured: Measured, experiment: str, experiments: Iterable[str]) -> list[Figure]:
    """The figures of an experiment.

    Args:
        measured: its results.
        experiment: its name.
        experiments: names of all experiments, as a name may begin like another.
    """
    found = []
    for title, path in _own(measured, "figures/*.png", experiment, experiments):
        content = path.read_bytes()
        if content.startswith(SIGNATURE) and content.endswith(END):
            found.append(Figure(title, measured.network, data_uri(content), file=path))
        else:
            found.append(
                Figure(title, measured.network, "", f"{path.name} is not a whole PNG file", path)
            )
    return found


def tables(measured: Measured, experiment: str, experiments: Iterable[str]) -> list[Table]:
    """The tables of an experiment, each cut to its first rows; arguments as for :func:`figures`."""
    found = []
    for title, path in _own(measured, "tables/*.csv", experiment, experiments):
        with path.open(newline="", encoding="utf-8") as file:
            rows = [tuple(row) for row in csv.reader(file) if row]
        if rows:
            shown = tuple(rows[1 : ROWS + 1])
            left_off = len(rows) - 1 - len(shown)
            found.append(Table(title, measured.network, rows[0], shown, left_off, path))
    return found


def _own(
    measured: Measured, pattern: str, experiment: str, experiments: Iterable[str]
) -> Iterator[tuple[str, Path]]:
    known = {experiment, *experiments}
    for path in sorted(measured.folder.glob(pattern)):
        owners = [name for name in known if path.stem == name or path.stem.startswith(f"{name}_")]
        if owners and max(owners, key=len) == experiment:
            yield caption(path.stem.removeprefix(experiment).strip("_") or experiment), path


def caption(name: str) -> str:
    """The name of a file as a caption: ``figure_3_9_text`` is "Figure 3.9, text"."""
    numbered = NUMBERED.fullmatch(name)
    if numbered:
        kind, chapter, number, rest = numbered.groups()
        return f"{kind.capitalize()} {chapter}.{number}" + (
            f", {rest.replace('_', ' ')}" if rest else ""
        )
    return name.replace("_", " ").capitalize()
