"""Reading back what the stages wrote: results/<suite>/<stage>/<network>/metrics.json and timings.json."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pipeline.claims import ALL
from pipeline.statistics import Estimate
from robustness_geometry.checks import refuse

__all__ = ["Measured", "Results", "read_results"]


@dataclass(frozen=True)
class Measured:
    """One experiment on one network, as its stage wrote it.

    Attributes:
        network: the network's name; ALL for what was measured across networks.
        dataset: the name of the data set that it was measured on.
        stage: the stage that ran the experiment.
        training_seeds: the seeds of the network's trainings.
        section: where the experiment stands in the thesis.
        numbers: name -> estimate, of the metrics file and of the timings file together.
        timings: which of those names are wall-clock times.
        notes: sentences that the experiment left for the report.
        folder: where tables and figures lie.
    """

    network: str
    dataset: str
    stage: str
    training_seeds: tuple[int, ...]
    section: str
    numbers: Mapping[str, Estimate]
    timings: frozenset[str]
    notes: tuple[str, ...]
    folder: Path


Results: TypeAlias = Mapping[str, Mapping[str, Measured]]
"""Experiment (its file's name) -> network -> what was measured."""


def read_results(folder: Path, networks: Iterable[str]) -> Results:
    """Read every experiment that the stages of a suite left for the networks named, and across networks.

    Args:
        folder: ``results/<suite>``; a folder that does not exist holds no results.
        networks: the suite's networks; what lies there of other networks is left over from another
            suite.

    Raises:
        InputError: a file is not what a stage writes.
    """
    found: dict[str, dict[str, Measured]] = {}
    for network in (*networks, ALL):
        for path in sorted(folder.glob(f"*/{network}/metrics.json")):
            for experiment, measured in _read_stage(path):
                found.setdefault(experiment, {})[network] = measured
    return found


def _read_stage(path: Path) -> Iterable[tuple[str, Measured]]:
    metrics, timings = _json(path), _json(path.with_name("timings.json"))
    try:
        for experiment, entry in metrics["experiments"].items():
            seconds = timings.get("experiments", {}).get(experiment, {}).get("numbers", {})
            yield (
                experiment,
                Measured(
                    network=metrics["network"],
                    dataset=metrics["dataset"],
                    stage=path.parent.parent.name,
                    training_seeds=tuple(metrics["seeds"]),
                    section=entry.get("section", ""),
                    numbers={
                        name: _estimate(values)
                        for name, values in (entry["numbers"] | seconds).items()
                    },
                    timings=frozenset(seconds),
                    notes=tuple(entry.get("notes", ())),
                    folder=path.parent,
                ),
            )
    except (AttributeError, KeyError, TypeError) as error:
        refuse("results", str(path), f"a metrics file of a stage ({type(error).__name__}: {error})")


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse("results", str(path), f"a JSON file ({error})")
    if not isinstance(content, dict):
        refuse("results", str(path), "a JSON object")
    return content


def _estimate(values: Mapping[str, float | int | None]) -> Estimate:
    """An estimate from its fields; null, which stands for what could not be measured, becomes NaN."""
    known = {
        name: math.nan if values.get(name) is None else float(values[name] or 0)
        for name in ("value", "low", "high", "std")
    }
    return Estimate(**known, n=int(values["n"] or 0), seeds=int(values.get("seeds") or 1))
