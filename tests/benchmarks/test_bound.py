import pytest
import torch
from torch import nn

from benchmarks.bound import JACOBIANS, active_images, jacobians
from benchmarks.counting import count_passes

IMAGES, CLASSES = 5, 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, CLASSES))
        .double()
        .eval()
    )


@pytest.fixture
def images():
    return torch.rand(
        IMAGES, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


@pytest.mark.parametrize("way", JACOBIANS)
def test_every_way_gives_the_jacobian(model, images, way):
    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda x: model(x[None])[0], image) for image in images]
    )
    torch.testing.assert_close(JACOBIANS[way](model, images), expected)


def test_active_images():
    assert active_images(torch.tensor([3, 1, 0, 2, 3])) == [4, 3, 2]
    assert active_images(torch.tensor([], dtype=torch.long)) == []
    assert active_images(torch.tensor([0, 0])) == []


def test_jacobians_take_what_the_steps_need(model, images):
    with count_passes(model) as passes:
        jacobians(JACOBIANS["class by class"], model, images, [5, 3, 1], batch=2)
    assert (passes.forward, passes.backward) == (9, 9 * CLASSES)
