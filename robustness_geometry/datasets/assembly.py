"""From 8-bit pixels to a :class:`~robustness_geometry.types.Dataset`: limits, scaling to [0, 1], statistics, checks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustness_geometry.checks import check_images, refuse
from robustness_geometry.datasets.sampling import choose
from robustness_geometry.types import Dataset, Split

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Pixels", "assemble", "statistics"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per-channel mean of ImageNet's training images in [0, 1], as torchvision's weights use it."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per-channel standard deviation of ImageNet's training images in [0, 1], as torchvision's weights use it."""


@dataclass(frozen=True)
class Pixels:
    """Images as read from disk.

    Attributes:
        values: (N, C, H, W) 8-bit pixels.
        labels: (N,) whole numbers.
    """

    values: Tensor
    labels: Tensor

    def at(self, indices: Tensor) -> "Pixels":
        """The images at ``indices`` (n,), in that order."""
        return Pixels(self.values[indices], self.labels[indices])

    def split(self) -> Split:
        """The same images as float32 in [0, 1], with int64 labels."""
        return Split(self.values.float().div_(255), self.labels.long())


def statistics(values: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation, in [0, 1] units, from the counts of the 256 grey levels.

    Args:
        values: (N, C, H, W) 8-bit pixels, N >= 1.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in values.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        means.append(float(mean))
        deviations.append(float((share * (levels - mean) ** 2).sum().sqrt()))
    return tuple(means), tuple(deviations)


def assemble(
    name: str,
    train: Pixels,
    test: Pixels,
    classes: Sequence[str],
    source: str,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    constants: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Dataset:
    """Check the pixels, take the subsets and scale them.

    Args:
        name: the data set's name.
        train: training images; may be empty when ``constants`` are given.
        test: held-out images.
        classes: class names in the order of the labels.
        source: where the images come from, one line.
        train_limit: number of training images to keep, a stratified random subset.
        test_limit: number of held-out images to keep, likewise.
        seed: of the two draws.
        constants: (mean, std) to use; None takes those of all the training images, before the
            limit.

    Raises:
        InputError: no images, or images and labels that do not belong together.
    """
    _check_pixels(name, "test", test, classes, empty=False)
    _check_pixels(name, "train", train, classes, empty=constants is not None)
    mean, std = constants or statistics(train.values)
    splits = [
        pixels.at(choose(pixels.labels, limit, seed, name, part)).split()
        for part, pixels, limit in (("train", train, train_limit), ("test", test, test_limit))
    ]
    for split in splits:
        check_images(split.images, key="dataset.images")
    return Dataset(name, splits[0], splits[1], tuple(classes), mean, std, source)


def _check_pixels(
    name: str, part: str, pixels: Pixels, classes: Sequence[str], *, empty: bool
) -> None:
    if len(pixels.values) != len(pixels.labels):
        counts = f"{len(pixels.values)} images and {len(pixels.labels)} labels"
        refuse("dataset.name", name, f"as many labels as images; the {part} files hold {counts}")
    if len(pixels.values) == 0:
        if not empty:
            refuse("dataset.name", name, f"at least one {part} image; the files hold none")
        return
    low, high = int(pixels.labels.min()), int(pixels.labels.max())
    if low < 0 or high >= len(classes):
        refuse(
            "dataset.name",
            name,
            f"labels 0 to {len(classes) - 1}; the {part} files hold {low} to {high}",
        )
