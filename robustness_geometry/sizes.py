"""The size that a file says its contents have, held against the memory before they are read."""

import importlib.util
import zipfile
from pathlib import Path

from robustness_geometry.checks import refuse

__all__ = ["LARGEST", "check_archive", "check_size", "largest"]

LARGEST = 2**36
"""Bytes that the contents of one file may have unpacked, 64 GiB, however large the memory is."""


def largest() -> int:
    """Bytes that the contents of a file may have: the free memory where psutil tells it.

    Example:
        >>> from robustness_geometry.sizes import LARGEST, largest
        >>> 0 < largest() <= LARGEST
        True
    """
    if importlib.util.find_spec("psutil") is None:
        return LARGEST
    import psutil  # here, as the package does without it

    return min(LARGEST, int(psutil.virtual_memory().available))


def check_size(key: str, path: Path, size: int, limit: int | None = None) -> None:
    """Check that contents of ``size`` bytes are no more than ``limit``.

    Args:
        key: name of the setting that gives the file.
        path: the file.
        size: bytes of its contents, unpacked.
        limit: bytes that they may have; None: :func:`largest`.

    Raises:
        InputError: they are more.

    Example:
        >>> from pathlib import Path
        >>> from robustness_geometry.sizes import check_size
        >>> check_size("dataset.path", Path("bomb.npz"), 2**40, limit=2**20)
        Traceback (most recent call last):
        ...
        robustness_geometry.checks.InputError: dataset.path must be a file whose contents take at \
most 1,048,576 bytes of memory, and these take 1,099,511,627,776 or more; got 'bomb.npz'
    """
    allowed = largest() if limit is None else limit
    if size > allowed:
        refuse(
            key,
            path,
            f"a file whose contents take at most {allowed:,} bytes of memory, and these take "
            f"{size:,} or more",
        )


def check_archive(key: str, path: Path) -> None:
    """Check the sizes that a zip archive declares, before any of it is unpacked.

    Other files, and archives without a readable list of their contents, pass.

    Args:
        key: name of the setting that gives the file.
        path: the file; ``.npz`` files and what torch.save writes are zip archives.

    Raises:
        InputError: unpacked, the contents take more memory than there is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    check_size(key, path, size)
