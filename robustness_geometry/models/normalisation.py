"""The layer that normalises pixels in [0, 1] as a network expects them."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robustness_geometry.checks import refuse
from robustness_geometry.types import Images, Logits

__all__ = ["Normalise", "Normalised"]

Constants: TypeAlias = Sequence[float] | Tensor | float


class Normalise(nn.Module):
    """(x - mean) / std, with mean and standard deviation as buffers that weight files carry.

    Args:
        mean: one value per channel, in pixel units: a sequence, a tensor, or one number for all.
        std: one value per channel, finite and above zero, likewise.

    Raises:
        InputError: unequal lengths, or values that are not finite or, for ``std``, not above zero.
            Later, images of another number of channels.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import Normalise
        >>> Normalise(mean=(0.5,), std=(0.25,))(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Constants, std: Constants) -> None:
        super().__init__()
        mean, std = _values(mean), _values(std)
        if len(mean) != len(std) or not all(math.isfinite(value) for value in mean):
            refuse(
                "dataset.mean",
                tuple(mean),
                f"one finite value per channel, {len(std)} as dataset.std has",
            )
        if not all(math.isfinite(value) and value > 0 for value in std):
            refuse(
                "dataset.std", tuple(std), "finite values above 0 (are all images of one colour?)"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def replace(self, mean: Tensor, std: Tensor) -> None:
        """Take other values, (1, C, 1, 1) or, for an average image, (1, C, H, W)."""
        self.mean, self.std = mean.to(self.mean), std.to(self.std)

    def forward(self, images: Images) -> Images:
        """Normalise images (N, C, H, W), or other inputs (N, C, ...)."""
        channels = self.mean.shape[1]
        if channels not in (1, images.shape[1]):  # a grey image would become one of colours
            refuse(
                "images.shape", tuple(images.shape), f"(N, {channels}, ...), as the mean's length"
            )
        if images.ndim != 4:
            shape = (1, -1, *[1] * (images.ndim - 2))
            return (images - self.mean.view(shape)) / self.std.view(shape)
        return (images - self.mean) / self.std


def _values(given: Constants) -> tuple[float, ...]:
    if isinstance(given, int | float):
        return (float(given),)
    return tuple(float(value) for value in torch.as_tensor(given).flatten().tolist())


class Normalised(nn.Module):
    """A network behind its :class:`Normalise` layer, in evaluation mode.

    All models of this package have this form. It also gives a network of your own, which was
    trained on normalised images, the pixels in [0, 1] that every function here takes.

    Args:
        network: maps normalised images to logits.
        mean: per-channel mean, in pixel units: a sequence, a tensor, or one number for all.
        std: per-channel standard deviation, in pixel units, likewise.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from robustness_geometry.models import Normalised
        >>> Normalised(nn.Flatten(), mean=(0.5,), std=(0.25,))(torch.ones(1, 1, 1, 1))
        tensor([[2.]])
    """

    def __init__(self, network: nn.Module, mean: Constants, std: Constants) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.network = network
        self.eval()

    def forward(self, images: Images) -> Logits:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1]."""
        logits: Logits = self.network(self.normalise(images))
        return logits
