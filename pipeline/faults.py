"""What Python raises where the machine misbehaves, in one sentence that says what to do.

It needs the standard library alone, as even the import of other libraries may fail for want of
memory.
"""

import errno
import os
import re
from collections.abc import Iterator

__all__ = ["fault", "is_full_disk", "is_out_of_memory"]

AGAIN = "run again: finished work is taken up"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_BROKEN = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)

_MEMORY = re.compile(
    "not enough memory|can't allocate memory|Cannot allocate memory|out of memory|std::bad_alloc"
    "|could not create a primitive(?! desc)|failed to map segment from shared object"
)
"""What libraries say in errors of their own: torch, C++, oneDNN and Linux's loader."""

_SAID_FULL = ("database or disk is full", "No space left on device", "Disk quota exceeded")
"""SQLite's words, and the system's in errors of other types, such as those of safetensors."""

_DATABASE = ("database disk image is malformed", "file is not a database", "disk I/O error")
_CLOSED = (
    "attempt to write a readonly database",
    "unable to open database file",
    "database is locked",
)
"""SQLite's words."""


def fault(error: BaseException) -> str | None:
    """What is wrong with the machine, and what to do; None if it is not the machine.

    Args:
        error: what ended the work, with the errors that caused it.

    Example:
        >>> import errno
        >>> from pipeline.faults import fault
        >>> print(fault(OSError(errno.EROFS, "Read-only file system", "results/metrics.json")))
        results/metrics.json: Read-only file system. Make it accessible, or choose another place \
(output, executor.work, hydra.run.dir, tracking.uri), and run again: finished work is taken up
        >>> fault(ZeroDivisionError()) is None
        True
    """
    if is_full_disk(error):
        return (
            f"{_place(error)}the disk is full. Delete results or finished chunks that are not "
            f"needed, and {AGAIN}"
        )
    if is_out_of_memory(error):
        return (
            "out of memory. Close other programs or raise the limit, take fewer processes "
            f"(executor.workers=1, which changes no result), and {AGAIN}"
        )
    for each in _causes(error):
        if sentence := _of_system(each) or _of_database(each):
            return sentence
    return None


def is_full_disk(error: BaseException) -> bool:
    """Whether it is a full disk, or was raised while handling one, as by torch.save or MLflow."""
    causes = (*_causes(error), error.__context__)
    if any(words in str(cause) for cause in causes for words in _SAID_FULL):
        return True
    return any(isinstance(cause, OSError) and cause.errno in _FULL for cause in causes)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: Python's, NumPy's or torch's error, or a failed fork."""
    for each in _causes(error):
        if isinstance(each, MemoryError) or type(each).__name__ == "OutOfMemoryError":
            return True
        if isinstance(each, OSError) and each.errno == errno.ENOMEM:
            return True
        if _MEMORY.search(str(each)):
            return True
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _place(error: BaseException) -> str:
    for each in (*_causes(error), error.__context__):
        if isinstance(each, OSError) and each.filename is not None:
            return f"{os.fsdecode(each.filename)}: "
    return ""


def _of_system(error: BaseException) -> str | None:
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return f"no more threads can be started. Close other programs, and {AGAIN}"
    if not isinstance(error, OSError):
        return None
    where, why = _place(error), error.strerror or str(error)
    if error.errno in _FORBIDDEN:
        places = "output, executor.work, hydra.run.dir, tracking.uri"
        return f"{where}{why}. Make it accessible, or choose another place ({places}), and {AGAIN}"
    if error.errno in _BROKEN:
        return f"{where}{why}. Check the disk and its connection, and {AGAIN}"
    if error.errno in _TOO_MANY:
        return f"{where}{why}. Raise the limit (ulimit -n) or close other programs, and {AGAIN}"
    if error.errno == errno.EAGAIN:
        return f"{where}{why}. No more processes can be started: close other programs, and {AGAIN}"
    return None


def _of_database(error: BaseException) -> str | None:
    text = str(error)
    if found := next((words for words in _DATABASE if words in text), None):
        return (
            f"the tracking database is damaged ({found}). Move mlflow.db away (the next run makes "
            f"a new one) or log nothing (tracking=none), and {AGAIN}"
        )
    if found := next((words for words in _CLOSED if words in text), None):
        return (
            f"the tracking database cannot be used ({found}). Make it accessible, end what holds "
            f"it, or log nothing (tracking=none), and {AGAIN}"
        )
    return None
