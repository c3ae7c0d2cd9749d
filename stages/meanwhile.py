"""The report so far, written while later stages still run."""

import os
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

__all__ = ["begin_page", "page_lock", "under_way"]

EVERY = 120.0
"""Seconds after which the page of a running ``dvc repro`` is written again."""


SO_FAR = "PIPELINE_REPORT_SO_FAR"
"""The environment variable that tells a report that later stages still run."""


def under_way() -> bool:
    """Whether this process writes the report while later stages still run."""
    return SO_FAR in os.environ


def page_lock(work: Path, suite: str) -> FileLock:
    """What a process holds while it writes the pages of a suite.

    Args:
        work: the executor's folder.
        suite: name of the suite.
    """
    path = work / "locks" / f"report-{suite}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def begin_page(root: Path, suite: str) -> Path | None:
    """Start to write the suite's page in a process of its own, unless there is a recent one.

    The process is not waited for: it takes seconds, ends by itself and logs nothing.

    Args:
        root: the repository's root, with ``params.yaml``.
        suite: name of the suite.

    Returns:
        The page; None if it was written less than EVERY seconds ago.
    """
    page = root / "reports" / suite / "index.html"
    if page.exists() and 0 <= time.time() - page.stat().st_mtime < EVERY:  # the clock may jump
        return None
    command = [sys.executable, "-m", "stages.report", "--config-dir", ".", "--config-name"]
    options = ["params", "tracking.enabled=false", "hydra.run.dir=outputs/repro/report_so_far"]
    subprocess.Popen(
        [*command, *options],
        cwd=root,
        env={**os.environ, SO_FAR: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return page
