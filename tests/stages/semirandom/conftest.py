"""Classifiers with closed forms, points around them, and an executor."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.executor import Executor
from robustness_geometry.types import Dataset, Network, Split

SHAPE = (1, 8, 8)


def affine(seed: int = 0, classes: int = 1) -> nn.Module:
    """x -> <w, x> + b in float64 whose boundary passes near the centre of the cube."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(math.prod(SHAPE), classes).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


class Ball(nn.Module):
    """Class 0 inside the ball of that radius around the origin, class 1 outside."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).square().sum(dim=1, keepdim=True) - self.radius**2


def dataset(count: int, classes: int = 2) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = 0.1 + 0.8 * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    labels = torch.arange(count) % classes
    names = tuple(f"class {index}" for index in range(classes))
    return Dataset(
        "made up", Split(images[:0], labels[:0]), Split(images, labels), names, (0.5,), (0.2,)
    )


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    def network(*models: nn.Module) -> Network:
        return Network("small", "made up", dict(enumerate(models)))

    return SimpleNamespace(affine=affine, ball=Ball, dataset=dataset, network=network, shape=SHAPE)


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    return Executor(accelerator="cpu", threads=1, progress=False, work=tmp_path / "work")
