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
    """Open a file to write that appears at ``path`` as a whole or not at all.

    The folder is made if it is missing. The file is written beside its place, synchronised and
    renamed; after an error nothing is left.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from robustness_geometry.files import whole
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "new" / "data.bin"
        ...     with whole(path) as file:
        ...         _ = file.write(b"12345")
        ...     path.read_bytes()
        b'12345'
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
