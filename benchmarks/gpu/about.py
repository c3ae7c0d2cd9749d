"""The machine and the settings of a run."""

import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from benchmarks.cure import CURE, EPS, OBJECTIVES, STEPS
from benchmarks.gpu.curvature import SAMPLES
from benchmarks.gpu.networks import BRANCH, SPREAD, Size
from benchmarks.gpu.record import Limits
from benchmarks.machine import describe
from benchmarks.peers import PEERS

__all__ = ["describe_machine", "describe_settings"]


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Card, driver and versions."""
    machine = describe(device)
    machine |= {name: metadata.version(name) for name in ("torchvision", "numpy", "scipy")}
    machine["peers"] = {peer.name: peer.version for peer in PEERS if peer.installed}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        machine |= {
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{card.major}.{card.minor}",
            "memory_mib": card.total_memory / 2**20,
        }
    return machine


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout.splitlines() or [""])[0] or None


def describe_settings(sizes: Sequence[Size], limits: Limits) -> dict[str, Any]:
    """Sizes, limits and the options that all rows share."""
    return {
        "sizes": [_plain(size) for size in sizes],
        "limits": vars(limits),
        "samples": SAMPLES,
        "branch": BRANCH,
        "spread": SPREAD,
        "dtype": "float32",
        "fp32": "TF32 off in matrix products and convolutions",
        "tf32": "TF32 on in matrix products and convolutions",
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "beside_peers": "variant=overshot, clip=(0, 1)",
        "unclipped": "variant=clean, clip=None, prune=2",
        "pgd": f"eps={EPS}, steps={STEPS}",
        "cure": repr(OBJECTIVES[CURE]),
    }


def _plain(size: Size) -> dict[str, Any]:
    return {key: value for key, value in vars(size).items() if key != "build"}
