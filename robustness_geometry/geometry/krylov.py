"""Both ends of the spectra of many symmetric operators at once (Sections 6.4.1 and 7.4).

Over a finite length h the Hessian of a network of ReLUs is only roughly linear and only roughly
symmetric. Methods that rely on both then stop early or never. Here a fixed number of products
spans a Krylov space, and the Rayleigh-Ritz method reads the eigenpairs off it, each with its
residual.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import GivenLabels, check_count, refuse
from robustness_geometry.geometry.boundary import Boundary
from robustness_geometry.geometry.leading import hessian_operator
from robustness_geometry.geometry.surface import CurvatureOptions, Surface
from robustness_geometry.randomness import Generators, normal, seeded
from robustness_geometry.types import Classifier, Images

__all__ = ["RitzPairs", "extreme_curvatures", "mean_hessian_ends", "ritz_pairs"]

Vectors = Float[Tensor, "batch d"]

LOST = 1e-10
"""Share of a product outside the space so far, below which it adds no new direction."""


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs of several operators.

    Those at both ends of the spectrum are accurate; those in the middle mean little.

    Attributes:
        values: (N, K) the largest first, float64.
        vectors: (N, K, d) orthonormal for each operator.
        residuals: (N, K) ||A v - value v||, small beside the largest |value| for a linear A and an
            accurate v.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import RitzPairs
        >>> pairs = RitzPairs(torch.tensor([[2.0, -3.0]]), torch.eye(2)[None], torch.zeros(1, 2))
        >>> pairs.by_size(1).values
        tensor([[-3.]])
    """

    values: Float[Tensor, "batch count"]
    vectors: Float[Tensor, "batch count d"]
    residuals: Float[Tensor, "batch count"]

    def by_size(self, count: int) -> "RitzPairs":
        """The ``count`` pairs of largest |value|, the largest first."""
        order = self.values.abs().argsort(dim=1, descending=True)[:, :count]
        rows = torch.arange(len(order), device=order.device)[:, None]
        return RitzPairs(
            self.values[rows, order], self.vectors[rows, order], self.residuals[rows, order]
        )


def ritz_pairs(
    product: Callable[[Tensor], Tensor], start: Vectors, steps: int, *, null: Vectors | None = None
) -> RitzPairs:
    """The Ritz pairs of symmetric operators in their Krylov spaces span(v, A v, ..., A^(K-1) v).

    All operators take their steps together. Each new vector is made orthogonal to all before it,
    twice. The matrix of v_i' A v_j comes from the products themselves and is symmetrised, so that
    it is that of the symmetric part of A even where A is not quite linear. Where a Krylov space
    ends early, a random vector begins another one.

    Args:
        product: maps vectors (N, d), one per operator, to A v (N, d).
        start: (N, d) the first vectors, none of them zero.
        steps: K, the number of products with each operator; 1 <= K <= d, or d - 1 with ``null``.
        null: (N, d) unit vectors n with A n = 0 that the spaces are to leave out.

    Returns:
        RitzPairs in float64, K per operator.

    Raises:
        InputError: ``steps`` is out of range.

    References:
        C. Lanczos, "An iteration method for the solution of the eigenvalue problem of linear
        differential and integral operators", 1950; here with full reorthogonalisation.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import ritz_pairs
        >>> diagonal = torch.tensor([3.0, 1.0, -2.0])
        >>> pairs = ritz_pairs(lambda vectors: diagonal * vectors, torch.ones(1, 3), steps=3)
        >>> [round(value, 3) for value in pairs.values[0].tolist()]
        [3.0, 1.0, -2.0]
    """
    left_out, most = int(null is not None), start.shape[1] - int(null is not None)
    if check_count("steps", steps) > most:
        refuse("steps", steps, f"a whole number from 1 to {most}")
    generator = seeded("krylov")
    known = start.new_zeros(len(start), left_out + steps, start.shape[1], dtype=torch.float64)
    if null is not None:
        known[:, 0] = null
    basis = known[:, left_out:]
    images = torch.zeros_like(basis)
    # Build the basis: orthogonalise the last product against all vectors, and multiply again.
    new = start.double()
    for step in range(steps):
        basis[:, step] = _next(known[:, : left_out + step], new, generator)
        new = product(basis[:, step]).double()
        images[:, step] = new
    # Rayleigh-Ritz: the eigenpairs of the operators restricted to their spaces, (N, K, K).
    matrix = basis @ images.mT
    values, turn = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values, turn = values.flip(1), turn.mT.flip(1)
    vectors = turn @ basis
    return RitzPairs(values, vectors, (turn @ images - values[..., None] * vectors).norm(dim=2))


def _next(basis: Tensor, new: Tensor, generator: torch.Generator) -> Tensor:
    """The part of ``new`` (N, d) orthogonal to ``basis`` (N, k, d), of unit length.

    Operators whose ``new`` has no such part take a random vector's.
    """
    found = _orthogonal(basis, new)
    lost = found.norm(dim=1) <= LOST * new.norm(dim=1)
    if bool(lost.any()):
        drawn = torch.randn(new.shape[1], generator=generator, dtype=torch.float64).to(new)
        found = torch.where(lost[:, None], _orthogonal(basis, drawn.expand_as(new)), found)
    return found / found.norm(dim=1, keepdim=True)


