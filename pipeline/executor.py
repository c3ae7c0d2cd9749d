"""Running functions over images: cut into chunks, shared among processes, resumed after a crash."""

import copy
import functools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from pipeline.crew import Crew
from pipeline.devices import Machine
from pipeline.jobs import SHARED, Job, taken_up, written
from pipeline.keys import Fingerprint, Sources
from pipeline.progress import Progress, label, say
from pipeline.storage import (
    Chunk,
    check_folder,
    concatenate,
    drop_damaged,
    flatten,
    move,
    rebuild,
    refuse_full_disk,
    write,
)
from robustness_geometry.checks import check_count
from robustness_geometry.randomness import per_image

__all__ = ["Executor", "Mapped"]

T = TypeVar("T")
Item = TypeVar("Item")

_LAYOUT = 2  # raise it when files of an older layout must not be taken up again
_SMALLEST = 16  # images worth a process of their own
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mapped(Generic[T]):
    """The joined result of a map.

    Attributes:
        value: result of the function, joined over the chunks, on the CPU.
        seconds: (N,) wall time per image, float64: the time that its chunk took when it was first
            computed, divided by the chunk's size.
    """

    value: T
    seconds: Tensor


class Executor:
    """Runs functions over images on one or several devices, in chunks that survive a crash.

    Making one sets, for the process, the number of threads, deterministic algorithms and TF32.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: number of devices; each takes every n-th chunk.
        nodes: number of a Slurm cluster's nodes with that many devices each; more than one only
            under srun, with a task for each device.
        precision: ``32-true``, ``64-true``, ``bf16-mixed`` or ``16-mixed`` (the last on a GPU
            only).
        threads: CPU threads of each process; part of every key, as they change the last bits of
            sums.
        workers: number of processes that share the chunks on a CPU; None: as many as its cores
            allow. A GPU has one. Results do not depend on it.
        chunk: default number of images per chunk; on a CPU a call is always split into at least
            two.
        tf32: allow TensorFloat-32 in matrix products and convolutions; off for geometry.
        deterministic: use deterministic kernels; an operation without one raises on a CPU, warns on
            a GPU.
        progress: show a bar on a terminal, and a line every half minute elsewhere.
        work: folder of the finished chunks; git ignores it, and it may be deleted at any time.
        alive: called before each chunk; it raises to stop.

    Raises:
        InputError: a setting that this machine cannot honour, or a folder that cannot be written.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: int = 1,
        nodes: int = 1,
        precision: str = "32-true",
        threads: int = 2,
        workers: int | None = 1,
        chunk: int = 250,
        tf32: bool = False,
        deterministic: bool = True,
        progress: bool = True,
        work: str | os.PathLike[str] = "work",
        alive: Callable[[], None] | None = None,
    ) -> None:
        self._chunk = check_count("executor.chunk", chunk)
        self._machine = Machine(
            accelerator,
            devices,
            precision,
            nodes=nodes,
            threads=threads,
            tf32=tf32,
            deterministic=deterministic,
        )
        self._crew = Crew(self._machine.processes(workers))
        self._work = check_folder("executor.work", Path(work))
        self._progress, self._check_alive = progress, alive or (lambda: None)
        self._experiment, self._network = "", ""
        self._named_seed: int | None = None
        self._sources = Sources()

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._machine.device

    @property
    def work(self) -> Path:
        """The folder of finished and unfinished work."""
        return self._work

    @property
    def is_global_zero(self) -> bool:
        """Whether this process is the one that logs and writes results."""
        return self._machine.is_first

    def to_device(self, model: nn.Module, images: Tensor | None = None) -> nn.Module:
        """Move ``model`` to the device, in place, and in ``64-true`` to float64, and return it.

        On a CPU its weights, and with them the activations, get their channels last, which is
        faster there, unless the network fails on the first of ``images`` then.
        """
        return self._machine.place_model(model, images)

    def scope(self, experiment: str, *, network: str = "", seed: int | None = None) -> "Executor":
        """The same executor for one experiment.

        The experiment's name and the seed enter the keys and the random numbers.

        Args:
            experiment: name of the experiment.
            network: name of the network that it runs on, for progress lines; empty across networks.
            seed: training seed; None is 0, without naming it in progress lines.
        """
        view = copy.copy(self)
        view._experiment, view._network, view._named_seed = experiment, network, seed
        return view

    def for_seed(self, seed: int) -> "Executor":
        """The same executor and experiment for one training seed."""
        return self.scope(self._experiment, network=self._network, seed=seed)

    def map(
        self,
        function: Callable[..., T],
        *tensors: Tensor,
        chunk: int | None = None,
        randomness: bool | str = False,
    ) -> Mapped[T]:
        """Apply ``function`` to chunks of ``tensors`` and join what it returns.

        Args:
            function: a function of a module, or a functools.partial of one, called with one chunk
                of each tensor. It returns a tensor, or a dataclass, tuple, list or dict of tensors,
                with one row per image. Tensors bound in the partial are moved to the device;
                networks must be there already.
            tensors: each (N, ...), all of one length.
            chunk: images per chunk; None: the executor's default.
            randomness: pass ``generator=``, one torch.Generator per image, seeded from (seed,
                stream, index). True: the stream is the experiment's name; a text names another.

        Raises:
            TypeError: something bound to the function has no fingerprint, or the result holds no
                tensors.
            ValueError: lengths differ, or the result has not one row per image.
            InputError: the disk is full.
        """
        stream = self._where if randomness is True else randomness or None
        return self._map(Job(function, tensors, self._size(chunk, tensors), self._where, stream))

    def cached(
        self,
        function: Callable[..., T],
        *tensors: Tensor,
        chunk: int | None = None,
        randomness: bool = False,
    ) -> Mapped[T]:
        """As ``map``, for a product that experiments share: the key holds no experiment's name.

        The seed is part of the key only with ``randomness``.
        """
        stream = SHARED if randomness else None
        return self._map(Job(function, tensors, self._size(chunk, tensors), SHARED, stream))

    def task(self, function: Callable[[], T], *, name: str | None = None) -> Mapped[T]:
        """Run an indivisible piece of work once, such as one training, and keep its result.

        Args:
            function: a function of a module, or a partial of one, called without arguments by the
                first process. It places its own tensors (bind ``device=executor.device``) and
                returns tensors, or a dataclass, tuple, list or dict of tensors.
            name: name of the work in progress lines.
        """
        return self._task(Job(function, (), 0, self._where, None), name)

    def shared_task(self, function: Callable[[], T], *, name: str | None = None) -> Mapped[T]:
        """As ``task``, for a product that experiments share.

        The key holds neither the experiment's name nor the seed.
        """
        return self._task(Job(function, (), 0, SHARED, None), name)

    def say(self, line: str) -> None:
        """A line on stderr, unless progress is not to be shown."""
        if self._progress and self.is_global_zero:
            say(line)

    def share(self, count: int, work: Callable[[int], None]) -> None:
        """Call ``work`` with every index below ``count``, in the processes that share a CPU.

        What a worker computes reaches this process only through the files that ``work`` writes.
        Items on which a worker fails are silently left for the caller to redo.
        """
        self._crew.share(count, work)

    def each(self, function: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
        """``[function(item) for item in items]``, shared among the processes of a CPU.

        What another process computes reaches this one only through finished chunks and tasks; what
        ``function`` computes beside them is computed here again.

        Args:
            function: calls ``map``, ``cached`` or ``task`` for all that takes long.
            items: arguments of the calls; they may be taken in any order.
        """
        results: dict[int, T] = {}

        def work(index: int) -> None:
            results[index] = function(items[index])

        if self._machine.ranks == 1:
            if (module := getattr(function, "__module__", None)) is not None:
                self._sources.digest([module])  # before the fork, else every worker reads it anew
            self._crew.share(len(items), work)
        return [
            results[index] if index in results else function(item)
            for index, item in enumerate(items)
        ]

    @property
    def _where(self) -> str:
        return self._experiment or "unnamed"

    @property
    def _seed(self) -> int:
        return self._named_seed or 0

    def _label(self, work: str) -> str:
        """The beginning of a progress line: where the work belongs, and what it is."""
        return label(self._experiment, self._network, self._named_seed, work)

    def _size(self, chunk: int | None, tensors: Sequence[Tensor]) -> int:
        """Images per chunk, whatever the number of workers: it is part of the key."""
        size = self._chunk if chunk is None else check_count("chunk", chunk)
        half = math.ceil(max(map(len, tensors), default=0) / 2)
        return min(size, half) if self.device.type == "cpu" and half >= _SMALLEST else size

    def _task(self, job: Job[T], name: str | None) -> Mapped[T]:
        path = self._folder(job) / "00000.bin"
        chunk = taken_up(path) if self.is_global_zero else None
        if self.is_global_zero and chunk is None:
            self._check_alive()
            for damaged in drop_damaged(self._work / "checkpoints"):
                _log.warning("%s is damaged: its training starts anew", damaged)
            self.say(f"{self._label(name or job.name)} ...")
            with refuse_full_disk(self._work):
                chunk = flatten(*self._machine.timed(job.function))
                write(path, chunk)
        self._machine.barrier()
        chunk = chunk or written(path)
        return Mapped(rebuild(chunk), torch.tensor([chunk.seconds], dtype=torch.float64))

    def _map(self, job: Job[T]) -> Mapped[T]:
        folder = self._folder(job)
        job = replace(job, function=move(job.function, self._machine.place))
        with refuse_full_disk(self._work):
            chunks = self._chunks(job, folder)
        lengths = [stop - start for start, stop in job.bounds]
        seconds = [chunk.seconds / max(n, 1) for chunk, n in zip(chunks, lengths, strict=True)]
        each = torch.tensor(seconds, dtype=torch.float64).repeat_interleave(torch.tensor(lengths))
        return Mapped(rebuild(concatenate(chunks)), each)

    def _chunks(self, job: Job[T], folder: Path) -> list[Chunk]:
        """Read or compute this process's chunks, wait for the others, and return all of them."""
        rank, ranks = self._machine.rank, self._machine.ranks
        paths = [folder / f"{index:05d}.bin" for index in range(len(job.bounds))]
        done = {index: taken_up(paths[index]) for index in range(rank, len(paths), ranks)}
        todo = [index for index, chunk in done.items() if chunk is None]
        images = {index: job.bounds[index][1] - job.bounds[index][0] for index in todo}
        shown = self._progress and self.is_global_zero and bool(todo) and not self._crew.is_worker
        with Progress(self._label(job.name), sum(images.values()), shown) as progress:
            batch, here = job.chunk, os.getpid()

            def work(position: int) -> None:
                nonlocal batch
                index = todo[position]
                self._check_alive()
                done[index], batch = self._compute(job, *job.bounds[index], batch)
                write(paths[index], cast(Chunk, done[index]))
                if os.getpid() == here:
                    progress.advance(images[index])

            self._crew.share(len(todo), work)
            for position, index in enumerate(todo):  # what the other processes did, or failed at
                done[index] = done[index] or taken_up(paths[index])
                if done[index] is None:
                    work(position)
        self._machine.barrier()
        return [done.get(index) or written(path) for index, path in enumerate(paths)]

    def _compute(self, job: Job[T], start: int, stop: int, batch: int) -> tuple[Chunk, int]:
        """One chunk, in as many parts as memory asks for, and the size of part that did fit."""
        while True:
            parts = []
            for low in range(start, max(stop, start + 1), batch):
                part = self._attempt(job, low, min(low + batch, stop))
                if part is None:
                    break
                parts.append(part)
            else:
                return concatenate(parts), batch
            batch = math.ceil(min(batch, stop - start) / 2)
            _log.warning("%s: out of memory, going on with %d images at a time", job.name, batch)

    def _attempt(self, job: Job[T], low: int, high: int) -> Chunk | None:
        """The images ``low`` to ``high``; None if memory did not suffice and fewer can be tried."""
        options = (
            {"generator": per_image(self._seed, job.stream, range(low, high))} if job.stream else {}
        )
        part = None
        try:
            inputs = [self._machine.place(tensor[low:high]) for tensor in job.tensors]
            function = functools.partial(job.function, *inputs, **options)
            part = flatten(*self._machine.timed(function))
        except torch.OutOfMemoryError:
            if high - low <= 1:
                raise
        # Outside the handler, whose traceback holds on to the failed attempt's tensors.
        if part is None:
            self._machine.free()
            return None
        if part.rows() != {high - low}:
            raise ValueError(
                f"{job.name} returned tensors with {sorted(part.rows())} rows for {high - low} "
                "images; a mapped function returns one row per image"
            )
        return part

    def _folder(self, job: Job[T]) -> Path:
        """The folder of a job, named after everything that its result depends on."""
        finger = Fingerprint()
        parts: Mapping[str, object] = {
            "function": finger.of(job.function, job.name),
            "tensors": finger.of(job.tensors, "tensors"),
            "layout": (_LAYOUT, job.chunk, job.where),
            "seed": None if job.where == SHARED and not job.stream else self._seed,
            "randomness": job.stream,
            "machine": self._machine.key,
            "torch": str(torch.__version__),
        }
        modules = finger.modules | ({"robustness_geometry.randomness"} if job.stream else set())
        key = Fingerprint().of({**parts, "source": self._sources.digest(modules)})
        return self._work / job.where / key.hex()[:32]
