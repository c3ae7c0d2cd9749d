"""Network in Network, of any width."""

from collections.abc import Sequence

from torch import nn

from robustness_geometry.checks import check_count, number, refuse
from robustness_geometry.models.initialisation import he_normal
from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_size, window

__all__ = ["nin"]


def nin(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    width: int = 192,
    batch_norm: bool = False,
    dropout: float = 0.5,
) -> Normalised:
    """Network in Network, in MatConvNet's form for CIFAR-10.

    5x5xw, 1x1x(5w/6), 1x1x(w/2), max 3/2; 5x5xw, 1x1xw, 1x1xw, mean 3/2; 3x3xw, 1x1xw, 1x1xclasses,
    mean over all places, with w = 192; ReLU after every layer but the last, dropout after the two
    poolings.

    Args:
        channels: number of channels of the images.
        size: height and width of the images, at least 7x7.
        classes: number of logits.
        mean: per-channel mean, in pixel units.
        std: per-channel standard deviation, in pixel units.
        width: w, 192 in the paper. A width of 16 with batch normalisation makes 7,388 weights on
            digits.
        batch_norm: put batch normalisation before every ReLU, in place of the biases.
        dropout: share of values dropped in training, 0 <= share < 1.

    Returns:
        The initialised network (He et al., 2015), in evaluation mode.

    Raises:
        InputError: smaller images, or an option out of range.

    References:
        Thesis, Table 3.1 and Chapters 6 and 7.
        M. Lin, Q. Chen and S. Yan, "Network in network", ICLR 2014, arXiv:1312.4400.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import nin
        >>> shape = {"channels": 3, "size": (32, 32), "classes": 10}
        >>> model = nin(**shape, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), width=16)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    check_count("model.width", width, minimum=2)
    if not 0 <= number("model.dropout", dropout) < 1:
        refuse("model.dropout", dropout, "a share with 0 <= share < 1")
    check_size("nin", size, window(3, 2), window(3, 2))
    middle, narrow = round(width * 160 / 192), width // 2
    blocks = (
        ([(channels, width, 5), (width, middle, 1), (middle, narrow, 1)], nn.MaxPool2d(3, 2)),
        ([(narrow, width, 5), (width, width, 1), (width, width, 1)], nn.AvgPool2d(3, 2)),
        ([(width, width, 3), (width, width, 1)], None),
    )
    layers: list[nn.Module] = []
    for convolutions, pool in blocks:
        for before, after, kernel in convolutions:
            layers.append(
                nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=not batch_norm)
            )
            layers += [nn.BatchNorm2d(after), nn.ReLU()] if batch_norm else [nn.ReLU()]
        if pool is not None:
            layers += [pool, nn.Dropout(dropout)]
    layers += [nn.Conv2d(width, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Normalised(he_normal(nn.Sequential(*layers)), mean, std)
