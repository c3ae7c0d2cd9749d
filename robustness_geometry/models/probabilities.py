"""Logits of a network that ends in probabilities."""

import torch
from torch import Tensor, nn

from robustness_geometry.checks import refuse
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Images, Logits

__all__ = ["OUTPUTS", "LogProbabilities", "are_probabilities", "are_saturated"]

OUTPUTS = ("logits", "probabilities")
"""What the outputs of a network may be: the values of ``model.output``."""

NEAR = {torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""How far from 1 probabilities may sum up to, by their type; 1e-3 for the others."""


class LogProbabilities(nn.Module):
    """A network behind whose probabilities a logarithm stands, in evaluation mode.

    Softmax probabilities p become log p, which differ from the logits by a constant per image, so
    that all differences of logits, and all decision boundaries, are those of the logits. One
    sigmoid output p becomes log p - log(1 - p), the logit itself.

    Args:
        network: maps images to probabilities, (N, classes) of a softmax or (N, 1) of a sigmoid.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import LogProbabilities
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(dim=1))
        >>> model = LogProbabilities(network)  # the pixels are the logits
        >>> logits = model(torch.tensor([1.0, 3.0]).view(1, 1, 1, 2))
        >>> (logits[0, 1] - logits[0, 0]).round(decimals=4)
        tensor(2.)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: Images) -> Logits:
        """Logits (N, classes), or (N, 1), of images (N, C, H, W)."""
        p = logits_at(self.network, images)
        return torch.log(p) - torch.log1p(-p) if p.shape[1] == 1 else torch.log(p)

    def check(self, images: Images) -> None:
        """Check that the network gives probabilities of which a logarithm can be taken.

        Raises:
            InputError: its outputs are none, or they are saturated.
        """
        with torch.no_grad():
            p = logits_at(self.network, images)
        if p.ndim != 2:
            return
        if not are_probabilities(p):
            low, high = (float(value) for value in torch.aminmax(p))
            refuse(
                "model.output",
                "probabilities",
                f"logits: the outputs lie in [{low:.3g}, {high:.3g}] and are no probabilities "
                "of a softmax or of one sigmoid",
            )
        if are_saturated(p):
            refuse(
                "model.output",
                "probabilities",
                "logits, returned by the network itself: its probabilities are exactly 0 or 1 "
                "(saturated), and no logits can be had from them",
            )


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (N, classes) lie in [0, 1] and sum to 1, or (N, 1) lie in [0, 1]."""
    near = NEAR.get(outputs.dtype, 1e-3)
    values = outputs.detach().double()
    inside = bool(((values >= 0) & (values <= 1 + near)).all())
    return inside and (values.shape[1] == 1 or bool(((values.sum(dim=1) - 1).abs() <= near).all()))


def are_saturated(probabilities: Tensor) -> bool:
    """Whether some probability is exactly 0 or 1."""
    return bool(((probabilities == 0) | (probabilities == 1)).any())
