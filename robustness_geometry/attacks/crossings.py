"""Where functions of one variable change their sign, many at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustness_geometry.types import PerImage

__all__ = ["crossings"]


def crossings(
    function: Callable[[PerImage, Tensor], tuple[PerImage, PerImage]],
    below: PerImage,
    above: PerImage,
    steps: int,
) -> PerImage:
    """Places t in (0, 1] where functions with f(0) < 0 <= f(1) are nearest to 0.

    The method is false position with the Illinois rule, and a plain halving whenever three steps
    did not halve the bracket, so that brackets shrink whatever the functions are. Functions whose
    value or bracket is down to rounding leave the batch.

    Args:
        function: takes places (k,) and the indices (k,) of the functions they are for; returns the
            values and bounds on their rounding errors.
        below: f(0) < 0, (N,).
        above: f(1) >= 0, (N,).
        steps: largest number of evaluations of each function.

    Returns:
        (N,) the evaluated places with the smallest |f|.

    References:
        M. Dowell and P. Jarratt, "A modified regula falsi method for computing the root of an
        equation", BIT, 1971 (the Illinois rule).

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks.crossings import crossings
        >>> square = lambda places, indices: (places**2 - 0.25, 1e-7 * places)
        >>> round(crossings(square, torch.tensor([-0.25]), torch.tensor([0.75]), 40).item(), 4)
        0.5
    """
    best, least = torch.ones_like(above), above.abs()
    low, high, last = torch.zeros_like(above), torch.ones_like(above), torch.zeros_like(above)
    rows, width = torch.arange(len(above), device=above.device), high.clone()
    for step in range(steps):
        if not len(rows):
            break
        # The secant's zero, as a share of the bracket; every third step may halve instead.
        share = below / (below - above)
        if step % 3 == 2:
            share = torch.where(high - low > width / 2, 0.5, share)
            width = high - low
        place = low + share * (high - low)
        values, rounding = function(place, rows)
        nearer = values.abs() < least[rows]
        best[rows] = torch.where(nearer, place, best[rows])
        least[rows] = torch.where(nearer, values.abs(), least[rows])
        # Replace the end of the bracket that has the same sign.
        inside = values < 0
        side = torch.where(inside, -1.0, 1.0).to(last)
        # An end that stays twice has its value halved, so that the next secant lands beyond the
        # crossing.
        kept = torch.where(side == last, 0.5, 1.0).to(last)
        below, above = (
            torch.where(inside, values, kept * below),
            torch.where(inside, kept * above, values),
        )
        low, high, last = torch.where(inside, place, low), torch.where(inside, high, place), side
        # Keep the functions that are not done yet.
        going = (values.abs() > rounding) & (high - low > torch.finfo(high.dtype).eps * high)
        rows, low, high, width, last = (
            rows[going],
            low[going],
            high[going],
            width[going],
            last[going],
        )
        below, above = below[going], above[going]
    return best
