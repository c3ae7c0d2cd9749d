"""A small convolutional network with batch normalisation, for two cores."""

from collections.abc import Sequence

from torch import nn

from robustness_geometry.checks import check_count, refuse
from robustness_geometry.models.initialisation import he_normal
from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_size

__all__ = ["cnn"]


def cnn(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    widths: Sequence[int] = (16, 32, 32, 64),
) -> Normalised:
    """3x3 convolutions, each with batch normalisation and ReLU; the mean over all places; a layer.

    The first, third, fifth ... convolution halves height and width by a stride of 2. These are the
    parts of a ResNet without its shortcuts, in a network that trains on thousands of small images
    in less than a minute. No network of the thesis is like it; it answers for the larger ones with
    batch normalisation where these are out of reach.

    Args:
        channels: number of channels of the images.
        size: height and width of the images, at least 1x1.
        classes: number of logits.
        mean: per-channel mean, in pixel units.
        std: per-channel standard deviation, in pixel units.
        widths: number of channels of each convolution, at least one; the default makes 33,338
            weights on digits.

    Returns:
        The initialised network (He et al., 2015), in evaluation mode.

    Raises:
        InputError: widths that are not one or more positive numbers.

    References:
        S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by
        reducing internal covariate shift", ICML 2015, arXiv:1502.03167.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import cnn
        >>> shape = {"channels": 1, "size": (28, 28), "classes": 10}
        >>> model = cnn(**shape, mean=(0.13,), std=(0.31,))
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> sum(weights.numel() for weights in model.parameters())
        33338
    """
    if not len(widths):
        refuse("model.widths", tuple(widths), "one or more whole numbers")
    for count in widths:
        check_count("model.widths", count)
    check_size("cnn", size)
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(zip((channels, *widths), widths, strict=False)):
        stride = 2 if place % 2 == 0 else 1
        layers += [
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return Normalised(he_normal(nn.Sequential(*layers)), mean, std)
