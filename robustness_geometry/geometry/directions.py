"""Directions that many images share, and angles between subspaces.

S_f collects the boundary's normals, S_c and the u_i the directions in which it is curved.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import Described, check_choice, check_count, refuse
from robustness_geometry.geometry.leading import SymmetricOperator, extreme_eigenpairs
from robustness_geometry.geometry.subspaces import orthonormalise
from robustness_geometry.randomness import seeded

__all__ = [
    "PrincipalAngles",
    "SharedDirections",
    "curved_directions",
    "normal_directions",
    "principal_angles",
    "shared_directions",
]

Basis = Float[Tensor, "m d"]
ENDS = {"positive": "largest", "negative": "smallest"}


@dataclass(frozen=True)
class SharedDirections:
    """An ordered orthonormal basis of a subspace of the image space.

    Attributes:
        basis: (m, d) orthonormal rows, the leading direction first.
        values: all singular values, or the eigenvalues (m,) of the rows.

    See :func:`curved_directions`, which returns it, for an example.
    """

    basis: Basis
    values: Float[Tensor, " values"]


@dataclass(frozen=True)
class PrincipalAngles:
    """Angles between two subspaces.

    Attributes:
        angles: (k,) in radians, ascending, float64; k is the smaller rank.
        ranks: the dimensions of the two spans; below the number of rows if those are linearly
            dependent.

    See :func:`principal_angles`, which returns it, for an example.
    """

    angles: Float[Tensor, " k"]
    ranks: tuple[int, int]


def normal_directions(vectors: Float[Tensor, "n ..."], count: int) -> SharedDirections:
    """S_f: the subspace that contains most of the unit normals of many images (Section 6.3.1).

    Its basis is made of the leading left singular vectors of the matrix N whose columns are
    r_i / ||r_i||.

    Args:
        vectors: (n, d) or (n, C, H, W) the normals, or the smallest perturbations r_i; scaled to
            length one here.
        count: m, at most the rank of N.

    Returns:
        SharedDirections, with all min(n, d) singular values.

    Raises:
        InputError: a vector that is zero or not finite, or m above the rank.

    References:
        Thesis, Section 6.3.1, Figure 6.3.
        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard and S. Soatto, "Robustness of
        classifiers to universal perturbations: a geometric perspective", ICLR 2018,
        arXiv:1705.09554.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import normal_directions
        >>> normals = torch.tensor([[3.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> normal_directions(normals, 1).basis.abs().round(decimals=3)
        tensor([[1., 0., 0.]])
    """
    flat = vectors.flatten(1)
    lengths = flat.norm(dim=1, keepdim=True)
    unusable = int((~(torch.isfinite(lengths) & (lengths > 0))).sum())
    if unusable or not len(flat):
        refuse(
            "vectors",
            Described(f"{unusable} of {len(flat)} zero or not finite"),
            "at least one vector, all finite and non-zero",
        )
    return _leading(flat / lengths, count)


def shared_directions(directions: Float[Tensor, "batch count d"], count: int) -> SharedDirections:
    """u_i: the curved directions that many images share (Section 7.4, Figure 7.6).

    These are the leading singular vectors of the matrix M of the principal directions of all
    images. The thesis does not say how many directions it takes per image.

    Args:
        directions: (n, K, d) unit principal directions, K per image.
        count: m, at most the rank of M.

    Returns:
        SharedDirections, with all singular values.

    Raises:
        InputError: a direction that is not finite, or m above the rank.

    References:
        Thesis, Section 7.4, Figure 7.6.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import shared_directions
        >>> directions = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
        >>> shared_directions(directions, 1).basis.abs().round(decimals=3)
        tensor([[1., 0.]])
    """
    rows = directions.flatten(0, 1)
    unusable = int((~torch.isfinite(rows)).any(dim=1).sum())
    if unusable or not len(rows):
        refuse(
            "directions",
            Described(f"{unusable} of {len(rows)} not finite"),
            "at least one, all of them finite",
        )
    return _leading(rows, count)


def _leading(rows: Basis, count: int) -> SharedDirections:
    """The leading right singular vectors of ``rows``."""
    _, sizes, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    # What rounding leaves of a zero depends on the type that the rows were computed in.
    rank = int((sizes > max(rows.shape) * torch.finfo(rows.dtype).eps * sizes.max()).sum())
    if check_count("count", count) > rank:
        refuse(
            "count",
            count,
            f"a whole number from 1 to the rank {rank} of {len(rows)} vectors, d = {rows.shape[1]}",
        )
    return SharedDirections(basis[:count].to(rows.dtype), sizes)


def curved_directions(
    mean_hessian: Float[Tensor, "d d"] | SymmetricOperator,
    count: int,
    *,
    which: str = "positive",
    products: int | None = None,
    generator: torch.Generator | None = None,
) -> SharedDirections:
    """S_c: the eigenvectors of the average Hessian along which the boundary bends most.

    ``positive``, the thesis' choice, takes the largest eigenvalues with their sign: the directions
    in which the regions lie inside balls. ``negative``, a control, takes the most negative ones.
    Eigenvalues chosen by magnitude would mix the two.

    Args:
        mean_hessian: (d, d) from :func:`robustness_geometry.geometry.mean_hessian`, or, for large
            d, the operator from :func:`robustness_geometry.geometry.hessian_operator`.
        count: m, 1 <= m <= d; below d for an operator.
        which: ``positive`` or ``negative``.
        products: with an operator, the largest number of its products; None: 15 m.
        generator: with an operator, draws the first vector; None starts from seed 0.

    Returns:
        SharedDirections, with the eigenvalues of its rows, float64; where too few have the sign,
        others follow.

    Raises:
        InputError: m that is too large, a matrix that is not square, symmetric and finite, or too
            few products.

    References:
        Thesis, Section 6.4.1.
        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard and S. Soatto, "Robustness of
        classifiers to universal perturbations: a geometric perspective", ICLR 2018,
        arXiv:1705.09554.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import curved_directions
        >>> found = curved_directions(torch.diag(torch.tensor([1.0, -5.0, 3.0])), 2)
        >>> found.values.tolist()
        [3.0, 1.0]
        >>> found.basis.abs()
        tensor([[0., 0., 1.],
                [1., 0., 0.]], dtype=torch.float64)
    """
    end = ENDS[check_choice("which", which, tuple(ENDS))]
    d = mean_hessian.shape[0]
    most = d if isinstance(mean_hessian, Tensor) else d - 1
    if check_count("count", count) > most:
        refuse("count", count, f"a whole number from 1 to {most}")
    if not isinstance(mean_hessian, Tensor):
        start = torch.randn(d, generator=generator or seeded(0), dtype=torch.float64).numpy()
        found, rows = extreme_eigenpairs(mean_hessian, count, end, start, products=products)
        missing = int(np.isnan(found).sum())
        if missing:
            refuse(
                "products", products, f"larger: {missing} of {count} eigenvectors were not found"
            )
        return SharedDirections(torch.from_numpy(rows), torch.from_numpy(found))
    _check_symmetric(mean_hessian)
    values, vectors = torch.linalg.eigh(mean_hessian.double())
    order = values.argsort(descending=which == "positive")[:count]
    return SharedDirections(vectors.T[order], values[order])


def _check_symmetric(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        refuse("mean_hessian.shape", tuple(matrix.shape), "square: (d, d)")
    size = matrix.abs().max()
    if not bool(torch.isfinite(size)) or bool((matrix - matrix.T).abs().max() > 1e-6 * size):
        refuse("mean_hessian", Described("another matrix"), "finite and symmetric")


def principal_angles(
    first: Float[Tensor, "k d"], second: Float[Tensor, "l other"]
) -> PrincipalAngles:
    """The angles between two subspaces (Figure 6.12).

    Their cosines are the singular values of Q_1^T Q_2. Small angles are taken from sines, as
    cosines near 1 lose half of the digits.

    Args:
        first: (k, d) rows that span the one subspace; they are orthonormalised, and may be
            linearly dependent.
        second: (l, d) rows that span the other.

    Returns:
        PrincipalAngles.

    Raises:
        InputError: different d, rows that are not finite, or rows of rank zero.

    References:
        Thesis, Figure 6.12.
        A. Bjorck and G. H. Golub, "Numerical methods for computing angles between linear
        subspaces", Mathematics of Computation, 1973.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import principal_angles
        >>> first = torch.tensor([[1.0, 0.0, 0.0]])
        >>> second = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> principal_angles(first, second).angles.rad2deg().round()
        tensor([45.], dtype=torch.float64)
    """
    from scipy.linalg import subspace_angles  # here, because it takes half a second

    if first.shape[1] != second.shape[1]:
        refuse(
            "second.shape",
            tuple(second.shape),
            f"(l, {first.shape[1]}), the dimension of the first",
        )
    bases = []
    for name, rows in (("first", first), ("second", second)):
        if not bool(torch.isfinite(rows).all()) or not bool(rows.any()):
            refuse(name, Described("zero or not finite"), "finite rows that span a subspace")
        bases.append(orthonormalise(rows.double().cpu()))
    angles = np.sort(subspace_angles(*(basis.T.numpy() for basis in bases)))
    return PrincipalAngles(torch.from_numpy(angles), (len(bases[0]), len(bases[1])))
