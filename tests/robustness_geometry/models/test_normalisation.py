import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.models import Normalise, Normalised


def test_each_channel_is_normalised_by_its_own_values():
    layer = Normalise([0.5, 0.25], [0.5, 0.1]).double()
    images = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    expected = torch.stack([(images[:, 0] - 0.5) / 0.5, (images[:, 1] - 0.25) / 0.1], dim=1)
    assert torch.allclose(layer(images), expected, atol=1e-7)


def test_values_are_buffers_that_nothing_trains():
    model = Normalised(nn.Flatten(), [0.5], [0.2])
    assert not model.training
    assert sorted(model.state_dict()) == ["normalise.mean", "normalise.std"]
    assert list(model.parameters()) == []


def test_an_average_image_may_take_the_mean_s_place():
    layer = Normalise([0.5], [0.5])
    average = torch.rand(1, 1, 2, 2)
    layer.replace(average, torch.full((1, 1, 1, 1), 0.1))
    images = torch.rand(2, 1, 2, 2)
    assert torch.allclose(layer(images), (images - average) * 10, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "std", "key"),
    [
        ([0.5], [0.0], "dataset.std"),
        ([0.5], [-1.0], "dataset.std"),
        ([0.5], [float("nan")], "dataset.std"),
        ([0.5, 0.5], [0.1], "dataset.mean"),
        ([float("inf")], [0.1], "dataset.mean"),
    ],
)
def test_values_that_cannot_normalise_are_refused(mean, std, key):
    with pytest.raises(InputError, match=key):
        Normalise(mean, std)
