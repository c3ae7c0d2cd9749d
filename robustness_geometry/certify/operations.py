"""The operations of a network that certification knows, in float64, without the batch dimension.

An affine operation is x -> Wx + b. It is stored as what certification asks of it: its value, its
adjoint W^T, and |W| and |b| in place of W and b, with which rounding errors are bounded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional, grad

__all__ = [
    "EPS",
    "Affine",
    "Concatenation",
    "Convolution",
    "Input",
    "Linear",
    "Maximum",
    "Node",
    "Operation",
    "Pooling",
    "Rectifier",
    "Reshape",
    "Scale",
    "Shape",
    "Sum",
]

Shape: TypeAlias = tuple[int, ...]

EPS = torch.finfo(torch.float64).eps
"""Twice the unit roundoff of float64."""

_CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_ADJOINTS = {3: grad.conv1d_input, 4: grad.conv2d_input, 5: grad.conv3d_input}


@dataclass(frozen=True)
class Input:
    """The image."""


@dataclass(frozen=True)
class Linear:
    """x -> Wx + b on vectors (B, inputs)."""

    weight: Tensor
    bias: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """W x + b."""
        return functional.linear(x, self.weight, self.bias)

    def magnify(self, x: Tensor) -> Tensor:
        """|W| x."""
        return functional.linear(x, self.weight.abs())

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """W^T y for rows y (B, outputs)."""
        return y @ self.weight

    def constant(self, shape: Shape) -> Tensor:
        """b, (1, outputs)."""
        return self.bias[None]

    def constant_size(self, shape: Shape) -> Tensor:
        """|b|, (1, outputs)."""
        return self.bias.abs()[None]

    def pattern(self) -> "Linear":
        """The same with ones for weights, whose adjoint shows what depends on what."""
        return replace(self, weight=torch.ones_like(self.weight))


@dataclass(frozen=True)
class Convolution:
    """A convolution in one to three dimensions, padded with zeros."""

    weight: Tensor
    bias: Tensor
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int

    def apply(self, x: Tensor) -> Tensor:
        """W x + b."""
        return self._convolve(x, self.weight, self.bias)

    def magnify(self, x: Tensor) -> Tensor:
        """|W| x."""
        return self._convolve(x, self.weight.abs(), None)

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """W^T y for rows y (B, *outputs); ``shape`` is that of the inputs."""
        if self._is_pointwise:  # a matrix product is much faster
            return (self.weight.flatten(1).T @ y.flatten(2)).unflatten(2, y.shape[2:])
        turned: Callable[..., Tensor] = _ADJOINTS[self.weight.ndim]
        size = (len(y), *shape)
        options = (self.stride, self.padding, self.dilation, self.groups)
        return turned(size, self.weight, y, *options)

    @property
    def _is_pointwise(self) -> bool:
        ones = {*self.weight.shape[2:], *self.stride} == {1}
        return ones and not any(self.padding) and self.groups == 1

    def constant(self, shape: Shape) -> Tensor:
        """The bias at every place, (1, *outputs)."""
        return self.bias.view(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)

    def constant_size(self, shape: Shape) -> Tensor:
        """|b| at every place, (1, *outputs)."""
        return self.constant(shape).abs()

    def pattern(self) -> "Convolution":
        """The same with ones for weights, whose adjoint shows what depends on what."""
        return replace(self, weight=torch.ones_like(self.weight))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve: Callable[..., Tensor] = _CONVOLUTIONS[weight.ndim]
        options = (self.stride, self.padding, self.dilation, self.groups)
        return convolve(x, weight, bias, *options)


@dataclass(frozen=True)
class Scale:
    """x -> factor x + shift, entry by entry.

    Attributes:
        factor: (1, *shape).
        shift: (1, *shape).
        shift_size: (1, *shape) the sum of the sizes of what ``shift`` was computed from.
    """

    factor: Tensor
    shift: Tensor
    shift_size: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """The scaled and shifted x."""
        return x * self.factor + self.shift

    def magnify(self, x: Tensor) -> Tensor:
        """|factor| x."""
        return x * self.factor.abs()

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """The scaled y."""
        return y * self.factor

    def constant(self, shape: Shape) -> Tensor:
        """The shift, (1, *shape)."""
        return self.shift

    def constant_size(self, shape: Shape) -> Tensor:
        """The size of the shift, (1, *shape)."""
        return self.shift_size

    def pattern(self) -> "Scale":
        """The same with factor one."""
        return replace(self, factor=torch.ones_like(self.factor))


@dataclass(frozen=True)
class Pooling:
    """A linear map with no negative weight, such as average pooling."""

    function: Callable[[Tensor], Tensor]

    def apply(self, x: Tensor) -> Tensor:
        """W x."""
        return self.function(x)

    def magnify(self, x: Tensor) -> Tensor:
        """|W| x, which is W x."""
        return self.function(x)

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """W^T y, by the derivative of the map."""
        with torch.enable_grad():
            x = y.new_zeros(len(y), *shape, requires_grad=True)
            (turned,) = torch.autograd.grad(self.function(x), x, y, create_graph=y.requires_grad)
        return turned

    def constant(self, shape: Shape) -> Tensor | None:
        """None: nothing is added."""
        return None

    def constant_size(self, shape: Shape) -> float:
        """0: nothing is added."""
        return 0.0

    def pattern(self) -> "Pooling":
        """Itself, as its weights are positive."""
        return self


@dataclass(frozen=True)
class Reshape:
    """Another shape of the same entries in the same order."""

    shape: Shape

    def apply(self, x: Tensor) -> Tensor:
        """The entries of x (B, ...) in the new shape."""
        return x.reshape(len(x), *self.shape)

    def magnify(self, x: Tensor) -> Tensor:
        """The same."""
        return self.apply(x)

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """The entries in the old shape."""
        return y.reshape(len(y), *shape)

    def constant(self, shape: Shape) -> Tensor | None:
        """None: nothing is added."""
        return None

    def constant_size(self, shape: Shape) -> float:
        """0: nothing is added."""
        return 0.0

    def pattern(self) -> "Reshape":
        """Itself."""
        return self


@dataclass(frozen=True)
class Sum:
    """The sum of several tensors of one shape, each with a sign."""

    signs: tuple[int, ...]


@dataclass(frozen=True)
class Concatenation:
    """Tensors one after the other along a dimension (counted with the batch's)."""

    dim: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Rectifier:
    """ReLU, or leaky ReLU: z above zero, slope * z below, with 0 <= slope <= 1."""

    slope: float


@dataclass(frozen=True)
class Maximum:
    """Max pooling in two dimensions.

    Attributes:
        windows: (places, K) the flat indices of the inputs in each window; H * W stands for
            padding.
    """

    windows: Tensor

    @staticmethod
    def of(
        shape: Shape, out: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape
    ) -> "Maximum":
        """Max pooling of feature maps (C, H, W) to ``out``."""
        sides = []
        for axis in (0, 1):
            places = torch.arange(out[axis + 1])[:, None] * stride[axis] - padding[axis]
            places = places + torch.arange(kernel[axis]) * dilation[axis]
            sides.append(torch.where((places >= 0) & (places < shape[axis + 1]), places, -1))
        rows, columns = sides[0][:, None, :, None], sides[1][None, :, None, :]
        outside = (rows < 0) | (columns < 0)
        flat = torch.where(outside, math.prod(shape[1:]), rows * shape[2] + columns)
        return Maximum(flat.reshape(math.prod(out[1:]), -1))

    def gather(self, x: Tensor, missing: float) -> Tensor:
        """The entries of x (..., H, W) by window, (..., places, K)."""
        flat = functional.pad(x.flatten(-2), (0, 1), value=missing)
        return flat[..., self.windows.to(x.device)]

    def scatter(self, y: Tensor, shape: Shape) -> Tensor:
        """The adjoint of :meth:`gather`: (..., places, K) to (..., H, W)."""
        values = y.flatten(-2)
        flat = y.new_zeros(*y.shape[:-2], math.prod(shape[1:]) + 1)
        flat = flat.scatter_add(-1, self.windows.flatten().to(y.device).expand_as(values), values)
        return flat[..., :-1].unflatten(-1, shape[1:])


Affine: TypeAlias = Linear | Convolution | Scale | Pooling | Reshape
Operation: TypeAlias = Input | Affine | Sum | Concatenation | Rectifier | Maximum


@dataclass(frozen=True)
class Node:
    """One operation of a network.

    Attributes:
        operation: what it does.
        inputs: the nodes that it takes, by their place in the network's list.
        shape: the shape of its result, without the batch.
    """

    operation: Operation
    inputs: tuple[int, ...]
    shape: Shape

    @property
    def size(self) -> int:
        """Number of entries of the result."""
        return math.prod(self.shape)
