import pytest
import torch

from robustness_geometry.checks import InputError
from robustness_geometry.datasets.sampling import Limits, choose, stratified_order


def test_every_prefix_of_the_order_is_stratified():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified_order(labels, 0, "test")
    assert sorted(order.tolist()) == list(range(100))
    for n in (10, 33, 70):
        counts = torch.bincount(labels[order[:n]], minlength=3)
        assert (counts - n * torch.tensor([0.6, 0.3, 0.1])).abs().max() <= 2


def test_equal_classes_are_split_exactly():
    labels = torch.arange(10).repeat_interleave(50)
    for n in (10, 100, 400):
        assert torch.bincount(labels[stratified_order(labels, 3)[:n]]).eq(n // 10).all()


def test_order_depends_on_the_purpose_only():
    labels = torch.arange(4).repeat(25)
    torch.manual_seed(1)
    first = stratified_order(labels, 0, "a")
    torch.manual_seed(2)
    assert torch.equal(first, stratified_order(labels, 0, "a"))
    assert not torch.equal(first, stratified_order(labels, 0, "b"))
    assert not torch.equal(first, stratified_order(labels, 1, "a"))


def test_smaller_limits_are_nested_and_larger_ones_keep_the_order():
    labels = torch.arange(4).repeat(25)
    assert torch.equal(choose(labels, 20, 0), choose(labels, 40, 0)[:20])
    for limit in (None, 100, 1000):
        assert torch.equal(choose(labels, limit, 0), torch.arange(100))


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((0, None, 0), "dataset.train_limit must be .*; got 0"),
        ((None, -1, 0), "dataset.test_limit must be .*; got -1"),
        ((True, None, 0), "dataset.train_limit must be .*; got True"),
        ((None, 2.5, 0), "dataset.test_limit must be .*; got 2.5"),
        ((None, None, -1), "dataset.seed must be .*; got -1"),
    ],
)
def test_limits_out_of_range_are_refused(arguments, key):
    with pytest.raises(InputError, match=key):
        Limits(*arguments)
