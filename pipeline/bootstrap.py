"""Intervals from a paired bootstrap over images and training seeds."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.statistics import Estimate, Statistic, wilson
from robustness_geometry.checks import check_count, refuse

__all__ = ["measured", "paired_bootstrap"]

BUDGET = 4_000_000
"""Largest number of values of one quantity that a bootstrap holds in memory at a time."""


def paired_bootstrap(
    samples: Mapping[str, Tensor],
    statistics: Mapping[str, Statistic],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Estimates with percentile intervals from a paired bootstrap over images and seeds.

    Every resample draws n images, the same for all quantities and all seeds, and, where there are
    at least two training seeds, as many seeds. So a difference of two methods has the interval of a
    difference of pairs. NaN marks a case without a value (failed, or not measured): it is left out
    of every statistic that uses its quantity, and ``Estimate.n`` counts what remains.

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
        rows, columns = _resample(shape, min(step, resamples - start), generator)
        for name, statistic in statistics.items():
            draws[name].append(_resampled(_paired(data, statistic), statistic, rows, columns))
    return {
        name: _estimate(_paired(data, s), s, torch.cat(draws[name]).numpy(), level)
        for name, s in statistics.items()
    }


def measured(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Those of ``estimates`` that rest on at least one case: the others were not measured."""
    return {name: estimate for name, estimate in estimates.items() if estimate.n > 0}


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


def _resample(shape: torch.Size, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row and column indices that broadcast to (count, seeds, n)."""
    seeds, n = shape
    columns = torch.randint(max(n, 1), (count, 1, n), generator=generator)
    if seeds == 1:
        return torch.zeros(count, 1, 1, dtype=torch.long), columns
    return torch.randint(seeds, (count, seeds, 1), generator=generator), columns


def _resampled(parts: list[Tensor], statistic: Statistic, rows: Tensor, columns: Tensor) -> Tensor:
    """The statistic of each resample, (count,)."""
    if statistic.of_means is None or any(bool(part.isinf().any()) for part in parts):
        return statistic.reduce(*(part[rows, columns] for part in parts))
    # How often each seed and each image was drawn: weighted sums instead of copies of the sample.
    seeds, n = parts[0].shape
    drawn = [_counts(rows.squeeze(-1), seeds), _counts(columns.squeeze(-2), n)]
    return statistic.of_means(*(_weighted_mean(part, *drawn) for part in parts))


def _counts(indices: Tensor, size: int) -> Tensor:
    """(count, size) the number of times that each index occurs in each row of ``indices``."""
    empty = torch.zeros(len(indices), size, dtype=torch.float64)
    return empty.scatter_add_(1, indices, torch.ones_like(indices, dtype=torch.float64))


def _weighted_mean(part: Tensor, seeds: Tensor, images: Tensor) -> Tensor:
    """The means (count,) of a quantity (seeds, n) over the cases that have a value."""
    total = (seeds * (images @ part.nan_to_num().T)).sum(dim=1)
    return total / (seeds * (images @ (~part.isnan()).double().T)).sum(dim=1)


def _estimate(
    parts: list[Tensor], statistic: Statistic, draws: np.ndarray, level: float
) -> Estimate:
    """The estimate of one statistic from its quantities and its bootstrap values."""
    counts = (~parts[0].isnan()).sum(dim=1)
    seeds = int((counts > 0).sum())  # a seed without any case says nothing
    if seeds == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, math.nan, 0)
    n = int(counts.sum()) // seeds
    value = float(statistic.reduce(*parts))
    low, high = math.nan, math.nan
    finite = draws[~np.isnan(draws)]
    if n >= 2 and len(finite):
        # Order statistics, not interpolation: infinite values stay meaningful.
        low = float(np.quantile(finite, (1 - level) / 2, method="lower"))
        high = float(np.quantile(finite, (1 + level) / 2, method="higher"))
    if statistic.is_share and value in (0.0, 1.0):
        low, high = wilson(value * n, n, level)
    return Estimate(value, low, high, n, _spread(parts, statistic), seeds)


def _spread(parts: list[Tensor], statistic: Statistic) -> float:
    """The standard deviation over the cases, where the statistic is a mean of them."""
    if statistic.summand is None:
        return math.nan
    values = statistic.summand(*parts)
    values = values[~values.isnan()]
    return float(values.std()) if len(values) > 1 else math.nan
