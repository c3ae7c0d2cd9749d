"""CaffeNet, the reference network of Caffe for ImageNet."""

from collections.abc import Sequence

from torch import nn

from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_size, pooled, window

__all__ = ["caffenet"]


def caffenet(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Normalised:
    """CaffeNet (Jia et al., 2014; Chapters 3, 4, 6 and 7): AlexNet that pools before it normalises.

    11x11x96/4, max 3/2, LRN; 5x5x256 in two groups, max 3/2, LRN; 3x3x384; 3x3x384 and 3x3x256 in
    two groups, max 3/2; 4096, 4096, classes; ReLU after every layer but the last, dropout 0.5
    between the fully connected ones; poolings take part windows at the border. 60,965,224 weights
    at 227x227 (and 224x224) with 1,000 classes. Published weights load through
    :func:`robustness_geometry.models.load_weights` from a MatConvNet file.

    Args:
        channels: of the images.
        size: height and width of the images; 227x227 in the original.
        classes: number of logits.
        mean: per-channel mean, in pixel units; weight files bring their own.
        std: per-channel standard deviation; likewise.

    Returns:
        The initialised network, in evaluation mode.

    Raises:
        InputError: images that leave nothing after the poolings.
    """
    height, width = check_size(
        "caffenet", size, window(11, 4), pooled(3, 2), pooled(3, 2), pooled(3, 2)
    )
    network = nn.Sequential(
        nn.Conv2d(channels, 96, 11, 4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(256 * height * width, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, classes),
    )
    return Normalised(network, mean, std)
