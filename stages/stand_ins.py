"""What stands in for networks and data sets when only passes are counted."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.counting import elements
from pipeline import made_up
from robustness_geometry.types import Dataset, Split
from stages.config import NetworkConfig

__all__ = ["PASSES", "Counted", "StandIn", "made_up_data", "stand_in"]

SIZES = {  # channels, height and width; training and held-out images; classes
    "mnist": ((1, 28, 28), 60_000, 10_000, 10),
    "fashion_mnist": ((1, 28, 28), 60_000, 10_000, 10),
    "mnist5k": ((1, 28, 28), 4_000, 1_000, 10),
    "cifar10": ((3, 32, 32), 50_000, 10_000, 10),
    "svhn": ((3, 32, 32), 73_257, 26_032, 10),
    "imagenet": ((3, 224, 224), 0, 50_000, 1000),
    "photographs": ((3, 240, 240), 250, 150, 1000),
}
"""What the data sets hold; the photographs are so many as the packages give, more or less."""


@dataclass
class Counted:
    """Work that was counted.

    Attributes:
        forward: images in all forward passes together.
        backward: gradients, with respect to an image or, in a training, to the weights.
        bytes: of the results that are kept until the end of the run.
    """

    forward: float = 0.0
    backward: float = 0.0
    bytes: float = 0.0

    def add(self, other: "Counted", times: float = 1.0) -> None:
        """Add ``times`` as much as ``other``."""
        for name in ("forward", "backward", "bytes"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))

    def since(self, before: "Counted") -> "Counted":
        """What has come since a copy was taken."""
        return Counted(
            self.forward - before.forward,
            self.backward - before.backward,
            self.bytes - before.bytes,
        )


PASSES = Counted()
"""What went through all small networks of this process, unmultiplied."""


class StandIn(nn.Module):
    """A small network in place of a large one: two layers on the images, which it counts.

    Args:
        shape: of an image, (C, H, W).
        classes: number of logits.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.coarse = max(1, shape[-1] // 28)
        side = [size // self.coarse for size in shape[1:]]
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(shape[0] * side[0] * side[1], 32),
            nn.ReLU(),
            nn.Linear(32, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The logits (N, classes) of images (N, C, H, W)."""
        size = images.shape[1:].numel()
        PASSES.forward += elements(images) / size
        if images.requires_grad:

            def leave(gradient: Tensor) -> None:
                PASSES.backward += elements(gradient) / size

            images = images.view_as(images)
            images.register_hook(leave)
        if self.coarse > 1:
            images = nn.functional.avg_pool2d(images, self.coarse)
        logits: Tensor = self.layers(images)
        return logits


def made_up_data(network: NetworkConfig) -> Dataset:
    """As many made-up images as a network's data set has, of its shape and classes.

    A data set of the user's own has as many as CIFAR-10, unless its limits say less.
    """
    leaf = network.dataset
    name = str(leaf["_target_"]).rpartition(".")[2]
    shape, train, test, classes = SIZES.get(name, SIZES["cifar10"])
    if size := leaf.get("size"):
        shape = (shape[0], int(size), int(size))
    asked = leaf.get("train_limit")
    train = int(asked or 0) if name == "imagenet" else min(train, asked or train)
    test = min(test, leaf.get("test_limit") or test)
    shown = tuple(map(str, range(classes)))
    half = (0.5,) * shape[0]
    one, other = (_split(each, shape, seed) for seed, each in enumerate((train, test)))
    return Dataset(name, one, other, classes=shown, mean=half, std=half)


def _split(count: int, shape: tuple[int, ...], seed: int) -> Split:
    channels, height, width = shape
    few = min(count, 200)
    pixels, labels = made_up.pictures(few, (channels, height, width), seed=seed)
    rows = torch.arange(count) % max(1, few)
    images = torch.from_numpy(pixels).float().div_(255)[rows]
    return Split(images, torch.from_numpy(labels).long()[rows])


def stand_in(data: Dataset, seed: int) -> StandIn:
    """A small network that has learnt the made-up pictures."""
    images, labels = data.test.images[:200], data.test.labels[:200]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = StandIn(data.shape, len(data.classes))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval().requires_grad_(True)
