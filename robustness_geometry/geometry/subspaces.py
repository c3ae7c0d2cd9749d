"""Subspaces of the image space: frequency bands, random ones, and the span of given images (Section 3.4.2).

A basis is a tensor (m, d) with orthonormal rows, d = channels * height * width in the order of
``flatten``.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import check_count, refuse
from robustness_geometry.randomness import seeded

__all__ = [
    "RandomSubspaces",
    "band_count",
    "band_dimension",
    "beta_spread",
    "block_side",
    "dct_band",
    "expected_beta",
    "orthonormalise",
    "project_onto_band",
    "random_subspace",
]

DENSE = 4_000_000
"""Entries m d up to which the frame of random subspaces is a dense matrix; its QR then takes well below a second."""


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

    S_q is spanned by the orthonormal two-dimensional DCT-II vectors s_ij with floor(i / K) =
    floor(j / K) =
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
    dimension: int,
    m: int,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
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


class RandomSubspaces:
    """A random m-dimensional subspace for each of N images: S_i = S G_i, with one frame S and a random G_i of its own.

    G_i permutes the d coordinates and flips their signs, both uniformly. S is a uniformly random
    subspace, drawn once from ``seed``, so that every S_i is uniform too; where a dense S would be
    large (d in the 100,000s), it is the random rows of H D H, with H the orthonormal discrete
    cosine transform of an image and D random signs, which takes no memory. Drawing costs one
    permutation an image, projecting two matrix products for the whole batch.

    It is a ``subspace`` of :func:`robustness_geometry.attacks.deepfool`.

    Args:
        shape: channels, height and width of the images.
        m: 1 <= m <= d.
        generators: one CPU generator an image.
        seed: of the frame.
        like: its type and device are those of the projections; None: float32 on the CPU.

    Raises:
        InputError: m is not in 1..d.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        m: int,
        generators: Sequence[torch.Generator],
        *,
        seed: int = 0,
        like: Tensor | None = None,
    ) -> None:
        d = math.prod(shape)
        if not 1 <= m <= d:
            refuse("m", m, f"a whole number from 1 to d = {d}")
        like = torch.empty(0) if like is None else like
        frame = seeded("random subspaces", *shape, m, seed)
        self._frame = (
            _DenseFrame(d, m, frame, like)
            if m * d <= DENSE
            else _CosineFrame(shape, m, frame, like)
        )
        drawn = [
            (torch.randperm(d, generator=g), torch.randint(2, (d,), generator=g))
            for g in generators
        ]
        empty = torch.empty(0, d, dtype=torch.int64)
        self._orders = (
            torch.stack([order for order, _ in drawn]).to(like.device) if drawn else empty
        )
        signs = torch.stack([sign for _, sign in drawn]) if drawn else empty
        self._signs = (2 * signs - 1).to(like)

    def __len__(self) -> int:
        return len(self._orders)

    def project(self, vectors: Tensor, indices: Tensor) -> Tensor:
        """The orthogonal projections of vectors (n, K, C, H, W) onto the subspaces of the images ``indices`` (n,)."""
        flat = vectors.flatten(2)
        signs = self._signs[indices][:, None]
        orders = self._orders[indices][:, None].expand_as(flat)
        kept = self._frame.project((flat * signs).gather(2, orders))
        return (torch.empty_like(flat).scatter_(2, orders, kept) * signs).view_as(vectors)

    def basis(self, index: int) -> Float[Tensor, "m d"]:
        """An orthonormal basis of one image's subspace; for tests and pictures of small images."""
        rows = self._frame.basis()
        return (
            torch.empty_like(rows).scatter_(1, self._orders[index].expand_as(rows), rows)
            * self._signs[index]
        )


class _DenseFrame:
    """A uniformly random subspace, by its orthonormal basis."""

    def __init__(self, d: int, m: int, generator: torch.Generator, like: Tensor) -> None:
        self._rows = random_subspace(d, m, generator, dtype=torch.float64).to(like)

    def project(self, vectors: Tensor) -> Tensor:
        return vectors @ self._rows.T @ self._rows

    def basis(self) -> Tensor:
        return self._rows


class _CosineFrame:
    """The span of m random rows of H D H, with the separable cosine transform H over channels, rows and columns."""

    def __init__(
        self, shape: tuple[int, int, int], m: int, generator: torch.Generator, like: Tensor
    ) -> None:
        d = math.prod(shape)
        self._shape = shape
        self._axes = [_dct_rows(side, 0, side, torch.float64).to(like) for side in shape]
        self._signs = (2 * torch.randint(2, shape, generator=generator) - 1).to(like)
        kept = torch.zeros(d, dtype=torch.bool)
        kept[torch.randperm(d, generator=generator)[:m]] = True
        self._kept = kept.view(shape).to(like)

    def project(self, vectors: Tensor) -> Tensor:
        spectra = self._transform(self._signs * self._transform(vectors.unflatten(-1, self._shape)))
        return self._back(self._signs * self._back(self._kept * spectra)).flatten(-3)

    def basis(self) -> Tensor:
        rows = torch.eye(self._kept.numel()).to(self._kept)[self._kept.flatten() > 0]
        return self._back(self._signs * self._back(rows.unflatten(-1, self._shape))).flatten(-3)

    def _transform(self, images: Tensor) -> Tensor:
        channels, rows, columns = self._axes
        return torch.einsum("dc,...chw->...dhw", channels, rows @ images @ columns.T)

    def _back(self, spectra: Tensor) -> Tensor:
        channels, rows, columns = self._axes
        return torch.einsum("dc,...dhw->...chw", channels, rows.T @ spectra @ columns)


def orthonormalise(
    vectors: Float[Tensor, "k d"], *, tolerance: float = 1e-6
) -> Float[Tensor, "rank d"]:
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

    The squared length of a unit normal's projection onto S follows Beta(m / 2, (d - m) / 2), so
    that the mean is sqrt(m / d) Gamma(d / 2) Gamma((m - 1) / 2) / (Gamma(m / 2) Gamma((d - 1) /
    2)): close to 1 unless m is small.

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


def beta_spread(dimension: int, m: int) -> float:
    """The standard deviation of sqrt(m / d) ||r_S|| / ||r|| for an affine boundary; see :func:`expected_beta`.

    E beta^2 = (m / d) (d - 2) / (m - 2) by the same Beta law; it is infinite for m <= 2, unless m =
    d.
    """
    mean = expected_beta(dimension, m)
    if m == dimension:
        return 0.0
    if m <= 2:
        return math.inf
    return math.sqrt(max(m / dimension * (dimension - 2) / (m - 2) - mean**2, 0.0))


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
