"""The two-layer LeNet of Chapter 3's digits, in MatConvNet's form: one ReLU."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_size, window

__all__ = ["lenet"]


def lenet(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_norm: bool = False,
) -> Normalised:
    """MatConvNet's MNIST LeNet (Table 3.1), with a single ReLU.

    5x5x20, max 2; 5x5x50, max 2; 500 on all that is left (4x4 of 28x28), ReLU; classes. The
    only non-linearity of the first layers is their pooling.

    Args:
        channels: number of channels of the images.
        size: height and width of the images, at least 16x16.
        classes: number of logits.
        mean: per-channel mean, in pixel units.
        std: per-channel standard deviation, in pixel units.
        batch_norm: put batch normalisation after the first three weight layers, in place of their
            biases.

    Returns:
        The initialised network, in evaluation mode.

    Raises:
        InputError: smaller images.

    References:
        Thesis, Table 3.1. The form is that of MatConvNet's MNIST example, after
        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE, 1998.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import lenet
        >>> shape = {"channels": 1, "size": (28, 28), "classes": 10}
        >>> model = lenet(**shape, mean=(0.5,), std=(0.5,))
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    height, width = check_size("lenet", size, window(5), window(2, 2), window(5), window(2, 2))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(channels, 20, 5, bias=not batch_norm)
    if batch_norm:
        layers["norm1"] = nn.BatchNorm2d(20)
    layers["pool1"] = nn.MaxPool2d(2)
    layers["conv2"] = nn.Conv2d(20, 50, 5, bias=not batch_norm)
    if batch_norm:
        layers["norm2"] = nn.BatchNorm2d(50)
    layers["pool2"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(50 * height * width, 500, bias=not batch_norm)
    if batch_norm:
        layers["norm3"] = nn.BatchNorm1d(500)
    layers["relu"] = nn.ReLU()
    layers["fc2"] = nn.Linear(500, classes)
    return Normalised(nn.Sequential(layers), mean, std)
