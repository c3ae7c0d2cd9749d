"""Curvatures of the decision boundary F = f_target - f_label = 0 (Sections 6.4, 7.4 and 7.5).

The gradient of F points out of the region of the label. A curvature is positive where that region
lies, locally,
inside a ball, and negative where its complement does: a ball of radius R has 1 / R everywhere, seen
from its inside.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks.protocol import Number
from robustness_geometry.checks import check_choice, check_count
from robustness_geometry.geometry.normals import Directions
from robustness_geometry.geometry.surface import SpreadAxes, Surface, axes_of
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import Classifier, Images, Labels, PerImage

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
        values: (N, K) in 1 / pixel units, float64; NaN where one was not found.
        directions: (N, K, d) the principal directions, unit tangent vectors; None unless asked for.
    """

    values: Float[Tensor, "batch count"]
    directions: Float[Tensor, "batch count d"] | None = None


@dataclass(frozen=True)
class MeanCurvature:
    """An estimate of the mean curvature at several points.

    Attributes:
        values: (N,) in 1 / pixel units.
        standard_errors: (N,) of the values, from the spread over the directions drawn; NaN for a
            single one.
    """

    values: PerImage
    standard_errors: PerImage


def normal_curvatures(
    model: Classifier,
    points: Images,
    vectors: Directions | Float[Tensor, "count channels height width"],
    *,
    labels: Labels,
    targets: Labels,
    h: Number | None = None,
    exact: bool = False,
    output: str = "logits",
    normalised: bool = True,
    rescaled: bool = True,
    tolerance: Number | None = None,
    at_once: int | None = None,
) -> Float[Tensor, "batch count"]:
    """kappa(z, v) = u^T H_F u / ||grad F|| with u = P v / ||P v||, along chosen directions (Equation 7.2).

    It is the curvature of the boundary's section with the plane of the normal and v.

    Args:
        model: a classifier in evaluation mode.
        points: z, (N, C, H, W), on the boundary.
        vectors: v, (N, K, C, H, W), or (K, C, H, W) for the same ones at every point; only their
            tangent part counts.
        labels: (N,) the classes on the images' own side.
        targets: (N,) the classes on the other side.
        h: length of the central difference, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        exact: differentiate twice instead; for smooth networks.
        output: ``logits``, or ``softmax`` for f the probabilities.
        normalised: divide by ||grad F||; Equation 6.4 does not.
        rescaled: give P v the length one. Equations 7.3 and 7.4 give it to v, for values ||P v||^2
            / ||v||^2 times as large.
        tolerance: how far, |F| / ||grad F|| in pixel units, points may lie from the boundary; None:
            1e-3 of the default h; ``inf`` for points elsewhere.
        at_once: gradients in one pass; None: what suits the device.

    Returns:
        (N, K) in 1 / pixel units; NaN for a vector along the normal, or 0 if not rescaled.

    Raises:
        InputError: h <= 0, a point off the boundary (by how much), a target that equals its label,
            or logits that do not depend on the input.
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
    shared = vectors.ndim == points.ndim
    every = vectors.expand(len(points), *vectors.shape) if shared else vectors
    return _along(surface, every.detach().to(points), normalised=normalised, rescaled=rescaled)


def _along(
    surface: Surface, vectors: Directions, *, normalised: bool = True, rescaled: bool = True
) -> Float[Tensor, "batch count"]:
    tangent = surface.project(vectors)
    before, after = vectors.flatten(2).norm(dim=2), tangent.flatten(2).norm(dim=2)
    unit = tangent / after[..., None, None, None]
    values = (unit * surface.products(unit)).flatten(2).sum(dim=2)
    values = values / surface.sizes[:, None] if normalised else values
    values = values if rescaled else values * (after / before).square()
    # What is left of a vector along the normal is rounding, whose direction means nothing.
    lost = after <= torch.finfo(vectors.dtype).eps ** 0.5 * before
    return values.masked_fill(lost, torch.nan if rescaled else 0.0)


def mean_curvature(
    model: Classifier,
    points: Images,
    *,
    labels: Labels,
    targets: Labels,
    samples: int = 10,
    over: str = "tangent",
    generator: Generators = None,
    h: Number | None = None,
    exact: bool = False,
    output: str = "logits",
    tolerance: Number | None = None,
    at_once: int | None = None,
) -> MeanCurvature:
    """The mean of the curvature over random directions (Equation 7.4), with its standard error.

    For G = P H_F P / ||grad F||, directions uniform in the tangent space give tr(G) / (d - 1), the
    mean of the d - 1 principal curvatures. The thesis draws from the whole unit sphere, for which E
    v^T G v = tr(G) / d.

    Args:
        model: a classifier in evaluation mode.
        points: z, (N, C, H, W), on the boundary.
        labels: (N,) the classes on the images' own side.
        targets: (N,) the classes on the other side.
        samples: directions drawn for each point.
        over: ``tangent`` for tr(G) / (d - 1), ``sphere`` for tr(G) / d.
        generator: draws the directions; one for each image makes the result independent of the
            batch.
        h: length of the central difference, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        exact: differentiate twice instead; for smooth networks.
        output: ``logits``, or ``softmax`` for f the probabilities.
        tolerance: how far points may lie from the boundary, see :func:`normal_curvatures`.
        at_once: gradients in one pass; None: what suits the device.

    Returns:
        MeanCurvature.

    Raises:
        InputError: as :func:`normal_curvatures`.
    """
    check_count("samples", samples)
    check_choice("over", over, OVER)
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
    vectors = normal(points.new_empty(len(points), samples, *points.shape[1:]), generator)
    scale = 1.0 if over == "tangent" else (surface.dimension - 1) / surface.dimension
    found = scale * _along(surface, vectors)
    mean = found.mean(dim=1)
    squares = (found - mean[:, None]).square().sum(dim=1)
    return MeanCurvature(mean, (squares / (samples - 1) / samples).sqrt())


def principal_curvatures(
    model: Classifier,
    points: Images,
    *,
    labels: Labels,
    targets: Labels,
    h: Number | None = None,
    exact: bool = False,
    output: str = "logits",
    directions: bool = False,
    basis: str = "spread",
    tolerance: Number | None = None,
    at_once: int | None = None,
) -> Curvatures:
    """All principal curvatures: the eigenvalues of P H_F P / ||grad F|| in the tangent space (Section 7.4).

    The Hessian takes 2 d gradients a point and is symmetrised; the eigenvalues are computed in
    float64. One point needs some 40 d^2 bytes; see
    :func:`robustness_geometry.geometry.leading_curvatures` for large d.

    Where the network is not smooth, differences over a finite length are no linear function of the
    direction. The spectrum then depends on the basis that the Hessian is multiplied with; in a
    spread one, its mean is that of :func:`mean_curvature`. Its ends are larger than the curvatures
    along their own eigenvectors, which :func:`normal_curvatures` measures.

    Args:
        model: a classifier in evaluation mode.
        points: z, (N, C, H, W), on the boundary.
        labels: (N,) the classes on the images' own side.
        targets: (N,) the classes on the other side.
        h: length of the central difference, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        exact: differentiate twice instead; for smooth networks, as piecewise linear ones have no
            curvature then.
        output: ``logits``, or ``softmax`` for f the probabilities.
        directions: also return the principal directions.
        basis: what the Hessian is multiplied with: ``spread``, orthonormal vectors that move all
            pixels, as random directions do, or ``pixels``, each moved by all of h.
        tolerance: how far points may lie from the boundary, see :func:`normal_curvatures`.
        at_once: gradients in one pass; None: what suits the device.

    Returns:
        Curvatures with K = d - 1 (the normal, which has none, is left out), the largest first.

    Raises:
        InputError: as :func:`normal_curvatures`.
    """
    axes = axes_of(basis, points)
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
    found = [_spectrum(surface.at(index), axes, directions) for index in range(len(points))]
    d = surface.dimension
    if not found:
        empty = points.new_zeros(0, d - 1, dtype=torch.float64)
        return Curvatures(empty, points.new_zeros(0, d - 1, d) if directions else None)
    vectors = torch.stack([vectors for _, vectors in found]).to(points) if directions else None
    return Curvatures(torch.stack([values for values, _ in found]), vectors)


def _spectrum(surface: Surface, axes: SpreadAxes | None, directions: bool) -> tuple[Tensor, Tensor]:
    """Principal curvatures (d - 1,) at the only point of ``surface``, largest first, and directions (d - 1, d) or (0,).

    The reflection Q = I - b u u^T takes the normal to the first axis; the others then span the
    tangent space, and the normal's zero never enters the spectrum.
    """
    normal_ = surface.normals.flatten().double()
    normal_ = normal_ / normal_.norm()
    u = normal_.clone()
    u[0] += 1.0 if u[0] >= 0 else -1.0
    b = 2 / (u @ u)
    matrix = surface.hessian(axes)
    product = matrix @ u
    product = b * product - (b * b / 2) * (u @ product) * u
    tangent = (matrix - torch.outer(u, product) - torch.outer(product, u))[
        1:, 1:
    ] / surface.sizes.double()
    if not directions:
        return torch.linalg.eigvalsh(tangent).flip(0), tangent.new_zeros(0)
    values, vectors = torch.linalg.eigh(tangent)
    rows = torch.nn.functional.pad(vectors.T.flip(0), (1, 0))
    return values.flip(0), rows - b * torch.outer(rows @ u, u)


def mean_hessian(
    model: Classifier,
    points: Images,
    *,
    labels: Labels,
    targets: Labels,
    h: Number | None = None,
    exact: bool = False,
    output: str = "logits",
    projected: bool = True,
    normalised: bool = False,
    basis: str = "spread",
    tolerance: Number | None = None,
    at_once: int | None = None,
) -> Float[Tensor, "d d"]:
    """The average tangent-projected Hessian n^-1 sum_i P_i H_i P_i over boundary points (Section 6.4.1).

    Images are taken one after another: the memory, some 40 d^2 bytes, does not grow with their
    number. For large d see :func:`robustness_geometry.geometry.hessian_operator`.

    Args:
        model: a classifier in evaluation mode.
        points: z_i, (N, C, H, W), on the boundary, N >= 1.
        labels: (N,) the classes on the images' own side.
        targets: (N,) the classes on the other side.
        h: length of the central difference, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        exact: differentiate twice instead; for smooth networks.
        output: ``logits``, or ``softmax`` for f the probabilities.
        projected: put P on both sides of each Hessian; otherwise it stays as it is.
        normalised: divide each Hessian by ||grad F||, so that images count by curvature, not by the
            size of logits.
        basis: what the Hessian is multiplied with: ``spread``, orthonormal vectors that move all
            pixels, as random directions do, or ``pixels``, each moved by all of h.
        tolerance: how far points may lie from the boundary, see :func:`normal_curvatures`.
        at_once: gradients in one pass; None: what suits the device.

    Returns:
        (d, d), symmetric, float64.

    Raises:
        InputError: no points, or as :func:`normal_curvatures`.
    """
    check_count("len(points)", len(points))
    axes = axes_of(basis, points)
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
    total = points.new_zeros(surface.dimension, surface.dimension, dtype=torch.float64)
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
