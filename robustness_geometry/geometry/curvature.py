"""Curvatures of the decision boundary F = f_target - f_label = 0 (Sections 6.4, 7.4 and 7.5).

The gradient of F points out of the region of the label. A curvature is positive where that region
lies, locally, inside a ball, and negative where its complement does: a ball of radius R has 1 / R
everywhere, seen from its inside.
"""

from dataclasses import dataclass
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import GivenLabels, check_choice, check_count
from robustness_geometry.geometry.boundary import Boundary
from robustness_geometry.geometry.normals import Directions
from robustness_geometry.geometry.surface import CurvatureOptions, SpreadAxes, Surface, axes_of
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import Classifier, Images, PerImage

__all__ = [
    "Curvatures",
    "MeanCurvature",
    "mean_curvature",
    "mean_hessian",
    "normal_curvatures",
    "principal_curvatures",
]

OVER = ("tangent", "sphere")


@dataclass(frozen=True)
class Curvatures:
    """Principal curvatures of the boundary at several points.

    Attributes:
        values: (N, K) in 1 / pixel units, float64; NaN for a curvature that was not found.
        directions: (N, K, d) the principal directions, unit tangent vectors; None unless asked for.

    See :func:`principal_curvatures`, which returns it, for an example.
    """

    values: Float[Tensor, "batch count"]
    directions: Float[Tensor, "batch count d"] | None = None


@dataclass(frozen=True)
class MeanCurvature:
    """An estimate of the mean curvature at several points.

    Attributes:
        values: (N,) in 1 / pixel units.
        standard_errors: (N,) their standard errors, from the spread over the directions drawn; NaN
            for a single direction.

    See :func:`mean_curvature`, which returns it, for an example.
    """

    values: PerImage
    standard_errors: PerImage


def normal_curvatures(
    model: Classifier,
    points: Boundary | Images,
    vectors: Float[Tensor, "..."],
    *,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    normalised: bool = True,
    rescaled: bool = True,
    **options: Unpack[CurvatureOptions],
) -> Float[Tensor, "batch count"]:
    """The normal curvatures of the boundary along chosen directions (Equation 7.2).

    kappa(z, v) = u^T H_F u / ||grad F|| with u = P v / ||P v||, the curvature of the boundary's
    section with the plane of the normal and v.

    Args:
        model: a classifier in evaluation mode.
        points: z on the boundary: a Boundary, or images (N, C, H, W) with ``labels`` and
            ``targets``.
        vectors: v, (N, K, C, H, W), or (K, C, H, W) for the same ones at every point; only their
            tangent part counts.
        labels: (N,) the classes on the images' own side; a Boundary brings them.
        targets: (N,) the classes on the other side; a Boundary brings them.
        normalised: divide by ||grad F||; Equation 6.4 does not.
        rescaled: give P v the length one. Equations 7.3 and 7.4 give it to v, for values ||P v||^2
            / ||v||^2 times as large.
        **options: h, exact, output, tolerance and at_once, see :class:`CurvatureOptions`.

    Returns:
        (N, K) in 1 / pixel units; NaN for a vector along the normal, or 0 if not rescaled.

    Raises:
        InputError: h <= 0, a point off the boundary (by how much), a target that equals its label,
            logits that do not depend on the input, or labels and targets beside a Boundary.

    References:
        Thesis, Section 7.4, Equation 7.2; Equations 6.4, 7.3 and 7.4 by the options above.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points, normal_curvatures
        >>> ball, image = Ball(radius=2.0), torch.tensor([0.5, 0.0, 0.0]).view(1, 1, 1, 3)
        >>> vectors = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]).view(2, 1, 1, 3)
        >>> found = normal_curvatures(ball, boundary_points(ball, image), vectors)
        >>> [round(value, 3) for value in found[0].tolist()]
        [0.5, 0.5]
    """
    surface = Surface.checked(model, points, labels, targets, **options)
    shared = vectors.ndim == surface.points.ndim
    every = vectors.expand(len(points), *vectors.shape) if shared else vectors
    every = every.detach().to(surface.points)
    return _along(surface, every, normalised=normalised, rescaled=rescaled)


def _along(
    surface: Surface, vectors: Directions, *, normalised: bool = True, rescaled: bool = True
) -> Float[Tensor, "batch count"]:
    # u = P v / ||P v|| and u^T H u / ||grad F||.
    tangent = surface.project(vectors)
    before, after = vectors.flatten(2).norm(dim=2), tangent.flatten(2).norm(dim=2)
    unit = tangent / after.view(*after.shape, *[1] * (tangent.ndim - 2))
    values = (unit * surface.products(unit)).flatten(2).sum(dim=2)
    values = values / surface.sizes[:, None] if normalised else values
    values = values if rescaled else values * (after / before).square()
    # What is left of a vector along the normal is rounding, whose direction means nothing.
    lost = after <= torch.finfo(vectors.dtype).eps ** 0.5 * before
    return values.masked_fill(lost, torch.nan if rescaled else 0.0)


