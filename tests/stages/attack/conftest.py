import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.executor import Executor
from robustness_geometry.types import Dataset, Network, Split, class_logits, predict


def affine(outputs: int, shape: tuple[int, int, int], seed: int) -> nn.Module:
    """x -> W x + b whose boundaries pass near the centre of the cube."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(math.prod(shape), outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def curved(classes: int, channels: int, seed: int) -> nn.Module:
    """A small convolutional network of random weights, far from affine."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            nn.Conv2d(channels, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(classes),
        ]
        model = nn.Sequential(*layers)
        model(torch.zeros(1, channels, 12, 12))
    return model.eval()


def dataset(shape: tuple[int, int, int], classes: int, count: int, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 + 0.8 * torch.rand(count, *shape, generator=generator)
    labels = torch.arange(count) % classes
    names = tuple(f"class {index}" for index in range(classes))
    mean = tuple(images.mean(dim=(0, 2, 3)).tolist())
    return Dataset(
        "made up",
        Split(images[:0], labels[:0]),
        Split(images, labels),
        names,
        mean,
        (0.2,) * shape[0],
    )


def network(models: dict[int, nn.Module]) -> Network:
    return Network("small", "made up", models)


def closed_form(model: nn.Module, images: torch.Tensor, projector=None) -> torch.Tensor:
    """The l_2 distances to the nearest of the hyperplanes f_k = f_khat, within a subspace."""
    layer = model[1]
    weight = layer.weight.detach().double()
    weight = torch.cat([torch.zeros_like(weight), weight]) if len(weight) == 1 else weight
    with torch.no_grad():
        logits = model(images).double()
    logits = class_logits(logits)
    own = predict(model, images)
    normals = weight[None] - weight[own][:, None]
    normals = normals if projector is None else projector(normals)
    distances = (logits - logits.gather(1, own[:, None])).abs() / normals.norm(dim=2)
    return distances.scatter(1, own[:, None], math.inf).amin(dim=1)


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """Networks, data sets and closed forms small enough for tests."""
    return SimpleNamespace(
        affine=affine, curved=curved, dataset=dataset, network=network, closed_form=closed_form
    )


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    return Executor(accelerator="cpu", threads=1, progress=False, work=tmp_path / "work")
