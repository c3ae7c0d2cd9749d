"""VGG-F, the fast network of Chatfield et al. for ImageNet."""

from collections.abc import Sequence

from torch import nn

from robustness_geometry.models.heads import fully_connected_head
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
    """VGG-F, the fast network of Chatfield et al. (2014).

    11x11x64/4, LRN, max 3/2; 5x5x256, LRN, max 3/2; three times 3x3x256, max 3/2; 4096, 4096,
    classes; ReLU after every layer but the last, dropout 0.5 between the fully connected ones;
    poolings keep partial windows at the border. 60,834,536 weights at 224x224 with 1,000 classes.
    Published weights load through :func:`robustness_geometry.models.load_weights` from a MatConvNet
    file.

    Args:
        channels: number of channels of the images.
        size: height and width of the images; 224x224 in the original.
        classes: number of logits.
        mean: per-channel mean, in pixel units; weight files bring their own.
        std: per-channel standard deviation, in pixel units; weight files bring their own.

    Returns:
        The initialised network, in evaluation mode.

    Raises:
        InputError: images that leave nothing after the poolings.

    References:
        Thesis, Chapters 4 and 5.
        K. Chatfield, K. Simonyan, A. Vedaldi and A. Zisserman, "Return of the devil in the details:
        delving deep into convolutional nets", BMVC 2014, arXiv:1405.3531 (there CNN-F).

    Example:
        >>> import torch
        >>> from robustness_geometry.models import vgg_f
        >>> shape = {"channels": 3, "size": (64, 64), "classes": 10}
        >>> model = vgg_f(**shape, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
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
        *fully_connected_head(256 * height * width, classes),
    )
    return Normalised(network, mean, std)
