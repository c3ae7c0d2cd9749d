"""The page of a geometry card."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.card import rows
from pipeline.card_lines import GROUPS, Group
from pipeline.report.files import caption
from pipeline.report.template import environment, style
from pipeline.report.text import interval_text

__all__ = ["is_card", "page"]

SHOWN = 2
"""Figures beside the numbers of a group."""

MARK = '<meta name="generator" content="robustness-geometry card">'
"""Tells a page of this module from a file that somebody else put there."""


def page(card: Mapping[str, Any], files: Mapping[str, Mapping[str, Path]]) -> str:
    """The page of a card: one file, without links to others.

    Args:
        card: what ``card.json`` holds.
        files: experiment -> name of a figure -> its PNG file.
    """
    template = environment().get_template("card.html")
    groups = [(group, _lines(card, group), list(_figures(group, files))) for group in GROUPS]
    return template.render(card=card, groups=groups, style=style(), mark=MARK)


def _lines(card: Mapping[str, Any], group: Group) -> list[dict[str, Any]]:
    lines = []
    for line, number in rows(card, group):
        value, interval = "not measured", ""
        if number is not None:
            value, interval = interval_text(
                line.number, *(number[k] for k in ("value", "low", "high"))
            )
        lines.append(
            {
                "title": line.title,
                "meaning": line.meaning,
                "value": value,
                "interval": interval,
                "number": number,
                "why": card["missing"].get(line.key, ""),
            }
        )
    return lines


def _figures(group: Group, files: Mapping[str, Mapping[str, Path]]) -> Iterator[tuple[str, str]]:
    """Caption and data URI of the first figures that are there."""
    there = [
        (name, path)
        for experiment, name in group.figures
        if (path := files.get(experiment, {}).get(name)) is not None and path.is_file()
    ]
    for name, path in there[:SHOWN]:
        yield caption(name), "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def is_card(text: str) -> bool:
    """Whether a text is a card's page or its JSON, of this version or another."""
    if MARK in text:
        return True
    try:
        content = json.loads(text)
    except ValueError:
        return False
    return isinstance(content, dict) and {"version", "numbers", "missing"} <= content.keys()
