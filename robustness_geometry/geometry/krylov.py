"""Both ends of the spectra of symmetric operators, many at once, in Krylov spaces (Sections 6.4.1 and 7.4).

Over a finite length h the Hessian of a network of ReLUs is only roughly linear and only roughly
symmetric. A method that takes both for granted then stops early or not at all; here a fixed number
of products is made, and what they say is read off by Rayleigh and Ritz, with the residual of each
pair beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks.protocol import Number
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry.leading import hessian_operator
from robustness_geometry.geometry.surface import Surface
from robustness_geometry.randomness import Generators, normal, seeded
from robustness_geometry.types import Classifier, Images, Labels

__all__ = ["RitzPairs", "extreme_curvatures", "mean_hessian_ends", "ritz_pairs"]

Vectors = Float[Tensor, "batch d"]

LOST = 1e-10
"""A product that leaves less than this share of itself outside the space so far has nothing new in it."""


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs of several operators; those at both ends are good, those in the middle mean little.

    Attributes:
        values: (N, K) the largest first, float64.
        vectors: (N, K, d) orthonormal for each operator.
        residuals: (N, K) ||A v - value v||; small beside the largest |value| where A is linear and
            v was found.
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

    All operators take their steps together. New vectors are made orthogonal to all before, twice.
    The matrix v_i' A v_j is taken from the products themselves and symmetrised, so that it is that
    of the symmetric part of A, however far A is from linear on the way. Where a Krylov space ends
    early, a random vector begins another one.

    Args:
        product: maps vectors (N, d), one for each operator, to A v (N, d).
        start: (N, d) the first vectors, none of them zero.
        steps: K, the products with each operator; 1 <= K <= d, or d - 1 with ``null``.
        null: (N, d) unit vectors n with A n = 0 that the spaces are to leave out.

    Returns:
        RitzPairs in float64, K of each operator.

    Raises:
        InputError: ``steps`` is out of range.
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
    new = start.double()
    for step in range(steps):
        basis[:, step] = _next(known[:, : left_out + step], new, generator)
        new = product(basis[:, step]).double()
        images[:, step] = new
    matrix = basis @ images.mT
    values, turn = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values, turn = values.flip(1), turn.mT.flip(1)
    vectors = turn @ basis
    return RitzPairs(values, vectors, (turn @ images - values[..., None] * vectors).norm(dim=2))


def _next(basis: Tensor, new: Tensor, generator: torch.Generator) -> Tensor:
    """The unit part of ``new`` (N, d) that is orthogonal to ``basis`` (N, k, d); of a random vector where none is."""
    found = _orthogonal(basis, new)
    lost = found.norm(dim=1) <= LOST * new.norm(dim=1)
    if bool(lost.any()):
        drawn = torch.randn(new.shape[1], generator=generator, dtype=torch.float64).to(new)
        found = torch.where(lost[:, None], _orthogonal(basis, drawn.expand_as(new)), found)
    return found / found.norm(dim=1, keepdim=True)


def _orthogonal(basis: Tensor, new: Tensor) -> Tensor:
    for _ in range(2):
        new = new - ((basis @ new[..., None]).mT @ basis)[:, 0]
    return new


def extreme_curvatures(
    model: Classifier,
    points: Images,
    *,
    labels: Labels,
    targets: Labels,
    steps: int = 30,
    h: Number | None = None,
    exact: bool = False,
    output: str = "logits",
    generator: Generators = None,
    tolerance: Number | None = None,
    at_once: int | None = None,
) -> RitzPairs:
    """The principal curvatures at both ends of each point's spectrum, and their directions, all points at once.

    Each point takes 2 ``steps`` gradients, and each pass holds one pair of every point, which is
    what makes it faster than :func:`robustness_geometry.geometry.leading_curvatures`; that one goes
    on until what it finds is accurate.

    Args:
        model: a classifier in evaluation mode.
        points: z, (N, C, H, W), on the boundary.
        labels: (N,) the classes on the images' own side.
        targets: (N,) the classes on the other side.
        steps: K, the products with each Hessian, 1 <= K < d; a sixth of them at either end are
            worth looking at.
        h: length of the central difference, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        exact: differentiate twice instead; for smooth networks.
        output: ``logits``, or ``softmax`` for f the probabilities.
        generator: draws the first vectors; one an image makes the result independent of the batch.
        tolerance: how far points may lie from the boundary, see
            :func:`robustness_geometry.geometry.normal_curvatures`.
        at_once: gradients in one pass; None: what suits the device.

    Returns:
        RitzPairs (N, K) of P H_F P / ||grad F||, in 1 / pixel units; the vectors are tangent.

    Raises:
        InputError: as :func:`robustness_geometry.geometry.normal_curvatures`, or ``steps`` out of
            range.
    """
    surface = Surface.checked(
        model,
        points,
        labels,
        targets,
        h=h,
        exact=exact,
        output=output,
        tolerance=tolerance,
        at_once=at_once,
    )
    first = normal(torch.empty_like(points), generator)

    def product(vectors: Tensor) -> Tensor:
        tangent = surface.project(vectors.to(points).view(len(points), 1, *points.shape[1:]))
        found = surface.project(surface.products(tangent))[:, 0]
        return found.flatten(1).double() / surface.sizes.double()[:, None]

    unit = surface.normals.flatten(1).double()
    return ritz_pairs(product, first.flatten(1), steps, null=unit / unit.norm(dim=1, keepdim=True))


def mean_hessian_ends(
    model: Classifier,
    points: Images,
    *,
    labels: Labels,
    targets: Labels,
    steps: int,
    h: Number | None = None,
    exact: bool = False,
    output: str = "logits",
    normalised: bool = False,
    generator: torch.Generator | None = None,
    tolerance: Number | None = None,
    at_once: int | None = None,
) -> RitzPairs:
    """Both ends of the spectrum of the average Hessian n^-1 sum_i P_i H_i P_i, which is never formed (Section 6.4.1).

    The first vectors span S_c, the last ones the subspace along which the boundary bends the other
    way. Each step takes 2 N gradients; memory grows with K d, not with N.

    Args:
        model: a classifier in evaluation mode.
        points: z_i, (N, C, H, W), on the boundary, N >= 1.
        labels: (N,) the classes on the images' own side.
        targets: (N,) the classes on the other side.
        steps: K, the products with the average, 1 <= K <= d.
        h: length of the central difference, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        exact: differentiate twice instead; for smooth networks.
        output: ``logits``, or ``softmax`` for f the probabilities.
        normalised: divide each Hessian by ||grad F||, so that images count by curvature, not by the
            size of logits.
        generator: draws the first vector; None starts from seed 0.
        tolerance: how far points may lie from the boundary, see
            :func:`robustness_geometry.geometry.normal_curvatures`.
        at_once: gradients in one pass; None: what suits the device.

    Returns:
        RitzPairs of one operator, (1, K).

    Raises:
        InputError: no points, ``steps`` not in 1..d, or as
            :func:`robustness_geometry.geometry.normal_curvatures`.
    """
    operator = hessian_operator(
        model,
        points,
        labels=labels,
        targets=targets,
        h=h,
        exact=exact,
        output=output,
        normalised=normalised,
        tolerance=tolerance,
        at_once=at_once,
    )
    start = torch.randn(1, operator.shape[0], generator=generator or seeded(0), dtype=torch.float64)
    return ritz_pairs(
        lambda vectors: torch.from_numpy(operator.matvec(vectors[0].numpy()))[None], start, steps
    )
