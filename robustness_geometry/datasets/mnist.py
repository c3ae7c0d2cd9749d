"""MNIST: 70,000 handwritten digits."""

from pathlib import Path

from robustness_geometry.datasets.assembly import DIGITS, assemble
from robustness_geometry.datasets.idx import load_idx
from robustness_geometry.datasets.sampling import Limits
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
    """MNIST: (1, 28, 28), 60,000 training and 10,000 test digits.

    Args:
        root: folder of the four idx files, plain or gzipped, or of torchvision's ``MNIST/raw``;
            None looks in ``data``, ``/usr/share/datasets`` and ``/usr/local/share/datasets``.
        download: whether torchvision may download files that are not there.
        train_limit: number of training images to keep, a stratified random subset; None: all.
        test_limit: number of test images to keep, likewise.
        seed: seed of both subsets.

    Raises:
        InputError: files that are missing and out of reach, or damaged; a limit below 1.

    References:
        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE, 1998.
    """
    limits = Limits(train_limit, test_limit, seed)
    train, test, folder = load_idx("MNIST", root, download=download)
    return assemble("mnist", train, test, DIGITS, f"MNIST, idx files in {folder}", limits)
