"""Linear functionals of an image in a ball: their least value, and how far their zero is away.

Everything here is rounded towards what is safe: the least value down, the distance down.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustness_geometry.certify.operations import EPS
from robustness_geometry.norms import dual, norms

__all__ = ["Clip", "Reduce", "by_row", "halfspace_distance", "least", "ratio", "values"]

Clip = tuple[float, float] | None

Reduce = Callable[[Tensor, str], Tensor]

BISECTIONS = 8
"""Steps to the multiplier of a plane in l_inf, which need not be exact."""

HALVINGS = 60
"""Steps of the searches over one multiplier; each result is safe after any number."""


def by_row(pixels: Tensor, how: str) -> Tensor:
    """The sum or the maximum (``amax``) of each row (N, R, *shape)."""
    rows = pixels.flatten(2)
    return rows.sum(dim=2) if how == "sum" else rows.amax(dim=2)


def _slack(dimension: int) -> float:
    """The relative rounding error of a sum or norm over all pixels, with room to spare."""
    return (2 * dimension + 64) * EPS


def _flat(coefficients: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    return coefficients.flatten(2), images.flatten(1)[:, None]


def values(coefficients: Tensor, constants: Tensor, images: Tensor) -> Tensor:
    """The functionals at the images, (N, R), rounded down."""
    rows, x = _flat(coefficients, images)
    terms = rows * x
    error = _slack(x.shape[2]) * (terms.abs().sum(dim=2) + constants.abs())
    return constants + terms.sum(dim=2) - error


def ratio(coefficients: Tensor, constants: Tensor, images: Tensor, norm: float) -> Tensor:
    """The l_p distance (N, R) from each image to where a functional is zero or less.

    inf for a functional that is positive everywhere, at most 0 for one that is not positive at the
    image. It can be differentiated.
    """
    value = values(coefficients, constants, images)
    size = norms(coefficients.flatten(0, 1), dual(norm)).view_as(value)
    # The tiny number stands for what a norm loses to underflow.
    size = size * (1 + _slack(images[0].numel())) + 1e-150
    constant = (coefficients == 0).flatten(2).all(dim=2)
    return torch.where(constant, value.sign() * math.inf, value / size) * (1 - 4 * EPS)


def least(
    coefficients: Tensor,
    constants: Tensor,
    images: Tensor,
    radii: Tensor,
    norm: float,
    box: tuple[Tensor, Tensor] | None,
    reduce: Reduce = by_row,
    plane: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The least value (N, R) of functionals over balls, and over a box around them if given.

    Args:
        coefficients: (N or 1, R, *shape).
        constants: (N, R), or by unit.
        images: (N, *shape), the centres.
        radii: (N,).
        norm: exponent p of the balls.
        box: lower and upper corners, (N, *shape), of a box around each ball.
        reduce: sums over the pixels, or takes their maximum (``amax``), functional by functional.
        plane: coefficients (N, *shape) and constants (N,) of functionals at most zero: only points
            where they are count. For norms 2 and inf.
    """
    slack, q = _slack(images[0].numel()), dual(norm)
    value = constants + _dots(coefficients, images, reduce)
    error = _dots(coefficients.abs(), images.abs(), reduce) + constants.abs()
    value = value - slack * error
    size = _dual_norm(coefficients, q, reduce)
    found = value - radii[:, None] * size * (1 + slack)
    if plane is not None and (norm == 2 or (math.isinf(norm) and reduce is by_row)):
        cut = _least_behind(coefficients, value, size, images, radii, norm, reduce, plane)
        found = torch.maximum(found, cut)
    if box is None:
        return found
    ends = [coefficients * side[:, None] for side in box]
    sizes = reduce(torch.maximum(ends[0].abs(), ends[1].abs()), "sum") + constants.abs()
    in_box = constants + reduce(torch.minimum(*ends), "sum") - slack * sizes
    return torch.maximum(found, in_box)


def _dots(coefficients: Tensor, vectors: Tensor, reduce: Reduce) -> Tensor:
    """The products of functionals (N or 1, R, *shape) with vectors (N, *shape)."""
    if reduce is not by_row:
        return reduce(coefficients * vectors[:, None], "sum")
    rows, x = _flat(coefficients, vectors)
    return x[:, 0] @ rows[0].T if len(rows) == 1 else (rows @ x.mT)[..., 0]


def _dual_norm(coefficients: Tensor, q: float, reduce: Reduce) -> Tensor:
    if math.isinf(q):
        return reduce(coefficients.abs(), "amax")
    if q == 1:
        return reduce(coefficients.abs(), "sum")
    if q == 2:
        return (reduce(coefficients.square(), "sum") + 1e-300).sqrt()
    return (reduce(coefficients.abs().pow(q), "sum") + 1e-300).pow(1 / q)


