"""SVHN: digits of house numbers, cropped to 32 x 32."""

from functools import partial
from pathlib import Path

import torch

from robustness_geometry.datasets.assembly import Pixels, assemble
from robustness_geometry.datasets.sampling import check_limits
from robustness_geometry.datasets.sources import candidate_folders, read_or_refuse
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
    """SVHN (Netzer et al., 2011), format 2: (3, 32, 32), 73,257 training and 26,032 test images.

    torchvision reads the files, after their md5 has been checked; the label 10 of the files is
    digit 0.

    Args:
        root: folder that holds ``train_32x32.mat`` and ``test_32x32.mat``; None looks in ``data``,
            ``/usr/share/datasets`` and ``/usr/local/share/datasets``.
        download: whether torchvision may download files that are not there.
        train_limit: keep a stratified random subset of that many training images.
        test_limit: the same for test images.
        seed: of these subsets.

    Raises:
        InputError: files that are missing and out of reach, or damaged; a limit below 1.
    """
    check_limits(train_limit, test_limit, seed)
    places = candidate_folders(root)
    folder = next((place for place in places if (place / "train_32x32.mat").is_file()), places[0])
    train, test = (
        read_or_refuse(
            partial(_read, folder, part, download), root, "train_32x32.mat and test_32x32.mat"
        )
        for part in ("train", "test")
    )
    return assemble(
        "svhn",
        train,
        test,
        [str(digit) for digit in range(10)],
        f"SVHN, cropped digits in {folder}",
        train_limit=train_limit,
        test_limit=test_limit,
        seed=seed,
    )


def _read(folder: Path, part: str, download: bool) -> Pixels:
    from torchvision.datasets import SVHN  # here, because it takes seconds

    data = SVHN(folder, split=part, download=download)
    return Pixels(torch.from_numpy(data.data), torch.from_numpy(data.labels))
