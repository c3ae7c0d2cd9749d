"""Small data sets, classifiers with closed forms, and an executor with a temporary folder."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.executor import Executor
from robustness_geometry.attacks import universal_gradient
from robustness_geometry.attacks.universal import universal_perturbation
from robustness_geometry.types import Dataset, Network, Split

SHAPE = (1, 6, 6)


def affine(outputs: int, seed: int = 0) -> nn.Module:
    """x -> W x + b in float64 with boundaries near the centre; of one output, its sign."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(math.prod(SHAPE), outputs).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def split(count: int, classes: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 + 0.6 * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    return Split(images, torch.arange(count) % classes)


def dataset(classes: int, train: int = 60, test: int = 48) -> Dataset:
    names = tuple(str(index) for index in range(classes))
    return Dataset(
        "made up", split(train, classes, 0), split(test, classes, 1), names, (0.5,), (0.2,)
    )


def network(models: dict[int, nn.Module], name: str = "small") -> Network:
    return Network(name, "made up", models)


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """Networks and data sets small enough for tests, and makers with few steps."""
    attack = partial(universal_perturbation, norm=2, radius=None, passes=1)
    gradient = partial(universal_gradient, iterations=12)
    return SimpleNamespace(
        affine=affine,
        dataset=dataset,
        network=network,
        attack=attack,
        gradient=gradient,
        split=split,
    )


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Executor:
    return Executor(
        accelerator="cpu", threads=1, progress=False, work=tmp_path_factory.mktemp("work")
    )