def mean_curvature(
    model: Classifier,
    points: Boundary | Images,
    *,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    samples: int = 10,
    over: str = "tangent",
    generator: Generators = None,
    **options: Unpack[CurvatureOptions],
) -> MeanCurvature:
    """The mean of the curvature over random directions (Equation 7.4), with its standard error.

    For G = P H_F P / ||grad F||, directions uniform in the tangent space give tr(G) / (d - 1), the
    mean of the d - 1 principal curvatures. The thesis draws from the whole unit sphere, for which E
    v^T G v = tr(G) / d.

    Args:
        model: a classifier in evaluation mode.
        points: z on the boundary: a Boundary, or images (N, C, H, W) with ``labels`` and
            ``targets``.
        labels: (N,) the classes on the images' own side; a Boundary brings them.
        targets: (N,) the classes on the other side; a Boundary brings them.
        samples: number of directions drawn per point.
        over: ``tangent`` for tr(G) / (d - 1), ``sphere`` for tr(G) / d.
        generator: draws the directions; one per image makes results independent of the batch.
        **options: h, exact, output, tolerance and at_once, see :class:`CurvatureOptions`.

    Returns:
        MeanCurvature.

    Raises:
        InputError: ``samples`` below 1, another ``over``, or as :func:`normal_curvatures`.

    References:
        Thesis, Section 7.5, Equation 7.4 (there with F_i at the image itself).
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points, mean_curvature
        >>> ball, image = Ball(radius=2.0), torch.tensor([0.5, 0.0, 0.0]).view(1, 1, 1, 3)
        >>> near = boundary_points(ball, image)
        >>> round(mean_curvature(ball, near).values.item(), 3)
        0.5
        >>> round(mean_curvature(ball, near, over="sphere").values.item(), 3)
        0.333
    """
    check_count("samples", samples)
    check_choice("over", over, OVER)
    surface = Surface.checked(model, points, labels, targets, **options)
    z = surface.points
    # The tangent parts of Gaussian vectors are uniform in direction.
    vectors = normal(z.new_empty(len(z), samples, *z.shape[1:]), generator)
    scale = 1.0 if over == "tangent" else (surface.dimension - 1) / surface.dimension
    curvatures = scale * _along(surface, vectors)
    mean = curvatures.mean(dim=1)
    squares = (curvatures - mean[:, None]).square().sum(dim=1)
    return MeanCurvature(mean, (squares / (samples - 1) / samples).sqrt())


def principal_curvatures(
    model: Classifier,
    points: Boundary | Images,
    *,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    directions: bool = False,
    basis: str = "spread",
    **options: Unpack[CurvatureOptions],
) -> Curvatures:
    """All principal curvatures: the eigenvalues of P H_F P / ||grad F|| in the tangent space.

    The Hessian takes 2 d gradients per point and is symmetrised; its eigenvalues are computed in
    float64. One point needs some 40 d^2 bytes; for large d see
    :func:`robustness_geometry.geometry.leading_curvatures`.

    Where the network is not smooth, differences over a finite length are no linear function of the
    direction. The spectrum then depends on the basis that the Hessian is multiplied with; in a
    spread one, its mean is that of :func:`mean_curvature`. Its ends are larger than the curvatures
    along their own eigenvectors, which :func:`normal_curvatures` measures.

    Args:
        model: a classifier in evaluation mode.
        points: z on the boundary: a Boundary, or images (N, C, H, W) with ``labels`` and
            ``targets``.
        labels: (N,) the classes on the images' own side; a Boundary brings them.
        targets: (N,) the classes on the other side; a Boundary brings them.
        directions: also return the principal directions.
        basis: what the Hessian is multiplied with: ``spread``, orthonormal vectors that move all
            pixels, as random directions do, or ``pixels``, each moved by all of h.
        **options: h, exact, output, tolerance and at_once, see :class:`CurvatureOptions`.

    Returns:
        Curvatures with K = d - 1, the largest first; the normal has none and is left out.

    Raises:
        InputError: another basis, or as :func:`normal_curvatures`.

    References:
        Thesis, Section 7.4.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points, principal_curvatures
        >>> ball, image = Ball(radius=2.0), torch.tensor([0.5, 0.0, 0.0]).view(1, 1, 1, 3)
        >>> found = principal_curvatures(ball, boundary_points(ball, image))
        >>> [round(value, 3) for value in found.values[0].tolist()]
        [0.5, 0.5]
    """
    surface = Surface.checked(model, points, labels, targets, **options)
    z, d = surface.points, surface.dimension
    axes = axes_of(basis, z)
    spectra = [_spectrum(surface.at(index), axes, directions) for index in range(len(z))]
    if not spectra:
        empty = z.new_zeros(0, d - 1, dtype=torch.float64)
        return Curvatures(empty, z.new_zeros(0, d - 1, d) if directions else None)
    vectors = torch.stack([vectors for _, vectors in spectra]).to(z) if directions else None
    return Curvatures(torch.stack([values for values, _ in spectra]), vectors)


