"""The runs of a sweep (``-m``): one that fails leaves the others alone, and the end names it."""

import os
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

__all__ = ["Sweep", "is_swept", "one_line"]


@dataclass(frozen=True)
class Ended:
    """A run of a sweep that has ended.

    Attributes:
        overrides: its overrides, such as ``attack.norm=inf``.
        reason: why it failed, one line; empty if it did not.
        code: its exit code.
    """

    overrides: tuple[str, ...]
    reason: str
    code: int


@dataclass
class Sweep:
    """What became of the runs of a sweep, as far as this process ran them.

    Attributes:
        stage: the name of the stage.
        process: the process that was started on the command line.
        host: the machine that it runs on.
        ended: the runs that have ended.
    """

    stage: str
    process: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    ended: list[Ended] = field(default_factory=list)

    def end(self, reason: str, code: int, error: Exception | None) -> int:
        """Note the end of the current run, and say at once why it failed.

        Args:
            reason: why it failed, one line; empty if it did not.
            code: its exit code.
            error: an error whose trace is worth showing; None if there is none.

        Returns:
            The exit code; Hydra's callbacks get it as the value of the run.

        Raises:
            RuntimeError: the run failed in a process of a launcher, such as Slurm's. Hydra
                carries the exception to the process that waits for it.
        """
        overrides = tuple(each.lstrip("+") for each in HydraConfig.get().overrides.task)
        self.ended.append(Ended(overrides, reason, code))
        if error is not None:
            traceback.print_exception(error)
        if code:
            print(f"{self.stage}: {reason}", file=sys.stderr, flush=True)
        if code and (os.getpid(), socket.gethostname()) != (self.process, self.host):
            raise RuntimeError(f"{' '.join(overrides)}: {reason}")
        return code

    def finish(self) -> None:
        """Name the runs that failed on stderr, and leave with the exit code of the sweep.

        It is 2 if every failure was a refusal of what was given, else 1. Nothing happens if no run
        failed.
        """
        failed = [each for each in self.ended if each.code]
        if not failed:
            return
        shared = set.intersection(*(set(each.overrides) for each in self.ended))
        print(f"{self.stage}: {len(failed)} of {len(self.ended)} runs failed:", file=sys.stderr)
        for each in failed:
            own = [word for word in each.overrides if word not in shared] or each.overrides
            print(f"  {' '.join(own)}: {each.reason}", file=sys.stderr)
        sys.exit(2 if all(each.code == 2 for each in failed) else 1)


def is_swept() -> bool:
    """Whether the current run is one of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def one_line(text: str) -> str:
    """A message as one line."""
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines) or "stopped by an error without a text"
