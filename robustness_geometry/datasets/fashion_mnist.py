"""Fashion-MNIST: 70,000 images of clothes in MNIST's format."""

from pathlib import Path

from robustness_geometry.datasets.assembly import assemble
from robustness_geometry.datasets.idx import load_idx
from robustness_geometry.datasets.sampling import Limits
from robustness_geometry.types import Dataset

__all__ = ["CLASSES", "fashion_mnist"]

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def fashion_mnist(
    *,
    root: str | Path | None = None,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Fashion-MNIST: (1, 28, 28), 60,000 training and 10,000 test images.

    Args:
        root: folder of the four idx files, plain or gzipped, or of torchvision's
            ``FashionMNIST/raw``; None looks in ``data``, ``/usr/share/datasets`` (where Debian's
            package dataset-fashion-mnist puts ``fashion-mnist``) and ``/usr/local/share/datasets``.
        download: whether torchvision may download files that are not there.
        train_limit: number of training images to keep, a stratified random subset; None: all.
        test_limit: number of test images to keep, likewise.
        seed: seed of both subsets.

    Raises:
        InputError: files that are missing and out of reach, or damaged; a limit below 1.

    References:
        H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking
        machine learning algorithms", 2017, arXiv:1708.07747.
    """
    limits = Limits(train_limit, test_limit, seed)
    train, test, folder = load_idx("FashionMNIST", root, download=download)
    return assemble(
        "fashion_mnist", train, test, CLASSES, f"Fashion-MNIST, idx files in {folder}", limits
    )
