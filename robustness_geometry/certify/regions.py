"""Bounds of a network's nodes in a ball by interval arithmetic, with all that rounding adds."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustness_geometry.certify.operations import (
    EPS,
    Concatenation,
    Input,
    Maximum,
    Node,
    Rectifier,
    Sum,
)

__all__ = ["Region", "interval", "margin", "offsets", "rounding"]


@dataclass
class Region:
    """A ball around each image, and bounds of all nodes there.

    Attributes:
        images: (N, *shape) the centres.
        radii: (N,).
        norm: exponent p of the ball.
        clip: lowest and highest pixel value, or None.
        lower: node -> (N, *shape).
        upper: node -> (N, *shape).
        sizes: node -> (N, *shape) at least the sum of the sizes of the terms of each value.
        errors: node -> (N, *shape) the rounding errors of a functional that is the value, on its
            way back to the last nonlinear operation.
        offsets: node -> (1, *shape) its value where the nonlinear nodes and the image are zero.
        offset_sizes: node -> (1, *shape) the sum of the sizes of that value's terms.
        plane: coefficients (N, *image) and constants (N,) of a functional that is at most zero at
            all points that matter: the bounds hold for those; None: for all points of the balls.
    """

    images: Tensor
    radii: Tensor
    norm: float
    clip: tuple[float, float] | None
    lower: list[Tensor]
    upper: list[Tensor]
    sizes: list[Tensor]
    errors: list[Tensor]
    offsets: list[Tensor]
    offset_sizes: list[Tensor]
    plane: tuple[Tensor, Tensor] | None = None

    def size(self, place: int) -> Tensor:
        """Bounds on |value| of a node, (N, *shape)."""
        return torch.maximum(self.lower[place].abs(), self.upper[place].abs())


def margin(node: Node) -> float:
    """The relative rounding error of the sums of one step: twice its terms, in roundoffs."""
    return (2 * node.size + 64) * EPS


def interval(nodes: list[Node], place: int, region: Region) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of one node from those of its inputs, and the sizes of its terms."""
    node = nodes[place]
    operation, inputs = node.operation, node.inputs
    if isinstance(operation, Input):
        return _box(region)
    low, high = ([table[i] for i in inputs] for table in (region.lower, region.upper))
    size = [region.size(i) for i in inputs]
    if isinstance(operation, Rectifier):
        bounds = [torch.where(v > 0, v, operation.slope * v) for v in (low[0], high[0])]
        return bounds[0], bounds[1], size[0] * 3
    if isinstance(operation, Maximum):
        bounds = [
            operation.gather(v, -math.inf).amax(dim=-1).unflatten(-1, node.shape[1:])
            for v in (low[0], high[0])
        ]
        total = operation.gather(size[0], 0.0).sum(dim=-1).unflatten(-1, node.shape[1:])
        return bounds[0], bounds[1], total * 3
    if isinstance(operation, Concatenation):
        low_all, high_all, size_all = (torch.cat(v, dim=operation.dim) for v in (low, high, size))
        return low_all, high_all, size_all
    if isinstance(operation, Sum):
        pairs = list(zip(operation.signs, low, high, strict=True))
        lower = sum(lo if s > 0 else -hi for s, lo, hi in pairs)
        upper = sum(hi if s > 0 else -lo for s, lo, hi in pairs)
        total = sum(size)
        return lower - 8 * EPS * total, upper + 8 * EPS * total, total  # type: ignore[return-value]
    shape = node.shape
    total = operation.magnify(size[0]) + operation.constant_size(shape)
    # The number of terms of an entry is at most that of the operation's inputs.
    error = (2 * nodes[inputs[0]].size + 64) * EPS * total
    centre = operation.apply((low[0] + high[0]) / 2)
    spread = operation.magnify((high[0] - low[0]) / 2) + error
    return centre - spread, centre + spread, total


def offsets(
    nodes: list[Node], place: int, found: list[Tensor], sizes: list[Tensor], like: Tensor
) -> None:
    """Append what a node is where all nonlinear nodes and the image are zero, and its size.

    Args:
        nodes: the network.
        place: the node.
        found: the offsets (1, *shape) of the nodes before it.
        sizes: the sums (1, *shape) of the sizes of their terms.
        like: has the device, float64.
    """
    node = nodes[place]
    operation = node.operation
    before = [(found[i], sizes[i]) for i in node.inputs]
    if isinstance(operation, Input | Rectifier | Maximum):
        value = size = like.new_zeros(1, *node.shape)
    elif isinstance(operation, Sum):
        value = torch.stack([s * v for s, (v, _) in zip(operation.signs, before, strict=True)]).sum(
            dim=0
        )
        size = torch.stack([size for _, size in before]).sum(dim=0)
    elif isinstance(operation, Concatenation):
        value, size = (torch.cat(parts, dim=operation.dim) for parts in zip(*before, strict=True))
    else:
        value = operation.apply(before[0][0])
        size = operation.magnify(before[0][1]) + operation.constant_size(node.shape)
    found.append(value)
    sizes.append(size)


def rounding(nodes: list[Node], place: int, region: Region) -> Tensor:
    """The errors of a functional that is a node's value, back to the nonlinear nodes before it.

    They are the sum of |row| * margin * sizes over the affine nodes on the way, with |row| at most
    the product of their |W|; twice that, as the rows are rounded too.
    """
    node = nodes[place]
    operation = node.operation
    own = 2 * margin(node) * (region.sizes[place] + region.offset_sizes[place])
    before = [region.errors[i] for i in node.inputs]
    if isinstance(operation, Input | Rectifier | Maximum):
        return torch.zeros_like(own)
    if isinstance(operation, Sum):
        return own + torch.stack(before).sum(dim=0)
    if isinstance(operation, Concatenation):
        return own + torch.cat(before, dim=operation.dim)
    return own + operation.magnify(before[0])


def _box(region: Region) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest box around each ball, cut to the pixels' limits."""
    images = region.images
    radii = region.radii.view(-1, *[1] * (images.ndim - 1))
    lower, upper = images - radii, images + radii
    if region.clip is not None:
        lower, upper = (v.clamp(*region.clip) for v in (lower, upper))
    spread = 2 * EPS * (images.abs() + radii)
    lower, upper = lower - spread, upper + spread
    return lower, upper, torch.maximum(lower.abs(), upper.abs())
