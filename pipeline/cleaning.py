"""``make clean``: removes what runs wrote, and nothing else.

It needs the standard library alone, as it also runs where no environment is.
"""

import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.ledger import (
    FOLDERS,
    LIST,
    RUN,
    owns,
    read_list,
    remove,
    there,
    write_list,
    written_before,
)

__all__ = ["clean"]

RUNS = ("outputs", "multirun", "work")
"""Folders of Hydra's runs, and of whatever results were put beside the finished chunks."""

STORED = re.compile(
    r"work/(\w+/[0-9a-f]{32}/\d{5}\.bin\w*(\.part)?|checkpoints/[^/]+\.pt|locks/[^/]+\.lock"
    r"|(build|override)\.txt)"
)
"""The files of finished work."""

DATABASE = ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm", ".mlflow.lock")


def clean(root: Path) -> list[str]:
    """Remove results that git does not keep, reports, finished work, and MLflow's runs.

    Args:
        root: the repository.

    Returns:
        What stays, as no run wrote it: paths below the repository.
    """
    _results(root / "results", committed=True)
    for name in RUNS:
        _results(root / name, committed=False)
        _hydra(root / name)
    for path in _files(root / "work"):
        if STORED.fullmatch(path.relative_to(root).as_posix()):
            path.unlink()
    for page in (root / "reports").glob("*/index.html"):
        if "robustness-geometry" in page.read_text("utf-8", errors="replace"):
            remove(page, "")
    for crate in (root / "reports").glob("*.crate.zip"):
        remove(crate, "")
    _mlflow(root)
    places = [root / name for name in (*RUNS, "reports", "mlruns")]
    for place in [*places, *(root / "results").glob("*/*/*")]:
        _prune(place)
    kept = [path for place in places for path in _files(place)]
    kept += [root / DATABASE[0]] if there(root / DATABASE[0]) else []
    return [path.relative_to(root).as_posix() for path in kept]


def _files(place: Path) -> Iterator[Path]:
    """All files below a folder; what links lead to is not below it."""
    for folder, names, files in os.walk(place):
        yield from (Path(folder) / name for name in files)
        yield from (Path(folder) / name for name in names if (Path(folder) / name).is_symlink())


def _results(place: Path, *, committed: bool) -> None:
    """Remove the results of runs; where git keeps them, those alone that git ignores."""
    for folder in {path.parent for path in _files(place) if path.name in ("metrics.json", LIST)}:
        files = written_before(folder)
        for name, written in files.items():
            if not committed or name.startswith(FOLDERS[1:]) or name == "timings.json":
                remove(folder / name, written)
        if read_list(folder) is None:
            continue
        left = {name: was for name, was in files.items() if there(folder / name)}
        if all(owns(folder / name, was) for name, was in left.items()):
            remove(folder / LIST, "")
        else:  # without the list, what was changed by hand would pass for a run's next time
            write_list(folder, left)


def _hydra(place: Path) -> None:
    """Remove what Hydra wrote beside the results."""
    for path in [each for each in _files(place) if each.name in ("hydra.yaml", "multirun.yaml")]:
        job = None if path.is_symlink() else RUN.search(path.read_text("utf-8", errors="replace"))
        if job is None:
            continue
        path.unlink()
        if path.name == "hydra.yaml":
            remove(path.with_name("config.yaml"), "")
            remove(path.with_name("overrides.yaml"), "")
            remove(path.parent.with_name(f"{job[1]}.log"), "")


def _mlflow(root: Path) -> None:
    """Remove MLflow's database and files, unless runs of other programs are among them."""
    database, folder = root / DATABASE[0], root / "mlruns"
    if not database.is_file() or database.is_symlink():
        return
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
    try:
        others = connection.execute(
            "select count(*) from runs where run_uuid not in "
            "(select run_uuid from tags where key = 'pipeline.process')"
        ).fetchone()[0]
        places = connection.execute(
            "select artifact_uri from runs union select artifact_location from logged_models"
        ).fetchall()
    except sqlite3.Error:  # damaged, or of another program
        return
    finally:
        connection.close()
    if others:
        return
    for (address,) in places:  # the repository may have been moved since
        below = Path(unquote(urlsplit(address or "").path).rpartition("/mlruns/")[2])
        if len(below.parts) > 1 and ".." not in below.parts and not below.is_absolute():
            shutil.rmtree(folder / below, ignore_errors=True)
    for name in DATABASE:
        (root / name).unlink(missing_ok=True)


def _prune(place: Path) -> None:
    """Remove the folders that are empty, from the innermost outwards."""
    for name, _, _ in os.walk(place, topdown=False):
        folder = Path(name)
        if not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


if __name__ == "__main__":
    for each in clean(Path.cwd()):
        print(f"kept, as no run wrote it: {each}")
