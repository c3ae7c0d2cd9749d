"""The files of a folder that runs wrote: only these are replaced or removed, all others are kept.

It needs the standard library alone, as ``make clean`` runs where no environment is.
"""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

__all__ = [
    "FILES",
    "FOLDERS",
    "LIST",
    "RUN",
    "RUN_TIME",
    "digest",
    "make_room",
    "owns",
    "read_list",
    "remove",
    "there",
    "write_list",
    "write_own",
    "written_before",
]

FOLDERS = ("tables", "figures", "tensors")
FILES = ("timings.json", "metrics.json")
"""What the results of a stage consist of."""

RUN_TIME = "t_experiment"
"""The name, in the timings file, of the seconds that a whole experiment took."""

RUN = re.compile(r"^ *- hydra\.job\.name=(\w+)$", re.MULTILINE)
"""The name of the stage, in what Hydra writes about every run of this project."""

LIST = ".files.json"
"""Names the files of a folder that runs wrote, with the SHA-256 of what they wrote."""


def read_list(folder: Path) -> dict[str, str] | None:
    """The files in ``folder`` that runs wrote: path below it -> SHA-256, empty if not known.

    None: there is no list of them. Names that lie outside the folder are left out.
    """
    try:
        files = json.loads((folder / LIST).read_text(encoding="utf-8"))["files"]
        entries = files.items() if isinstance(files, dict) else [(name, "") for name in files]
        return {str(name): str(value) for name, value in entries if _is_below(str(name))}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_below(name: str) -> bool:
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def written_before(folder: Path) -> dict[str, str]:
    """The files in ``folder`` that runs wrote: path below it -> SHA-256, empty if not known.

    A folder of a fresh checkout has no list; the names then follow from its metrics. If the
    metrics are not those of the list, git or DVC put other results there, and the names decide.
    """
    files = read_list(folder)
    if files is None:
        return dict.fromkeys(_written_by_its_metrics(folder), "")
    files = {name: was for name, was in files.items() if _is_result(name)}
    metrics = folder / "metrics.json"
    if metrics.is_file() and files.get("metrics.json") not in (None, "", digest(metrics)):
        return dict.fromkeys(files, "")
    return files


def _is_result(name: str) -> bool:
    return name in FILES or Path(name).parts[0] in FOLDERS


def _written_by_its_metrics(folder: Path) -> set[str]:
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        experiments = [str(name) for name in metrics["experiments"] if metrics["network"]]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    patterns = [
        *(f"tables/{name}_*.csv" for name in experiments),
        *(f"figures/{name}_*.png" for name in experiments),
        *(f"tensors/{name}.safetensors" for name in experiments),
        *(["tensors/seed*.safetensors"] if "train_classifiers" in experiments else []),
    ]
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    found = {path.relative_to(folder).as_posix() for path in paths}
    return {*FILES, *(found - _unknown_to_git(folder))}


def _unknown_to_git(folder: Path) -> set[str]:
    """The files below ``folder`` that git neither tracks nor ignores; none without git."""
    words = ["git", "ls-files", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return set()
    return set(done.stdout.decode(errors="surrogateescape").split("\0"))


def write_list(folder: Path, files: Mapping[str, str]) -> None:
    """Write the list of a folder, as a whole or not at all."""
    _replace(folder / LIST, json.dumps({"files": dict(sorted(files.items()))}, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    """Put a text file in its place, which may be a link: then the link goes, not what it names."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def there(path: Path) -> bool:
    """Whether something has this name, be it a link that leads nowhere."""
    return os.path.lexists(path)


def owns(path: Path, written: str | None) -> bool:
    """Whether a file is still the one that a run wrote.

    A link, or a file that was changed since, is not.

    Args:
        path: the file.
        written: SHA-256 of what the run wrote; empty: not known; None: no run wrote such a file.
    """
    if written is None or path.is_symlink() or not path.is_file():
        return False
    return not written or digest(path) == written


def remove(path: Path, written: str | None) -> None:
    """Remove a file if it is still the one that a run wrote."""
    if owns(path, written):
        path.unlink()


def make_room(path: Path, written: str | None) -> None:
    """Rename what has the name that a run needs, unless the run wrote it: to ``name.before``."""
    if there(path) and not owns(path, written):
        beside = (path.with_name(f"{path.name}.before{index or ''}") for index in count())
        path.rename(next(each for each in beside if not there(each)))


def write_own(path: Path, text: str, is_ours: Callable[[str], bool]) -> None:
    """Write a text file that is written anew every time, where a run may have written one.

    Args:
        path: the file. One of its name that no run wrote is renamed, to ``name.before``.
        text: what it is to hold.
        is_ours: whether a file that holds a text was written by a run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = path.is_file() and is_ours(path.read_text("utf-8", errors="replace"))
    make_room(path, "" if ours else None)
    _replace(path, text)
