"""Worker processes that share the work of one process on the cores of a CPU."""

import fcntl
import multiprocessing
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore

__all__ = ["Crew"]


class Crew:
    """This process and the workers that it forks when there is work, at most ``size`` in all.

    A worker inherits the memory of this process at the fork, and gives its results back through
    files alone. Work may itself call :meth:`share`: an idle process frees its slot, which another
    call may use to fork a worker.

    Args:
        size: largest number of processes at a time, this one among them.
    """

    def __init__(self, size: int) -> None:
        self._owner = os.getpid()
        self._context = multiprocessing.get_context("fork")
        self._slots = self._context.Semaphore(size - 1) if size > 1 else None

    @property
    def is_worker(self) -> bool:
        """Whether this process is a worker."""
        return os.getpid() != self._owner

    def share(self, count: int, work: Callable[[int], None]) -> None:
        """Call ``work`` with every index below ``count``, each in one of the processes.

        Items on which a worker fails are silently left for the caller to redo, who then meets the
        error itself.

        Args:
            count: number of items.
            work: does the item of an index, and leaves its result in a file.

        Raises:
            Exception: what ``work`` raises in this process.
        """
        if self._slots is None:
            for index in range(count):
                work(index)
        else:
            self._share(count, work, self._slots)

    def _share(self, count: int, work: Callable[[int], None], slots: Semaphore) -> None:
        parent = os.getpid()
        taken = self._context.RawValue("q", 0)
        guard = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)

        def take() -> int:
            fcntl.lockf(guard, fcntl.LOCK_EX)  # the system frees it where its holder is killed
            try:
                taken.value += 1
                return int(taken.value) - 1
            finally:
                fcntl.lockf(guard, fcntl.LOCK_UN)

        def worker() -> None:
            _ignore_notices()
            try:
                while os.getppid() == parent and (index := take()) < count:
                    work(index)
            except BaseException:  # the parent redoes the item and meets the error
                return
            finally:
                slots.release()

        workers: list[BaseProcess] = []
        try:
            while len(workers) < count - 1 and slots.acquire(block=False):
                try:
                    workers.append(self._started(worker))
                except OSError:  # no memory or no process for it: those that are there do the work
                    slots.release()
                    break
            while (index := take()) < count:
                work(index)
        except BaseException:
            for each in workers:
                each.terminate()
            raise
        finally:
            self._join(workers)
            guard.close()

    def _started(self, function: Callable[[], None]) -> BaseProcess:
        process = self._context.Process(target=function)
        # Threads are not forked; those of this process only watch the machine.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        return process

    def _join(self, workers: Sequence[BaseProcess]) -> None:
        """Wait for workers; meanwhile the slot of this process is free."""
        if workers and self._slots is not None:
            self._slots.release()
            for each in workers:
                each.join()
                if each.exitcode:  # it was killed, and did not free its slot
                    self._slots.release()
            self._slots.acquire()


def _ignore_notices() -> None:
    """Leave to the first process what a cluster tells all: that their time is nearly over."""
    for name in ("SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
