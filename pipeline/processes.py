"""What this process is: first of its group, stage under DVC, from which commit; how it ends."""

import hashlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

__all__ = [
    "dvc_ancestor",
    "identity",
    "is_first",
    "lives",
    "provenance",
    "root",
    "same",
    "termination_raises",
]

_RANKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "SLURM_PROCID")
# Results change during every run.
_CODE = ("conf", "robustness_geometry", "pipeline", "stages", "dvc.yaml", "params.yaml")
_CLOCK = 5.0  # seconds by which a process' time of birth may wander with the machine's clock


def is_first() -> bool:
    """Whether this is the process of its group that writes and logs."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def root() -> Path:
    """The repository's root, also in DVC's temporary copies.

    For an installed package it is the current folder.
    """
    if "DVC_ROOT" in os.environ:
        return Path(os.environ["DVC_ROOT"])
    here = Path(__file__).resolve().parent.parent
    return here if (here / "pyproject.toml").exists() else Path.cwd()


def dvc_ancestor() -> psutil.Process | None:
    """The ``dvc`` process that started this one; None outside a DVC stage."""
    if "DVC_STAGE" not in os.environ:
        return None
    return next((process for process in psutil.Process().parents() if _is_dvc(process)), None)


def _is_dvc(process: psutil.Process) -> bool:
    """Whether it is ``dvc``, ``python .../dvc`` or ``python -m dvc``, and no shell around it."""
    try:
        words = process.cmdline()[:3]
    except psutil.Error:
        return False
    names = [Path(word).name.removesuffix(".exe") for word in words]
    return "dvc" in names[:2] or names[1:] == ["-m", "dvc"]


def identity(process: psutil.Process | None = None) -> str:
    """A name that no other process has, ``host:pid-time of birth``; None: of this process."""
    chosen = process or psutil.Process()
    return f"{socket.gethostname()}:{chosen.pid}-{chosen.create_time():.0f}"


def same(one: str, other: str) -> bool:
    """Whether two names belong to one process."""
    (first, _, born), (second, _, also) = one.rpartition("-"), other.rpartition("-")
    return first == second and abs(float(born) - float(also)) <= _CLOCK


def lives(name: str) -> bool:
    """Whether the process of that name still runs; assumed for processes of another machine."""
    host, _, number = name.rpartition("-")[0].rpartition(":")
    if host != socket.gethostname():
        return True
    try:
        return same(name, identity(psutil.Process(int(number))))
    except psutil.NoSuchProcess:
        return False


def provenance() -> dict[str, str]:
    """The state of the code: commit, whether code or settings differ from it, and DVC's state."""
    place = root()
    found = {
        "git.commit": _git(place, "rev-parse", "HEAD"),
        "DVC_STAGE": os.environ.get("DVC_STAGE"),
        "DVC_EXP_NAME": os.environ.get("DVC_EXP_NAME"),
    }
    if found["git.commit"]:
        found["git.dirty"] = str(bool(_git(place, "status", "--porcelain", "--", *_CODE)))
    lock = place / "dvc.lock"
    if lock.exists():  # DVC adds a stage's own entry only after the stage
        found["dvc.lock md5 at start"] = hashlib.md5(
            lock.read_bytes(), usedforsecurity=False
        ).hexdigest()
    return {name: value for name, value in found.items() if value is not None}


def _git(place: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=place, capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip()


@contextmanager
def termination_raises() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit, so that what is open gets closed.

    It does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
