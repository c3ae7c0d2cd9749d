import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import (
    accuracy,
    correct,
    held_out,
    judged,
    recomputed_success,
    relative_robustness,
    valid,
)
from pipeline.statistics import (
    Statistic,
    difference,
    maximum,
    mean,
    mean_of_ratios,
    median,
    median_difference,
    median_of_ratios,
    minimum,
    ratio_of_means,
    share,
    wilson,
)
from robustness_geometry.attacks.protocol import attack_name, takes_generator
from robustness_geometry.checks import InputError
from robustness_geometry.randomness import Generators, uniform
from robustness_geometry.types import Dataset, Perturbed, Split, predict

NAN, INF = math.nan, math.inf


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above one half."""

    def forward(self, images):
        return images.flatten(1).mean(dim=1, keepdim=True) - 0.5


def boastful(model, images, *, step: float = 0.6) -> Perturbed:
    """Brightens every image and claims that each is fooled."""
    labels = predict(model, images)
    done = torch.ones(len(images), dtype=torch.bool)
    return Perturbed(torch.full_like(images, step), labels, labels, done, torch.ones_like(labels))


def noisy(model, images, *, generator: Generators = None) -> Perturbed:
    result = boastful(model, images)
    return Perturbed(
        uniform(images, generator), result.labels, result.labels, result.success, result.steps
    )


def two_images():
    return torch.stack([torch.full((1, 2, 2), 0.2), torch.full((1, 2, 2), 0.9)])


def test_success_is_recomputed_from_the_tensors():
    result = judged(boastful, Brightness(), two_images())
    assert result.success.tolist() == [True, False]
    assert result.adversarial_labels.tolist() == [1, 1]


def test_options_reach_the_attack():
    assert judged(boastful, Brightness(), two_images(), step=-0.6).success.tolist() == [False, True]


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_non_finite_perturbation_is_a_failure(bad):
    images = two_images()
    result = boastful(Brightness(), images)
    result.perturbations[0, 0, 0, 0] = bad
    assert recomputed_success(Brightness(), images, result).tolist() == [False, False]


def test_attack_names_and_generators_are_found_under_partials():
    bound = partial(partial(boastful, step=0.1), step=0.2)
    assert attack_name(bound) == "boastful"
    assert not takes_generator(bound)
    assert takes_generator(partial(noisy))


def test_accuracy_and_robustness():
    images, labels = two_images(), torch.tensor([0, 0])
    assert correct(Brightness(), images, labels).tolist() == [True, False]
    assert accuracy(Brightness(), images, labels) == 0.5
    assert math.isnan(accuracy(Brightness(), images[:0], labels[:0]))
    perturbations = 0.1 * images * torch.tensor([1.0, 3.0])[:, None, None, None]
    assert relative_robustness(perturbations, images) == pytest.approx(0.2)
    assert relative_robustness(perturbations, images, math.inf) == pytest.approx(0.2)


def test_a_failed_case_becomes_nan():
    values = valid(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    assert values[0] == 1.0
    assert math.isnan(values[1])


def test_held_out_samples_are_stratified_and_nested():
    labels = torch.arange(4).repeat_interleave(25)
    images = torch.arange(100.0).view(100, 1, 1, 1) / 100
    data = Dataset(
        "x", Split(images[:0], labels[:0]), Split(images, labels), tuple("abcd"), (0.5,), (0.2,)
    )
    small, large = held_out(data, 20), held_out(data, 1000)
    assert len(large) == 100
    assert large.images.flatten().unique().numel() == 100
    assert torch.equal(small.images, large.images[:20])
    assert small.labels.bincount().tolist() == [5, 5, 5, 5]


def estimate(statistic, **samples):
    return paired_bootstrap({k: torch.as_tensor(v) for k, v in samples.items()}, {"s": statistic})[
        "s"
    ]


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = estimate(mean("a"), a=values)
    half = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)
    assert (found.n, found.seeds) == (400, 1)
    assert found.std == pytest.approx(float(values.std()))


def test_differences_are_paired_over_images():
    values = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100
    found = estimate(difference("b", "a"), a=values, b=values + 1)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_training_seeds_have_students_interval():
    base = torch.zeros(50, dtype=torch.float64)
    found = estimate(mean("a"), a=torch.stack([base, base + 1, base + 2]))
    half = 4.302653 / math.sqrt(3)  # t(2) at 97.5%, and a standard deviation of 1
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1 - half, 1 + half))
    assert found.seeds == 3


def test_ratio_of_means_and_mean_of_ratios_differ():
    a, b = [2.0, 8.0], [1.0, 2.0]
    assert estimate(ratio_of_means("a", "b"), a=a, b=b).value == pytest.approx(10 / 3)
    assert estimate(mean_of_ratios("a", "b"), a=a, b=b).value == pytest.approx(3.0)
    assert estimate(median_of_ratios("a", "b"), a=a, b=b).value == pytest.approx(3.0)


@pytest.mark.parametrize("make", [ratio_of_means, difference, mean_of_ratios])
def test_a_case_without_a_value_is_left_out_of_both(make):
    statistic = make("a", "b")
    whole = estimate(statistic, a=[2.0, 5.0], b=[1.0, 4.0])
    gaps = estimate(statistic, a=[2.0, NAN, 5.0, 9.0], b=[1.0, 100.0, 4.0, NAN])
    assert gaps.value == pytest.approx(whole.value)
    assert gaps.n == 2


def test_a_seed_without_cases_counts_for_nothing():
    found = estimate(mean("a"), a=torch.tensor([[1.0, 3.0], [NAN, NAN]]))
    assert (found.value, found.n, found.seeds) == (2.0, 2, 1)
    alone = estimate(mean("a"), a=[1.0, 3.0])
    assert (found.low, found.high) == (alone.low, alone.high)


def test_a_statistic_may_take_gaps_one_by_one():
    both = Statistic(
        ("a", "b"), lambda a, b: a.nanmean((-2, -1)) + b.nanmean((-2, -1)), joint=False
    )
    assert estimate(both, a=[1.0, NAN, 3.0], b=[NAN, 10.0, 20.0]).value == 17.0


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [4.0, 1.0, 3.0, 2.0], [1.0, NAN, 5.0], [7.0]])
def test_the_median_is_numpys(values):
    assert estimate(median("a"), a=values).value == np.nanmedian(values)


def test_an_infinite_value_takes_its_place_in_the_order():
    found = estimate(median("a"), a=[1.0, 2.0, INF, 3.0, INF])
    assert found.value == 3.0
    assert estimate(median("a"), a=[1.0, 2.0, INF, 3.0, INF] * 2).high == INF
    assert estimate(median("a"), a=[1.0, 2.0, INF, 3.0, INF] * 5).high == INF
    assert estimate(median_difference("a", "b"), a=[1.0, 2.0, INF], b=[1.0, 1.0, 1.0]).value == 1.0


def test_extremes():
    assert estimate(maximum("a"), a=[1.0, NAN, 5.0]).value == 5.0
    assert estimate(minimum("a"), a=[1.0, NAN, 5.0]).value == 1.0
    assert estimate(maximum("a"), a=[1.0, 1.0]).high == 1.0


@pytest.mark.parametrize(("value", "successes"), [(0.0, 0), (1.0, 40)])
def test_a_share_of_none_or_all_has_wilsons_interval(value, successes):
    found = estimate(share("a"), a=torch.full((40,), value))
    expected = binomtest(successes, 40).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.high > found.low


def test_an_ordinary_share_is_bootstrapped():
    found = estimate(share("a"), a=torch.arange(100) % 4 == 0)
    assert found.value == 0.25
    assert found.low == pytest.approx(wilson(25, 100)[0], abs=0.02)
    assert found.high == pytest.approx(wilson(25, 100)[1], abs=0.02)


def test_wilson_without_cases_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_too_few_cases_have_no_interval():
    one = estimate(mean("a"), a=[2.0, NAN])
    none = estimate(mean("a"), a=[NAN, NAN])
    assert one.value == 2.0
    assert math.isnan(one.low)
    assert math.isnan(none.value)
    assert none.n == 0
    assert list(measured({"one": one, "none": none})) == ["one"]


def test_the_same_seed_gives_the_same_interval():
    values = torch.rand(3, 30, generator=torch.Generator().manual_seed(0))
    runs = [paired_bootstrap({"a": values}, {"m": mean("a")}, seed=seed)["m"] for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_memory_bounds_do_not_change_the_interval(monkeypatch):
    values = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    whole = paired_bootstrap({"a": values}, {"m": mean("a")}, resamples=300)["m"]
    monkeypatch.setattr("pipeline.bootstrap.BUDGET", 1000)
    parts = paired_bootstrap({"a": values}, {"m": mean("a")}, resamples=300)["m"]
    assert parts.value == whole.value
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.02)


@pytest.mark.parametrize(
    "make", [mean, share, partial(difference, "a"), partial(ratio_of_means, "a")]
)
def test_the_short_way_through_means_gives_the_same_interval(make):
    values = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    values[0, :5] = NAN
    samples = {"a": values, "b": values.square() + 1}
    short = make("b")
    long = replace(short, of_means=None)
    first, second = (
        paired_bootstrap(samples, {"s": each}, resamples=200)["s"] for each in (short, long)
    )
    assert (first.value, first.low, first.high) == pytest.approx(
        (second.value, second.low, second.high)
    )


def test_samples_of_different_shapes_are_refused():
    with pytest.raises(InputError, match=r"samples must be .*one shape"):
        paired_bootstrap({"a": torch.zeros(3), "b": torch.zeros(4)}, {"m": mean("a")})


def test_unknown_quantities_are_refused():
    with pytest.raises(InputError, match=r"statistics must be one of a.*; got 'b'"):
        paired_bootstrap({"a": torch.zeros(3)}, {"m": mean("b")})


def test_no_resamples_are_refused():
    with pytest.raises(InputError, match=r"resamples must be .*; got 0"):
        paired_bootstrap({"a": torch.zeros(3)}, {"m": mean("a")}, resamples=0)
