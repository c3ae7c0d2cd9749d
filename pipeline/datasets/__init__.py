"""Data sets, each one function that returns a :class:`pipeline.types.Dataset` in memory, pixels in [0, 1]."""

from pipeline.datasets.cifar10 import cifar10
from pipeline.datasets.fashion_mnist import fashion_mnist
from pipeline.datasets.image_folder import image_folder
from pipeline.datasets.imagenet import imagenet
from pipeline.datasets.mnist import mnist
from pipeline.datasets.mnist5k import mnist5k
from pipeline.datasets.svhn import svhn

__all__ = ["cifar10", "fashion_mnist", "image_folder", "imagenet", "mnist", "mnist5k", "svhn"]
