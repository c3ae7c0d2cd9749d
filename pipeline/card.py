"""The content of a geometry card, and the schema that documents its fields."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.card_lines import GROUPS, VERSION, Group, Line
from pipeline.findings import Findings
from pipeline.statistics import Estimate

__all__ = ["content", "picked", "rows", "schema", "written"]


def picked(findings: Mapping[str, Findings]) -> dict[str, Estimate]:
    """The card's numbers among those of the experiments, by their field in ``card.json``.

    A number that an experiment does not have, or that is not finite, is left out.
    """
    return {
        line.key: estimate
        for group in GROUPS
        for line in group.lines
        if line.experiment in findings
        and (estimate := findings[line.experiment].numbers.get(line.number)) is not None
        and math.isfinite(estimate.value)
    }


def content(about: Mapping[str, Any], findings: Mapping[str, Findings]) -> dict[str, Any]:
    """What ``card.json`` holds; see :func:`schema`.

    Args:
        about: the network: its name, data set, seeds, classes, shape and number of parameters.
        findings: the results of the card's experiments, by name.
    """
    numbers = picked(findings)
    return {
        "version": VERSION,
        **about,
        "numbers": {key: _plain(estimate) for key, estimate in numbers.items()},
        "missing": {
            line.key: _why(findings.get(line.experiment))
            for group in GROUPS
            for line in group.lines
            if line.key not in numbers
        },
    }


def written(card: Mapping[str, Any]) -> str:
    """The text of ``card.json``."""
    return json.dumps(card, indent=1, allow_nan=False) + "\n"


def _plain(estimate: Estimate) -> dict[str, float | int | None]:
    """The fields of an estimate, null where one is not known."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(estimate).items()
    }


def _why(found: Findings | None) -> str:
    if found is None:
        return "This experiment is not among those that were asked for."
    said = [note for note in found.notes if note.startswith("Not measured")]
    return said[0] if said else "The experiment has no such number for this network."


def schema() -> dict[str, Any]:
    """The JSON schema of ``card.json``, with the meaning of each number."""
    bound = {"type": ["number", "null"]}
    estimate = {
        "type": "object",
        "description": "A number with its 95% interval, null where none can be given.",
        "properties": {
            "value": {"type": "number"},
            "low": bound,
            "high": bound,
            "n": {"type": "integer", "description": "images, or pairs of them, per training seed"},
            "std": {**bound, "description": "standard deviation over images"},
            "seeds": {"type": "integer", "description": "training seeds"},
        },
        "required": ["value", "low", "high", "n", "std", "seeds"],
        "additionalProperties": False,
    }
    lines = [line for group in GROUPS for line in group.lines]
    text, count = {"type": "string"}, {"type": "integer", "minimum": 1}
    fields = {
        "version": {"const": VERSION},
        "network": text,
        "dataset": text,
        "seeds": {"type": "array", "items": {"type": "integer"}},
        "classes": count,
        "shape": {"type": "array", "items": count},
        "parameters": {"type": "integer", "minimum": 0},
        "budget": text,
        "numbers": {
            "type": "object",
            "properties": {
                line.key: {
                    "allOf": [{"$ref": "#/$defs/estimate"}],
                    "description": f"{line.meaning} ({line.experiment}: {line.number})",
                }
                for line in lines
            },
            "additionalProperties": False,
        },
        "missing": {
            "type": "object",
            "description": "Why a number is not there.",
            "propertyNames": {"enum": [line.key for line in lines]},
            "additionalProperties": text,
        },
        "notes": {"type": "array", "items": text},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Geometry card of a classifier",
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
        "$defs": {"estimate": estimate},
    }


def rows(card: Mapping[str, Any], group: Group) -> Sequence[tuple[Line, dict[str, Any] | None]]:
    """The lines of a group with their numbers, None where one is missing."""
    return [(line, card["numbers"].get(line.key)) for line in group.lines]
