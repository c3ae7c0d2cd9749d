"""Where and how heavy work runs: device, precision, chunks, and taking up again what was finished."""

import copy
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from pipeline.crew import Crew
from pipeline.devices import launch
from pipeline.jobs import SHARED, Job, taken_up, written
from pipeline.keys import Fingerprint, Sources
from pipeline.progress import Progress, say
from pipeline.storage import Chunk, concatenate, flatten, move, rebuild, write
from robustness_geometry.checks import check_choice, check_count, refuse
from robustness_geometry.randomness import per_image

__all__ = ["Executor", "Mapped"]

T = TypeVar("T")
Item = TypeVar("Item")

_LAYOUT = 2  # raise it when files of an older layout must not be taken up again
_SMALLEST, _WORKERS = (
    16,
    8,
)  # images worth a process of their own; processes, unless more are asked for
_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mapped(Generic[T]):
    """The joined result of a map.

    Attributes:
        value: what the function returned, joined over the chunks, on the CPU.
        seconds: (N,) wall time of each image, float64: its chunk's time when first computed, over
            its size.
    """

    value: T
    seconds: Tensor


class Executor:
    """Runs functions over images on one or several devices, in chunks that survive a crash.

    Making one sets, for the process, the number of threads, deterministic algorithms and TF32.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: how many; each takes every n-th chunk.
        precision: ``32-true``, ``64-true``, ``bf16-mixed`` or ``16-mixed`` (the last on a GPU
            only).
        threads: CPU threads of each process; part of every key, as they change the last bits of
            sums.
        workers: processes that share chunks and other pieces of work on a CPU; None: as many as its
            cores allow. A GPU has one. Results do not depend on it.
        chunk: images a chunk, unless a call says otherwise; on a CPU at most half of a call's
            images.
        tf32: allow TensorFloat-32 in matrix products and convolutions; off for geometry.
        deterministic: use deterministic kernels; an operation without one raises on a CPU, warns on
            a GPU.
        progress: show a bar on a terminal, and a line every half minute elsewhere.
        work: the folder of the finished chunks; git ignores it, and it may be deleted at any time.
        alive: called before each chunk; it raises to stop.

    Raises:
        InputError: a setting that this machine cannot honour.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: int = 1,
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
        check_choice("executor.accelerator", accelerator, ("auto", "cpu", "cuda", "gpu", "mps"))
        check_choice("executor.precision", precision, _PRECISIONS)
        self._threads = check_count("executor.threads", threads)
        self._chunk = check_count("executor.chunk", chunk)
        self._precision, self._tf32, self._deterministic = precision, tf32, deterministic
        self._progress, self._work, self._check_alive = (
            progress,
            Path(work),
            alive or (lambda: None),
        )
        self._experiment, self._network, self._seed = "", "", 0
        self._fabric = launch(accelerator, check_count("executor.devices", devices), precision)
        self._mode = (
            "default" if not deterministic else "error" if self.device.type == "cpu" else "warn"
        )
        self._crew = Crew(self._processes(workers))
        self._sources = Sources()
        self._set_process()

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return cast(torch.device, self._fabric.device)

    @property
    def work(self) -> Path:
        """The folder of finished and unfinished work."""
        return self._work

    @property
    def is_global_zero(self) -> bool:
        """Whether this process is the one that logs and writes results."""
        return cast(bool, self._fabric.is_global_zero)

    def to_device(self, model: nn.Module) -> nn.Module:
        """Move ``model`` to the device, in place, and in ``64-true`` to float64; returns the bare module.

        On a CPU its weights, and with them the activations, get their channels last, which is
        faster there.
        """
        if self.device.type == "cpu":
            model = model.to(memory_format=torch.channels_last)
        return model.to(self.device, torch.float64 if self._precision == "64-true" else None)

    def scope(self, experiment: str, *, network: str = "", seed: int = 0) -> "Executor":
        """The same executor for one experiment, whose name and seed enter the keys and the random numbers.

        Args:
            experiment: the experiment's name.
            network: the network that it runs on, for progress lines.
            seed: the training seed.
        """
        view = copy.copy(self)
        view._experiment, view._network, view._seed = experiment, network, seed
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
                with one row per image. Tensors bound in the partial are brought to the device;
                networks must be there.
            tensors: each (N, ...), all of one length.
            chunk: images per chunk; the executor's own if None.
            randomness: pass ``generator=``, one torch.Generator per image, seeded from (seed,
                stream, index). True: the stream is the experiment's name; a text names another.

        Raises:
            TypeError: something bound to the function has no fingerprint, or the result holds no
                tensors.
            ValueError: lengths differ, or the result has not one row per image.
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
            name: what the progress line calls it.
        """
        return self._task(Job(function, (), 0, self._where, None), name)

    def shared_task(self, function: Callable[[], T], *, name: str | None = None) -> Mapped[T]:
        """As ``task``, for a product that experiments share: the key holds neither experiment nor seed."""
        return self._task(Job(function, (), 0, SHARED, None), name)

    def _task(self, job: Job[T], name: str | None) -> Mapped[T]:
        path = self._folder(job) / "00000.bin"
        found = taken_up(path) if self.is_global_zero else None
        if self.is_global_zero and found is None:
            self._check_alive()
            self.say(f"{self._label(name or job.name)} ...")
            value, seconds = self._timed(job.function)
            found = flatten(value, seconds)
            write(path, found)
        self._fabric.barrier()
        found = found or written(path)
        return Mapped(rebuild(found), torch.tensor([found.seconds], dtype=torch.float64))

    def _label(self, work: str) -> str:
        """What a progress line says: experiment, network, seed and the work under way."""
        parts = (self._where, self._network, f"seed {self._seed}" if self._network else "")
        return f"{', '.join(filter(None, parts))}: {work}"

    def say(self, line: str) -> None:
        """A line on stderr, unless progress is not to be shown."""
        if self._progress and self.is_global_zero:
            say(line)

    def share(self, count: int, work: Callable[[int], None]) -> None:
        """Call ``work``, which leaves files behind, with every index below ``count``, in the processes of a CPU.

        What a copy of this process fails at is left undone, in silence.
        """
        self._crew.share(count, work)

    def each(self, function: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
        """``[function(item) for item in items]``, the processes of a CPU taking one item after the other.

        What a copy of this process finds reaches this one through finished chunks and tasks alone;
        what ``function`` computes beside them is computed here again.

        Args:
            function: calls ``map``, ``cached`` or ``task`` for all that takes long.
            items: what it is called with, in any order.
        """
        found: dict[int, T] = {}

        def work(index: int) -> None:
            found[index] = function(items[index])

        if self._fabric.world_size == 1:
            self._crew.share(len(items), work)
        return [
            found[index] if index in found else function(item) for index, item in enumerate(items)
        ]

    @property
    def _where(self) -> str:
        return self._experiment or "unnamed"

    def _processes(self, workers: int | None) -> int:
        alone = self.device.type != "cpu" or self._fabric.world_size > 1
        if workers is None:
            linux = hasattr(os, "sched_getaffinity")  # where forks are safe
            cores = len(os.sched_getaffinity(0)) if linux else 1
            return 1 if alone else max(1, min(_WORKERS, cores // self._threads))
        if alone and check_count("executor.workers", workers) > 1:
            refuse("executor.workers", workers, "1 on a GPU, or where devices > 1")
        return check_count("executor.workers", workers)

    def _size(self, chunk: int | None, tensors: Sequence[Tensor]) -> int:
        """Images a chunk, whatever the number of workers: it is part of the key."""
        size = self._chunk if chunk is None else check_count("chunk", chunk)
        half = math.ceil(max(map(len, tensors), default=0) / 2)
        return min(size, half) if self.device.type == "cpu" and half >= _SMALLEST else size

    def _map(self, job: Job[T]) -> Mapped[T]:
        folder = self._folder(job)
        job = replace(job, function=move(job.function, self._place))
        chunks = self._chunks(job, folder)
        lengths = [stop - start for start, stop in job.bounds]
        seconds = [chunk.seconds / max(n, 1) for chunk, n in zip(chunks, lengths, strict=True)]
        each = torch.tensor(seconds, dtype=torch.float64).repeat_interleave(torch.tensor(lengths))
        return Mapped(rebuild(concatenate(chunks)), each)

    def _chunks(self, job: Job[T], folder: Path) -> list[Chunk]:
        """Read or compute this process's chunks, wait for the others, and return all of them."""
        rank, ranks = self._fabric.global_rank, self._fabric.world_size
        paths = [folder / f"{index:05d}.bin" for index in range(len(job.bounds))]
        done = {index: taken_up(paths[index]) for index in range(rank, len(paths), ranks)}
        todo = [index for index, found in done.items() if found is None]
        images = {index: job.bounds[index][1] - job.bounds[index][0] for index in todo}
        label = self._label(job.name)
        shown = self._progress and self.is_global_zero and bool(todo) and not self._crew.is_copy
        with Progress(label, sum(images.values()), shown) as progress:
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
            for position, index in enumerate(todo):  # what the copies did, or failed at
                done[index] = done[index] or taken_up(paths[index])
                if done[index] is None:
                    work(position)
        self._fabric.barrier()
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
            inputs = [self._place(tensor[low:high]) for tensor in job.tensors]
            part = flatten(*self._timed(functools.partial(job.function, *inputs, **options)))
        except torch.OutOfMemoryError:
            if high - low <= 1:
                raise
        if (
            part is None
        ):  # outside the handler, whose traceback holds on to the failed attempt's tensors
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        if part.rows() != {high - low}:
            raise ValueError(
                f"{job.name} returned tensors with {sorted(part.rows())} rows for {high - low} "
                "images; "
                "a mapped function returns one row an image"
            )
        return part

    def _timed(self, function: Callable[[], T]) -> tuple[T, float]:
        self._set_process()
        self._synchronise()
        began = time.perf_counter()
        with self._fabric.autocast():
            value = function()
        self._synchronise()
        return value, time.perf_counter() - began

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _place(self, tensor: Tensor) -> Tensor:
        double = self._precision == "64-true" and tensor.is_floating_point()
        return tensor.to(self.device, torch.float64 if double else None)

    def _folder(self, job: Job[T]) -> Path:
        """The folder of a job, named after everything that its result depends on."""
        finger = Fingerprint()
        machine = (self._precision, self._threads, self._tf32, self._deterministic, self.device)
        parts: Mapping[str, object] = {
            "function": finger.of(job.function, job.name),
            "tensors": finger.of(job.tensors, "tensors"),
            "layout": (_LAYOUT, job.chunk, job.where),
            "seed": None if job.where == SHARED and not job.stream else self._seed,
            "randomness": job.stream,
            "machine": machine,
            "torch": str(torch.__version__),
        }
        modules = finger.modules | ({"robustness_geometry.randomness"} if job.stream else set())
        key = Fingerprint().of({**parts, "source": self._sources.digest(modules)})
        return self._work / job.where / key.hex()[:32]

    def _set_process(self) -> None:
        """Set what PyTorch keeps for the process; again before each chunk, as others may have changed it."""
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        # As torch.use_deterministic_algorithms, which would import the compiler for seconds.
        torch.set_deterministic_debug_mode(self._mode)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = not self._deterministic
            torch.backends.cuda.matmul.allow_tf32 = self._tf32
            torch.backends.cudnn.allow_tf32 = self._tf32
