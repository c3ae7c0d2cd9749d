"""The LeNet of Chapters 6 and 7: two 5x5 convolutions and three fully connected layers."""

from collections.abc import Sequence

from torch import nn

from robustness_geometry.checks import check_count, refuse
from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_size, window

__all__ = ["lenet5"]


def lenet5(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    filters: Sequence[int] = (6, 16),
    hidden: Sequence[int] = (120, 84),
) -> Normalised:
    """The LeNet of Section 6.4: two convolutions and three fully connected layers.

    The convolutions are 5x5, each with ReLU and 2x2 max pooling. The thesis names the layers but
    not their widths; the defaults are those of LeNet-5.

    Args:
        channels: number of channels of the images.
        size: height and width of the images, at least 16x16.
        classes: number of logits.
        mean: per-channel mean, in pixel units.
        std: per-channel standard deviation, in pixel units.
        filters: widths of the two convolutions.
        hidden: widths of the two hidden fully connected layers.

    Returns:
        The initialised network, in evaluation mode.

    Raises:
        InputError: smaller images, or widths that are not two positive numbers each.

    References:
        Thesis, Section 6.4; the default widths are those of
        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE, 1998.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import lenet5
        >>> shape = {"channels": 3, "size": (32, 32), "classes": 10}
        >>> model = lenet5(**shape, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    for key, widths in (("model.filters", filters), ("model.hidden", hidden)):
        if len(widths) != 2:
            refuse(key, tuple(widths), "two whole numbers")
        for count in widths:
            check_count(key, count)
    height, width = check_size("lenet5", size, window(5), window(2, 2), window(5), window(2, 2))
    network = nn.Sequential(
        nn.Conv2d(channels, filters[0], 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(filters[0], filters[1], 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(filters[1] * height * width, hidden[0]),
        nn.ReLU(),
        nn.Linear(hidden[0], hidden[1]),
        nn.ReLU(),
        nn.Linear(hidden[1], classes),
    )
    return Normalised(network, mean, std)
