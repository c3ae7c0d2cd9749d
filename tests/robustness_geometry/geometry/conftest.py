"""Classifiers whose decision boundary is known in closed form."""

import pytest
import torch
from torch import nn


class Quadric(nn.Module):
    """F = sum_i a_i z_i^2 - c as logits (N, 1), or as two logits whose difference is F."""

    def __init__(self, weights, offset=1.0, columns=1):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float64))
        self.offset, self.columns = offset, columns
        self.eval()

    def forward(self, images):
        value = images.flatten(1).square() @ self.weights[:, None] - self.offset
        return value if self.columns == 1 else torch.cat([-0.3 * value, 0.7 * value], dim=1)


class Function(nn.Module):
    """Any function of the flattened images as logits."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, images):
        return self.function(images.flatten(1))


@pytest.fixture(scope="session")
def quadric():
    return Quadric


@pytest.fixture(scope="session")
def function():
    return Function


@pytest.fixture(scope="session")
def image():
    """Makes an image (1, 1, 1, d) of given coordinates, in float64."""

    def make(*coordinates):
        return torch.tensor(coordinates, dtype=torch.float64).view(1, 1, 1, -1)

    return make


@pytest.fixture(scope="session")
def pair():
    """Makes the labels and targets of images that lie in class 0 beside class 1."""

    def make(count=1):
        return {
            "labels": torch.zeros(count, dtype=torch.int64),
            "targets": torch.ones(count, dtype=torch.int64),
        }

    return make


@pytest.fixture(scope="session")
def smooth():
    """A random convolutional network of softplus units: images (1, 8, 8), float64, 4 classes."""
    return _network(nn.Softplus(beta=8))


@pytest.fixture(scope="session")
def jagged():
    """The same network with ReLUs."""
    return _network(nn.ReLU())


def _network(unit):
    torch.manual_seed(7)
    layers = [
        nn.Conv2d(1, 6, 3),
        unit,
        nn.Conv2d(6, 8, 3, stride=2),
        unit,
        nn.Flatten(),
        nn.Linear(32, 24),
        unit,
    ]
    return nn.Sequential(*layers, nn.Linear(24, 4)).double().eval()


@pytest.fixture(scope="session")
def pictures():
    """Random images (4, 1, 8, 8), in float64."""
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
