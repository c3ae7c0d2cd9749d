"""Reading results/<suite>/<stage>/<network>/metrics.json and timings.json, as stages write them."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from pipeline.claims import ALL, Claims
from pipeline.ledger import RUN_TIME
from pipeline.statistics import Estimate
from robustness_geometry.checks import refuse

__all__ = ["Measured", "Results", "read_results", "with_times"]

TIME = "t_"
"""How the names of wall-clock times begin."""


@dataclass(frozen=True)
class Measured:
    """One experiment on one network, as its stage wrote it.

    Attributes:
        network: name of the network; ALL for results across networks.
        dataset: name of the data set.
        stage: stage that ran the experiment.
        training_seeds: seeds of the network's trainings.
        section: section, table or figure of the thesis.
        numbers: name -> estimate, of the metrics file and the timings file together.
        timings: names of those numbers that are wall-clock times.
        notes: sentences of the experiment for the report.
        folder: folder of the tables and figures.
        seconds: how long the experiment took; None where it is not known.
        origin: what the run said of itself: when, from which commit, on which data.
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
    seconds: float | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


Results: TypeAlias = Mapping[str, Mapping[str, Measured]]
"""Experiment (its file's name) -> network -> what was measured."""


def read_results(folder: Path, networks: Iterable[str]) -> Results:
    """Read the results of every experiment of a suite, on its networks and across them.

    Args:
        folder: ``results/<suite>``; a folder that does not exist holds no results.
        networks: networks of the suite; results of other networks are left over from another
            suite, and not read.

    Raises:
        InputError: a file is not what a stage writes.
    """
    found: dict[str, dict[str, Measured]] = {}
    for network in (*networks, ALL):
        for path in sorted(folder.glob(f"*/{network}/metrics.json")):
            for experiment, measured in _read_stage(path):
                found.setdefault(experiment, {})[network] = measured
    return found


def with_times(results: Results, path: Path, claims: Claims) -> Results:
    """Results with the wall-clock times that only the suite's own file of verdicts holds.

    Times stand apart from the metrics and are not kept with the code, so that a fresh checkout has
    none but those that verdicts rest on. A time that was measured here stays.

    Args:
        results: results of a suite.
        path: its file of verdicts; without one, nothing is added.
        claims: all claims.

    Raises:
        InputError: the file is not one of verdicts.
    """
    files = {claim.id: claim.experiment.replace("-", "_") for claim in claims.claims}
    filled = {name: dict(entry) for name, entry in results.items()}
    try:
        for entry in _json(path).get("claims", ()):
            measured = filled.get(files.get(entry["id"], ""), {})
            for network, name, estimate in _times(entry):
                if network in measured and name not in measured[network].numbers:
                    numbers = {**measured[network].numbers, name: estimate}
                    measured[network] = replace(measured[network], numbers=numbers)
    except (AttributeError, KeyError, TypeError) as error:
        refuse("results", str(path), f"a file of verdicts ({type(error).__name__}: {error})")
    return filled


def _times(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, Estimate]]:
    """The network, name and value of each time that a verdict rests on."""
    for judgement in (*entry["decided_by"], *entry["others"]):
        for test in judgement["tests"]:
            if test["number"].startswith(TIME) and test["value"] is not None:
                yield judgement["network"], test["number"], _estimate(test)


def _read_stage(path: Path) -> Iterable[tuple[str, Measured]]:
    metrics, timings = _json(path), _json(path.with_name("timings.json"))
    try:
        for experiment, entry in metrics["experiments"].items():
            seconds = dict(timings.get("experiments", {}).get(experiment, {}).get("numbers", {}))
            whole = seconds.pop(RUN_TIME, None)
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
                    seconds=whole and float(whole["value"]),
                    origin=dict(timings.get("run", {})),
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
    """An estimate from its fields; null, for what could not be measured, becomes NaN."""
    known = {
        name: math.nan if values.get(name) is None else float(values[name] or 0)
        for name in ("value", "low", "high", "std")
    }
    return Estimate(**known, n=int(values["n"] or 0), seeds=int(values.get("seeds") or 1))
