"""Made-up classifiers whose answers are known in closed form."""

from torch import Tensor, nn

__all__ = ["Affine"]


class Affine(nn.Module):
    """x -> W x + b on flattened images.

    Args:
        weight: W, (L, d): one row per class, or a single row whose sign decides between two.
        bias: b, (L,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The logits (N, L) of images (N, C, H, W)."""
        return images.flatten(1) @ self.weight.T + self.bias