def _orthogonal(basis: Tensor, new: Tensor) -> Tensor:
    for _ in range(2):  # a second time against what rounding leaves
        new = new - ((basis @ new[..., None]).mT @ basis)[:, 0]
    return new


def extreme_curvatures(
    model: Classifier,
    points: Boundary | Images,
    *,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    steps: int = 30,
    generator: Generators = None,
    **options: Unpack[CurvatureOptions],
) -> RitzPairs:
    """The principal curvatures and directions at both ends of each point's spectrum.

    Each point takes 2 ``steps`` gradients. All points advance together, which makes this faster
    than :func:`robustness_geometry.geometry.leading_curvatures`; that one goes on until its results
    are accurate.

    Args:
        model: a classifier in evaluation mode.
        points: z on the boundary: a Boundary, or images (N, C, H, W) with ``labels`` and
            ``targets``.
        labels: (N,) the classes on the images' own side; a Boundary brings them.
        targets: (N,) the classes on the other side; a Boundary brings them.
        steps: K, the number of products with each Hessian, 1 <= K < d; about a sixth of them are
            accurate at either end.
        generator: draws the first vectors; one per image makes results independent of the batch.
        **options: h, exact, output, tolerance and at_once, see
            :class:`robustness_geometry.geometry.CurvatureOptions`.

    Returns:
        RitzPairs (N, K) of P H_F P / ||grad F||, in 1 / pixel units; the vectors are tangent.

    Raises:
        InputError: as :func:`robustness_geometry.geometry.normal_curvatures`, or ``steps`` out of
            range.

    References:
        Thesis, Section 7.4.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points, extreme_curvatures
        >>> ball, image = Ball(radius=2.0), torch.full((1, 1, 2, 4), 0.5)
        >>> found = extreme_curvatures(ball, boundary_points(ball, image), steps=2)
        >>> [round(value, 2) for value in found.values[0].tolist()]
        [0.5, 0.5]
    """
    surface = Surface.checked(model, points, labels, targets, **options)
    z = surface.points
    start = normal(torch.empty_like(z), generator)

    def product(vectors: Tensor) -> Tensor:
        tangent = surface.project(vectors.to(z).view(len(z), 1, *z.shape[1:]))
        projected = surface.project(surface.products(tangent))[:, 0]
        return projected.flatten(1).double() / surface.sizes.double()[:, None]

    unit = surface.normals.flatten(1).double()
    return ritz_pairs(product, start.flatten(1), steps, null=unit / unit.norm(dim=1, keepdim=True))


def mean_hessian_ends(
    model: Classifier,
    points: Boundary | Images,
    *,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    steps: int,
    normalised: bool = False,
    generator: torch.Generator | None = None,
    **options: Unpack[CurvatureOptions],
) -> RitzPairs:
    """Both ends of the spectrum of the average Hessian n^-1 sum_i P_i H_i P_i, without forming it.

    The first vectors span S_c, the last ones the subspace along which the boundary bends the other
    way. Each step takes 2 N gradients; memory grows with K d, not with N.

    Args:
        model: a classifier in evaluation mode.
        points: z_i on the boundary, at least one: a Boundary, or images (N, C, H, W) with
            ``labels`` and ``targets``.
        labels: (N,) the classes on the images' own side; a Boundary brings them.
        targets: (N,) the classes on the other side; a Boundary brings them.
        steps: K, the number of products with the average, 1 <= K <= d.
        normalised: divide each Hessian by ||grad F||, so that images count by their curvature and
            not by the size of their logits.
        generator: draws the first vector; None starts from seed 0.
        **options: h, exact, output, tolerance and at_once, see
            :class:`robustness_geometry.geometry.CurvatureOptions`.

    Returns:
        RitzPairs of one operator, (1, K).

    Raises:
        InputError: no points, ``steps`` not in 1..d, or as
            :func:`robustness_geometry.geometry.normal_curvatures`.

    References:
        Thesis, Section 6.4.1.
        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard and S. Soatto, "Robustness of
        classifiers to universal perturbations: a geometric perspective", ICLR 2018,
        arXiv:1705.09554.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points, mean_hessian_ends
        >>> ball, images = Ball(radius=2.0), torch.eye(3).view(3, 1, 1, 3)
        >>> found = mean_hessian_ends(ball, boundary_points(ball, images), steps=3)
        >>> [round(value, 3) for value in found.values[0].tolist()]
        [1.333, 1.333, 1.333]
    """
    operator = hessian_operator(
        model, points, labels=labels, targets=targets, normalised=normalised, **options
    )
    start = torch.randn(1, operator.shape[0], generator=generator or seeded(0), dtype=torch.float64)
    return ritz_pairs(
        lambda vectors: torch.from_numpy(operator.matvec(vectors[0].numpy()))[None], start, steps
    )
