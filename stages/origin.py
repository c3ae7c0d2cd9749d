"""What a run says of itself beside its results: when it ran, from which commit, on which data."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.keys import Fingerprint
from pipeline.processes import provenance
from robustness_geometry.types import Dataset

__all__ = ["begun", "ended"]


def begun() -> dict[str, Any]:
    """The time, the commit, and whether code or settings differ from it, as a run begins."""
    state = provenance()
    return {
        "started": _now(),
        "commit": state.get("git.commit", ""),
        "changed": state.get("git.dirty") == "True",
    }


def ended(origin: Mapping[str, Any], data: Mapping[str, Dataset], run: str) -> dict[str, Any]:
    """What :func:`begun` found, with what is known once everything is measured.

    Args:
        origin: what the run said of itself when it began.
        data: network -> the data that it was measured on; each set is told by a digest of its
            training and test images and labels, as in MLflow.
        run: id of the run in MLflow; empty where it is not logged.
    """
    return {**origin, "ended": _now(), "data": _digests(data), "mlflow_run": run}


def _digests(data: Mapping[str, Dataset]) -> dict[str, dict[str, str]]:
    sets = {each.name: {"train": each.train, "test": each.test} for each in data.values()}
    return {
        name: {part: Fingerprint().of(split).hex()[:16] for part, split in splits.items() if split}
        for name, splits in sets.items()
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
