"""Where the results of an experiment come from: commit, data, time, and what changed since."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.claims import ALL, Experiment
from pipeline.report.freshness import Freshness
from pipeline.report.results import Measured

__all__ = ["Origin", "Page", "seconds_text"]

NAMED = 4
"""Largest number of changed dependencies that are named."""


@dataclass(frozen=True)
class Origin:
    """Where the results of an experiment on one network come from.

    Attributes:
        network: name of the network.
        stage: its stage in dvc.yaml.
        commit: what is known of the commit; empty if nothing is.
        short: the same in a few letters.
        data: names and digests of the data sets.
        seconds: how long the experiment took; empty where it is not known.
        started: when its run began; empty where it is not known.
        run: id of its run in MLflow; empty where there is none.
        changed: what changed since, as a sentence; empty where nothing did.
        recorded: whether dvc.lock knows of these results.
        folder: link to the results.
    """

    network: str
    stage: str
    commit: str
    short: str
    data: tuple[tuple[str, str], ...]
    seconds: str
    started: str
    run: str
    changed: str
    recorded: bool
    folder: str

    @property
    def stale(self) -> bool:
        """Whether a dependency has changed since."""
        return bool(self.changed)


@dataclass(frozen=True)
class Page:
    """What the page needs to know of the origin of results.

    Attributes:
        folder: folder of the page, from which links lead; None: the page has no links to files.
        freshness: what dvc.lock recorded; None: nothing.
        commits: files of results -> the commit that they were last committed with.
        coming: stage or experiment -> the networks that it still is to run on; all of them where it
            is not listed. None: no run is under way.
    """

    folder: Path | None = None
    freshness: Freshness | None = None
    commits: Mapping[Path, str] = field(default_factory=dict)
    coming: Mapping[str, Sequence[str]] | None = None

    def link(self, path: Path | None) -> str:
        """A link from the page to a file or folder."""
        if self.folder is None or path is None:
            return ""
        return quote(Path(os.path.relpath(path.resolve(), self.folder.resolve())).as_posix())

    def origin(self, measured: Measured) -> Origin:
        """Where results come from."""
        found = measured.origin
        changed = self.freshness.changed(measured.folder) if self.freshness else None
        commit, short = self._commit(measured)
        across = measured.network == ALL
        return Origin(
            network=measured.network,
            stage=measured.stage if across else f"{measured.stage}@{measured.network}",
            commit=commit,
            short=short,
            data=tuple((name, _digests(parts)) for name, parts in found.get("data", {}).items())
            or ((measured.dataset, ""),),
            seconds="" if measured.seconds is None else seconds_text(measured.seconds),
            started=str(found.get("started", "")).replace("T", " ").replace("+00:00", " UTC"),
            run=str(found.get("mlflow_run", "")),
            changed=_sentence(changed or ()),
            recorded=changed is not None,
            folder=self.link(measured.folder),
        )

    def still_coming(self, experiment: Experiment, absent: Sequence[str]) -> tuple[str, ...]:
        """Of the networks without results, those that a run under way still is to measure."""
        if self.coming is None:
            return ()
        lists = [
            self.coming[key] for key in (experiment.run_by, experiment.name) if key in self.coming
        ]
        return tuple(
            network
            for network in absent
            if network == ALL or all(network in networks for networks in lists)
        )

    def _commit(self, measured: Measured) -> tuple[str, str]:
        """The commit that a run noted, or else that of its results; and the same in short."""
        if commit := str(measured.origin.get("commit", "")):
            changed = bool(measured.origin.get("changed"))
            note = ", with changes that were not committed" if changed else ""
            return f"{commit[:12]}{note}", f"{commit[:7]}{'+' if changed else ''}"
        commit = self.commits.get((measured.folder / "metrics.json").resolve(), "")
        return (f"its results came with {commit[:12]}", commit[:7]) if commit else ("", "")


def seconds_text(seconds: float) -> str:
    """A run time in words.

    Example:
        >>> from pipeline.report.origins import seconds_text
        >>> seconds_text(0.3), seconds_text(42.4), seconds_text(130)
        ('under 1 s', '42 s', '2 min 10 s')
    """
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def _digests(parts: Mapping[str, Any]) -> str:
    return ", ".join(f"{part} {digest}" for part, digest in parts.items())


def _sentence(changed: Sequence[str]) -> str:
    """Such as "pipeline/plots.py and 2 more changed since"; empty for none."""
    if not changed:
        return ""
    named, more = ", ".join(changed[:NAMED]), len(changed) - NAMED
    return f"{named}{f' and {more} more' if more > 0 else ''} changed since"