def _least_behind(
    coefficients: Tensor,
    value: Tensor,
    size: Tensor,
    images: Tensor,
    radii: Tensor,
    norm: float,
    reduce: Reduce,
    plane: tuple[Tensor, Tensor],
) -> Tensor:
    """The least value over the part of each ball where a functional is at most zero.

    For any multiplier m >= 0, the functional plus m times the plane's lies below it there. In l_2
    the best multiplier has a closed form; in l_inf it is found by bisection.
    """
    slack = _slack(images[0].numel())
    normal, constant = plane
    height = values(normal[:, None], constant[:, None], images)  # (N, 1), rounded down
    radius = radii[:, None]
    length = _dual_norm(normal[:, None], dual(norm), by_row).clamp_min(1e-150)
    if norm == 2:
        inner = _dots(coefficients, normal, reduce)
        along = inner / length
        across = (size.square() - along.square()).clamp_min(0).sqrt()
        share = (height / (length * radius).clamp_min(1e-300)).clamp(0, 1 - 1e-9)
        m = (share * across / (1 - share.square()).sqrt() - along).clamp_min(0) / length
        square = size.square() + 2 * m * inner + (m * length).square()
        square = square + 4 * slack * (size + m * length).square()
        reach = square.clamp_min(0).sqrt()
    else:
        m = _multiplier(coefficients, normal, height / radius.clamp_min(1e-300), size / length)
        reach = (coefficients + _times(m, normal, coefficients)).abs().flatten(2).sum(dim=2)
    bound = value + m * height - radius * reach * (1 + slack)
    bound = bound - 8 * EPS * (value.abs() + m * height.abs())
    return torch.where((height > 0) & torch.isfinite(bound), bound, -math.inf)


def _times(m: Tensor, normal: Tensor, like: Tensor) -> Tensor:
    return m.view(*m.shape, *[1] * (like.ndim - 2)) * normal[:, None]


def _multiplier(coefficients: Tensor, normal: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
    """The multiplier at which |coefficients + m normal| grows as fast as ``wanted`` (N, 1)."""
    low, high = torch.zeros_like(scale), 4 * scale
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        moved = (coefficients + _times(middle, normal, coefficients)).sign()
        short = _dots(moved, normal, by_row) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return low


def halfspace_distance(
    coefficients: Tensor, constants: Tensor, images: Tensor, norm: float, clip: Clip
) -> Tensor:
    """A lower bound on the l_p distance (N, R) to where a functional is zero or less, in a box.

    With ``clip`` it is the distance inside the box up to rounding, for p = 1, 2 and inf; for other
    p it is the distance without it.
    """
    free = ratio(coefficients, constants, images, norm)
    if clip is None or norm not in (1, 2, math.inf):
        return free.clamp_min(0)
    rows, x = _flat(coefficients, images)
    room_down, room_up = (x - clip[0]).clamp_min(0), (clip[1] - x).clamp_min(0)
    # What each pixel can give at most: it moves against the sign of its coefficient.
    room = torch.where(rows > 0, room_down, room_up) * (1 + 2 * EPS)
    value, rows = values(coefficients, constants, images), rows.abs()
    search = _search_cube if math.isinf(norm) else _search_dual
    found = search(rows, value, room, norm)
    return torch.maximum(found, free).clamp_min(0)


def _search_cube(rows: Tensor, value: Tensor, room: Tensor, norm: float) -> Tensor:
    """The largest t at which value - sum |a_i| min(t, room_i) is positive."""
    slack = 1 + _slack(rows.shape[2])

    def positive(t: Tensor) -> Tensor:
        return value > (rows * torch.minimum(t[..., None], room)).sum(dim=2) * slack

    high = room.amax(dim=2).expand_as(value)
    low = torch.zeros_like(high)
    never = positive(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = positive(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return torch.where(never, math.inf, low)


def _search_dual(rows: Tensor, value: Tensor, room: Tensor, norm: float) -> Tensor:
    """The largest value of the Lagrangian dual, which any multiplier bounds from below."""
    reach = (rows * room).sum(dim=2)
    never = value > reach * (1 + _slack(rows.shape[2]))

    def step(m: Tensor) -> Tensor:
        """How far each pixel moves at a multiplier."""
        wish = m[..., None] * rows
        return torch.minimum(wish, room) if norm == 2 else torch.where(wish > 1, room, 0.0)

    low = torch.zeros_like(value)
    high = torch.where(value > 0, 1 / norms(rows.flatten(0, 1), 2).view_as(value), 0.0)
    high = torch.where(torch.isfinite(high), high, 0.0)
    for _ in range(200):
        short = (value > (rows * step(high)).sum(dim=2)) & ~never & (high > 0) & (high < 1e100)
        if not bool(short.any()):
            break
        high = torch.where(short, 2 * high, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        short = value > (rows * step(middle)).sum(dim=2)
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    found = torch.maximum(*(_dual(rows, value, step(m), m, norm) for m in (low, high)))
    return torch.where(never, math.inf, found)


def _dual(rows: Tensor, value: Tensor, step: Tensor, m: Tensor, norm: float) -> Tensor:
    """The distance that the multiplier m proves, as step minimises the Lagrangian."""
    cost = step.square().sum(dim=2) / 2 if norm == 2 else step.sum(dim=2)
    gain = m * (rows * step).sum(dim=2)
    bound = cost + (m * value - gain) - _slack(rows.shape[2]) * (cost + m * value.abs() + gain)
    bound = bound.clamp_min(0)
    return (2 * bound).sqrt() * (1 - 4 * EPS) if norm == 2 else bound * (1 - 4 * EPS)
