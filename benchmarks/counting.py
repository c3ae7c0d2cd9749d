"""Counts of forward and backward passes through a network, which depend on no machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Passes", "count_passes", "elements"]


@dataclass
class Passes:
    """Images that went through a network.

    Attributes:
        forward: images in all forward passes together.
        backward: gradients with respect to an image in all backward passes together; ten classes'
            gradients of one image count ten, whether they were taken one after another, batched, or
            on ten copies of the image.
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def count_passes(model: nn.Module) -> Iterator[Passes]:
    """Count the images that pass through ``model`` while the context is open.

    The counts are of work done, not of calls: a pass over a batch of N images counts N, also where
    the result of some of them is thrown away. The hook sits at the input of ``model``, where every
    gradient ends.

    Args:
        model: a network called with a batch (N, ...), also from inside ``torch.func`` transforms.

    Yields:
        The counts, which grow as the model is used.
    """
    passes = Passes()

    def enter(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (batch,) = inputs
        size = batch.shape[1:].numel()
        passes.forward += elements(batch) // size
        if not batch.requires_grad:
            return (batch,)

        def leave(gradient: Tensor) -> None:
            passes.backward += elements(gradient) // size

        # A view of its own for every call: a leaf used in two calls would keep the hooks of both.
        batch = batch.view_as(batch)
        batch.register_hook(leave)
        return (batch,)

    handle = model.register_forward_pre_hook(enter)
    try:
        yield passes
    finally:
        handle.remove()


def elements(tensor: Tensor) -> int:
    """Elements of ``tensor``, the dimensions that vmap and is_grads_batched hide among them."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    while functorch.is_legacy_batchedtensor(tensor):  # what is_grads_batched=True hands to hooks
        level = max(torch._C._vmapmode_increment_nesting() - 1, 1)
        torch._C._vmapmode_decrement_nesting()
        tensor = torch._remove_batch_dim(tensor, level, 1, 0)
    return tensor.numel()
