"""An upper bound on the speed of DeepFool with all classes' gradients: plain Jacobians alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["JACOBIANS", "active_images", "jacobians"]

Jacobian = Callable[[nn.Module, Tensor], Tensor]


def _class_by_class(model: nn.Module, images: Tensor) -> Tensor:
    leaf = images.detach().clone().requires_grad_()
    logits = model(leaf)
    classes = logits.shape[1]
    rows = [
        torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=k < classes - 1)[0]
        for k in range(classes)
    ]
    return torch.stack(rows, dim=1)


def _batched_gradients(model: nn.Module, images: Tensor) -> Tensor:
    leaf = images.detach().clone().requires_grad_()
    logits = model(leaf)
    classes = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    directions = classes[:, None].expand(-1, *logits.shape)
    gradients: Tensor = torch.autograd.grad(logits, leaf, directions, is_grads_batched=True)[0]
    return gradients.transpose(0, 1)


def _copies(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        count = model(images[:1]).shape[1]
    leaf = images.detach().repeat_interleave(count, dim=0).requires_grad_()
    logits = model(leaf)
    classes = torch.eye(count, dtype=logits.dtype, device=logits.device).repeat(len(images), 1)
    gradients: Tensor = torch.autograd.grad(logits, leaf, classes)[0]
    return gradients.view(len(images), count, *images.shape[1:])


JACOBIANS: dict[str, Jacobian] = {
    "class by class": _class_by_class,
    "is_grads_batched": _batched_gradients,
    "a copy for each class": _copies,
}
"""The ways in which plain autograd gives the gradients (N, classes, C, H, W) of all classes."""


def active_images(steps: Tensor) -> list[int]:
    """The number of images still under attack at step 1, 2, ...: the sizes of an active set."""
    return [int((steps > step).sum()) for step in range(int(steps.max()))] if steps.numel() else []


def jacobians(
    jacobian: Jacobian, model: nn.Module, images: Tensor, sizes: Sequence[int], batch: int
) -> None:
    """Take a Jacobian of the first images for each of ``sizes``.

    Args:
        jacobian: one of JACOBIANS.
        model: the network.
        images: (N, C, H, W).
        sizes: number of images of each Jacobian.
        batch: largest number of images at once.
    """
    for size in sizes:
        for part in torch.split(images[:size], batch):
            jacobian(model, part)
