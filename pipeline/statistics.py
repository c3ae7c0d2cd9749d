"""Estimates with intervals, and the statistics that every table uses.

A statistic reduces quantities (..., seeds, n), each measured on the same n images for every
training seed, to one value; :mod:`pipeline.bootstrap` gives it an interval.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Estimate",
    "Statistic",
    "auc",
    "auc_difference",
    "balanced_accuracy",
    "difference",
    "exactly",
    "maximum",
    "mean",
    "mean_of_ratios",
    "mean_share",
    "median",
    "median_difference",
    "median_of_ratios",
    "minimum",
    "of_means",
    "padded",
    "ratio_of_means",
    "ratio_of_medians",
    "scaled_median_of_ratios",
    "share",
    "share_ratio",
    "spearman",
    "spread_margin",
    "stack",
    "wilson",
]


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: the estimate.
        low: lower end of the 95% interval; see :func:`pipeline.bootstrap.paired_bootstrap`.
        high: upper end of the 95% interval.
        n: number of images (or pairs, vectors ...) behind it, per seed.
        std: standard deviation over those n; NaN where the number is not a mean.
        seeds: number of training seeds behind it; the interval of a single one is for other images
            and this very network.
    """

    value: float
    low: float
    high: float
    n: int
    std: float = float("nan")
    seeds: int = 1

    def as_dict(self) -> dict[str, float | int]:
        """The fields as plain values."""
        return asdict(self)


def exactly(value: float, cases: int = 1) -> Estimate:
    """A number that was computed, not sampled: the worst over ``cases`` cases."""
    return Estimate(value, value, value, cases)


Reduction: TypeAlias = Callable[..., Tensor]
"""Maps tensors (..., seeds, n) to one value (...); NaN stands for a case that is left out."""


@dataclass(frozen=True)
class Statistic:
    """A statistic of one or several quantities that were measured on the same images.

    Attributes:
        names: names of the quantities that it uses.
        reduce: maps the quantities, each (..., seeds, n), to (...).
        summand: maps the quantities to the values per case of which the statistic is the mean, for
            the standard deviation; None if it is no mean.
        is_share: whether it is a share of cases, whose interval at 0 and at 1 is Wilson's.
        joint: whether a case that is NaN in one quantity is left out of all of them.
        of_means: computes the statistic from the means of its quantities, where they suffice: far
            cheaper to resample than ``reduce``.
        middle: maps the quantities to the values per case of which the statistic is the median, for
            the interval of few; None if it is no median.
        extreme: whether it is the smallest or largest value. It says nothing about other cases,
            which may lie anywhere beyond it, and has no interval; a share of cases that keep a
            bound has one.
        within: the least and the largest value that the statistic can take.
    """

    names: tuple[str, ...]
    reduce: Reduction
    summand: Reduction | None = None
    is_share: bool = False
    joint: bool = True
    of_means: Reduction | None = None
    middle: Reduction | None = None
    extreme: bool = False
    within: tuple[float, float] = (-math.inf, math.inf)


def mean(name: str, within: tuple[float, float] = (-math.inf, math.inf)) -> Statistic:
    """The mean over images and training seeds, of values that lie ``within`` two bounds."""
    return Statistic((name,), _mean, _same, of_means=_same, within=within)


def share(name: str) -> Statistic:
    """The share of cases that hold, of values 0 and 1."""
    return Statistic((name,), _mean, _same, is_share=True, of_means=_same, within=(0.0, 1.0))


def mean_share(name: str) -> Statistic:
    """The mean of shares, such as the share of a case's vectors that fool it."""
    return mean(name, within=(0.0, 1.0))


def difference(first: str, second: str) -> Statistic:
    """mean(first - second)."""
    return Statistic((first, second), lambda a, b: _mean(a - b), torch.sub, of_means=torch.sub)


def ratio_of_means(
    first: str, second: str, within: tuple[float, float] = (-math.inf, math.inf)
) -> Statistic:
    """mean(first) / mean(second), such as the beta of Equation 3.20, ``within`` two bounds."""
    return Statistic(
        (first, second), lambda a, b: _mean(a) / _mean(b), of_means=torch.div, within=within
    )


def mean_of_ratios(first: str, second: str) -> Statistic:
    """mean(first / second), such as the beta of Table 5.1."""
    return Statistic((first, second), lambda a, b: _mean(a / b), torch.div)


def spread_margin(name: str) -> Statistic:
    """The mean minus the standard deviation over all images and training seeds."""
    return Statistic((name,), _spread_margin)


