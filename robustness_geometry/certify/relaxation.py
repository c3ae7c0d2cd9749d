"""Linear bounds of a network's units in a ball, by backward propagation (CROWN).

A linear functional of a node's values is rewritten, operation by operation, as a linear functional
of the image that lies below it wherever the image stays in the ball. At a ReLU, the functional is
replaced by lines: below ReLU(z) lies any line a z with 0 <= a <= 1, above it the chord between the
bounds of z. The minimum over the ball is then a dual norm.

Rounding: each step replaces its exact coefficients by rounded ones. The difference is at most the
number of terms times the unit roundoff times the sum of |coefficient| |term|, which the step
subtracts from the constant; ``Region.sizes`` bounds the terms. Sums may be taken in any order, but
no algorithm that subtracts sums of inputs (Winograd, FFT) is covered: PyTorch uses none in float64.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from robustness_geometry.certify.operations import (
    EPS,
    Concatenation,
    Convolution,
    Input,
    Linear,
    Maximum,
    Node,
    Pooling,
    Rectifier,
    Reshape,
    Scale,
    Sum,
)
from robustness_geometry.certify.receptive import Groups
from robustness_geometry.certify.regions import Region, margin

__all__ = ["Slopes", "backward", "chord", "descend", "start_slopes", "to_nonlinear"]

Slopes = Mapping[int, Tensor]
"""Node -> what is free in its relaxation, in [0, 1], (N, R, *shape)."""


def chord(lower: Tensor, upper: Tensor, slope: float | Tensor = 0.0) -> tuple[Tensor, Tensor]:
    """The line s z + t above the rectifier on [lower, upper], in rounded numbers that keep it so.

    Returns:
        s and t: the chord where lower < 0 < upper, else the rectifier's own line.
    """
    crossing = (lower < 0) & (upper > 0)
    width = torch.where(crossing, upper - lower, 1.0)
    own = torch.where(lower >= 0, 1.0, torch.as_tensor(slope, dtype=lower.dtype))
    s = torch.where(crossing, (upper - slope * lower) / width, own).clamp(0, 1)
    t = torch.maximum((slope - s) * lower, upper - s * upper)
    t = t + 16 * EPS * (lower.abs() + upper.abs())
    return s, torch.where(crossing, t, 0.0)


def start_slopes(nodes: list[Node], place: int, region: Region, rows: int) -> dict[int, Tensor]:
    """The relaxations that are tightest unit by unit, for ``rows`` functionals of a node."""
    found = {}
    for i in _ancestors(nodes, place):
        operation = nodes[i].operation
        if not isinstance(operation, Rectifier | Maximum):
            continue
        source = nodes[i].inputs[0]
        lower, upper = region.lower[source], region.upper[source]
        if isinstance(operation, Rectifier):
            start = (upper > -lower).to(lower.dtype)
        else:
            line, shift, most = _lines_above(operation, lower, upper)[1:]
            middle = operation.gather((lower + upper) / 2, 0.0)
            start = ((line * middle).sum(dim=-1) + shift < most).to(lower.dtype)
            start = start.unflatten(-1, nodes[i].shape[1:])
        found[i] = start[:, None].expand(-1, rows, *start.shape[1:])
    return found


def _ancestors(nodes: list[Node], place: int) -> list[int]:
    """The nodes that a node depends on, itself included, last first."""
    needed = {place}
    for i in range(place, -1, -1):
        if i in needed:
            needed.update(nodes[i].inputs)
    return sorted(needed, reverse=True)


def _lines_above(
    operation: Maximum, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bounds of max pooling, from those of its inputs.

    With z_j the entry of the largest lower bound L, z_j <= max z <= z_j + sum_i ReLU(z_i - L) over
    the others, where each ReLU lies under its chord; and max z <= max u.

    Returns:
        The coefficients (N, C, P, K) of z_j; those of the line above, its constant (N, C, P), and
        max u.
    """
    low, high = operation.gather(lower, -math.inf), operation.gather(upper, -math.inf)
    most, first = low.max(dim=-1, keepdim=True)
    below = torch.zeros_like(low).scatter(-1, first, 1.0)
    rival = (high > most) & (below == 0)
    floor = most - 4 * EPS * most.abs()
    from_low = torch.where(rival, low - floor, -1.0)
    from_high = torch.where(rival, high - floor, -1.0)
    # Where the lower bound equals L the chord is the line itself: a hair below keeps it a chord.
    slope, shift = chord(from_low.clamp_max(-1e-300), from_high)
    shift = shift + 16 * EPS * torch.where(rival, low.abs() + high.abs() + floor.abs(), 0.0)
    slope = torch.where(rival, slope, 0.0)
    constant = torch.where(rival, shift - slope * floor, 0.0)
    constant = constant.sum(dim=-1) + 64 * EPS * constant.abs().sum(dim=-1)
    return below, below + slope, constant, high.amax(dim=-1)


