"""Judging attacks from the tensors they return, and the statistics that every table uses."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.checks import check_count, refuse
from pipeline.datasets.sampling import stratified_order
from pipeline.findings import Estimate
from pipeline.norms import relative_norms
from pipeline.types import (
    Attack,
    Classifier,
    Dataset,
    Images,
    Labels,
    Mask,
    PerImage,
    Perturbed,
    Split,
    predict,
)

__all__ = [
    "Statistic",
    "accuracy",
    "attack_name",
    "correct",
    "difference",
    "held_out",
    "judged",
    "maximum",
    "mean",
    "mean_of_ratios",
    "measured",
    "median",
    "median_difference",
    "median_of_ratios",
    "minimum",
    "paired_bootstrap",
    "ratio_of_means",
    "recomputed_success",
    "relative_robustness",
    "share",
    "takes_generator",
    "valid",
    "wilson",
]

BUDGET = 4_000_000
"""Values of one quantity that a bootstrap holds in memory at a time."""

Reduction: TypeAlias = Callable[..., Tensor]
"""Maps tensors (..., seeds, n), in which NaN stands for a case that is left out, to one value (...)."""


def recomputed_success(model: Classifier, images: Images, perturbed: Perturbed) -> Mask:
    """Whether each returned perturbation changes the label, judged anew from the tensors.

    Args:
        model: the classifier.
        images: (N, C, H, W) the clean images.
        perturbed: what the attack returned; its own ``success`` is not looked at.

    Returns:
        (N,) True where ``images + perturbations`` is finite and its label differs from ``perturbed.labels``.
    """
    finite = torch.isfinite(perturbed.perturbations).flatten(1).all(dim=1)
    return finite & (predict(model, perturbed.adversarial(images)) != perturbed.labels)


def judged(attack: Attack, model: Classifier, images: Images, **options: object) -> Perturbed:
    """Run ``attack`` and replace its own account of success by :func:`recomputed_success`.

    A module-level function, so that ``executor.map(partial(judged, attack, model), images)`` can key it.

    Args:
        attack: the attack, with its options bound.
        model: the classifier.
        images: (N, C, H, W).
        options: passed on to the attack, such as ``generator``.

    Returns:
        The attack's result with recomputed ``adversarial_labels`` and ``success``.
    """
    result = attack(model, images, **options)
    labels = predict(model, result.adversarial(images))
    return replace(result, adversarial_labels=labels, success=recomputed_success(model, images, result))


def attack_name(attack: Attack) -> str:
    """The name of the function under the options, such as ``deepfool``."""
    function: object = attack
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def takes_generator(attack: Attack) -> bool:
    """Whether ``attack`` draws random numbers, that is, has a ``generator`` option."""
    return "generator" in inspect.signature(attack).parameters


def held_out(data: Dataset, count: int) -> Split:
    """``count`` held-out images (all if there are fewer), in a fixed random order with stratified prefixes.

    So a smaller sample is a part of a larger one, and a folder sorted by class is sampled evenly.
    """
    order = stratified_order(data.test.labels, "evaluation")[: check_count("samples", count)]
    return Split(data.test.images[order], data.test.labels[order])


def correct(model: Classifier, images: Images, labels: Labels) -> Mask:
    """(N,) whether ``model`` gives each image its label."""
    return predict(model, images) == labels


def accuracy(model: Classifier, images: Images, labels: Labels) -> float:
    """The share of ``images`` to which ``model`` gives the right label, in [0, 1]; NaN without images."""
    return float(correct(model, images, labels).double().mean())


def relative_robustness(perturbations: Images, images: Images, p: float = 2.0) -> float:
    """rho_adv = mean of ||r||_p / ||x||_p (Equation 3.10); the caller leaves failed cases out."""
    return float(relative_norms(perturbations, images, p).double().mean())


def valid(values: PerImage, success: Mask) -> PerImage:
    """(N,) ``values`` in float64 with NaN where ``success`` is False: a failed case is never averaged in."""
    return values.double().masked_fill(~success, math.nan)


@dataclass(frozen=True)
class Statistic:
    """A statistic of one or several quantities that were measured on the same images.

    Attributes:
        names: the quantities it uses.
        reduce: from the quantities, each (..., seeds, n), to (...).
        summand: the per-case values of which the statistic is the mean, for the standard deviation; None if
            it is no mean.
        is_share: whether it is a share of cases, whose interval at 0 and at 1 is Wilson's.
        joint: whether a case that is NaN in one quantity is left out of all of them.
        of_means: the statistic from the means of its quantities, where that is all it needs: far cheaper to
            resample than ``reduce``.
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
    ordered = torch.from_numpy(np.sort(values.flatten(-2).numpy()))  # faster than torch's; NaN comes last, too
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


def paired_bootstrap(
    samples: Mapping[str, Tensor],
    statistics: Mapping[str, Statistic],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Estimates with percentile intervals from a bootstrap that is paired over images and training seeds.

    Every resample draws n images, the same for all quantities and all seeds, and, where there are at least
    two training seeds, as many seeds. So a difference of two methods has the interval of a difference of
    pairs. NaN marks a case without a value (failed, or not measured): it is left out of every statistic that
    uses its quantity, and ``Estimate.n`` counts what remains.

    Args:
        samples: name -> (seeds, n), or (n,) for one seed; all of one shape.
        statistics: name -> statistic, such as ``{"rho_fgsm / rho_df": ratio_of_means("fgsm", "df")}``.
        resamples: number of resamples; quantiles are taken at its order statistics.
        seed: of the resampling.
        level: of the interval.

    Returns:
        name -> estimate. With fewer than two cases the interval is unknown (NaN); without any, the value too.

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
    """Those of ``estimates`` that rest on at least one case; the others were not measured."""
    return {name: estimate for name, estimate in estimates.items() if estimate.n > 0}


def _stacked(samples: Mapping[str, Tensor], statistics: Iterable[Statistic]) -> dict[str, Tensor]:
    """The samples as float64 (seeds, n) on the CPU, checked."""
    data = {
        name: values.detach().cpu().double().reshape(-1, values.shape[-1]) for name, values in samples.items()
    }
    if len({values.shape for values in data.values()}) != 1:
        refuse(
            "samples", str({name: tuple(v.shape) for name, v in data.items()}), "one shape (seeds, n) for all"
        )
    for name in (name for statistic in statistics for name in statistic.names):
        if name not in data:
            refuse("statistics", name, "one of " + ", ".join(data))
    return data


def _paired(data: Mapping[str, Tensor], statistic: Statistic) -> list[Tensor]:
    """The quantities of ``statistic``; if it is joint, NaN in all of them wherever one of them is NaN."""
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
    """(count, size) how often each of ``size`` indices occurs in each row of ``indices``."""
    empty = torch.zeros(len(indices), size, dtype=torch.float64)
    return empty.scatter_add_(1, indices, torch.ones_like(indices, dtype=torch.float64))


def _weighted_mean(part: Tensor, seeds: Tensor, images: Tensor) -> Tensor:
    """The means (count,) of a quantity (seeds, n) over the cases that have a value."""
    total = (seeds * (images @ part.nan_to_num().T)).sum(dim=1)
    return total / (seeds * (images @ (~part.isnan()).double().T)).sum(dim=1)


def _estimate(parts: list[Tensor], statistic: Statistic, draws: np.ndarray, level: float) -> Estimate:
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
