"""Data sets, each a function that returns a :class:`robustness_geometry.types.Dataset` in memory.

Pixels are in [0, 1]. To add a data set, write a module here (see :mod:`.assembly`), list its
function below, and add ``conf/dataset/<name>.yaml``.
"""

from robustness_geometry.datasets.arrays import arrays
from robustness_geometry.datasets.cifar10 import cifar10
from robustness_geometry.datasets.fashion_mnist import fashion_mnist
from robustness_geometry.datasets.image_folder import image_folder
from robustness_geometry.datasets.imagenet import imagenet
from robustness_geometry.datasets.mnist import mnist
from robustness_geometry.datasets.mnist5k import mnist5k
from robustness_geometry.datasets.photographs import photographs
from robustness_geometry.datasets.sample import sample_digits
from robustness_geometry.datasets.svhn import svhn

__all__ = [
    "arrays",
    "cifar10",
    "fashion_mnist",
    "image_folder",
    "imagenet",
    "mnist",
    "mnist5k",
    "photographs",
    "sample_digits",
    "svhn",
]
