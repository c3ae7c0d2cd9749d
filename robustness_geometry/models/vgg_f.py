"""VGG-F, the fast network of Chatfield et al. for ImageNet."""

from collections.abc import Sequence

from torch import nn

from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_size, pooled, window

__all__ = ["vgg_f"]


def vgg_f(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Normalised:
    """VGG-F (CNN-F of Chatfield et al., 2014; Chapters 4 and 5).

    11x11x64/4, LRN, max 3/2; 5x5x256, LRN, max 3/2; three times 3x3x256, max 3/2; 4096, 4096,
    classes; ReLU after every layer but the last, dropout 0.5 between the fully connected ones;
    poolings take part windows at the border. 60,834,536 weights at 224x224 with 1,000 classes.
    Published weights load through :func:`robustness_geometry.models.load_weights` from a MatConvNet
    file.

    Args:
        channels: of the images.
        size: height and width of the images; 224x224 in the original.
        classes: number of logits.
        mean: per-channel mean, in pixel units; weight files bring their own.
        std: per-channel standard deviation; likewise.

    Returns:
        The initialised network, in evaluation mode.

    Raises:
        InputError: images that leave nothing after the poolings.
    """
    height, width = check_size(
        "vgg_f", size, window(11, 4), pooled(3, 2), pooled(3, 2), pooled(3, 2)
    )
    network = nn.Sequential(
        nn.Conv2d(channels, 64, 11, 4),
        nn.ReLU(),
        nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(64, 256, 5, padding=2),
        nn.ReLU(),
        nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
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
