"""Estimates with intervals: the statistics that every table uses."""

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
        low: lower end of the 95% interval.
        high: upper end of the 95% interval.
        n: number of images (or pairs, vectors ...) behind it, per seed.
        std: standard deviation over those n; NaN where the number is not a mean.
        seeds: number of training seeds behind it.
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


Reduction: TypeAlias = Callable[..., Tensor]
"""Maps tensors (..., seeds, n), in which NaN stands for a case that is left out, to one value (...)."""


@dataclass(frozen=True)
class Statistic:
    """A statistic of one or several quantities that were measured on the same images.

    Attributes:
        names: the quantities it uses.
        reduce: from the quantities, each (..., seeds, n), to (...).
        summand: the per-case values of which the statistic is the mean, for the standard deviation;
            None if it is no mean.
        is_share: whether it is a share of cases, whose interval at 0 and at 1 is Wilson's.
        joint: whether a case that is NaN in one quantity is left out of all of them.
        of_means: the statistic from the means of its quantities, where that is all it needs: far
            cheaper to resample than ``reduce``.
    """

    names: tuple[str, ...]
    reduce: Reduction
    summand: Reduction | None = None
    is_share: bool = False
    joint: bool = True
    of_means: Reduction | None = None


def mean(name: str) -> Statistic:
    """The mean over images and training seeds."""
    return Statistic((name,), _mean, _same, of_means=_same)


def share(name: str) -> Statistic:
    """The share of cases that hold, of values 0 and 1."""
    return Statistic((name,), _mean, _same, is_share=True, of_means=_same)


def median(name: str) -> Statistic:
    """The median over images and training seeds; an infinite value takes its place in the order."""
    return Statistic((name,), _median)


def maximum(name: str) -> Statistic:
    """The largest value."""
    return Statistic((name,), _maximum)


def minimum(name: str) -> Statistic:
    """The smallest value."""
    return Statistic((name,), _minimum)


def difference(first: str, second: str) -> Statistic:
    """mean(first - second)."""
    return Statistic((first, second), lambda a, b: _mean(a - b), torch.sub, of_means=torch.sub)


def ratio_of_means(first: str, second: str) -> Statistic:
    """mean(first) / mean(second), such as the beta of Equation 3.20."""
    return Statistic((first, second), lambda a, b: _mean(a) / _mean(b), of_means=torch.div)


def mean_of_ratios(first: str, second: str) -> Statistic:
    """mean(first / second), such as the beta of Table 5.1."""
    return Statistic((first, second), lambda a, b: _mean(a / b), torch.div)


def median_of_ratios(first: str, second: str) -> Statistic:
    """median(first / second)."""
    return Statistic((first, second), lambda a, b: _median(a / b))


def median_difference(first: str, second: str) -> Statistic:
    """median(first) - median(second)."""
    return Statistic((first, second), lambda a, b: _median(a) - _median(b))


def _same(values: Tensor) -> Tensor:
    return values


def _mean(values: Tensor) -> Tensor:
    return values.nanmean(dim=(-2, -1))


