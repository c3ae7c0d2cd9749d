"""CaffeNet, the reference network of Caffe for ImageNet."""

from collections.abc import Sequence

from torch import nn

from robustness_geometry.models.heads import fully_connected_head
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
    """CaffeNet: AlexNet with the pooling before the normalisation.

    11x11x96/4, max 3/2, LRN; 5x5x256 in two groups, max 3/2, LRN; 3x3x384; 3x3x384 and 3x3x256 in
    two groups, max 3/2; 4096, 4096, classes; ReLU after every layer but the last, dropout 0.5
    between the fully connected ones; poolings keep partial windows at the border. It has 60,965,224
    weights at 227x227 (and 224x224) with 1,000 classes. Published weights load through
    :func:`robustness_geometry.models.load_weights` from a MatConvNet file.

    Args:
        channels: number of channels of the images.
        size: height and width of the images; 227x227 in the original.
        classes: number of logits.
        mean: per-channel mean, in pixel units; weight files bring their own.
        std: per-channel standard deviation, in pixel units; weight files bring their own.

    Returns:
        The initialised network, in evaluation mode.

    Raises:
        InputError: images that leave nothing after the poolings.

    References:
        Thesis, Chapters 3, 4, 6 and 7.
        Y. Jia et al., "Caffe: convolutional architecture for fast feature embedding", 2014,
        arXiv:1408.5093; after A. Krizhevsky, I. Sutskever and G. E. Hinton, "ImageNet
        classification with deep convolutional neural networks", NIPS 2012.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import caffenet
        >>> shape = {"channels": 3, "size": (64, 64), "classes": 10}
        >>> model = caffenet(**shape, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
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
        *fully_connected_head(256 * height * width, classes),
    )
    return Normalised(network, mean, std)
