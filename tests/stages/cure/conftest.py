"""Small data, a smooth network of two training seeds, closed-form classifiers and an executor."""

from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.executor import Executor
from robustness_geometry.attacks import fgsm, pgd
from robustness_geometry.training import Recipe, train
from robustness_geometry.types import Dataset, Network, Split

EPS = 0.08


def pictures(count, seed):
    """Three classes named as digits, told apart by which rows are bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.5 * torch.rand(count, 1, 6, 6, generator=generator)
    for index, label in enumerate(labels):
        images[index, 0, 2 * label : 2 * label + 2] += 0.25
    return Split(images, labels)


def smooth(data, seed):
    """Tanh units, trained for a moment."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.Tanh(), nn.Linear(10, 3)).eval()
    recipe = Recipe(
        epochs=15, batch_size=30, optimiser="adam", learning_rate=0.02, weight_decay=0.0
    )
    return train(model, data, recipe, seed=seed).model


class Affine(nn.Module):
    """Two logits 0 and scale * (w.x + b) in float64, w = (1, -2, 1, -2 ...)."""

    def __init__(self, pixels=16, b=0.0, scale=1.0):
        super().__init__()
        self.w = nn.Parameter(
            torch.tensor([1.0, -2.0] * (pixels // 2), dtype=torch.float64) * scale
        )
        self.b = b * scale
        self.eval()

    def forward(self, images):
        value = images.flatten(1) @ self.w.to(images) + self.b
        return torch.stack([torch.zeros_like(value), value], dim=1)


class Threshold(nn.Module):
    """One logit: the mean pixel minus 0.5, so that a step eps of its sign moves it by eps."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.eval()

    def forward(self, images):
        return 10 * (images.flatten(1).mean(dim=1, keepdim=True) - self.level)


def grey(distances):
    """Images of one grey value each, that far from 0.5 to both sides, labelled by the threshold."""
    levels = torch.tensor([0.5 + sign * distance for distance in distances for sign in (-1, 1)])
    images = levels.view(-1, 1, 1, 1).expand(-1, 1, 3, 3).contiguous()
    split = Split(images, (levels > 0.5).long())
    return Dataset("grey", split, split, ("dark", "bright"), (0.5,), (0.25,))


@pytest.fixture(scope="session")
def data():
    return Dataset("rows", pictures(90, 0), pictures(45, 1), ("0", "1", "7"), (0.4,), (0.2,))


@pytest.fixture(scope="session")
def network(data):
    return Network(
        "smooth", "rows", {seed: smooth(data.train, seed) for seed in (0, 1)}, asdict(Recipe())
    )


@pytest.fixture(scope="session")
def executor(tmp_path_factory):
    return Executor(
        accelerator="cpu", threads=1, progress=False, work=tmp_path_factory.mktemp("work")
    )


@pytest.fixture(scope="session")
def made():
    """Settings that all experiments take, those that also train on PGD take, and small parts."""
    recipe = Recipe(
        epochs=4,
        batch_size=30,
        optimiser="adam",
        learning_rate=0.02,
        final_rate=0.001,
        schedule="cosine",
        weight_decay=0.0,
    )
    small = {
        "attack": partial(pgd, eps=EPS, steps=4),
        "eps": EPS,
        "training": recipe,
        "h": 0.5,
        "weight": 2.0,
        "ramp": 2,
        "unit": "pixel",
        "finetune_epochs": 2,
        "samples": 30,
        "resamples": 40,
    }
    step = partial(fgsm, eps=0.1)
    return SimpleNamespace(
        small=small,
        with_pgd={**small, "adversary_steps": 2},
        eps=EPS,
        affine=Affine,
        threshold=Threshold,
        grey=grey,
        fgsm=step,
    )


@pytest.fixture
def nothing_new(executor, monkeypatch):
    """After calling it, computing anything that is not stored fails."""

    def refuse(*_, **__):
        raise AssertionError("computed again")

    return lambda: monkeypatch.setattr("pipeline.devices.Machine.timed", refuse)
