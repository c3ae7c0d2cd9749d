"""Copies of this process that share out work on the cores of a CPU."""

import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore

__all__ = ["Crew"]


class Crew:
    """A number of processes, most of them forked when there is work, that never run more than that at once.

    A copy inherits all that this process knows at the fork and gives nothing back: what it finds,
    it writes to files.
    Work may itself be shared out: whichever process runs out of work makes room for a new copy
    elsewhere.

    Args:
        size: processes, this one among them.
    """

    def __init__(self, size: int) -> None:
        self._owner = os.getpid()
        self._context = multiprocessing.get_context("fork")
        self._room = self._context.Semaphore(size - 1) if size > 1 else None

    @property
    def is_copy(self) -> bool:
        """Whether this process is one of the copies."""
        return os.getpid() != self._owner

    def share(self, count: int, work: Callable[[int], None]) -> None:
        """Do a number of pieces of work, each in one process.

        What a copy fails at is left undone: the caller looks, does it again and meets the error
        itself.

        Args:
            count: pieces.
            work: does the piece of an index from 0 to count - 1.

        Raises:
            Exception: what ``work`` raises in this process.
        """
        if self._room is None:
            for index in range(count):
                work(index)
        else:
            self._share(count, work, self._room)

    def _share(self, count: int, work: Callable[[int], None], room: Semaphore) -> None:
        parent = os.getpid()
        taken = self._context.Value("q", 0)

        def take() -> int:
            with taken.get_lock():
                taken.value += 1
                return int(taken.value) - 1

        def copy() -> None:
            try:
                while os.getppid() == parent and (index := take()) < count:
                    work(index)
            except BaseException:  # the parent meets it again, and says so
                return
            finally:
                room.release()

        copies: list[BaseProcess] = []
        try:
            while len(copies) < count - 1 and room.acquire(block=False):
                copies.append(self._started(copy))
            while (index := take()) < count:
                work(index)
        except BaseException:
            for each in copies:
                each.terminate()
            raise
        finally:
            self._join(copies)

    def _started(self, function: Callable[[], None]) -> BaseProcess:
        process = self._context.Process(target=function)
        with warnings.catch_warnings():  # threads, which only watch the machine, do not come along
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        return process

    def _join(self, copies: Sequence[BaseProcess]) -> None:
        """Wait for copies; the room of this process is free meanwhile."""
        if copies and self._room is not None:
            self._room.release()
            for each in copies:
                each.join()
                if each.exitcode:  # killed: it made no room itself
                    self._room.release()
            self._room.acquire()
