"""What the 95% intervals cover, and what they are in closed form."""

import math

import pytest
import torch
from scipy.stats import binom, t
from torch import Tensor

from pipeline.bootstrap import largest, paired_bootstrap, smallest
from pipeline.statistics import (
    Estimate,
    auc,
    maximum,
    mean,
    median,
    median_of_ratios,
    minimum,
    share,
    spearman,
)

NAN, INF = math.nan, math.inf


def estimate(statistic, *, resamples: int = 2000, **samples) -> Estimate:
    values = {name: torch.as_tensor(each) for name, each in samples.items()}
    return paired_bootstrap(values, {"s": statistic}, resamples=resamples)["s"]


def effects(
    seeds: int, images: int, training: float, image: float, both: float, generator: torch.Generator
) -> Tensor:
    """0 + a_seed + b_image + e_(seed, image), normal with the three standard deviations."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return training * normal(seeds, 1) + image * normal(1, images) + both * normal(seeds, images)


def coverage(seeds: int, deviations: tuple[float, float, float], studies: int = 500) -> float:
    """How often the interval of a mean over 40 images holds the true mean, 0."""
    generator = torch.Generator().manual_seed(seeds)
    held = 0
    for _ in range(studies):
        values = effects(seeds, 40, *deviations, generator)
        found = estimate(mean("a"), resamples=200, a=values)
        held += found.low <= 0 <= found.high
    return held / studies


def coverage_of_two_level_bootstrap(seeds: int, studies: int = 500) -> float:
    """The same of the percentiles of resampled seeds and images, where training varies most."""
    generator = torch.Generator().manual_seed(seeds)
    held = 0
    for _ in range(studies):
        values = effects(seeds, 40, 1.0, 1.0, 1.0, generator)
        rows = torch.randint(seeds, (200, seeds, 1), generator=generator)
        columns = torch.randint(40, (200, 1, 40), generator=generator)
        ends = (
            values[rows, columns]
            .mean(dim=(1, 2))
            .quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        )
        held += bool(ends[0] <= 0 <= ends[1])
    return held / studies


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    "deviations",
    [(1, 1, 1), (0.15, 1, 1), (0, 1, 0), (0, 0, 1), (0.3, 0, 2)],
)
def test_a_95_percent_interval_holds_the_mean_of_all_seeds_and_images(seeds, deviations):
    assert 0.92 <= coverage(seeds, deviations) <= 0.99


def test_resampling_three_seeds_does_not():
    assert coverage_of_two_level_bootstrap(3) < 0.85


def test_three_seeds_that_differ_have_students_interval():
    shares = torch.tensor([[0.497], [0.518], [0.289]], dtype=torch.float64)
    found = estimate(mean("a"), a=shares.expand(3, 50))
    half = t.ppf(0.975, 2) * float(shares.std()) / math.sqrt(3)
    assert found.value == pytest.approx(0.4347, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    assert half == pytest.approx(0.315, abs=0.001)


def test_one_seed_has_the_interval_of_its_images():
    values = torch.rand(1, 60, generator=torch.Generator().manual_seed(0))
    one = estimate(mean("a"), a=values)
    same = estimate(mean("a"), a=values.expand(3, 60))
    assert (one.low, one.high) == pytest.approx((same.low, same.high), rel=0.02)
    assert (one.seeds, same.seeds) == (1, 3)


def test_skewed_images_keep_unequal_arms():
    values = torch.zeros(3, 50, dtype=torch.float64)
    values[:, :2] = 25.0
    found = estimate(mean("a"), a=values)
    assert found.high - found.value > 1.3 * (found.value - found.low)


@pytest.mark.parametrize("n", [3, 8, 200])
def test_few_images_have_a_longer_interval_like_students(n):
    values = torch.linspace(-1, 1, n, dtype=torch.float64)
    found = estimate(mean("a"), a=values)
    half = t.ppf(0.975, n - 1) * float(values.std()) / math.sqrt(n)
    assert found.high == pytest.approx(half, rel=0.15)


@pytest.mark.parametrize(
    ("statistic", "quantities", "bounds"),
    [
        (share("a"), {"a": torch.tensor([[0, 0], [1, 1], [0, 1]])}, (0, 1)),
        (mean("a", (-1, 1)), {"a": torch.tensor([[-1.0, -1.0], [1.0, 0.9]])}, (-1, 1)),
        (auc("a", "b"), {"a": torch.rand(3, 9), "b": torch.rand(3, 9) + 0.4}, (0, 1)),
    ],
)
def test_an_interval_stays_within_what_is_possible(statistic, quantities, bounds):
    found = estimate(statistic, **quantities)
    assert bounds[0] <= found.low <= found.value <= found.high <= bounds[1]


def test_a_seed_at_infinity_stretches_the_interval_over_the_seeds():
    values = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0], [2.0, INF, INF]]).repeat(1, 9)
    found = estimate(median("a"), a=values)
    assert found.value == 2.0
    assert (found.low <= 2.0, found.high) == (True, INF)


@pytest.mark.parametrize("n", [6, 9, 15, 19])
def test_a_median_of_few_lies_between_order_statistics(n):
    values = torch.randperm(n, generator=torch.Generator().manual_seed(0)).double() + 1
    found = estimate(median("a"), a=values)
    j, other = int(found.low), n + 1 - int(found.high)
    assert j == other
    assert binom.cdf(j - 1, n, 0.5) <= 0.025 < binom.cdf(j, n, 0.5)
    ratios = estimate(median_of_ratios("a", "b"), a=2 * values, b=torch.ones(n))
    assert (ratios.low, ratios.high) == (2 * found.low, 2 * found.high)
    same = estimate(median("a"), a=values.expand(3, n))
    assert (same.low, same.high) == (found.low, found.high)


def test_a_median_of_ratios_without_a_value_has_no_interval():
    found = estimate(median_of_ratios("a", "b"), a=[INF] * 8, b=[INF] * 8)
    assert math.isnan(found.low)


def test_a_median_of_five_has_no_95_percent_interval():
    assert math.isnan(estimate(median("a"), a=[1.0, 2.0, 3.0, 4.0, 5.0]).low)


def test_a_median_of_few_holds_the_true_one_often_enough():
    generator = torch.Generator().manual_seed(0)
    values = torch.empty(400, 11, dtype=torch.float64).exponential_(generator=generator)
    found = [estimate(median("a"), resamples=1, a=row) for row in values]
    held = sum(each.low <= math.log(2) <= each.high for each in found) / len(found)
    assert held >= 0.95


@pytest.mark.parametrize(("statistic", "value"), [(maximum("a"), 9.0), (minimum("a"), 0.0)])
def test_an_extreme_belongs_to_its_cases(statistic, value):
    found = estimate(statistic, a=torch.arange(10.0))
    assert (found.value, found.low, found.high, found.n) == (value, value, value, 10)


def test_orders_that_agree_have_a_rank_correlation_of_one():
    rising = [torch.tensor([float(k) ** 3]) for k in range(7)]
    assert spearman(range(7), *rising).tolist() == [1.0]
    assert spearman(range(7), *rising[::-1]).tolist() == [-1.0]
    assert spearman([5, 10, 20, 40], *rising[3::-1]).tolist() == [-1.0]


def test_the_smallest_of_several_numbers_takes_the_smallest_ends():
    numbers = [Estimate(0.5, 0.1, 0.6, 90, seeds=3), Estimate(0.4, 0.3, 0.5, 80, seeds=2)]
    found, other = smallest(numbers), largest(numbers)
    assert (found.value, found.low, found.high, found.n, found.seeds) == (0.4, 0.1, 0.5, 80, 2)
    assert (other.value, other.low, other.high) == (0.5, 0.3, 0.6)
    unknown = Estimate(NAN, NAN, NAN, 0, seeds=0)
    assert smallest([*numbers, unknown]) == found
    assert smallest([unknown]).n == 0
    assert math.isnan(largest([Estimate(1.0, NAN, NAN, 1), *numbers]).low)
