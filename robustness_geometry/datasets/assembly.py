"""From pixels as read to a :class:`~robustness_geometry.types.Dataset`.

Pixels are checked, subsets chosen, values scaled to [0, 1], and statistics taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustness_geometry.checks import check_images, refuse
from robustness_geometry.datasets.sampling import Limits, choose
from robustness_geometry.types import Dataset, Split

__all__ = ["DIGITS", "IMAGENET_MEAN", "IMAGENET_STD", "Pixels", "assemble", "statistics"]

DIGITS = tuple(str(digit) for digit in range(10))
"""Class names of the data sets of digits."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per-channel mean of ImageNet's training images in [0, 1], as torchvision's weights use it."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per-channel standard deviation of ImageNet's training images in [0, 1], likewise."""


@dataclass(frozen=True)
class Pixels:
    """Images as read from disk.

    Attributes:
        values: (N, C, H, W) pixels of eight bits, or floating-point ones in [0, 1].
        labels: (N,) whole numbers.

    Example:
        >>> import torch
        >>> from robustness_geometry.datasets.assembly import Pixels
        >>> pixels = Pixels(torch.full((2, 1, 1, 1), 255, dtype=torch.uint8), torch.arange(2))
        >>> pixels.at(torch.tensor([1])).split().labels, len(pixels.none().labels)
        (tensor([1]), 0)
    """

    values: Tensor
    labels: Tensor

    def at(self, indices: Tensor) -> "Pixels":
        """The images at ``indices`` (n,), in that order."""
        return Pixels(self.values[indices], self.labels[indices])

    def none(self) -> "Pixels":
        """No images of the same shape."""
        return Pixels(self.values[:0], self.labels[:0])

    def split(self) -> Split:
        """The same images as float32 in [0, 1], with int64 labels."""
        if self.values.is_floating_point():
            return Split(self.values.float(), self.labels.long())
        return Split(self.values.float().div_(255), self.labels.long())


def statistics(values: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of pixels, in [0, 1] units.

    Those of 8-bit pixels are taken from the counts of the 256 grey levels, which is exact and needs
    no copy.

    Args:
        values: (N, C, H, W) pixels of eight bits, or floating-point ones in [0, 1]; N >= 1.

    Example:
        >>> import torch
        >>> from robustness_geometry.datasets.assembly import statistics
        >>> statistics(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    if values.is_floating_point():
        channels = [channel.double() for channel in values.unbind(1)]
        stds = tuple(float(channel.std(correction=0)) for channel in channels)
        return tuple(float(channel.mean()) for channel in channels), stds
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
    limits: Limits | None = None,
    *,
    constants: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Check the pixels, take the subsets and scale them.

    Args:
        name: the data set's name.
        train: training images; may be empty when ``constants`` are given.
        test: held-out images.
        classes: class names in the order of the labels.
        source: where the images come from, one line.
        limits: which subsets to keep; None: all images.
        constants: mean and standard deviation; None: those of all training images, before the
            limit.
        notes: what to say of the images where they are measured.

    Raises:
        InputError: no images, or images and labels that do not belong together.

    Example:
        >>> import torch
        >>> from robustness_geometry.datasets.assembly import Pixels, assemble
        >>> values = torch.arange(0, 256, 64, dtype=torch.uint8).view(4, 1, 1, 1)
        >>> pixels = Pixels(values, torch.tensor([0, 0, 1, 1]))
        >>> data = assemble("levels", pixels, pixels, ["dark", "bright"], "made up")
        >>> len(data.train), data.shape, round(data.mean[0], 3)
        (4, (1, 1, 1), 0.376)
    """
    limits = limits or Limits()
    _check_pixels(name, "test", test, classes, empty=False)
    _check_pixels(name, "train", train, classes, empty=constants is not None)
    mean, std = constants or statistics(train.values)
    splits = [
        pixels.at(choose(pixels.labels, limit, limits.seed, name, part)).split()
        for part, pixels, limit in (("train", train, limits.train), ("test", test, limits.test))
    ]
    for split in splits:
        check_images(split.images, key="dataset.images")
    return Dataset(name, splits[0], splits[1], tuple(classes), mean, std, source, tuple(notes))


def _check_pixels(
    name: str, part: str, pixels: Pixels, classes: Sequence[str], *, empty: bool
) -> None:
    if len(pixels.values) != len(pixels.labels):
        counts = f"{len(pixels.values)} images and {len(pixels.labels)} labels"
        refuse(
            "dataset.name",
            name,
            f"a data set of as many labels as images; the {part} files hold {counts}",
        )
    if len(pixels.values) == 0:
        if not empty:
            refuse(
                "dataset.name",
                name,
                f"a data set of at least one {part} image; the files hold none",
            )
        return
    low, high = int(pixels.labels.min()), int(pixels.labels.max())
    if low < 0 or high >= len(classes):
        refuse(
            "dataset.name",
            name,
            f"a data set of labels 0 to {len(classes) - 1}; the {part} files hold {low} to {high}",
        )
