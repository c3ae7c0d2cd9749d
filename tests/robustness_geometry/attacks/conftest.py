"""Classifiers whose minimal perturbations are known, and one small convolutional network."""

import pytest
import torch
from torch import nn


class Affine(nn.Module):
    """x -> W x + b on flattened images."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.eval()

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


class Radial(nn.Module):
    """Logits (N, 1) that depend on the distance from the origin alone."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, images):
        return self.function(images.flatten(1).norm(dim=1, keepdim=True))


class Table(nn.Module):
    """Any function of the flattened images as a classifier."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, images):
        return self.function(images.flatten(1))


@pytest.fixture(scope="session")
def affine():
    """Makes a random affine classifier in float64; ``outputs=1`` gives a binary one."""

    def make(outputs=5, dimension=12, seed=0):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(outputs, dimension, generator=generator, dtype=torch.float64)
        bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
        return Affine(weight, bias)

    return make


@pytest.fixture(scope="session")
def radial():
    return Radial


@pytest.fixture(scope="session")
def table():
    return Table


@pytest.fixture(scope="session")
def points():
    """Makes random points (N, 1, 1, d) of the unit cube, in float64."""

    def make(count=20, dimension=12, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(count, 1, 1, dimension, generator=generator, dtype=torch.float64)

    return make


@pytest.fixture(scope="session")
def at():
    """Makes the point (radius, 0, 0, ...) as an image (1, 1, 1, d)."""

    def make(radius, dimension=3):
        point = torch.zeros(1, 1, 1, dimension, dtype=torch.float64)
        point[..., 0] = radius
        return point

    return make


@pytest.fixture(scope="session")
def network():
    """A random float32 network of convolutions, one with a kernel as large as its input."""
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(1, 6, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
    ]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="session")
def pictures():
    """Random images (12, 1, 12, 12) for ``network``."""
    return torch.rand(12, 1, 12, 12, generator=torch.Generator().manual_seed(4))