def median(name: str) -> Statistic:
    """The median over images and training seeds; infinite values are ordered like the others."""
    return Statistic((name,), _median, middle=_same)


def median_difference(first: str, second: str) -> Statistic:
    """median(first) - median(second)."""
    return Statistic((first, second), lambda a, b: _median(a) - _median(b))


def median_of_ratios(first: str, second: str) -> Statistic:
    """median(first / second)."""
    return Statistic((first, second), lambda a, b: _median(a / b), middle=torch.div)


def scaled_median_of_ratios(first: str, second: str, scale: float) -> Statistic:
    """``scale`` times median(first / second)."""
    return Statistic(
        (first, second), lambda a, b: scale * _median(a / b), middle=lambda a, b: scale * a / b
    )


def ratio_of_medians(first: str, second: str) -> Statistic:
    """median(first) / median(second)."""
    return Statistic((first, second), lambda a, b: _median(a) / _median(b))


def maximum(name: str) -> Statistic:
    """The largest value of these cases; see ``Statistic.extreme``."""
    return Statistic((name,), _maximum, extreme=True)


def minimum(name: str) -> Statistic:
    """The smallest value of these cases; see ``Statistic.extreme``."""
    return Statistic((name,), _minimum, extreme=True)


def of_means(
    names: Sequence[str],
    function: Callable[..., Tensor],
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Statistic:
    """A function of the means of several quantities, each over its own images.

    Args:
        names: names of the quantities.
        function: maps their means, each (...), to (...).
        within: the least and the largest value that it can take.
    """
    return Statistic(
        tuple(names),
        partial(_function_of_means, function),
        joint=False,
        of_means=function,
        within=within,
    )


def share_ratio(first: str, second: str, images: int) -> Statistic:
    """mean(first) / mean(second) of shares.

    A second share of zero counts as half an image.

    Args:
        first: name of the quantity above.
        second: name of the quantity below.
        images: number of images, of which half a one is the smallest share.
    """
    return of_means((first, second), partial(_ratio, 0.5 / images), within=(0.0, math.inf))


def auc(clean: str, perturbed: str) -> Statistic:
    """The area under the ROC curve, P(clean < perturbed) + P(clean = perturbed) / 2.

    It is the mean over training seeds. An image that is NaN in one quantity is left out of both.

    Args:
        clean: name of the scores of the clean images.
        perturbed: name of the scores of the perturbed images.
    """
    return Statistic((clean, perturbed), partial(_mean_over_seeds, _auc), within=(0.0, 1.0))


def auc_difference(first: tuple[str, str], second: tuple[str, str]) -> Statistic:
    """The :func:`auc` of two quantities, clean and perturbed, minus that of two others."""

    def reduce(*parts: Tensor) -> Tensor:
        return _mean_over_seeds(_auc, *parts[:2]) - _mean_over_seeds(_auc, *parts[2:])

    return Statistic((*first, *second), reduce, within=(-1.0, 1.0))


def balanced_accuracy(clean: str, perturbed: str) -> Statistic:
    """The balanced accuracy at the best threshold, max_t (P(clean < t) + P(perturbed >= t)) / 2.

    It is the mean over training seeds, each with the best threshold for these very images.
    Arguments as for :func:`auc`.
    """
    return Statistic((clean, perturbed), partial(_mean_over_seeds, _best), within=(0.5, 1.0))


def _same(values: Tensor) -> Tensor:
    return values


def _mean(values: Tensor) -> Tensor:
    return values.nanmean(dim=(-2, -1))


def _spread_margin(values: Tensor) -> Tensor:
    centre = values.nanmean(dim=(-2, -1), keepdim=True)
    known = (~values.isnan()).sum(dim=(-2, -1))
    squares = (values - centre).square().nansum(dim=(-2, -1))
    return centre[..., 0, 0] - (squares / (known - 1).clamp_min(1)).sqrt()


def _median(values: Tensor) -> Tensor:
    # The midpoint of the two middle values, as in numpy; torch.nanmedian takes the lower one.
    # numpy sorts faster than torch; both put NaN last.
    ordered = torch.from_numpy(np.sort(values.flatten(-2).numpy()))
    count = (~ordered.isnan()).sum(dim=-1, keepdim=True)
    low, high = (count - 1).clamp_min(0) // 2, (count // 2).clamp_max(ordered.shape[-1] - 1)
    pair = torch.cat([ordered.gather(-1, low), ordered.gather(-1, high)], dim=-1)
    return torch.where(pair[..., 0] == pair[..., 1], pair[..., 0], pair.mean(dim=-1))


def _maximum(values: Tensor) -> Tensor:
    largest = values.masked_fill(values.isnan(), -math.inf).amax(dim=(-2, -1))
    return largest.masked_fill(values.isnan().all(dim=-1).all(dim=-1), math.nan)


def _minimum(values: Tensor) -> Tensor:
    return -_maximum(-values)


def _function_of_means(function: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    return function(*(part.nanmean(dim=(-2, -1)) for part in parts))


def _ratio(floor: float, first: Tensor, second: Tensor) -> Tensor:
    return first / second.clamp_min(floor)


def _mean_over_seeds(
    reduce: Callable[[Tensor, Tensor], Tensor], clean: Tensor, perturbed: Tensor
) -> Tensor:
    """The mean of ``reduce``, which maps scores (..., n) to (...), over the seeds with a case."""
    return reduce(clean, perturbed).nanmean(dim=-1)


def _auc(clean: Tensor, perturbed: Tensor) -> Tensor:
    """The area under the ROC curve of scores (..., n)."""
    kept = ~perturbed.isnan()
    halves = _below(clean, perturbed, right=False) + _below(clean, perturbed, right=True)
    return (halves * kept).sum(dim=-1) / (2 * (~clean.isnan()).sum(dim=-1) * kept.sum(dim=-1))


def _best(clean: Tensor, perturbed: Tensor) -> Tensor:
    """The balanced accuracy of scores (..., n) at the best threshold.

    Only the scores of perturbed images need to be tried, and a threshold above them all.
    """
    passed = _below(clean, perturbed, right=False) / (~clean.isnan()).sum(dim=-1, keepdim=True)
    kept = (~perturbed.isnan()).sum(dim=-1, keepdim=True)
    missed = _below(perturbed, perturbed, right=False) / kept
    best = (passed + 1 - missed).masked_fill(perturbed.isnan(), -math.inf).amax(dim=-1) / 2
    return best.clamp_min(0.5).masked_fill(perturbed.isnan().all(dim=-1), math.nan)


def _below(scores: Tensor, thresholds: Tensor, *, right: bool) -> Tensor:
    """How many ``scores`` (..., n) lie below each threshold; with ``right``, or equal it."""
    ordered = scores.nan_to_num(nan=math.inf).sort(dim=-1).values.contiguous()
    return torch.searchsorted(
        ordered, thresholds.nan_to_num(nan=math.inf).contiguous(), right=right
    )


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share: ``successes`` of ``n`` cases; (0, 1) without cases."""
    if n == 0:
        return 0.0, 1.0
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def spearman(abscissae: Sequence[float], *ordinates: Tensor) -> Tensor:
    """Spearman's rank correlation of values with what they were measured at.

    Tied values share their mean rank.

    Args:
        abscissae: k numbers.
        ordinates: k tensors (...), the values at each of them.

    Returns:
        (...) correlations in float64, NaN where all values of a row are equal.
    """
    x = _ranks(torch.tensor(abscissae, dtype=torch.float64))
    y = _ranks(torch.stack(ordinates, dim=-1).double())
    x, y = x - x.mean(), y - y.mean(dim=-1, keepdim=True)
    # One root of one product: two orders that agree have a correlation of 1, not of 1 - 1e-16.
    squares = x.square().sum() * y.square().sum(dim=-1)
    return (x * y).sum(dim=-1) / squares.sqrt()


def _ranks(values: Tensor) -> Tensor:
    """Ranks along the last dimension, ties at their mean."""
    lower = (values[..., None, :] < values[..., :, None]).double().sum(dim=-1)
    equal = (values[..., None, :] == values[..., :, None]).double().sum(dim=-1)
    return lower + (equal + 1) / 2


def stack(seeds: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The quantities of all training seeds, in the form that the bootstrap takes.

    Args:
        seeds: for each training seed a mapping name -> (k,), all with the same names. A quantity
            that is shorter than the others was measured on the first k images only.

    Returns:
        Name -> (seeds, n) in float64, where n is the length of the longest quantity; shorter ones
        are padded with NaN.
    """
    longest = max(len(values) for values in seeds[0].values())
    rows = [{name: padded(values, longest) for name, values in row.items()} for row in seeds]
    return {name: torch.stack([row[name] for row in rows]) for name in seeds[0]}


def padded(values: Tensor, length: int) -> Tensor:
    """Extend a quantity with NaN for the images on which it was not measured.

    Args:
        values: (n,) values on the first n images.
        length: number of images, at least n.

    Returns:
        (length,) in float64.
    """
    return torch.cat(
        [values.double(), torch.full((length - len(values),), math.nan, dtype=torch.float64)]
    )
