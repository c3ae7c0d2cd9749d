"""Where files of data sets are looked for, and the message when they are not there."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from robustness_geometry.checks import refuse

__all__ = ["FOLDERS", "candidate_folders", "first_line", "missing", "read_or_refuse"]

FOLDERS = ("data", "/usr/share/datasets", "/usr/local/share/datasets")
"""What ``root=None`` means: these folders in turn; downloads go to the first."""

T = TypeVar("T")


def candidate_folders(root: str | Path | None) -> list[Path]:
    """The folders to look in: ``root`` alone, or :data:`FOLDERS`."""
    return [Path(folder).expanduser() for folder in (FOLDERS if root is None else (root,))]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class name when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(": ") if lines else type(error).__name__


def missing(root: str | Path | None, files: str, why: str) -> NoReturn:
    """Refuse a root that lacks its files.

    Raises:
        InputError: always; it names ``dataset.root``, the files and the reason.
    """
    places = " or ".join(map(str, candidate_folders(root)))
    refuse("dataset.root", str(root), f"a folder with {files} (looked in {places}: {why})")


def read_or_refuse(read: Callable[[], T], root: str | Path | None, files: str) -> T:
    """Call ``read`` and turn what torchvision raises on missing, corrupt or unreachable files into one line.

    Raises:
        InputError: the files are missing or damaged and cannot be downloaded.
    """
    try:
        return read()
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, EOFError) as error:
        missing(root, files, first_line(error))
