"""ResNet-18 in its form for CIFAR-10."""

from collections.abc import Sequence

from torch import Tensor, nn

from robustness_geometry.checks import check_count
from robustness_geometry.models.initialisation import he_normal
from robustness_geometry.models.normalisation import Normalised

__all__ = ["resnet18"]


def resnet18(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    width: int = 64,
) -> Normalised:
    """ResNet-18 for small images: with a 3x3 first layer and no max pooling.

    Four stages of two basic blocks with w, 2w, 4w and 8w channels, each but the first halving the
    image; mean over all places; classes. 11,173,962 weights for w = 64, three channels and ten
    classes.

    Args:
        channels: number of channels of the images.
        size: height and width of the images, any.
        classes: number of logits.
        mean: per-channel mean, in pixel units.
        std: per-channel standard deviation, in pixel units.
        width: w, number of channels of the first stage.

    Returns:
        The initialised network (He et al., 2015), in evaluation mode.

    Raises:
        InputError: a width below 1.

    References:
        Thesis, Chapters 6 and 8.
        K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", CVPR
        2016, arXiv:1512.03385.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import resnet18
        >>> shape = {"channels": 3, "size": (32, 32), "classes": 10}
        >>> model = resnet18(**shape, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), width=4)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    check_count("model.width", width)
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        for block in range(2):
            after = width * 2**stage
            layers.append(_Block(before, after, stride=2 if stage and not block else 1))
            before = after
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    return Normalised(he_normal(nn.Sequential(*layers)), mean, std)


class _Block(nn.Module):
    """Two 3x3 layers with batch normalisation beside a shortcut: ReLU(body(x) + shortcut(x))."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            projection = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(after))
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.relu(self.body(features) + self.shortcut(features))
        return output
