"""Random subspaces of the image space (Sections 3.4.2 and 5.3), and what they do to norms.

A basis is a tensor (m, d) with orthonormal rows, d = channels * height * width in the order of
``flatten``.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import refuse
from robustness_geometry.geometry.subspaces import dct_rows
from robustness_geometry.randomness import seeded

__all__ = ["RandomSubspaces", "beta_spread", "expected_beta", "random_subspace"]

DENSE = 4_000_000
"""Entries m d up to which the frame of random subspaces is a dense matrix: its QR is fast then."""


def random_subspace(
    dimension: int,
    m: int,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "m d"]:
    """An orthonormal basis of a uniformly random m-dimensional subspace.

    It is the QR factor of a Gaussian matrix.

    Args:
        dimension: d.
        m: 1 <= m <= d; time grows as d m^2 and memory as d m.
        generator: a CPU generator; None starts from seed 0.
        dtype: type of the basis.

    Returns:
        (m, d).

    Raises:
        InputError: m is not in 1..d.

    References:
        Thesis, Section 5.3, for the subspaces of semi-random noise.

    Example:
        >>> from robustness_geometry.geometry import random_subspace
        >>> basis = random_subspace(5, 2)
        >>> (basis @ basis.T).abs().round(decimals=3)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if not 1 <= m <= dimension:
        refuse("m", m, f"a whole number from 1 to d = {dimension}")
    gaussian = torch.randn(dimension, m, generator=generator or seeded(0), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(gaussian).Q.T
    return basis.to(dtype).contiguous()


class RandomSubspaces:
    """One random m-dimensional subspace per image: S_i = S G_i with a random G_i for each.

    G_i permutes the d coordinates and flips their signs, both uniformly. S is a uniformly random
    subspace, drawn once from ``seed``, so that every S_i is uniform too. Where a dense S would be
    large (d in the 100,000s), it is spanned by random rows of H D H, with H the orthonormal
    discrete cosine transform of an image and D random signs, which takes no memory. Drawing costs
    one permutation per image, projecting two matrix products for the whole batch.

    It is a ``subspace`` of :func:`robustness_geometry.attacks.deepfool`.

    Args:
        shape: shape of an image, such as channels, height and width.
        m: 1 <= m <= d.
        generators: one CPU generator per image.
        seed: seed of the frame S.
        like: a tensor of the type and device that projections have; None: float32 on the CPU.

    Raises:
        InputError: m is not in 1..d.

    References:
        Thesis, Sections 3.4.2 and 5.3.
        A. Fawzi, S.-M. Moosavi-Dezfooli and P. Frossard, "Robustness of classifiers: from
        adversarial to random noise", NIPS 2016, arXiv:1608.08967.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import RandomSubspaces
        >>> subspaces = RandomSubspaces((1, 2, 2), m=4, generators=[torch.Generator()])
        >>> whole = subspaces.project(torch.ones(1, 1, 1, 2, 2), torch.tensor([0]))
        >>> len(subspaces), subspaces.basis(0).shape, whole.round(decimals=3).flatten()
        (1, torch.Size([4, 4]), tensor([1., 1., 1., 1.]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        m: int,
        generators: Sequence[torch.Generator],
        *,
        seed: int = 0,
        like: Tensor | None = None,
    ) -> None:
        d, shape = math.prod(shape), _three(shape)
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
        """Project vectors (n, K, C, H, W) onto the subspaces of the images ``indices`` (n,)."""
        # v -> G_i' P_S G_i v: flip signs and permute, project onto S, and undo both.
        flat = vectors.flatten(2)
        signs = self._signs[indices][:, None]
        orders = self._orders[indices][:, None].expand_as(flat)
        kept = self._frame.project((flat * signs).gather(2, orders))
        return (torch.empty_like(flat).scatter_(2, orders, kept) * signs).view_as(vectors)

    def basis(self, index: int) -> Float[Tensor, "m d"]:
        """An orthonormal basis of one image's subspace, for small images."""
        rows = self._frame.basis()
        return (
            torch.empty_like(rows).scatter_(1, self._orders[index].expand_as(rows), rows)
            * self._signs[index]
        )


def _three(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape of three axes that counts as ``shape``: (d,) is (1, 1, d)."""
    *others, height, width = (1, 1, *shape)
    return math.prod(others), height, width


class _DenseFrame:
    """A uniformly random subspace, by its orthonormal basis."""

    def __init__(self, d: int, m: int, generator: torch.Generator, like: Tensor) -> None:
        self._rows = random_subspace(d, m, generator, dtype=torch.float64).to(like)

    def project(self, vectors: Tensor) -> Tensor:
        return vectors @ self._rows.T @ self._rows

    def basis(self) -> Tensor:
        return self._rows


class _CosineFrame:
    """The span of m random rows of H D H.

    H is the cosine transform over channels, rows and columns, one after the other.
    """

    def __init__(
        self, shape: tuple[int, int, int], m: int, generator: torch.Generator, like: Tensor
    ) -> None:
        d = math.prod(shape)
        self._shape = shape
        self._axes = [dct_rows(side, 0, side, torch.float64).to(like) for side in shape]
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


def expected_beta(dimension: int, m: int) -> float:
    """The mean of sqrt(m / d) ||r_S|| / ||r|| over random subspaces S, for an affine boundary.

    The squared length of a unit normal's projection onto S follows Beta(m / 2, (d - m) / 2), so
    that the mean is sqrt(m / d) G(d / 2) G((m - 1) / 2) / (G(m / 2) G((d - 1) / 2)) with the gamma
    function G: close to 1 unless m is small.

    Args:
        dimension: d.
        m: dimension of the subspace; the mean is infinite for m = 1.

    References:
        Thesis, Equation 3.20 and Table 5.1, for the ratio; the law is that of a projected unit
        vector.

    Example:
        >>> from robustness_geometry.geometry import expected_beta
        >>> round(expected_beta(784, 196), 3), round(expected_beta(784, 8), 3)
        (1.003, 1.107)
    """
    if not 1 <= m <= dimension:
        refuse("m", m, f"a whole number from 1 to d = {dimension}")
    if m == 1:
        return math.inf if dimension > 1 else 1.0
    logarithm = math.lgamma(dimension / 2) - math.lgamma((dimension - 1) / 2)
    logarithm += math.lgamma((m - 1) / 2) - math.lgamma(m / 2)
    return math.sqrt(m / dimension) * math.exp(logarithm)


def beta_spread(dimension: int, m: int) -> float:
    """The standard deviation of the ratio whose mean is :func:`expected_beta`.

    E beta^2 = (m / d) (d - 2) / (m - 2) by the same Beta law; it is infinite for m <= 2, unless
    m = d.

    Args:
        dimension: d.
        m: dimension of the subspace.

    Example:
        >>> from robustness_geometry.geometry import beta_spread
        >>> round(beta_spread(784, 196), 3), round(beta_spread(784, 8), 3)
        (0.044, 0.324)
    """
    mean = expected_beta(dimension, m)
    if m == dimension:
        return 0.0
    if m <= 2:
        return math.inf
    return math.sqrt(max(m / dimension * (dimension - 2) / (m - 2) - mean**2, 0.0))
