"""Wide residual networks: WRN-28-10 and its smaller kin."""

from collections.abc import Sequence

from torch import Tensor, nn

from robustness_geometry.checks import check_count, number, refuse
from robustness_geometry.models.initialisation import he_normal
from robustness_geometry.models.normalisation import Normalised

__all__ = ["wrn28_10"]


def wrn28_10(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    depth: int = 28,
    widen: int = 10,
    dropout: float = 0.0,
) -> Normalised:
    """WRN-28-10, a wide residual network: three stages of pre-activation blocks.

    3x3x16; stages of (depth - 4) / 6 blocks with 16k, 32k and 64k channels, the second and third
    halving the image; batch normalisation, ReLU, mean over all places; classes. 36,479,194 weights
    for three channels, ten classes.

    Args:
        channels: number of channels of the images.
        size: height and width of the images, any.
        classes: number of logits.
        mean: per-channel mean, in pixel units.
        std: per-channel standard deviation, in pixel units.
        depth: number of layers, 6 n + 4 for n blocks per stage.
        widen: k, the factor of all widths.
        dropout: share of values dropped in training between the two layers of a block,
            0 <= share < 1.

    Returns:
        The initialised network (He et al., 2015), in evaluation mode.

    Raises:
        InputError: a depth that is not 6 n + 4 with n >= 1, or another option out of range.

    References:
        Thesis, Chapter 8.
        S. Zagoruyko and N. Komodakis, "Wide residual networks", BMVC 2016, arXiv:1605.07146.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import wrn28_10
        >>> shape = {"channels": 3, "size": (32, 32), "classes": 10}
        >>> model = wrn28_10(**shape, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), depth=10, widen=1)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if check_count("model.depth", depth) < 10 or (depth - 4) % 6:
        refuse("model.depth", depth, "one of 10, 16, 22, 28 ...: 6 n + 4")
    check_count("model.widen", widen)
    if not 0 <= number("model.dropout", dropout) < 1:
        refuse("model.dropout", dropout, "a share with 0 <= share < 1")
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    before = 16
    for stage in range(3):
        for block in range((depth - 4) // 6):
            after = 16 * widen * 2**stage
            layers.append(_Block(before, after, 2 if stage and not block else 1, dropout))
            before = after
    layers += [nn.BatchNorm2d(before), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    return Normalised(he_normal(nn.Sequential(*layers)), mean, std)


class _Block(nn.Module):
    """Batch normalisation, ReLU and a 3x3 layer, twice.

    Where the width changes, a 1x1 shortcut starts after the first ReLU.
    """

    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
        )
        self.shortcut: nn.Module | None = None
        if before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        active = self.activate(features)
        beside = features if self.shortcut is None else self.shortcut(active)
        output: Tensor = self.body(active) + beside
        return output
