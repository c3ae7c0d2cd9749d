"""Subspaces of the image space: frequency bands, random ones, and the span of given images (Section 3.4.2).

A basis is a tensor (m, d) with orthonormal rows, d = channels * height * width in the order of ``flatten``.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.checks import check_count, refuse
from pipeline.randomness import seeded

__all__ = [
    "band_count",
    "band_dimension",
    "block_side",
    "dct_band",
    "expected_beta",
    "orthonormalise",
    "project_onto_band",
    "random_subspace",
]


def block_side(height: int, width: int) -> int:
    """The default side K of a frequency block: round(side / 22), at least 2, where side = min(height, width).

    It is the thesis' 10 at 224 pixels, and keeps the number of bands near 22 on images of any size.
    """
    return max(2, round(min(height, width) / 22))


def band_count(height: int, width: int, block: int) -> int:
    """The number of diagonal K x K blocks of a (height, width) transform; the last one may be smaller."""
    return math.ceil(min(height, width) / check_count("block", block))


def band_dimension(shape: tuple[int, int, int], band: int, block: int) -> int:
    """The dimension m = channels * rows * columns of one frequency band of images (C, H, W)."""
    channels, height, width = shape
    rows, columns = _indices(height, band, block), _indices(width, band, block)
    return channels * len(rows) * len(columns)


def dct_band(
    shape: tuple[int, int, int], band: int, block: int, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "m d"]:
    """An orthonormal basis of the frequency band S_q (Equation 3.19), one set of vectors a channel.

    S_q is spanned by the orthonormal two-dimensional DCT-II vectors s_ij with floor(i / K) = floor(j / K) =
    q, indices from zero: diagonal K x K blocks. The channels are independent, so that m = C K^2.

    Args:
        shape: channels, height and width of the images.
        band: q, from 0 (lowest frequencies) to ``band_count - 1``.
        block: K.
        dtype: of the basis.

    Returns:
        (m, d).

    Raises:
        InputError: there is no such band.
    """
    channels, height, width = shape
    rows, columns = _dct_rows(height, band, block, dtype), _dct_rows(width, band, block, dtype)
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
    """
    height, width = vectors.shape[-2:]
    rows = _dct_rows(height, band, block, vectors.dtype).to(vectors.device)
    columns = _dct_rows(width, band, block, vectors.dtype).to(vectors.device)
    return rows.T @ (rows @ vectors @ columns.T) @ columns


def random_subspace(
    dimension: int, m: int, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "m d"]:
    """An orthonormal basis of a uniformly random m-dimensional subspace: the QR factor of a Gaussian matrix.

    Args:
        dimension: d.
        m: 1 <= m <= d; time grows as d m^2 and memory as d m.
        generator: a CPU generator; None starts from seed 0.
        dtype: of the basis.

    Returns:
        (m, d).

    Raises:
        InputError: m is not in 1..d.
    """
    if not 1 <= m <= dimension:
        refuse("m", m, f"a whole number from 1 to d = {dimension}")
    gaussian = torch.randn(dimension, m, generator=generator or seeded(0), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(gaussian).Q.T
    return basis.to(dtype).contiguous()


def orthonormalise(vectors: Float[Tensor, "k d"], *, tolerance: float = 1e-6) -> Float[Tensor, "rank d"]:
    """An orthonormal basis of the span of the rows of ``vectors``; rows that depend on others add nothing.

    Args:
        vectors: (k, d).
        tolerance: singular values below ``tolerance`` times the largest count as zero.

    Returns:
        (rank, d): the right singular vectors, largest singular value first.
    """
    _, sizes, basis = torch.linalg.svd(vectors.double(), full_matrices=False)
    kept = sizes > tolerance * sizes.max() if len(sizes) else torch.zeros(0, dtype=torch.bool)
    found: Tensor = basis[kept & (sizes > 0)].to(vectors.dtype).contiguous()
    return found


def expected_beta(dimension: int, m: int) -> float:
    """The mean of sqrt(m / d) ||r_S|| / ||r|| over random subspaces S, for an affine boundary.

    The squared length of a unit normal's projection onto S follows Beta(m / 2, (d - m) / 2), so that the mean
    is sqrt(m / d) Gamma(d / 2) Gamma((m - 1) / 2) / (Gamma(m / 2) Gamma((d - 1) / 2)): close to 1 unless m is
    small.

    Args:
        dimension: d.
        m: of the subspace; the mean is infinite for m = 1.
    """
    if not 1 <= m <= dimension:
        refuse("m", m, f"a whole number from 1 to d = {dimension}")
    if m == 1:
        return math.inf if dimension > 1 else 1.0
    logarithm = math.lgamma(dimension / 2) - math.lgamma((dimension - 1) / 2)
    logarithm += math.lgamma((m - 1) / 2) - math.lgamma(m / 2)
    return math.sqrt(m / dimension) * math.exp(logarithm)


def _indices(side: int, band: int, block: int) -> range:
    """The frequency indices i < side with floor(i / block) = band."""
    found = range(side)[band * check_count("block", block) : (band + 1) * block]
    if band < 0 or not found:
        refuse("band", band, f"a whole number from 0 to {math.ceil(side / block) - 1}")
    return found


def _dct_rows(side: int, band: int, block: int, dtype: torch.dtype) -> Tensor:
    """The rows of the orthonormal DCT-II matrix of ``side`` points that belong to a band."""
    index = torch.tensor(list(_indices(side, band, block)), dtype=torch.float64)
    points = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    rows = torch.cos(math.pi * index[:, None] * points) * math.sqrt(2 / side)
    return torch.where(index[:, None] == 0, rows / math.sqrt(2), rows).to(dtype)
