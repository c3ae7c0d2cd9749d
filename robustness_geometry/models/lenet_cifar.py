"""The three-layer LeNet of Chapter 3's CIFAR-10 rows, in MatConvNet's form."""

from collections.abc import Sequence

from torch import nn

from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_size, pooled

__all__ = ["lenet_cifar"]


def lenet_cifar(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Normalised:
    """MatConvNet's CIFAR LeNet (Table 3.1, 22.6% test error).

    5x5x32, max 3/2, ReLU; 5x5x32, ReLU, mean 3/2; 5x5x64, ReLU, mean 3/2; 64 on all that is left
    (4x4), ReLU; classes. The 5x5 layers keep the size; poolings keep partial windows at the lower
    and right border, whose means count only pixels of the image.

    Args:
        channels: number of channels of the images.
        size: height and width of the images, at least 8x8.
        classes: number of logits.
        mean: per-channel mean, in pixel units.
        std: per-channel standard deviation, in pixel units.

    Returns:
        The initialised network, in evaluation mode.

    Raises:
        InputError: smaller images.

    References:
        Thesis, Table 3.1. The form is that of MatConvNet's CIFAR example, after
        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE, 1998.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import lenet_cifar
        >>> shape = {"channels": 3, "size": (32, 32), "classes": 10}
        >>> model = lenet_cifar(**shape, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    height, width = check_size("lenet_cifar", size, pooled(3, 2), pooled(3, 2), pooled(3, 2))
    network = nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(64 * height * width, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
    return Normalised(network, mean, std)
