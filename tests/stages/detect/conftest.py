"""Small data, two networks whose boundaries bend, and an executor with a temporary work folder."""

import pytest
import torch
from torch import nn

from pipeline.executor import Executor
from robustness_geometry.types import Dataset, Network, Split


class Distances(nn.Module):
    """Logits -4 b_k |x - c_k|^2 with a different b_k per class: the boundaries are spheres."""

    def __init__(self, classes=3, pixels=16, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.centres = nn.Parameter(torch.rand(classes, pixels, generator=generator))
        self.bends = nn.Parameter(torch.arange(1, classes + 1) / classes)
        self.eval()

    def forward(self, images):
        squares = (images.flatten(1)[:, None] - self.centres).square().sum(dim=2)
        return -4 * self.bends * squares


@pytest.fixture(scope="session")
def data():
    images = torch.rand(36, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(36) % 3
    return Dataset(
        "made up",
        Split(images[:0], labels[:0]),
        Split(images, labels),
        ("0", "1", "7"),
        (0.5,),
        (0.2,),
    )


@pytest.fixture(scope="session")
def network():
    return Network("bent", "made up", {seed: Distances(seed=seed) for seed in (0, 1)})


@pytest.fixture(scope="session")
def affine():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    return Network("affine", "made up", {0: model})


@pytest.fixture(scope="session")
def executor(tmp_path_factory) -> Executor:
    return Executor(
        accelerator="cpu", threads=1, progress=False, work=tmp_path_factory.mktemp("work")
    )
