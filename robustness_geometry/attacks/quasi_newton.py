"""A box-constrained L-BFGS that minimises one function per image, all side by side."""

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.types import PerImage

__all__ = ["Function", "minimise"]

Vectors: TypeAlias = Float[Tensor, "batch d"]

Function: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps points (N, d) to the values (N,) and the gradients (N, d) of N functions."""

Pair: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""A step s (N, d), the change y of the gradient (N, d), and 1 / <s, y> (N,).

The last is zero where the pair is not to be used.
"""

DECREASE = 1e-4
"""Share of the linear prediction by which an accepted step must lower the value (Armijo)."""


def minimise(
    function: Function,
    start: Vectors,
    low: Tensor,
    high: Tensor,
    *,
    steps: int,
    curvature: float = 1.0,
    memory: int = 10,
) -> Vectors:
    """A local minimiser within the box low <= x <= high, for each row.

    Projected quasi-Newton steps x <- clip(x - t H g): H is the L-BFGS approximation on the
    coordinates that are free to move, and t starts at 1 and is halved until the value falls enough.
    Each round evaluates every row once, for a new step or for a shortened one, so that rows do not
    wait for each other.

    Args:
        function: the N functions.
        start: (N, d).
        low: lower bounds, (N, d), or one for all; -inf where there is none.
        high: upper bounds, likewise.
        steps: number of rounds, that is, evaluations after the first.
        curvature: the second derivative to assume before any was seen.
        memory: number of pairs that the approximation keeps.

    Returns:
        (N, d) the points of the lowest values met.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks.quasi_newton import minimise
        >>> def bowl(x):
        ...     return (x - 3).square().sum(dim=1), 2 * (x - 3)
        >>> minimise(bowl, torch.zeros(1, 2), torch.tensor(0.0), torch.tensor([1.0, 5.0]), steps=9)
        tensor([[1., 3.]])
    """
    point = start.clamp(low, high)
    value, gradient = function(point)
    pairs: deque[Pair] = deque(maxlen=memory)
    inverse = torch.full_like(value, 1 / curvature).to(start)
    length = torch.ones_like(inverse)
    for _ in range(steps):
        free = ~(((point <= low) & (gradient > 0)) | ((point >= high) & (gradient < 0)))
        direction = _direction(gradient * free, pairs, inverse) * free
        trial = (point + length[:, None] * direction).clamp(low, high)
        moved = trial - point
        if not bool((moved != 0).any()):
            break
        trial_value, trial_gradient = function(trial)
        accepted = trial_value <= value + DECREASE * _dot(gradient, moved)
        pair, scale = _pair(moved, trial_gradient - gradient, accepted)
        pairs.append(pair)
        inverse = torch.where(scale > 0, scale, inverse)
        length = torch.where(accepted, 1.0, length / 2)
        value = torch.where(accepted, trial_value, value)
        point = torch.where(accepted[:, None], trial, point)
        gradient = torch.where(accepted[:, None], trial_gradient, gradient)
    return point


def _dot(first: Tensor, second: Tensor) -> PerImage:
    return (first * second).sum(dim=1)


def _pair(step: Tensor, change: Tensor, accepted: Tensor) -> tuple[Pair, PerImage]:
    """The pair of a step, and <s, y> / <y, y>.

    Both are zero where the step was refused or met no positive curvature.
    """
    product, square = _dot(step, change), _dot(change, change)
    usable = accepted & (product > torch.finfo(step.dtype).eps * square)
    # Where the division is not used it may be by zero.
    return (step, change, torch.where(usable, 1 / product, 0.0)), torch.where(
        usable, product / square, 0.0
    )


def _direction(gradient: Tensor, pairs: deque[Pair], inverse: PerImage) -> Vectors:
    """-H g by the two-loop recursion; -g (scaled) where that is no descent direction."""
    vector, weights = gradient, []
    for step, change, factor in reversed(pairs):
        weight = factor * _dot(step, vector)
        vector = vector - weight[:, None] * change
        weights.append(weight)
    vector = inverse[:, None] * vector
    for (step, change, factor), weight in zip(pairs, reversed(weights), strict=True):
        vector = vector + (weight - factor * _dot(change, vector))[:, None] * step
    descends = _dot(vector, gradient) > 0
    return -torch.where(descends[:, None], vector, inverse[:, None] * gradient)
