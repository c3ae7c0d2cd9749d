"""Subspaces of the image space: frequency bands (Section 3.4.2) and spans of given vectors.

A basis is a tensor (m, d) with orthonormal rows, d = channels * height * width in the order of
``flatten``.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import check_count, refuse

__all__ = [
    "band_count",
    "band_dimension",
    "block_side",
    "dct_band",
    "dct_rows",
    "orthonormalise",
    "project_onto_band",
]


def block_side(height: int, width: int) -> int:
    """The default side K of a frequency block: round(min(height, width) / 22), at least 2.

    It is the thesis' 10 at 224 pixels, and keeps the number of bands near 22 for images of any
    size.

    Example:
        >>> from robustness_geometry.geometry import block_side
        >>> block_side(224, 224), block_side(28, 28)
        (10, 2)
    """
    return max(2, round(min(height, width) / 22))


def band_count(height: int, width: int, block: int) -> int:
    """The number of diagonal K x K blocks of a (height, width) transform.

    The last block may be smaller.

    Example:
        >>> from robustness_geometry.geometry import band_count
        >>> band_count(224, 224, block=10)
        23
    """
    return math.ceil(min(height, width) / check_count("block", block))


def band_dimension(shape: tuple[int, int, int], band: int, block: int) -> int:
    """The dimension m = channels * rows * columns of one frequency band of images (C, H, W).

    Args:
        shape: channels, height and width of the images.
        band: q, from 0 (lowest frequencies) to ``band_count - 1``.
        block: K.

    Example:
        >>> from robustness_geometry.geometry import band_dimension
        >>> band_dimension((3, 224, 224), band=0, block=10)
        300
    """
    channels, height, width = shape
    rows, columns = _indices(height, band, block), _indices(width, band, block)
    return channels * len(rows) * len(columns)


def dct_band(
    shape: tuple[int, int, int], band: int, block: int, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "m d"]:
    """An orthonormal basis of the frequency band S_q (Equation 3.19), of each channel alone.

    S_q is spanned by the orthonormal two-dimensional DCT-II vectors s_ij with
    floor(i / K) = floor(j / K) = q, for indices from zero: diagonal K x K blocks. The channels are
    independent, so that m = C K^2.

    Args:
        shape: channels, height and width of the images.
        band: q, from 0 (lowest frequencies) to ``band_count - 1``.
        block: K.
        dtype: type of the basis.

    Returns:
        (m, d).

    Raises:
        InputError: there is no such band.

    References:
        Thesis, Section 3.4.2, Equation 3.19.

    Example:
        >>> from robustness_geometry.geometry import dct_band
        >>> dct_band((1, 2, 2), band=0, block=1)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    channels, height, width = shape
    rows, columns = dct_rows(height, band, block, dtype), dct_rows(width, band, block, dtype)
    plane = torch.kron(rows, columns)
    # One copy of the plane's vectors for each channel, as a block-diagonal matrix.
    basis: Tensor = torch.kron(torch.eye(channels, dtype=dtype), plane)
    return basis


def project_onto_band(
    vectors: Float[Tensor, "*batch channels height width"], *, band: int, block: int
) -> Float[Tensor, "*batch channels height width"]:
    """The orthogonal projection onto the band of :func:`dct_band`, without its (m, d) basis.

    P X = A' (A X B') B for each channel X, with A and B the DCT-II rows of the band.

    Args:
        vectors: (..., C, H, W).
        band: q.
        block: K.

    Returns:
        (..., C, H, W).

    Raises:
        InputError: there is no such band.

    References:
        Thesis, Section 3.4.2, Equation 3.19.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import project_onto_band
        >>> image = torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
        >>> project_onto_band(image, band=0, block=1).round(decimals=3)
        tensor([[[4., 4.],
                 [4., 4.]]])
    """
    height, width = vectors.shape[-2:]
    rows = dct_rows(height, band, block, vectors.dtype).to(vectors.device)
    columns = dct_rows(width, band, block, vectors.dtype).to(vectors.device)
    return rows.T @ (rows @ vectors @ columns.T) @ columns


def orthonormalise(
    vectors: Float[Tensor, "k d"], *, tolerance: float = 1e-6
) -> Float[Tensor, "rank d"]:
    """An orthonormal basis of the span of given vectors, which may be linearly dependent.

    Args:
        vectors: (k, d).
        tolerance: singular values below ``tolerance`` times the largest count as zero.

    Returns:
        (rank, d): the right singular vectors, largest singular value first.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import orthonormalise
        >>> orthonormalise(torch.tensor([[2.0, 0.0], [4.0, 0.0]])).abs()
        tensor([[1., 0.]])
    """
    _, sizes, basis = torch.linalg.svd(vectors.double(), full_matrices=False)
    kept = sizes > tolerance * sizes.max() if len(sizes) else torch.zeros(0, dtype=torch.bool)
    found: Tensor = basis[kept & (sizes > 0)].to(vectors.dtype).contiguous()
    return found


def _indices(side: int, band: int, block: int) -> range:
    """The frequency indices i < side with floor(i / block) = band."""
    found = range(side)[band * check_count("block", block) : (band + 1) * block]
    if band < 0 or not found:
        refuse("band", band, f"a whole number from 0 to {math.ceil(side / block) - 1}")
    return found


def dct_rows(side: int, band: int, block: int, dtype: torch.dtype) -> Tensor:
    """The rows of the orthonormal DCT-II matrix of ``side`` points that belong to a band."""
    index = torch.tensor(list(_indices(side, band, block)), dtype=torch.float64)
    points = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    # cos(pi i (t + 1/2) / n) sqrt(2 / n), and 1 / sqrt(n) for the constant row.
    rows = torch.cos(math.pi * index[:, None] * points) * math.sqrt(2 / side)
    return torch.where(index[:, None] == 0, rows / math.sqrt(2), rows).to(dtype)