def backward(
    nodes: list[Node],
    place: int,
    seeds: Tensor,
    region: Region,
    slopes: Slopes,
    multipliers: Mapping[int, Tensor] | None = None,
    seen: dict[int, Tensor] | None = None,
    grouping: Groups | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear functionals of the image below given ones of a node's values.

    Args:
        nodes: the network.
        place: the node.
        seeds: (N, R, *shape) or (1, R, *shape): R functionals of the node's values.
        region: bounds of the nodes before it.
        slopes: the free part of each relaxation, as of :func:`start_slopes`.
        multipliers: rectifier -> (N, R, *shape) what is added to the functional of its input z; the
            caller sees to it that this lies below zero there.
        seen: filled with rectifier -> (N, R, *shape) the functional of its output.
        grouping: for functionals that are sums of others on disjoint sets, which is which.

    Returns:
        Coefficients (N, R, *image) and constants (N, R), rounding errors subtracted; those of
        each unit, (N, U), with a grouping.
    """
    seeds = seeds.expand(len(region.images), *seeds.shape[1:])
    constants = [_total(place, _segment(place, seeds, region), grouping)]
    return descend(nodes, {place: seeds}, constants, region, slopes, multipliers, seen, grouping)


def descend(
    nodes: list[Node],
    pending: dict[int, Tensor],
    constants: list[Tensor],
    region: Region,
    slopes: Slopes,
    multipliers: Mapping[int, Tensor] | None = None,
    seen: dict[int, Tensor] | None = None,
    grouping: Groups | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`backward`, for functionals of several nodes: node -> (N or 1, R, *shape).

    ``constants``, each (N, R) or by unit, are added: those of the affine nodes between these and
    the nonlinear ones before.
    """
    pending, constants = dict(pending), list(constants)
    for i in range(max(pending), 0, -1):
        if i not in pending:
            continue
        rows, node = pending.pop(i), nodes[i]
        if not isinstance(node.operation, Rectifier | Maximum):
            _spread(pending, nodes, i, rows)
            continue
        if seen is not None:
            seen[i] = rows
        terms = [(rows.abs(), -margin(node) * region.sizes[i])]
        turned, more = _relax(nodes, i, rows, region, slopes[i])
        if multipliers is not None and i in multipliers:
            turned = turned + multipliers[i]
        z = node.inputs[0]
        pending[z] = pending[z] + turned if z in pending else turned
        constants.append(_total(i, terms + more, grouping))
        constants.append(_total(z, _segment(z, turned, region), grouping))
    return pending[0], torch.as_tensor(sum(constants))


def _segment(place: int, rows: Tensor, region: Region) -> "Terms":
    """The constants of functionals of a node, from there to the nonlinear nodes before it."""
    return [(rows, region.offsets[place]), (rows.abs(), -region.errors[place])]


def _spread(pending: dict[int, Tensor], nodes: list[Node], i: int, rows: Tensor) -> None:
    """Rewrite functionals of an affine node as functionals of its inputs, constants left out."""
    for z, part in _turn(nodes, i, rows):
        pending[z] = pending[z] + part if z in pending else part


def to_nonlinear(nodes: list[Node], place: int, seeds: Tensor) -> dict[int, Tensor]:
    """Functionals (1, R, *shape) of a node, as functionals of the nonlinear ones before it.

    They do not depend on the images. Constants and rounding errors are left to ``Region``.

    Returns:
        Nonlinear node, or the image's -> (1, R, *shape).
    """
    pending, ends = {place: seeds}, {}
    for i in range(place, -1, -1):
        if i not in pending:
            continue
        rows = pending.pop(i)
        if isinstance(nodes[i].operation, Input | Rectifier | Maximum):
            ends[i] = rows
        else:
            _spread(pending, nodes, i, rows)
    return ends


Terms = list[tuple[Tensor, Tensor]]
"""Rows (N, R, *shape) and what they are multiplied with, (N or 1, *shape)."""


def _total(i: int, terms: Terms, grouping: Groups | None) -> Tensor:
    """The sum of a node's constants, (N, R), or those of each unit, (N, U)."""
    if grouping is not None:
        products = [(rows * values[:, None]).flatten(2) for rows, values in terms]
        return grouping.split(i, torch.as_tensor(sum(products)))
    return torch.as_tensor(sum(dot(rows, values) for rows, values in terms))


def dot(rows: Tensor, values: Tensor) -> Tensor:
    """The products (N, R) of rows (N or 1, R, *shape) with (N or 1, *shape)."""
    left, right = rows.flatten(2), values.flatten(1)
    if len(left) == 1:
        return right @ left[0].T
    if len(right) == 1:
        return left @ right[0]
    return (left @ right[..., None])[..., 0]


def _turn(nodes: list[Node], i: int, rows: Tensor) -> list[tuple[int, Tensor]]:
    """Functionals of an affine node as functionals of its inputs, without its constant."""
    node = nodes[i]
    match node.operation:
        case Sum(signs):
            signed = zip(signs, node.inputs, strict=True)
            return [(z, rows if sign > 0 else -rows) for sign, z in signed]
        case Concatenation(dim, sizes):
            return list(zip(node.inputs, rows.split(sizes, dim=dim + 1), strict=True))
        case Linear() | Convolution() | Scale() | Pooling() | Reshape() as operation:
            turned = operation.adjoint(rows.flatten(0, 1), nodes[node.inputs[0]].shape)
            return [(node.inputs[0], turned.unflatten(0, rows.shape[:2]))]
    raise TypeError(type(node.operation).__name__)


def _relax(
    nodes: list[Node], i: int, rows: Tensor, region: Region, slopes: Tensor
) -> tuple[Tensor, Terms]:
    """Replace a nonlinear node by linear bounds, as functionals of its input and constants."""
    z, operation = nodes[i].inputs[0], nodes[i].operation
    if isinstance(operation, Rectifier):
        return _rectifier(operation, rows, region.lower[z], region.upper[z], slopes)
    assert isinstance(operation, Maximum)
    shape = nodes[z].shape
    return _maximum(operation, shape, rows, region.lower[z], region.upper[z], slopes)


def _rectifier(
    operation: Rectifier, rows: Tensor, lower: Tensor, upper: Tensor, slopes: Tensor
) -> tuple[Tensor, Terms]:
    """Replace a rectifier by the lower line where the functional is positive, else the chord."""
    s, t = chord(lower, upper, operation.slope)
    free = operation.slope + (1 - operation.slope) * slopes
    crossing = ((lower < 0) & (upper > 0))[:, None]
    up, down = rows.clamp_min(0), rows.clamp_max(0)
    s = s[:, None]
    return up * torch.where(crossing, free, s) + down * s, [(down, t)]


def _maximum(
    operation: Maximum,
    shape: tuple[int, ...],
    rows: Tensor,
    lower: Tensor,
    upper: Tensor,
    slopes: Tensor,
) -> tuple[Tensor, Terms]:
    """Replace max pooling by its largest entry, or by a mixture of the two bounds above it."""
    below, line, shift, most = _lines_above(operation, lower, upper)
    flat, share = rows.flatten(3), slopes.flatten(3)
    up, down = flat.clamp_min(0), flat.clamp_max(0)
    mixed = down * share
    windows = up[..., None] * below[:, None] + mixed[..., None] * line[:, None]
    parts = [(mixed, shift), (down - mixed, most)]
    return operation.scatter(windows, shape), parts
