"""He initialisation."""

from typing import TypeVar

from torch import nn

__all__ = ["he_normal"]

Net = TypeVar("Net", bound=nn.Module)


def he_normal(network: Net) -> Net:
    """Draw convolutions from N(0, 2 / fan-in) (He et al., 2015), zero their biases; return the network."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
