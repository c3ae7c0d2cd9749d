"""How large and how fast the networks of a suite are on this machine, with fresh weights."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustness_geometry.models import build
from robustness_geometry.types import Dataset
from stages.config import RANDOM, NetworkConfig, factory

__all__ = ["fresh", "size_of"]

BATCHES = (256, 64, 16, 4, 1)
"""Batches that are tried on a GPU, until one fits; a CPU takes the last that is quick."""

LONG = 1.0
"""Seconds that a batch may take on a CPU for a larger one to be tried."""


def fresh(name: str, spec: NetworkConfig, data: Dataset) -> nn.Module:
    """The network with fresh weights, as neither speed nor size depends on them."""
    leaf = dict(spec.model)
    if leaf.get("checkpoint") or leaf.get("weights"):
        leaf |= {"checkpoint": RANDOM} | ({"weights": None} if "weights" in leaf else {})
    return build(factory(leaf, f"networks.{name}.model"), data, 0)


def size_of(name: str, spec: NetworkConfig, data: Dataset) -> dict[str, Any]:
    """What a network takes.

    Args:
        name: the network's name.
        spec: how it is configured.
        data: images of the shape that it takes.

    Returns:
        ``network``; ``dataset``; ``pictures``, bytes of all images in memory; ``parameters``, bytes
        of the weights; ``activations``, bytes that one image's gradient keeps; ``flops`` of one
        image's forward pass; ``device``; ``forward`` and ``gradient``, seconds an image for a
        forward pass, and for one with the gradient with respect to the image.
    """
    model = fresh(name, spec, data)
    image = data.test.images[:1]
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(image)
    kept = _kept(model, image)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = device or torch.device("cpu")
    forward, gradient = _seconds(model.to(device), image.to(device))
    return {
        "network": name,
        "dataset": data.name,
        "pictures": sum(each.images.numel() * 4 for each in (data.train, data.test)),
        "parameters": sum(p.numel() * p.element_size() for p in model.parameters()),
        "activations": kept,
        "flops": flops.get_total_flops(),
        "device": device.type,
        "forward": forward,
        "gradient": gradient,
    }


def _kept(model: nn.Module, image: Tensor) -> int:
    """Bytes that are kept for the gradient of one image, the weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(image.clone().requires_grad_())
    del logits
    return sum(found.values())


def _seconds(model: nn.Module, image: Tensor) -> tuple[float, float]:
    """Seconds an image for a forward pass and for a gradient, in the best of some batches."""
    best = float("inf"), float("inf")
    order = BATCHES if image.device.type != "cpu" else BATCHES[::-1]
    for size in order:
        try:
            times = _once(model, image.repeat(size, *(1,) * (image.ndim - 1)))
        except torch.OutOfMemoryError:
            continue
        best = min(best, times, key=lambda pair: pair[1])
        if image.device.type != "cpu" or times[1] * size > LONG:
            break
    return best


def _once(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """The shorter of two measurements, as the first one also warms up."""
    found = []
    for _ in range(2):
        began = _now(images)
        with torch.no_grad():
            model(images)
        half = _now(images)
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)
        found.append((half - began, _now(images) - half))
    count = len(images)
    return min(f for f, _ in found) / count, min(g for _, g in found) / count


def _now(images: Tensor) -> float:
    if images.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
