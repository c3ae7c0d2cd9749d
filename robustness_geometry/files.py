"""Files that appear as a whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["whole"]


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears at ``path`` as a whole or not at all, in a folder that is made where it is missing.

    It is written beside its place, synchronised and renamed; after an error nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
