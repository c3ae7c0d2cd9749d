"""MNIST: 70,000 handwritten digits."""

from pathlib import Path

from robustness_geometry.datasets.assembly import assemble
from robustness_geometry.datasets.idx import load_idx
from robustness_geometry.datasets.sampling import check_limits
from robustness_geometry.types import Dataset

__all__ = ["mnist"]


def mnist(
    *,
    root: str | Path | None = None,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """MNIST (LeCun et al., 1998): (1, 28, 28), 60,000 training and 10,000 test digits.

    Args:
        root: folder of the four idx files, plain or gzipped, or of torchvision's ``MNIST/raw``;
            None looks in ``data``, ``/usr/share/datasets`` and ``/usr/local/share/datasets``.
        download: whether torchvision may download files that are not there.
        train_limit: keep a stratified random subset of that many training images.
        test_limit: the same for test images.
        seed: of these subsets.

    Raises:
        InputError: files that are missing and out of reach, or damaged; a limit below 1.
    """
    check_limits(train_limit, test_limit, seed)
    train, test, folder = load_idx("MNIST", root, download=download)
    return assemble(
        "mnist",
        train,
        test,
        [str(digit) for digit in range(10)],
        f"MNIST, idx files in {folder}",
        train_limit=train_limit,
        test_limit=test_limit,
        seed=seed,
    )
