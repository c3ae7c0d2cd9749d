"""He initialisation."""

from typing import TypeVar

from torch import nn

__all__ = ["he_normal"]

Net = TypeVar("Net", bound=nn.Module)


def he_normal(network: Net) -> Net:
    """Draw convolutions from N(0, 2 / fan-in), set their biases to zero, and return the network.

    References:
        K. He, X. Zhang, S. Ren and J. Sun, "Delving deep into rectifiers: surpassing human-level
        performance on ImageNet classification", ICCV 2015, arXiv:1502.01852.

    Example:
        >>> from torch import nn
        >>> from robustness_geometry.models.initialisation import he_normal
        >>> bool(he_normal(nn.Conv2d(1, 2, 3)).bias.any())
        False
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
