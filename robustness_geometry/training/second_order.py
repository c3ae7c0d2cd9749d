"""Faster second derivatives on CPUs: gradients by the image, differentiated by the weights.

PyTorch computes the second derivative of a convolution by its weights as a convolution with kernels
as large as the image, and that of batch normalisation in a dozen passes over the activations. The
first equals the ordinary gradient by the weights, which is fast; the second, in evaluation mode, is
a scale and a shift.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

from robustness_geometry.attacks.convolutions import (
    has_fast_gradient,
    input_gradient,
    is_fixed,
    scale_and_shift,
)
from robustness_geometry.outputs import refuse_lost_gradient

__all__ = ["SecondOrder"]


class SecondOrder(TorchFunctionMode):
    """While entered, layers on a CPU get backward passes that are cheap to differentiate again.

    Values and derivatives are the same up to rounding, by images, weights and biases. There is no
    third derivative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.images_only = False

    def gradient(self, loss: Tensor, images: Tensor) -> Tensor:
        """The gradient of ``loss`` by ``images``, with its graph, without that by the weights."""
        self.images_only = True
        try:
            (found,) = torch.autograd.grad(loss, images, create_graph=True, allow_unused=True)
            if found is None:
                refuse_lost_gradient()
            return found
        finally:
            self.images_only = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d and len(args) == 7 and not kwargs and _qualifies(*args):
            return _Convolution.apply(*args[:3], args[3:], self)
        if func is batch_norm and len(args) == 3 and is_fixed(*args, **(kwargs or {})):
            scale, shift = scale_and_shift(*args, **(kwargs or {}))
            return torch.addcmul(shift, args[0], scale)
        return func(*args, **(kwargs or {}))


def _qualifies(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, *_: Any
) -> bool:
    """Whether this is an ordinary convolution on a CPU (arguments as of ``nn.Conv2d``)."""
    plain = images.ndim == 4 and isinstance(padding, tuple) and images.device.type == "cpu"
    return plain and not torch.is_autocast_enabled("cpu")


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[Any, ...],
        mode: SecondOrder,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry, ctx.mode = geometry, mode
        ctx.biases = None if bias is None else list(bias.shape)
        return torch.conv2d(images, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        by_images, by_weight, by_bias = ctx.needs_input_grad[:3]
        here = (
            _InputGradient.apply(gradient, weight, images.detach(), ctx.geometry)
            if by_images
            else None
        )
        mask = [False, by_weight, by_bias]
        if ctx.mode.images_only or not any(mask):
            return here, *[None] * 4
        _, there, bias = _backward(gradient, images, weight, ctx.biases, ctx.geometry, mask)
        return here, there, bias, None, None


class _InputGradient(torch.autograd.Function):
    """The gradient of a convolution by its images, as a function of its inputs.

    These are the gradient by the output of the convolution, and its weights.
    """

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, weight: Tensor, images: Tensor, geometry: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.geometry = geometry
        stride, padding, dilation, _ = geometry
        if has_fast_gradient(images, weight, None, *geometry):
            return input_gradient(
                gradient, weight, images.shape, stride=stride, padding=padding, dilation=dilation
            )
        return _backward(gradient, images, weight, None, geometry, [True, False, False])[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        by_gradient, by_weight = ctx.needs_input_grad[:2]
        here = torch.conv2d(direction, weight, None, *ctx.geometry) if by_gradient else None
        mask = [False, True, False]
        there = (
            _backward(gradient, direction, weight, None, ctx.geometry, mask)[1]
            if by_weight
            else None
        )
        return here, there, None, None


def _backward(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    biases: list[int] | None,
    geometry: tuple[Any, ...],
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's gradients by images, weight and bias, as far as ``mask`` asks for them."""
    stride, padding, dilation, groups = geometry
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, images, weight, biases, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return found
