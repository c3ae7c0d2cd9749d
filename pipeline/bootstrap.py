"""Intervals: a paired bootstrap over images, and Student's t over training seeds."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from scipy.special import bdtr, ndtri, stdtrit
from torch import Tensor

from pipeline.statistics import Estimate, Statistic, wilson
from robustness_geometry.checks import check_count, refuse

__all__ = ["largest", "measured", "paired_bootstrap", "smallest"]

BUDGET = 4_000_000
"""Largest number of values of one quantity that a bootstrap holds in memory at a time."""

FEW = 20
"""Below this number of images a median's interval comes from its order statistics."""

OWN = 200
"""Resamples in which each seed's own value is taken too; they only split a variance."""


def paired_bootstrap(
    samples: Mapping[str, Tensor],
    statistics: Mapping[str, Statistic],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Estimates with intervals for other images and, from two seeds on, other training seeds.

    **Images.** Every resample draws n images, the same for all quantities and all seeds, so that a
    difference of two methods has the interval of a difference of pairs. The two arms, from the
    estimate to the percentiles, stay as unequal as they are. They are too short for few images, and
    grow by t(n - 1) / z * sqrt(n / (n - 1)) ("expanded percentiles", Hesterberg, "What teachers
    should know about the bootstrap", 2015): 2% for n = 100, 29% for n = 8.

    **Training seeds.** Resampling three seeds yields little more than their range. So the k seeds'
    own values, of standard deviation s, add an arm t(k - 1) s / sqrt(k), in quadrature.

    **No noise counts twice.** Say a value is mu + a_seed + b_image + e_(seed, image). The estimate
    has the variance A / k + B / n + E / (k n). b is the same for all seeds and cancels in s, but e
    does not: s^2 / k estimates A / k + E / (k n). The bootstrap estimates B / n + E / (k n). In the
    sum E would count twice, so that the image arms are scaled by sqrt(1 - c), where
    c = (E / (k n)) / (B / n + E / (k n)) comes from the covariance of the seeds' own values over
    the resamples. No arm becomes shorter than that of the images alone, as s may be small by
    chance. With k = 1 there is no seed part: the interval is that of this one network.

    NaN marks a case without a value (failed, or not measured): it is left out of every statistic
    that uses its quantity, and ``Estimate.n`` counts what remains. A share of none or of all cases
    has Wilson's interval, a median of fewer than 20 images that of its order statistics, and an
    extreme none: it belongs to these very cases.

    Args:
        samples: quantity -> (seeds, n), or (n,) for one seed; all of one shape.
        statistics: name -> statistic, such as ``{"rho_fgsm / rho_df": ratio_of_means("fgsm",
            "df")}``.
        resamples: number of resamples; quantiles are taken at its order statistics.
        seed: seed of the resampling.
        level: level of the intervals.

    Returns:
        Name of a statistic -> estimate. With fewer than two cases the interval is unknown (NaN);
        without any, the value too.

    Raises:
        InputError: the samples differ in shape, or a statistic names a quantity that is not there.
    """
    check_count("resamples", resamples)
    data = _stacked(samples, statistics.values())
    shape = next(iter(data.values())).shape
    draws: dict[str, list[Tensor]] = {name: [] for name in statistics}
    generator = torch.Generator().manual_seed(seed)
    step = max(1, BUDGET // max(1, shape.numel()))
    for start in range(0, resamples, step):
        columns = _resample(shape, min(step, resamples - start), generator)
        for name, statistic in statistics.items():
            draws[name].append(_resampled(_paired(data, statistic), statistic, columns))
    few = _resample(shape, min(step, OWN), generator)
    return {
        name: _estimate(_paired(data, s), s, torch.cat(draws[name]).numpy(), few, level)
        for name, s in statistics.items()
    }


def measured(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Those of ``estimates`` that rest on at least one case: the others were not measured."""
    return {name: estimate for name, estimate in estimates.items() if estimate.n > 0}


def smallest(estimates: Iterable[Estimate]) -> Estimate:
    """The smallest of several numbers, such as one per norm of the noise.

    The smallest of noisy values is too small, and more so in every resample. So its interval goes
    from the smallest of the lower ends to the smallest of the upper ones: it lies above a threshold
    only if each of the numbers does, and below it as soon as one does.

    Args:
        estimates: the numbers; those that were not measured are left out.

    Returns:
        The estimate, with the fewest cases and seeds behind any of them; NaN if there are none.

    Example:
        >>> found = smallest([Estimate(0.3, 0.1, 0.5, 90), Estimate(0.2, 0.15, 0.25, 80)])
        >>> (found.value, found.low, found.high, found.n)
        (0.2, 0.1, 0.25, 80)
    """
    known = [each for each in estimates if each.n > 0]
    if not known:
        return Estimate(math.nan, math.nan, math.nan, 0, seeds=0)
    return Estimate(
        min(each.value for each in known),
        float(np.min([each.low for each in known])),  # NaN where one is unknown
        float(np.min([each.high for each in known])),
        min(each.n for each in known),
        seeds=min(each.seeds for each in known),
    )


def largest(estimates: Iterable[Estimate]) -> Estimate:
    """The largest of several numbers, as :func:`smallest` has the smallest."""
    found = smallest(
        replace(each, value=-each.value, low=-each.high, high=-each.low) for each in estimates
    )
    return replace(found, value=-found.value, low=-found.high, high=-found.low)


def _stacked(samples: Mapping[str, Tensor], statistics: Iterable[Statistic]) -> dict[str, Tensor]:
    """The samples as float64 (seeds, n) on the CPU, checked."""
    data = {
        name: values.detach().cpu().double().reshape(-1, values.shape[-1])
        for name, values in samples.items()
    }
    if len({values.shape for values in data.values()}) != 1:
        shapes = {name: tuple(v.shape) for name, v in data.items()}
        refuse("samples", shapes, "of one shape (seeds, n)")
    for name in (name for statistic in statistics for name in statistic.names):
        if name not in data:
            refuse("statistics", name, "one of " + ", ".join(data))
    return data


def _paired(data: Mapping[str, Tensor], statistic: Statistic) -> list[Tensor]:
    """The quantities of ``statistic``; a joint one's are NaN wherever one of them is NaN."""
    parts = [data[name] for name in statistic.names]
    if not statistic.joint:
        return parts
    missing = torch.stack([part.isnan() for part in parts]).any(dim=0)
    return [part.masked_fill(missing, math.nan) for part in parts]


def _resample(shape: torch.Size, count: int, generator: torch.Generator) -> Tensor:
    """The images of each resample, (count, n)."""
    n = shape[-1]
    return torch.randint(max(n, 1), (count, n), generator=generator)


def _resampled(parts: list[Tensor], statistic: Statistic, columns: Tensor) -> Tensor:
    """The statistic of each resample, (count,)."""
    if statistic.of_means is None or any(bool(part.isinf().any()) for part in parts):
        return statistic.reduce(*(part[:, columns].movedim(0, 1) for part in parts))
    # How often each image was drawn: weighted sums instead of copies of the sample.
    counts = _counts(columns, parts[0].shape[1])
    return statistic.of_means(*(_weighted_mean(part, counts) for part in parts))


def _counts(indices: Tensor, size: int) -> Tensor:
    """(count, size) the number of times that each index occurs in each row of ``indices``."""
    empty = torch.zeros(len(indices), size, dtype=torch.float64)
    return empty.scatter_add_(1, indices, torch.ones_like(indices, dtype=torch.float64))


def _weighted_mean(part: Tensor, counts: Tensor) -> Tensor:
    """The means (count,) of a quantity (seeds, n) over the cases that have a value."""
    total = counts @ part.nan_to_num().sum(dim=0)
    return total / (counts @ (~part.isnan()).double().sum(dim=0))


def _estimate(
    parts: list[Tensor], statistic: Statistic, draws: np.ndarray, columns: Tensor, level: float
) -> Estimate:
    """The estimate of one statistic from its quantities and its bootstrap values."""
    counts = (~parts[0].isnan()).sum(dim=1)
    seeds = int((counts > 0).sum())  # a seed without any case says nothing
    if seeds == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, math.nan, 0)
    n = int(counts.sum()) // seeds
    value = float(statistic.reduce(*parts))
    low, high = math.nan, math.nan
    if statistic.extreme:
        low, high = value, value
    elif statistic.is_share and value in (0.0, 1.0):
        low, high = wilson(value * n, n, level)
    elif n >= 2:
        known = [part[counts > 0] for part in parts]
        low, high = _interval(known, statistic, value, draws, columns, n, level)
        low, high = max(low, statistic.within[0]), min(high, statistic.within[1])
    return Estimate(value, low, high, n, _spread(parts, statistic), seeds)


def _interval(
    parts: list[Tensor],
    statistic: Statistic,
    value: float,
    draws: np.ndarray,
    columns: Tensor,
    n: int,
    level: float,
) -> tuple[float, float]:
    """The interval for other images and other training seeds."""
    low, high = _for_images(parts, statistic, value, draws, n, level)
    if len(parts[0]) == 1 or math.isnan(low + high):
        return low, high
    own = statistic.reduce(*(part[:, None] for part in parts))
    own = own[~own.isnan()]
    if len(own) < 2:
        return low, high
    if not math.isfinite(value) or bool(own.isinf().any()):  # no distance to an infinite value
        return min(low, float(own.min())), max(high, float(own.max()))
    k = len(own)
    seeds = float(stdtrit(k - 1, (1 + level) / 2)) * float(own.std()) / math.sqrt(k)
    shared = _shared(parts, statistic, columns)
    down, up = (max(arm, math.hypot(seeds, shared * arm)) for arm in (value - low, high - value))
    return value - down, value + up


def _for_images(
    parts: list[Tensor],
    statistic: Statistic,
    value: float,
    draws: np.ndarray,
    n: int,
    level: float,
) -> tuple[float, float]:
    """The interval for other images and these very networks."""
    if statistic.middle is not None and n < FEW:
        return _of_order_statistics(statistic.middle(*parts), n, level)
    finite = draws[~np.isnan(draws)]
    if not len(finite):
        return math.nan, math.nan
    # Order statistics, not interpolation: infinite values stay meaningful.
    low = float(np.quantile(finite, (1 - level) / 2, method="lower"))
    high = float(np.quantile(finite, (1 + level) / 2, method="higher"))
    if not math.isfinite(value):
        return low, high
    upper = (1 + level) / 2
    growth = float(stdtrit(n - 1, upper) / ndtri(upper)) * math.sqrt(n / (n - 1))
    # A biased statistic may lie outside its percentiles.
    return value - growth * max(value - low, 0.0), value + growth * max(high - value, 0.0)


def _of_order_statistics(values: Tensor, n: int, level: float) -> tuple[float, float]:
    """The interval of a median of n independent cases, by the binomial law.

    Between the j-th smallest and the j-th largest of them with P(Bin(n, 1/2) < j) at most
    (1 - level) / 2. Fewer than 6 cases have none at 95%. The same image under several networks is
    one case: of k times as many values, the (k (j - 1) + 1)-th ones are taken.
    """
    ordered = values[~values.isnan()].sort().values
    copies = max(1, len(ordered) // n)
    n = len(ordered) // copies
    ranks = [j for j in range(1, n // 2 + 1) if bdtr(j - 1, n, 0.5) <= (1 - level) / 2]
    if not ranks:
        return math.nan, math.nan
    index = (max(ranks) - 1) * copies
    return float(ordered[index]), float(ordered[-1 - index])


def _shared(parts: list[Tensor], statistic: Statistic, columns: Tensor) -> float:
    """sqrt(1 - c): the part of the image noise's deviation that all seeds share, 0 to 1."""
    own = statistic.reduce(*(part[:, columns].movedim(0, 1).unsqueeze(-2) for part in parts))
    k = own.shape[1]
    covariance = own.T.cov()
    total = float(covariance.sum())
    if not math.isfinite(total) or total <= 0:
        return 1.0
    variance = float(covariance.trace()) / k
    unshared = variance - (total - k * variance) / (k * (k - 1))
    return math.sqrt(min(1.0, max(0.0, 1 - k * unshared / total)))


def _spread(parts: list[Tensor], statistic: Statistic) -> float:
    """The standard deviation over the cases, where the statistic is a mean of them."""
    if statistic.summand is None:
        return math.nan
    values = statistic.summand(*parts)
    values = values[~values.isnan()]
    return float(values.std()) if len(values) > 1 else math.nan
