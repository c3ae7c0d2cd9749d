"""Faster gradients of convolutions with respect to their input, on CPUs.

In a DeepFool step on a LeNet, autograd spends four fifths of its time in convolutions, most of it
in two cases that PyTorch's general kernel serves badly: few input channels, and a kernel as
large as the image. Both are matrix products. Batch normalisation in evaluation mode is a scale and
a shift, whose backward pass is one product.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, fold
from torch.overrides import TorchFunctionMode

__all__ = [
    "FastInputGradients",
    "has_fast_gradient",
    "input_gradient",
    "is_fixed",
    "scale_and_shift",
]

THIN = 32
"""Largest size C * k * k of a kernel for which a product with unfolded patches is faster."""

ELEMENTS = 1 << 21
"""Largest number of values of the unfolded patches, so that they stay in the cache."""


class FastInputGradients(TorchFunctionMode):
    """While entered, layers that qualify get a cheaper backward pass, for their input only.

    The forward pass and the derivative are the same up to rounding. Parameters get no gradient
    through such a layer, so that it is only to be entered where gradients with respect to the input
    alone are taken.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d and len(args) == 7 and not kwargs and has_fast_gradient(*args):
            images, weight, bias, stride, padding, dilation, _ = args
            return _Convolution.apply(images, weight, bias, stride, padding, dilation)
        if func is batch_norm and len(args) == 3 and is_fixed(*args, **(kwargs or {})):
            with torch.no_grad():
                scale, shift = scale_and_shift(*args, **(kwargs or {}))
            return torch.addcmul(shift, args[0], scale)
        return func(*args, **(kwargs or {}))


def has_fast_gradient(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> bool:
    """Whether :func:`input_gradient` serves this convolution (arguments as of ``nn.Conv2d``)."""
    plain = (
        groups == 1 and images.ndim == 4 and isinstance(padding, tuple) and weight.grad_fn is None
    )
    if not plain or images.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if tuple(weight.shape[2:]) == (1, 1) and not images.is_contiguous():
        return False  # with channels last PyTorch's own is as fast
    return weight[0].numel() <= THIN or _covers(images.shape, weight.shape, padding)


def is_fixed(
    images: Tensor, mean: Any, variance: Any, *, weight: Any, bias: Any, training: bool, **_: Any
) -> bool:
    """Whether this batch normalisation is a scale and a shift per channel, on a CPU."""
    plain = not training and all(
        isinstance(part, Tensor) for part in (weight, bias, mean, variance)
    )
    return plain and images.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def scale_and_shift(
    images: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """The scale and the shift of a fixed batch normalisation, shaped to broadcast."""
    scale = weight * torch.rsqrt(variance + eps)
    shape = (1, -1, *[1] * (images.ndim - 2))
    return scale.view(shape), (bias - mean * scale).view(shape)


def _covers(images: Sequence[int], kernel: Sequence[int], padding: tuple[int, int]) -> bool:
    """Whether the kernel is as large as the image, so that the output is a single pixel."""
    return images[2:] == kernel[2:] and padding == (0, 0)


def _is_pointwise(kernel: Sequence[int], geometry: dict[str, Any]) -> bool:
    """Whether every output pixel sees one input pixel: then patches are the image itself."""
    return (
        tuple(kernel[2:]) == (1, 1)
        and geometry["stride"] == (1, 1)
        and geometry["padding"] == (0, 0)
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = (
            images.shape,
            {"stride": stride, "padding": padding, "dilation": dilation},
        )
        return torch.conv2d(images, weight, bias, stride, padding, dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return input_gradient(gradient, weight, ctx.shape, **ctx.geometry), *[None] * 5


def input_gradient(
    gradient: Tensor, weight: Tensor, shape: Sequence[int], **geometry: Any
) -> Tensor:
    """The gradient by the images of a convolution that :func:`has_fast_gradient`.

    Args:
        gradient: (N, channels out, H', W') gradient by its output.
        weight: (channels out, C, k, k) its kernels.
        shape: N, C, H, W of the images.
        geometry: ``stride``, ``padding`` and ``dilation``.

    Returns:
        (N, C, H, W).
    """
    rows = weight.flatten(1)
    if _covers(shape, weight.shape, geometry["padding"]):
        return (gradient.flatten(1) @ rows).view(*shape)
    if _is_pointwise(weight.shape, geometry):
        return _product(rows, gradient).view(*shape)
    size = max(1, ELEMENTS // (rows.shape[1] * gradient[0, 0].numel()))
    parts = (_product(rows, part) for part in gradient.split(size))
    return torch.cat([_folded(part, shape[1:], weight.shape[2:], **geometry) for part in parts])


def _folded(
    patches: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> Tensor:
    """The sum (N, C, H, W) of patches (N, C k k, H' W').

    This is ``fold``, computed in long runs of memory where stride and dilation are 1.
    """
    if stride != (1, 1) or dilation != (1, 1):
        return fold(
            patches, (shape[1], shape[2]), (kernel[0], kernel[1]), dilation, padding, stride
        )
    (channels, height, width), (above, left) = shape, padding
    tall, wide = height + 2 * above, width + 2 * left
    down, across = tall - kernel[0] + 1, wide - kernel[1] + 1
    parts = patches.view(len(patches), channels, *kernel, down, across)
    rows = patches.new_zeros(len(patches), channels, kernel[0], down, wide)
    for column in range(kernel[1]):
        rows[..., column : column + across] += parts[:, :, :, column]
    whole = patches.new_zeros(len(patches), channels, tall, wide)
    for row in range(kernel[0]):
        whole[:, :, row : row + down] += rows[:, :, row]
    return whole[:, :, above : above + height, left : left + width]


def _product(rows: Tensor, gradient: Tensor) -> Tensor:
    """The gradients of the unfolded patches, (N, C k k, H' W')."""
    # The operator @ would copy the whole batch where the matrix requires a gradient.
    return torch.bmm(rows.T.expand(len(gradient), -1, -1), gradient.flatten(2))
