"""Where the files of data sets are looked for, and the message when they are missing."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from robustness_geometry.checks import InputError, refuse

__all__ = [
    "EXTRA",
    "FOLDERS",
    "candidate_folders",
    "first_line",
    "folder_with",
    "missing",
    "read_or_refuse",
    "read_parts",
]

EXTRA = "examples"
"""The extra of this package that installs what data sets are read with."""

FOLDERS = ("data", "/usr/share/datasets", "/usr/local/share/datasets")
"""What ``root=None`` means: these folders in turn; downloads go to the first."""

T = TypeVar("T")
Part = TypeVar("Part")


def candidate_folders(root: str | Path | None) -> list[Path]:
    """The folders to look in: ``root`` alone, or :data:`FOLDERS`.

    Example:
        >>> from robustness_geometry.datasets.sources import candidate_folders
        >>> [str(folder) for folder in candidate_folders("data/digits")]
        ['data/digits']
    """
    return [Path(folder).expanduser() for folder in (FOLDERS if root is None else (root,))]


def folder_with(name: str, root: str | Path | None) -> Path:
    """The first candidate folder that holds ``name``; the first of all where none does.

    Args:
        name: a file or a subfolder.
        root: see :func:`candidate_folders`.

    Example:
        >>> from robustness_geometry.datasets.sources import folder_with
        >>> str(folder_with("digits.bin", "nowhere"))
        'nowhere'
    """
    places = candidate_folders(root)
    return next((place for place in places if (place / name).exists()), places[0])


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class name if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(": ") if lines else type(error).__name__


def missing(root: str | Path | None, files: str, why: str) -> NoReturn:
    """Refuse a root that lacks its files.

    Raises:
        InputError: always; it names ``dataset.root``, the files and the reason.
    """
    places = " or ".join(map(str, candidate_folders(root)))
    refuse("dataset.root", root, f"a folder with {files} (looked in {places}: {why})")


def read_or_refuse(read: Callable[[], T], root: str | Path | None, files: str) -> T:
    """Call ``read``, and turn what torchvision raises about its files into one line.

    Args:
        read: reads the files; they may be missing, damaged or out of reach.
        root: the folder that was asked for, for the message.
        files: what the folder should hold, for the message.

    Raises:
        InputError: the files are missing or damaged and cannot be downloaded.
    """
    try:
        return read()
    except InputError:
        raise
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, EOFError) as error:
        missing(root, files, first_line(error))


def read_parts(
    read: Callable[[Path, Part], T],
    parts: tuple[Part, Part],
    root: str | Path | None,
    files: str,
    *,
    marker: str,
) -> tuple[T, T, Path]:
    """Read the training and the test images of a data set from the folder that holds them.

    Args:
        read: reads one part from a folder, such as ``"train"``.
        parts: what ``read`` calls the training and the test part.
        root: folder to look in; None: :data:`FOLDERS`.
        files: what the folder should hold, for the message.
        marker: the file or subfolder by which the folder is recognised.

    Returns:
        Both parts, and their folder.

    Raises:
        InputError: the files are missing or damaged and cannot be downloaded.
    """
    folder = folder_with(marker, root)
    train, test = (read_or_refuse(partial(read, folder, part), root, files) for part in parts)
    return train, test, folder
