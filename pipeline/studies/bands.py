"""The frequency bands of images of one shape."""

import math
from dataclasses import dataclass

from robustness_geometry.geometry import band_count, band_dimension

__all__ = ["Bands"]


@dataclass(frozen=True)
class Bands:
    """The frequency bands of images of one shape.

    Attributes:
        shape: channels, height and width.
        block: side K of the blocks.
    """

    shape: tuple[int, int, int]
    block: int

    @property
    def count(self) -> int:
        """The number of bands."""
        return band_count(*self.shape[1:], self.block)

    @property
    def marked(self) -> tuple[int, int, int]:
        """The first, the middle and the last band, as in Figure 3.10."""
        return 0, (self.count - 1) // 2, self.count - 1

    @property
    def total(self) -> int:
        """The dimension d of the image space."""
        return math.prod(self.shape)

    def dimension(self, band: int) -> int:
        """The dimension m of one band."""
        return band_dimension(self.shape, band, self.block)
