"""SVHN: digits of house numbers, cropped to 32 x 32."""

from functools import partial
from pathlib import Path

import torch

from robustness_geometry.datasets.assembly import DIGITS, Pixels, assemble
from robustness_geometry.datasets.sampling import Limits
from robustness_geometry.datasets.sources import EXTRA, read_parts
from robustness_geometry.extras import require
from robustness_geometry.types import Dataset

__all__ = ["svhn"]


def svhn(
    *,
    root: str | Path | None = None,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """SVHN, format 2: (3, 32, 32), 73,257 training and 26,032 test images.

    torchvision reads the files, after their md5 has been checked; the label 10 of the files is
    digit 0.

    Args:
        root: folder that holds ``train_32x32.mat`` and ``test_32x32.mat``; None looks in ``data``,
            ``/usr/share/datasets`` and ``/usr/local/share/datasets``.
        download: whether torchvision may download files that are not there.
        train_limit: number of training images to keep, a stratified random subset; None: all.
        test_limit: number of test images to keep, likewise.
        seed: seed of both subsets.

    Raises:
        InputError: files that are missing and out of reach, or damaged; a limit below 1.

    References:
        Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu and A. Y. Ng, "Reading digits in natural
        images with unsupervised feature learning", 2011.
    """
    limits = Limits(train_limit, test_limit, seed)
    train, test, folder = read_parts(
        partial(_read, download),
        ("train", "test"),
        root,
        "train_32x32.mat and test_32x32.mat",
        marker="train_32x32.mat",
    )
    return assemble("svhn", train, test, DIGITS, f"SVHN, cropped digits in {folder}", limits)


def _read(download: bool, folder: Path, part: str) -> Pixels:
    data = require("torchvision.datasets", EXTRA).SVHN(folder, split=part, download=download)
    return Pixels(torch.from_numpy(data.data), torch.from_numpy(data.labels))
