"""Made-up classifiers whose answers are known in closed form."""

from torch import Tensor, nn

__all__: list[str] = []


class Affine(nn.Module):
    """x -> W x + b on flattened images, with one row of W a class, or a single row whose sign decides."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias
