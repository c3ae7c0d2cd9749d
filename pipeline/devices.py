"""The devices that a process works on."""

import os
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch

from robustness_geometry.checks import refuse

__all__ = ["launch"]


class _Single:
    """What Fabric is to one process on a CPU in single precision, which needs none of it."""

    device, world_size, global_rank, is_global_zero = torch.device("cpu"), 1, 0, True
    autocast = staticmethod(nullcontext)

    @staticmethod
    def barrier() -> None:
        """There is nobody to wait for."""


def launch(accelerator: str, devices: int, precision: str) -> Any:
    """Lightning's Fabric, launched; where one process does on a CPU, its like, as Fabric takes seconds to import.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda``, ``gpu`` or ``mps``.
        devices: how many; at least 1.
        precision: as Fabric names it.

    Raises:
        InputError: a setting that this machine cannot honour.
    """
    alone = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if alone and devices == 1 and precision == "32-true":
        return _Single()
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # cuBLAS is deterministic only with it
    if precision == "16-mixed" and (accelerator == "cpu" or not torch.cuda.is_available()):
        refuse(
            "executor.precision", precision, "32-true, 64-true or bf16-mixed where there is no GPU"
        )
    # One process may train for hours while the others wait for its result.
    strategy: Any = DDPStrategy(timeout=timedelta(days=7)) if devices > 1 else "auto"
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, precision=precision, strategy=strategy
        )
    except (RuntimeError, ValueError) as error:
        refuse(
            "executor.accelerator", f"{accelerator} (devices={devices})", f"what is here: {error}"
        )
    fabric.launch()
    return fabric
