"""CIFAR-10: 60,000 colour images of ten classes."""

from functools import partial
from pathlib import Path

import torch

from robustness_geometry.datasets.assembly import Pixels, assemble
from robustness_geometry.datasets.sampling import Limits
from robustness_geometry.datasets.sources import EXTRA, read_parts
from robustness_geometry.extras import require
from robustness_geometry.types import Dataset

__all__ = ["CLASSES", "cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(
    *,
    root: str | Path | None = None,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """CIFAR-10: (3, 32, 32), 50,000 training and 10,000 test images.

    torchvision reads the batches, after their md5 has been checked.

    Args:
        root: folder that holds ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``; None looks in
            ``data``, ``/usr/share/datasets`` and ``/usr/local/share/datasets``.
        download: whether torchvision may unpack or download what is not there.
        train_limit: number of training images to keep, a stratified random subset; None: all.
        test_limit: number of test images to keep, likewise.
        seed: seed of both subsets.

    Raises:
        InputError: files that are missing and out of reach, or damaged; a limit below 1.

    References:
        A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    limits = Limits(train_limit, test_limit, seed)
    train, test, folder = read_parts(
        partial(_read, download),
        (True, False),
        root,
        "cifar-10-batches-py, or the cifar-10-python.tar.gz that holds it",
        marker="cifar-10-batches-py",
    )
    return assemble("cifar10", train, test, CLASSES, f"CIFAR-10, batches in {folder}", limits)


def _read(download: bool, folder: Path, train: bool) -> Pixels:
    data = require("torchvision.datasets", EXTRA).CIFAR10(folder, train=train, download=download)
    return Pixels(torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets))