def _spectrum(surface: Surface, axes: SpreadAxes | None, directions: bool) -> tuple[Tensor, Tensor]:
    """Curvatures (d - 1,) at the only point, the largest first, and their directions (d - 1, d).

    The reflection Q = I - b u u^T takes the normal to the first axis; the others then span the
    tangent space, and the normal's zero never enters the spectrum. Without ``directions``, those
    are empty.
    """
    normal_ = surface.normals.flatten().double()
    normal_ = normal_ / normal_.norm()
    u = normal_.clone()
    u[0] += 1.0 if u[0] >= 0 else -1.0
    b = 2 / (u @ u)
    matrix = surface.hessian(axes)
    # Q H Q = H - u p^T - p u^T with p = b H u - b^2 / 2 (u^T H u) u. Its first row and column
    # belong to the normal.
    product = matrix @ u
    product = b * product - (b * b / 2) * (u @ product) * u
    tangent = (matrix - torch.outer(u, product) - torch.outer(product, u))[
        1:, 1:
    ] / surface.sizes.double()
    if not directions:
        return torch.linalg.eigvalsh(tangent).flip(0), tangent.new_zeros(0)
    # Eigenvectors back in the coordinates of the image: a zero for the normal, then Q.
    values, vectors = torch.linalg.eigh(tangent)
    rows = torch.nn.functional.pad(vectors.T.flip(0), (1, 0))
    return values.flip(0), rows - b * torch.outer(rows @ u, u)


def mean_hessian(
    model: Classifier,
    points: Boundary | Images,
    *,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    projected: bool = True,
    normalised: bool = False,
    basis: str = "spread",
    **options: Unpack[CurvatureOptions],
) -> Float[Tensor, "d d"]:
    """The average tangent-projected Hessian n^-1 sum_i P_i H_i P_i over boundary points.

    Images are taken one after another: the memory, some 40 d^2 bytes, does not grow with their
    number. For large d see :func:`robustness_geometry.geometry.hessian_operator`.

    Args:
        model: a classifier in evaluation mode.
        points: z_i on the boundary, at least one: a Boundary, or images (N, C, H, W) with
            ``labels`` and ``targets``.
        labels: (N,) the classes on the images' own side; a Boundary brings them.
        targets: (N,) the classes on the other side; a Boundary brings them.
        projected: put P on both sides of each Hessian; otherwise it stays as it is.
        normalised: divide each Hessian by ||grad F||, so that images count by their curvature and
            not by the size of their logits.
        basis: what the Hessian is multiplied with, see :func:`principal_curvatures`.
        **options: h, exact, output, tolerance and at_once, see :class:`CurvatureOptions`.

    Returns:
        (d, d), symmetric, float64.

    Raises:
        InputError: no points, another basis, or as :func:`normal_curvatures`.

    References:
        Thesis, Section 6.4.1.
        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard and S. Soatto, "Robustness of
        classifiers to universal perturbations: a geometric perspective", ICLR 2018,
        arXiv:1705.09554.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points, mean_hessian
        >>> ball, image = Ball(radius=2.0), torch.tensor([0.5, 0.0]).view(1, 1, 1, 2)
        >>> found = mean_hessian(ball, boundary_points(ball, image))
        >>> [[round(value, 3) for value in row] for row in found.abs().tolist()]
        [[0.0, 0.0], [0.0, 2.0]]
    """
    check_count("len(points)", len(points))
    surface = Surface.checked(model, points, labels, targets, **options)
    axes = axes_of(basis, surface.points)
    total = surface.points.new_zeros(surface.dimension, surface.dimension, dtype=torch.float64)
    for index in range(len(points)):
        one = surface.at(index)
        matrix = one.hessian(axes)
        matrix = _projected(matrix, one.normals) if projected else matrix
        total += matrix / one.sizes.double() if normalised else matrix
    return total / len(points)


def _projected(matrix: Tensor, normal_: Images) -> Tensor:
    """P H P = H - n (n^T H) - (H n) n^T + n (n^T H n) n^T, in place of the symmetric H."""
    unit = normal_.flatten().double()
    unit = unit / unit.norm()
    product = matrix @ unit
    product = product - (unit @ product) / 2 * unit
    return matrix.addr_(unit, product, alpha=-1).addr_(product, unit, alpha=-1)