def _median(values: Tensor) -> Tensor:
    # The midpoint of the two middle values, as in numpy; torch.nanmedian takes the lower one.
    ordered = torch.from_numpy(
        np.sort(values.flatten(-2).numpy())
    )  # faster than torch's; NaN comes last, too
    count = (~ordered.isnan()).sum(dim=-1, keepdim=True)
    low, high = ((count - 1).clamp_min(0) // 2, (count // 2).clamp_max(ordered.shape[-1] - 1))
    pair = torch.cat([ordered.gather(-1, low), ordered.gather(-1, high)], dim=-1)
    return torch.where(pair[..., 0] == pair[..., 1], pair[..., 0], pair.mean(dim=-1))


def _maximum(values: Tensor) -> Tensor:
    largest = values.masked_fill(values.isnan(), -math.inf).amax(dim=(-2, -1))
    return largest.masked_fill(values.isnan().all(dim=-1).all(dim=-1), math.nan)


def _minimum(values: Tensor) -> Tensor:
    return -_maximum(-values)


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share: ``successes`` of ``n`` cases; (0, 1) without cases."""
    if n == 0:
        return 0.0, 1.0
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def auc(clean: str, perturbed: str) -> Statistic:
    """P(clean < perturbed) + P(clean = perturbed) / 2, the area under the ROC curve: the mean over training seeds.

    Args:
        clean: the quantity that holds the scores of the clean images.
        perturbed: that of the perturbed ones; an image that is NaN in one of them is left out of
            both.
    """
    return Statistic((clean, perturbed), partial(_mean_over_seeds, _auc))


def auc_difference(first: tuple[str, str], second: tuple[str, str]) -> Statistic:
    """The :func:`auc` of the first two quantities, clean and perturbed, minus that of the second two."""

    def reduce(*parts: Tensor) -> Tensor:
        return _mean_over_seeds(_auc, *parts[:2]) - _mean_over_seeds(_auc, *parts[2:])

    return Statistic((*first, *second), reduce)


def balanced_accuracy(clean: str, perturbed: str) -> Statistic:
    """max_t (P(clean < t) + P(perturbed >= t)) / 2: the share told apart at the best threshold for these very images.

    The mean over training seeds, each with its own threshold. Arguments as for :func:`auc`.
    """
    return Statistic((clean, perturbed), partial(_mean_over_seeds, _best))


def _mean_over_seeds(
    reduce: Callable[[Tensor, Tensor], Tensor], clean: Tensor, perturbed: Tensor
) -> Tensor:
    """``reduce`` maps scores (..., n) to (...); seeds without a case are left out."""
    return reduce(clean, perturbed).nanmean(dim=-1)


def _auc(clean: Tensor, perturbed: Tensor) -> Tensor:
    kept = ~perturbed.isnan()
    halves = _below(clean, perturbed, right=False) + _below(clean, perturbed, right=True)
    return (halves * kept).sum(dim=-1) / (2 * (~clean.isnan()).sum(dim=-1) * kept.sum(dim=-1))


def _best(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Only the scores of perturbed images need to be tried as thresholds, and one above them all."""
    passed = _below(clean, perturbed, right=False) / (~clean.isnan()).sum(dim=-1, keepdim=True)
    missed = _below(perturbed, perturbed, right=False) / (~perturbed.isnan()).sum(
        dim=-1, keepdim=True
    )
    found = (passed + 1 - missed).masked_fill(perturbed.isnan(), -math.inf).amax(dim=-1) / 2
    return found.clamp_min(0.5).masked_fill(perturbed.isnan().all(dim=-1), math.nan)


def _below(scores: Tensor, thresholds: Tensor, *, right: bool) -> Tensor:
    """How many ``scores`` (..., n) lie below each threshold, or not above it."""
    ordered = scores.nan_to_num(nan=math.inf).sort(dim=-1).values.contiguous()
    return torch.searchsorted(
        ordered, thresholds.nan_to_num(nan=math.inf).contiguous(), right=right
    )


def of_means(names: Sequence[str], function: Callable[..., Tensor]) -> Statistic:
    """A function of the means of several quantities, each over its own images."""
    return Statistic(
        tuple(names), partial(_function_of_means, function), joint=False, of_means=function
    )


def share_ratio(first: str, second: str, images: int) -> Statistic:
    """mean(first) / mean(second) of shares; a second one of none counts as half an image of ``images``."""
    return of_means((first, second), partial(_ratio, 0.5 / images))


def spearman(abscissae: Sequence[float], *ordinates: Tensor) -> Tensor:
    """Spearman's rank correlation of ``ordinates``, each (...), with ``abscissae``; ties share their mean rank."""
    x = _ranks(torch.tensor(abscissae, dtype=torch.float64))
    y = _ranks(torch.stack(ordinates, dim=-1).double())
    x, y = x - x.mean(), y - y.mean(dim=-1, keepdim=True)
    return (x * y).sum(dim=-1) / (x.norm() * y.norm(dim=-1))


def _function_of_means(function: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    return function(*(part.nanmean(dim=(-2, -1)) for part in parts))


def _ratio(floor: float, first: Tensor, second: Tensor) -> Tensor:
    return first / second.clamp_min(floor)


def _ranks(values: Tensor) -> Tensor:
    """Ranks along the last dimension, ties at their mean."""
    lower = (values[..., None, :] < values[..., :, None]).sum(dim=-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(dim=-1)
    return lower + (equal + 1) / 2


def exactly(value: float, cases: int = 1) -> Estimate:
    """A number that was computed, not sampled; ``cases`` says over how many cases it is the worst."""
    return Estimate(value, value, value, cases)


def ratio_of_medians(first: str, second: str) -> Statistic:
    """median(first) / median(second)."""
    middle = median(first).reduce
    return Statistic((first, second), lambda a, b: middle(a) / middle(b))


def scaled_median_of_ratios(first: str, second: str, scale: float) -> Statistic:
    """Scale times median(first / second)."""
    middle = median(first).reduce
    return Statistic((first, second), lambda a, b: scale * middle(a / b))


def spread_margin(name: str) -> Statistic:
    """The mean less the standard deviation over all images and training seeds."""
    return Statistic((name,), _spread_margin)


def _spread_margin(values: Tensor) -> Tensor:
    mean = values.nanmean(dim=(-2, -1), keepdim=True)
    known = (~values.isnan()).sum(dim=(-2, -1))
    return (
        mean[..., 0, 0]
        - ((values - mean).square().nansum(dim=(-2, -1)) / (known - 1).clamp_min(1)).sqrt()
    )


def stack(seeds: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Quantities of each training seed as rows of one tensor, in float64.

    Args:
        seeds: one mapping name -> (k,) for each training seed, all with the same names.

    Returns:
        Name -> (seeds, n), n the length of the longest quantity; a shorter one was measured on the
        first images only and is NaN on the others.
    """
    longest = max(len(values) for values in seeds[0].values())
    rows = [{name: padded(values, longest) for name, values in row.items()} for row in seeds]
    return {name: torch.stack([row[name] for row in rows]) for name in seeds[0]}


def padded(values: Tensor, length: int) -> Tensor:
    """``values`` (n,) in float64 with NaN up to ``length``: what was not measured on the remaining images."""
    return torch.cat(
        [values.double(), torch.full((length - len(values),), math.nan, dtype=torch.float64)]
    )
