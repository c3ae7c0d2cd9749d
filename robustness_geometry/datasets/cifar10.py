"""CIFAR-10: 60,000 colour images of ten classes."""

from functools import partial
from pathlib import Path

import torch

from robustness_geometry.datasets.assembly import Pixels, assemble
from robustness_geometry.datasets.sampling import check_limits
from robustness_geometry.datasets.sources import candidate_folders, read_or_refuse
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
    """CIFAR-10 (Krizhevsky, 2009): (3, 32, 32), 50,000 training and 10,000 test images.

    torchvision reads the batches, after their md5 has been checked.

    Args:
        root: folder that holds ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``; None looks in
            ``data``, ``/usr/share/datasets`` and ``/usr/local/share/datasets``.
        download: whether torchvision may unpack or download what is not there.
        train_limit: keep a stratified random subset of that many training images.
        test_limit: the same for test images.
        seed: of these subsets.

    Raises:
        InputError: files that are missing and out of reach, or damaged; a limit below 1.
    """
    check_limits(train_limit, test_limit, seed)
    places = candidate_folders(root)
    folder = next(
        (place for place in places if (place / "cifar-10-batches-py").is_dir()), places[0]
    )
    train, test = (
        read_or_refuse(
            partial(_read, folder, part, download),
            root,
            "cifar-10-batches-py, or the cifar-10-python.tar.gz that holds it",
        )
        for part in (True, False)
    )
    return assemble(
        "cifar10",
        train,
        test,
        CLASSES,
        f"CIFAR-10, batches in {folder}",
        train_limit=train_limit,
        test_limit=test_limit,
        seed=seed,
    )


def _read(folder: Path, train: bool, download: bool) -> Pixels:
    from torchvision.datasets import CIFAR10  # here, because it takes seconds

    data = CIFAR10(folder, train=train, download=download)
    return Pixels(torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets))
