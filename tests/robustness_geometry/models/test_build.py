import json
from functools import partial

import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.models import Normalised, build, describe, lenet, nin, resnet18
from robustness_geometry.types import Dataset, Split


def dataset(channels=1, side=28, classes=10, name="made"):
    split = Split(torch.rand(4, channels, side, side), torch.zeros(4, dtype=torch.int64))
    names = tuple(str(index) for index in range(classes))
    return Dataset(name, split, split, names, (0.4,) * channels, (0.3,) * channels)


def test_the_seed_decides_the_weights_and_nothing_else_changes():
    data = dataset()
    before = torch.get_rng_state()
    first = build(lenet, data, 1).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = build(lenet, data, 1).state_dict(), build(lenet, data, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.conv1.weight"], other["network.conv1.weight"])


def test_the_network_is_made_for_the_data():
    model = build(partial(resnet18, width=4), dataset(3, 16, 5))
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 5)
    assert model.normalise.mean.flatten().tolist() == pytest.approx([0.4] * 3)


def test_one_logit_serves_two_classes():
    model = build(lambda **shape: lenet(**{**shape, "classes": 1}), dataset(classes=2))
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 1)


def linear(outputs, *, inputs=784, result=None):
    def factory(*, channels, size, classes, mean, std):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(inputs, outputs)

            def forward(self, images):
                logits = self.layer(images.flatten(1))
                return logits if result is None else result(logits)

        return Normalised(Net(), mean, std)

    return factory


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (lenet, r"dataset.size must be at least 16x16 pixels for lenet.*; got '8x8'"),
        (
            linear(10),
            r"dataset.name must be images that the network takes; it fails on 1x8x8:.*mat1"
            r".*; got 'tiny'",
        ),
        (
            linear(7, inputs=64),
            r"dataset.name must be a data set of 7 classes, as .* has; not 10.*; got 'tiny'",
        ),
        (linear(1, inputs=64), r"dataset.name must be a data set of 1 classes.*; got 'tiny'"),
        (
            linear(10, inputs=64, result=lambda z: (z, z)),
            r"model.output must be a tensor of logits.*; got 'tuple'",
        ),
        (
            linear(10, inputs=64, result=lambda z: z / 0),
            r"logits must be finite; got NaN or infinite values",
        ),
        (linear(10, inputs=64, result=lambda z: z[None]), r"logits.shape must be"),
    ],
)
def test_networks_that_do_not_suit_are_refused_in_one_line(factory, text):
    with pytest.raises(InputError, match=text) as caught:
        build(factory, dataset(side=8, name="tiny"))
    assert "\n" not in str(caught.value)


def test_training_mode_is_refused():
    def factory(**_):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    with pytest.raises(InputError, match=r"model must be in evaluation mode .*; got training mode"):
        build(factory, dataset())


def test_a_seed_below_zero_is_refused():
    with pytest.raises(InputError, match=r"seed must be .*; got -1"):
        build(lenet, dataset(), -1)


def test_the_description_holds_factory_and_arguments():
    notes = describe(partial(partial(nin, width=16), width=8, batch_norm=True), dataset())
    assert notes["factory"] == "nin"
    assert json.loads(notes["arguments"]) == {
        "channels": 1,
        "size": [28, 28],
        "classes": 10,
        "mean": [0.4],
        "std": [0.3],
        "width": 8,
        "batch_norm": True,
    }
