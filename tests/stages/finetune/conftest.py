"""A small data set, a small network of two training seeds, and an executor."""

from dataclasses import asdict
from functools import partial

import pytest
import torch

from pipeline.executor import Executor
from pipeline.studies.training import trained
from robustness_geometry.models import fc500_150_10
from robustness_geometry.training import Recipe
from robustness_geometry.types import Dataset, Network, Split

RECIPE = Recipe(epochs=6, batch_size=20, learning_rate=0.05)


def pictures(count, seed):
    """Three classes named as digits, told apart by which rows are bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.4 * torch.rand(count, 1, 6, 6, generator=generator)
    for index, label in enumerate(labels):
        images[index, 0, 2 * label : 2 * label + 2] += 0.3
    return Split(images, labels)


@pytest.fixture(scope="session")
def data():
    return Dataset("rows", pictures(90, 0), pictures(45, 1), ("0", "1", "7"), (0.3,), (0.2,))


@pytest.fixture(scope="session")
def executor(tmp_path_factory):
    return Executor(threads=1, progress=False, work=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="session")
def network(data, executor):
    found = {
        seed: trained(partial(fc500_150_10, hidden=(12,)), data, RECIPE, seed, executor)
        for seed in (0, 1)
    }
    return Network(
        "rows_fc",
        "rows",
        {s: m for s, (m, _) in found.items()},
        asdict(RECIPE),
        {s: h for s, (_, h) in found.items()},
    )
