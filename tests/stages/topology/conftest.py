"""Points of a square and classifiers of it, and an executor with a temporary work folder."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.executor import Executor
from robustness_geometry.types import Dataset, Network, Split


class Plane(nn.Module):
    """Class 0 where ``height`` of points (N, 2) is above 0, class 1 elsewhere."""

    def __init__(self, height) -> None:
        super().__init__()
        self.height = height
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height = self.height(images.flatten(1))
        return torch.stack([height, -height], dim=1)


def half(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0] - 0.5


def ring(x: torch.Tensor) -> torch.Tensor:
    """Around the centre of the square, of radius 0.35."""
    return 0.1 - ((x - 0.5).norm(dim=1) - 0.35).abs()


def balls(x: torch.Tensor) -> torch.Tensor:
    """Two of them, apart."""
    near = torch.minimum(
        *((x - torch.tensor(c, dtype=x.dtype)).norm(dim=1) for c in ((0.2, 0.5), (0.8, 0.5)))
    )
    return 0.18 - near


def dataset(count: int) -> Dataset:
    """Random points of the square, as images of two pixels."""
    images = torch.rand(
        count, 1, 1, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    labels = torch.arange(count) % 2
    return Dataset(
        "square",
        Split(images[:0], labels[:0]),
        Split(images, labels),
        ("in", "out"),
        (0.5,),
        (0.3,),
    )


@pytest.fixture(scope="session")
def plane() -> SimpleNamespace:
    def network(*heights) -> Network:
        return Network(
            "plane", "square", {seed: Plane(height) for seed, height in enumerate(heights)}
        )

    return SimpleNamespace(network=network, dataset=dataset, half=half, ring=ring, balls=balls)


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    return Executor(accelerator="cpu", threads=1, progress=False, work=tmp_path / "work")
