"""The runs whose results are there, as an export of a suite's results describes them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robustness_geometry.checks import refuse

__all__ = ["StageRun", "stage_runs", "times"]


@dataclass(frozen=True)
class StageRun:
    """The run of a stage on one network, or across them.

    Attributes:
        stage: its stage.
        name: as dvc.yaml names it.
        folder: folder of its results, below the root.
        used: folders of results that it took up, below the root.
        said: what the run said of itself; empty where it is not known.
        experiments: what it measured.
    """

    stage: str
    name: str
    folder: str
    used: tuple[str, ...]
    said: Mapping[str, Any]
    experiments: tuple[str, ...]


def stage_runs(place: Path, suite: str) -> list[StageRun]:
    """The runs whose results are there, in the order in which dvc.lock names their stages.

    Args:
        place: the repository's root.
        suite: name of the suite.
    """
    stages = _lock(place)
    found = []
    for path in (place / "results" / suite).glob("*/*/metrics.json"):
        stage, network = path.parent.parent.name, path.parent.name
        name = stage if network == "all" else f"{stage}@{network}"
        deps = [dep["path"] for dep in stages.get(name, {}).get("deps", ())]
        used = tuple(dep for dep in deps if dep.startswith(f"results/{suite}/"))
        times = _json(path.with_name("timings.json"))
        folder = path.parent.relative_to(place).as_posix()
        names = tuple(_json(path).get("experiments", ()))
        found.append(StageRun(stage, name, folder, used, times.get("run", {}), names))
    order = {name: index for index, name in enumerate(stages)}
    return sorted(found, key=lambda run: (order.get(run.name, len(order)), run.name))


def times(runs: Sequence[StageRun]) -> dict[str, str]:
    """From the first begin to the last end of runs, if all of them noted both."""
    began = [str(run.said.get("started", "")) for run in runs]
    ended = [str(run.said.get("ended", "")) for run in runs]
    if not all((*began, *ended)):
        return {}
    return {"startTime": min(began), "endTime": max(ended)}


def _lock(place: Path) -> Mapping[str, Any]:
    """The stages that dvc.lock records."""
    path = place / "dvc.lock"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = yaml.load(path.read_text("utf-8"), loader) if path.is_file() else None
    stages: Mapping[str, Any] = (found or {}).get("stages", {})
    return stages


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        refuse("results", str(path), f"a JSON file ({error})")
    return found
