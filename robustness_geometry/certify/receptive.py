"""Units of a convolutional layer that share no input, so that one row can bound them together.

Two units whose receptive fields are disjoint have functionals with disjoint entries at every layer
before them. Their sum is one row in place of two, from which both can be read. Places of a feature
map at a distance of a fixed period in both directions are such units; the period is found by
following which entries depend on which.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustness_geometry.certify.operations import (
    Concatenation,
    Input,
    Maximum,
    Node,
    Rectifier,
    Sum,
)

__all__ = ["Groups", "groups"]

WORTHWHILE = 0.7
"""Largest share of the rows that must be left for a grouping to be used."""


@dataclass(frozen=True)
class Groups:
    """A grouping of the places of a feature map (C, H, W).

    Attributes:
        members: (G, H, W) one where a place belongs to the group.
        owners: node -> (G * entries,) the place that an entry of the node belongs to in the row of
            a group; H * W for none.
    """

    members: Tensor
    owners: dict[int, Tensor]

    def seeds(self, channels: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """The rows (1, len(channels) * G, C, H, W) of all groups in some channels."""
        rows = self.members.new_zeros(len(channels), len(self.members), *shape)
        for k, channel in enumerate(channels):
            rows[k, :, channel] = self.members
        return rows.flatten(0, 1)[None]

    def split(self, i: int, values: Tensor, how: str = "sum") -> Tensor:
        """Sum (or maximum: ``amax``) of a node's values (N, K * G, *shape) by unit, (N, K * H * W).

        The values must not be negative for a maximum.
        """
        places = self.members[0].numel()
        flat = values.reshape(len(values), -1, len(self.owners[i]))
        found = flat.new_zeros(*flat.shape[:2], places + 1)
        owners = self.owners[i].to(flat.device)
        found = found.scatter_reduce(2, owners.expand_as(flat), flat, how)
        return found[..., :places].flatten(1)


def groups(nodes: list[Node], place: int) -> Groups | None:
    """The grouping of a node's places with the fewest groups; None where none is worthwhile."""
    shape = nodes[place].shape
    if len(shape) != 3:
        return None
    height, width = shape[1:]
    for period in range(1, max(height, width)):
        if min(period, height) * min(period, width) > WORTHWHILE * height * width:
            return None
        if _owners(nodes, place, _pair(shape, period)) is None:
            continue  # most periods fail for two places already, which is quickly seen
        members = _members(shape, period)
        owners = _owners(nodes, place, members)
        if owners is not None:
            return Groups(members, owners)
    return None


def _members(shape: tuple[int, ...], period: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(shape[1]), torch.arange(shape[2]), indexing="ij")
    group = (rows % period) * period + columns % period
    return torch.stack([group == g for g in group.unique()]).to(torch.float64)


def _pair(shape: tuple[int, ...], period: int) -> Tensor:
    """One group of two places in the middle, a period apart along the longer side."""
    pair = torch.zeros(1, *shape[1:], dtype=torch.float64)
    axis = 1 if shape[1] >= shape[2] else 2
    start = (shape[axis] - 1 - period) // 2
    line = pair.select(3 - axis, shape[3 - axis] // 2)
    line[0, [start, start + period]] = 1
    return pair


def _owners(nodes: list[Node], place: int, members: Tensor) -> dict[int, Tensor] | None:
    """Which place each entry belongs to; None where an entry belongs to two places of a group."""
    shape = nodes[place].shape
    none = members[0].numel()
    numbers = torch.arange(none, dtype=torch.float64).view(members[0].shape)
    rows = torch.stack([members, members * numbers, members * numbers.square()])
    pending = {place: rows[:, :, None].expand(-1, -1, *shape).clone()}
    owners = {}
    for i in range(place, -1, -1):
        if i not in pending:
            continue
        # How many paths lead here, and the mean and the mean square of the places they come from.
        count, first, square = pending.pop(i)
        used = count > 0
        mean = _quotient(first, count).round()
        spread = _quotient(square, count) - 2 * mean * _quotient(first, count) + mean.square()
        if bool((spread[used] > 1e-6).any()):
            return None
        owners[i] = torch.where(used, mean, none).long().flatten()
        # Every entry counts once from here on, which keeps the numbers small enough to be exact.
        once = used.to(torch.float64)
        for z, part in _inputs(nodes, i, torch.stack([once, once * mean, once * mean.square()])):
            pending[z] = pending[z] + part if z in pending else part
    return owners


def _quotient(values: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 0, values / torch.where(count > 0, count, 1.0), 0.0)


def _inputs(nodes: list[Node], i: int, rows: Tensor) -> list[tuple[int, Tensor]]:
    """Spread rows (3, G, *shape) of a node over its inputs, with all weights one."""
    operation, inputs = nodes[i].operation, nodes[i].inputs
    match operation:
        case Input():
            return []
        case Sum() | Rectifier():
            return [(z, rows) for z in inputs]
        case Concatenation(dim, sizes):
            return list(zip(inputs, rows.split(sizes, dim=dim + 1), strict=True))
        case Maximum(windows):
            wide = rows.flatten(3)[..., None].expand(*rows.shape[:3], *windows.shape)
            return [(inputs[0], operation.scatter(wide, nodes[inputs[0]].shape))]
    turned = operation.pattern().adjoint(rows.flatten(0, 1), nodes[inputs[0]].shape)
    return [(inputs[0], turned.unflatten(0, rows.shape[:2]))]
