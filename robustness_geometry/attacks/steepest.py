"""The points of a norm ball and a box that lie farthest in the direction of a gradient."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from robustness_geometry.attacks.protocol import Clip, per_image
from robustness_geometry.norms import Vectors, dual, hyperplane_step, norms
from robustness_geometry.types import PerImage

__all__ = ["Curve", "share_of_steepest", "steepest_curve"]

Curve: TypeAlias = Callable[[PerImage, Tensor], Vectors]
"""Perturbations (k, ...) at shares (k,) of the way, for some images given by their indices (k,)."""

HALVINGS = 60
"""Halvings in the search of a multiplier, more than any number of bits resolves."""


def steepest_curve(
    images: Vectors, gradients: Vectors, radii: PerImage, norm: float, clip: Clip
) -> Curve:
    """The perturbations with the largest <g, e> among ||e||_p <= R with x + e in the box.

    As R grows from 0, they follow a curve: e(t) = clip(t a |g|^(q-1) sign g), where pixels stop at
    their bound, or for p = 1 one pixel after another, that of the largest |g| first. The curve
    meets each hyperplane <g, e> = c at its point of least norm within the box.

    Args:
        images: x, (N, ...), within the box.
        gradients: g, (N, ...).
        radii: R, (N,), the norms of e(1); less where the box ends before.
        norm: p, 1 <= p <= inf.
        clip: lowest and highest pixel value; None: there is no box.

    Returns:
        t -> e(t) for 0 <= t <= 1; ||e(t)||_p does not decrease with t.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks.steepest import steepest_curve
        >>> image, gradient = torch.tensor([[0.9, 0.5]]), torch.tensor([[3.0, 4.0]])
        >>> free = steepest_curve(image, gradient, torch.tensor([0.5]), 2.0, None)
        >>> free(torch.tensor([1.0]), torch.tensor([0]))
        tensor([[0.3000, 0.4000]])
        >>> boxed = steepest_curve(image, gradient, torch.tensor([0.5]), 2.0, (0.0, 1.0))
        >>> boxed(torch.tensor([1.0]), torch.tensor([0]))
        tensor([[0.1000, 0.4899]])
    """
    if clip is None:
        ends = hyperplane_step(radii * norms(gradients, dual(norm)), gradients, norm)
        return lambda shares, few: per_image(shares, ends) * ends[few]
    rooms = torch.where(gradients > 0, clip[1] - images, images - clip[0])
    rooms = torch.where(gradients == 0, 0.0, rooms).clamp_min(0)
    signs = gradients.sign()
    if norm == 1:
        before = _filled_before(gradients, rooms)

        def pour(shares: PerImage, few: Tensor) -> Vectors:
            left = per_image(shares * radii[few], images) - before[few]
            return signs[few] * left.clamp_min(0).minimum(rooms[few])

        return pour
    # Of length 1 in its largest pixel; |g|^(q-1) is 1 everywhere for p = inf, where q = 1.
    largest = per_image(gradients.flatten(1).abs().amax(dim=1), gradients)
    shape = torch.where(largest > 0, gradients.abs() / largest, 0.0).pow(dual(norm) - 1)
    shape = shape.masked_fill(gradients == 0, 0.0)
    lengths = _multipliers(shape, rooms, radii, norm)

    def clipped(shares: PerImage, few: Tensor) -> Vectors:
        pixels = per_image(shares * lengths[few], images) * shape[few]
        return signs[few] * pixels.minimum(rooms[few])

    return clipped


def share_of_steepest(
    images: Vectors,
    perturbations: Vectors,
    gradients: Vectors,
    norm: float,
    clip: Clip,
) -> PerImage:
    """<r, g> as a share of the largest <e, g> in the ball of r's norm and the box.

    Args:
        images: x, (N, ...), within the box.
        perturbations: r, (N, ...).
        gradients: g, (N, ...).
        norm: p, 1 <= p <= inf.
        clip: lowest and highest pixel value; None: there is no box.

    Returns:
        (N,) at most 1; NaN where r or g is zero or not finite.
    """
    sizes = norms(gradients)
    unit = gradients / per_image(sizes, gradients)
    curve = steepest_curve(images, unit, norms(perturbations, norm), norm, clip)
    ones, rows = torch.ones_like(sizes), torch.arange(len(images), device=images.device)
    reached = (unit * perturbations).flatten(1).sum(dim=1)
    shares = reached / (unit * curve(ones, rows)).flatten(1).sum(dim=1)
    # Rounding may take the quotient beyond 1; 0 / 0 is no number.
    return torch.where(torch.isfinite(shares), shares.clamp_max(1.0), torch.nan)


def _filled_before(gradients: Vectors, rooms: Vectors) -> Vectors:
    """What the pixels with a larger |g| take before the turn of each pixel comes, (N, ...)."""
    order = gradients.flatten(1).abs().argsort(dim=1, descending=True, stable=True)
    taken = rooms.flatten(1).gather(1, order)
    return torch.zeros_like(taken).scatter(1, order, taken.cumsum(dim=1) - taken).view_as(rooms)


def _multipliers(shape: Vectors, rooms: Vectors, radii: PerImage, norm: float) -> PerImage:
    """The lengths a (N,) with ||min(a shape, rooms)||_p = R, or where every pixel is at its bound.

    For p = inf, every a up to R gives that norm.
    """
    if math.isinf(norm):
        return radii
    reach = torch.where(shape > 0, rooms / shape, 0.0).flatten(1).amax(dim=1)
    # The norm is at least that of the largest pixel alone until that one is at its bound.
    low, high = torch.zeros_like(radii), reach
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = norms((per_image(middle, shape) * shape).minimum(rooms), norm) < radii
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low
