"""The results of a run, written to disk as they come in."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import markdown

__all__ = ["Limits", "Record", "attempt", "reason"]


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        seconds: time after which nothing new is started.
        rounds: largest number of timed rounds of a block.
        block: seconds for the rounds of one block; one round is always taken.
    """

    seconds: float = 280.0
    rounds: int = 5
    block: float = 10.0


class Record:
    """The results so far, written again after every row.

    Args:
        target: the JSON file; the tables are written beside it. None: nothing is written.
        limits: how long to measure.
        about: description of the machine and the settings.
    """

    def __init__(self, target: Path | None, limits: Limits, about: Mapping[str, Any]) -> None:
        self.target, self.limits, self.start = target, limits, time.monotonic()
        self.results: dict[str, Any] = {**about, "rows": [], "agreement": [], "skipped": []}

    @property
    def left(self) -> float:
        """Seconds in which something may still be started."""
        return self.limits.seconds - (time.monotonic() - self.start)

    def add(self, kind: str, entry: Any) -> None:
        """Append to ``rows``, ``agreement`` or ``skipped``, and write."""
        self.results[kind].append(entry)
        self.write()

    def write(self) -> None:
        """Replace both files, each in one move: an interrupted run leaves complete files."""
        self.results["seconds"] = time.monotonic() - self.start
        if self.target is None:
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        texts = {".json": json.dumps(self.results, indent=1) + "\n", ".md": markdown(self.results)}
        for suffix, text in texts.items():
            part = self.target.with_suffix(suffix + ".part")
            part.write_text(text)
            part.replace(self.target.with_suffix(suffix))


def attempt(record: Record, what: str, action: Callable[[], None]) -> None:
    """Run ``action`` unless time is up; if it is not run or fails, record why under ``skipped``."""
    if record.left <= 0:
        record.add("skipped", f"{what}: out of time")
        return
    print(f"measuring: {what} ({record.left:.0f} s left)", file=sys.stderr, flush=True)
    try:
        action()
    except Exception as error:  # whatever it is, the other measurements go on
        record.add("skipped", f"{what}: {reason(error)}")


def reason(error: Exception) -> str:
    """The first line of the error's message, and its type."""
    return (str(error).splitlines() or [""])[0][:200] + f" ({type(error).__name__})"
