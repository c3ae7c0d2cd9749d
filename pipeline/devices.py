"""The machine that work runs on: devices, precision, and the settings that PyTorch keeps."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from robustness_geometry.checks import check_choice, check_count, refuse
from robustness_geometry.memory import channels_last

__all__ = ["Machine", "launch"]

T = TypeVar("T")

ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
WORKERS = 8
"""Largest number of processes that share a CPU, unless more are asked for."""


class Machine:
    """The devices that a process works on, and how it works there.

    Making one sets, for the process, the number of threads, deterministic algorithms and TF32.

    Args:
        accelerator: one of ACCELERATORS.
        devices: number of devices.
        precision: one of PRECISIONS; the last one on a GPU only.
        nodes: number of a cluster's nodes, each with that many devices; more than one only within a
            step of Slurm's srun that has a task for each device.
        threads: CPU threads of each process.
        tf32: allow TensorFloat-32 in matrix products and convolutions.
        deterministic: use deterministic kernels; an operation without one raises on a CPU, warns on
            a GPU.

    Raises:
        InputError: a setting that this machine cannot honour.
    """

    def __init__(
        self,
        accelerator: str,
        devices: int,
        precision: str,
        *,
        nodes: int = 1,
        threads: int,
        tf32: bool,
        deterministic: bool,
    ) -> None:
        check_choice("executor.accelerator", accelerator, ACCELERATORS)
        check_choice("executor.precision", precision, PRECISIONS)
        self._threads = check_count("executor.threads", threads)
        self._precision, self._tf32, self._deterministic = precision, tf32, deterministic
        check_count("executor.devices", devices)
        self._fabric = launch(accelerator, devices, precision, check_count("executor.nodes", nodes))
        on_cpu = self.device.type == "cpu"
        self._mode = "default" if not deterministic else "error" if on_cpu else "warn"
        self.prepare()

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return cast(torch.device, self._fabric.device)

    @property
    def rank(self) -> int:
        """The number of this process among those that share the devices."""
        return cast(int, self._fabric.global_rank)

    @property
    def ranks(self) -> int:
        """The number of processes that share the devices."""
        return cast(int, self._fabric.world_size)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that logs and writes results."""
        return cast(bool, self._fabric.is_global_zero)

    @property
    def key(self) -> tuple[object, ...]:
        """What results depend on."""
        on_cpu = self.device.type == "cpu"  # sums differ in their last bits with the instructions
        instructions = torch.backends.cpu.get_cpu_capability() if on_cpu else ""
        settings = (self._precision, self._threads, self._tf32, self._deterministic)
        return (*settings, self.device, instructions)

    def processes(self, workers: int | None) -> int:
        """The number of processes that share the work of this one.

        Args:
            workers: number asked for; None: as many as the cores of a CPU allow.

        Raises:
            InputError: more than one on a GPU or beside several devices.
        """
        alone = self.device.type != "cpu" or self.ranks > 1
        if workers is None:
            return 1 if alone else max(1, min(WORKERS, _cores() // self._threads))
        if alone and check_count("executor.workers", workers) > 1:
            refuse("executor.workers", workers, "1 on a GPU, or where devices > 1 or nodes > 1")
        return check_count("executor.workers", workers)

    def place(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device, in ``64-true`` as float64."""
        double = self._precision == "64-true" and tensor.is_floating_point()
        return tensor.to(self.device, torch.float64 if double else None)

    def place_model(self, model: nn.Module, images: Tensor | None = None) -> nn.Module:
        """``model`` moved to the device, in place, and in ``64-true`` to float64.

        On a CPU its weights, and with them the activations, get their channels last, which is
        faster there, unless the network fails on the first of ``images`` then.
        """
        if self.device.type == "cpu" and images is not None:
            model = channels_last(model, images)
        elif self.device.type == "cpu":
            model = model.to(memory_format=torch.channels_last)
        return model.to(self.device, torch.float64 if self._precision == "64-true" else None)

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self._fabric.barrier()

    def timed(self, function: Callable[[], T]) -> tuple[T, float]:
        """What ``function`` returns in this machine's precision, and its seconds."""
        self.prepare()
        self._synchronise()
        began = time.perf_counter()
        with self._fabric.autocast():
            value = function()
        self._synchronise()
        return value, time.perf_counter() - began

    def prepare(self) -> None:
        """Set what PyTorch keeps for the process.

        Called again before each chunk, as others may have changed it.
        """
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        # As torch.use_deterministic_algorithms, which would import the compiler for seconds.
        torch.set_deterministic_debug_mode(self._mode)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = not self._deterministic
            torch.backends.cuda.matmul.allow_tf32 = self._tf32
            torch.backends.cudnn.allow_tf32 = self._tf32

    def free(self) -> None:
        """Give back the memory that PyTorch keeps on a GPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Single:
    """What Fabric is to one process on a CPU in single precision, which needs none of it."""

    device, world_size, global_rank, is_global_zero = torch.device("cpu"), 1, 0, True
    autocast = staticmethod(nullcontext)

    @staticmethod
    def barrier() -> None:
        """There is no other process to wait for."""


def _cores() -> int:
    """The cores that this process may use: in a job of Slurm no more than it was given."""
    if not hasattr(os, "sched_getaffinity"):  # where forks are not safe
        return 1
    cores = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    return min(cores, int(given)) if given.isdecimal() else cores


def launch(accelerator: str, devices: int, precision: str, nodes: int = 1) -> Any:
    """A launched Fabric, or a minimal stand-in for a single CPU process.

    Importing Fabric takes seconds. Left to itself, Fabric takes part in a job of Slurm that it
    finds itself in, and warns where Slurm is installed and not used; so it is told whether to.

    Args:
        accelerator: one of ACCELERATORS.
        devices: number of devices, at least 1.
        precision: name of the precision, as in Fabric.
        nodes: number of nodes, at least 1; the processes on more than one are started by Slurm.

    Raises:
        InputError: a setting that this machine cannot honour.
    """
    alone = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if alone and devices == nodes == 1 and precision == "32-true":
        return _Single()
    if nodes > 1:
        _check_step(nodes, devices)
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
    from lightning_fabric.strategies import DDPStrategy

    # cuBLAS is deterministic only with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if precision == "16-mixed" and (accelerator == "cpu" or not torch.cuda.is_available()):
        refuse(
            "executor.precision", precision, "32-true, 64-true or bf16-mixed where there is no GPU"
        )
    # One process may train for hours while the others wait for its result.
    several = devices * nodes > 1
    strategy: Any = DDPStrategy(timeout=timedelta(days=7)) if several else "auto"
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=precision,
            strategy=strategy,
            plugins=SLURMEnvironment(auto_requeue=False) if nodes > 1 else LightningEnvironment(),
        )
    except (RuntimeError, ValueError) as error:
        refuse(
            "executor.accelerator",
            accelerator,
            f"one that this machine has {devices} of ({' '.join(str(error).split())})",
        )
    fabric.launch()
    return fabric


def _check_step(nodes: int, devices: int) -> None:
    """Check that Slurm has started this process on each of the nodes, once for each device.

    Raises:
        InputError: it has not.
    """
    wanted = {"SLURM_STEP_NUM_NODES": nodes, "SLURM_STEP_NUM_TASKS": nodes * devices}
    if any(os.environ.get(name) != str(count) for name, count in wanted.items()):
        step = f"srun --nodes={nodes} --ntasks-per-node={devices} python ..."
        refuse("executor.nodes", nodes, f"1, or the number of nodes of a step: {step}")
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Fabric asks for it
