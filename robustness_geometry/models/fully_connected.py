"""The fully connected network of Chapter 3's digits."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from robustness_geometry.checks import check_count
from robustness_geometry.models.normalisation import Normalised

__all__ = ["fc500_150_10"]


def fc500_150_10(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    hidden: Sequence[int] = (500, 150),
) -> Normalised:
    """FC500-150-10: fully connected layers of 500 and 150 units with ReLU, then the classes.

    Args:
        channels: number of channels of the images.
        size: height and width of the images, any.
        classes: number of logits (10 in the name).
        mean: per-channel mean, in pixel units.
        std: per-channel standard deviation, in pixel units.
        hidden: numbers of units of the hidden layers.

    Returns:
        The initialised network, in evaluation mode.

    Raises:
        InputError: a hidden layer without units.

    References:
        Thesis, Section 3.2.3, Table 3.1.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import fc500_150_10
        >>> shape = {"channels": 1, "size": (28, 28), "classes": 10}
        >>> model = fc500_150_10(**shape, mean=(0.5,), std=(0.5,))
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    for units in hidden:
        check_count("model.hidden", units)
    widths = [channels * math.prod(size), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    layers.append(nn.Linear(widths[-1], classes))
    return Normalised(nn.Sequential(*layers), mean, std)
