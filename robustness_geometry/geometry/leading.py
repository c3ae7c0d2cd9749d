"""Extreme curvatures without forming a Hessian, by Lanczos iterations on its products with vectors."""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from robustness_geometry.attacks.protocol import Number
from robustness_geometry.checks import check_choice, check_count, refuse
from robustness_geometry.geometry.curvature import Curvatures
from robustness_geometry.geometry.surface import Surface
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import Classifier, Images, Labels

__all__ = ["extreme_eigenpairs", "hessian_operator", "leading_curvatures"]

Array = NDArray[np.float64]
WHICH = ("largest", "smallest", "magnitude")
PRODUCTS = 15
"""Products with the Hessian a wanted eigenvalue: 150 for ten, which is less than a twentieth of d = 3,072."""

ACCURACY = 1e-3
"""Residual of an eigenpair at which it counts as found, as a share of the operator's size."""


def hessian_operator(
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
    tolerance: Number | None = None,
    at_once: int | None = None,
) -> LinearOperator:
    """The matrix of :func:`robustness_geometry.geometry.mean_hessian` as an operator that is never formed.

    v -> n^-1 sum_i P_i H_i P_i v takes 2 N gradients; SciPy's solvers and
    :func:`robustness_geometry.geometry.curved_directions` accept it. Differences over a finite h
    make it only nearly linear for a network that is not smooth.

    Args:
        model: a classifier in evaluation mode.
        points: z_i, (N, C, H, W), on the boundary, N >= 1.
        labels: (N,) the classes on the images' own side.
        targets: (N,) the classes on the other side.
        h: length of the central difference, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        exact: differentiate twice instead; for smooth networks.
        output: ``logits``, or ``softmax`` for f the probabilities.
        projected: put P on both sides of each Hessian.
        normalised: divide each Hessian by ||grad F||: for one point, the eigenvalues are then
            curvatures.
        tolerance: how far points may lie from the boundary, see
            :func:`robustness_geometry.geometry.normal_curvatures`.
        at_once: gradients in one pass; None: what suits the device.

    Returns:
        A float64 operator (d, d).

    Raises:
        InputError: no points, or as :func:`robustness_geometry.geometry.normal_curvatures`.
    """
    check_count("len(points)", len(points))
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
    return _operator(surface, projected=projected, normalised=normalised)


def _operator(surface: Surface, *, projected: bool, normalised: bool) -> LinearOperator:
    d, points = surface.dimension, surface.points

    def matvec(vector: Array) -> Array:
        image = torch.from_numpy(
            np.ascontiguousarray(vector, dtype=np.float64).reshape(points.shape[1:])
        )
        vectors = image.to(points).expand(len(points), 1, *points.shape[1:])
        products = surface.products(surface.project(vectors) if projected else vectors)
        products = surface.project(products) if projected else products
        weights = 1 / surface.sizes if normalised else torch.ones_like(surface.sizes)
        mean = torch.einsum("n,nd->d", weights.double(), products.flatten(1).double()) / len(points)
        return mean.cpu().numpy()

    return LinearOperator((d, d), matvec=matvec, dtype=np.float64)


def leading_curvatures(
    model: Classifier,
    points: Images,
    *,
    labels: Labels,
    targets: Labels,
    count: int = 10,
    which: str = "largest",
    h: Number | None = None,
    exact: bool = False,
    output: str = "logits",
    directions: bool = False,
    products: int | None = None,
    generator: Generators = None,
    tolerance: Number | None = None,
    at_once: int | None = None,
) -> Curvatures:
    """The principal curvatures at one end of the spectrum, by Lanczos iterations (Section 7.4).

    The matrix P H_F P / ||grad F|| is never formed: each point takes 2 gradients a product and at
    most ``products`` of them, however large d is.

    Args:
        model: a classifier in evaluation mode.
        points: z, (N, C, H, W), on the boundary.
        labels: (N,) the classes on the images' own side.
        targets: (N,) the classes on the other side.
        count: K, 1 <= K <= d - 1.
        which: ``largest`` (the most positive first), ``smallest`` (the most negative first), or
            ``magnitude``.
        h: length of the central difference, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        exact: differentiate twice instead; for smooth networks.
        output: ``logits``, or ``softmax`` for f the probabilities.
        directions: also return the principal directions.
        products: largest number of Hessian-vector products a point; None: 15 K.
        generator: draws the first vector of the iteration.
        tolerance: how far points may lie from the boundary, see
            :func:`robustness_geometry.geometry.normal_curvatures`.
        at_once: gradients in one pass; None: what suits the device.

    Returns:
        Curvatures (N, K), found to 1e-3 of the operator's size or better; NaN, last, for those that
        the products did not suffice for.

    Raises:
        InputError: ``count`` not in 1..d - 1, too few ``products``, or as
            :func:`robustness_geometry.geometry.normal_curvatures`.
    """
    check_choice("which", which, WHICH)
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
    d = surface.dimension
    _check(count, d - 1, products)
    starts = normal(points.new_empty(points.shape), generator).flatten(1).double().cpu().numpy()
    values, vectors = (
        np.empty((len(points), count)),
        np.empty((len(points), count if directions else 0, d)),
    )
    for index, start in enumerate(starts):
        one = surface.at(index)
        unit = one.normals.flatten().double().cpu().numpy()
        operator = _operator(one, projected=True, normalised=True)
        values[index], found = extreme_eigenpairs(
            operator, count, which, start, products=products, null=unit
        )
        vectors[index] = found[: vectors.shape[1]]
    curvatures = torch.from_numpy(values).to(points.device)
    return Curvatures(curvatures, torch.from_numpy(vectors).to(points) if directions else None)


def _check(count: int, most: int, products: int | None) -> None:
    if check_count("count", count) > most:
        refuse("count", count, f"a whole number from 1 to {most}")
    if products is not None and check_count("products", products) < count + 2:
        refuse("products", products, f"a whole number >= count + 2 = {count + 2}")


def extreme_eigenpairs(
    operator: LinearOperator,
    count: int,
    which: str,
    start: Array,
    *,
    products: int | None = None,
    null: Array | None = None,
) -> tuple[Array, Array]:
    """Eigenvalues (count,) and eigenvectors (count, d) at one end of a symmetric operator's spectrum.

    Args:
        operator: A, (d, d).
        count: 1 <= count < d.
        which: ``largest``, ``smallest`` or ``magnitude``.
        start: (d,) the first vector.
        products: largest number of products A v; None: 15 a wanted eigenvalue.
        null: a unit vector with A null = 0 whose eigenvalue is not wanted.

    Returns:
        The eigenpairs, the outermost first, NaN for those that were not found.
    """
    d = operator.shape[0]
    budget = (products or PRODUCTS * count) - 1
    start = start / np.linalg.norm(start)
    # E ||A v||^2 = ||A||_F^2 / d over unit vectors v.
    size = math.sqrt(d) * float(np.linalg.norm(operator.matvec(start)))
    if size == 0:
        return np.zeros(count), np.eye(count, d)
    if which == "magnitude":
        shifted, sign = operator, 1.0
    else:
        sign = 1.0 if which == "largest" else -1.0
        shifted = _shifted(operator, sign, size, null)
    values, vectors = _lanczos(
        shifted, count, "LM" if which == "magnitude" else "LA", start, budget
    )
    order = np.argsort(-np.abs(values) if which == "magnitude" else -values)
    found, rows = np.full(count, np.nan), np.full((count, d), np.nan)
    found[: len(order)] = sign * (values[order] - (0.0 if which == "magnitude" else size))
    rows[: len(order)] = vectors.T[order]
    return found, rows


def _shifted(
    operator: LinearOperator, sign: float, size: float, null: Array | None
) -> LinearOperator:
    """The operator sign A + size I, so that accuracy is relative to A's size; ``null`` moves below all others."""

    def matvec(vector: Array) -> Array:
        vector = vector.ravel()
        product = sign * operator.matvec(vector) + size * vector
        return product if null is None else product - 3 * size * (null @ vector) * null

    return LinearOperator(operator.shape, matvec=matvec, dtype=np.float64)


def _lanczos(
    operator: LinearOperator, count: int, end: Literal["LM", "LA"], start: Array, budget: int
) -> tuple[Array, Array]:
    """What ARPACK finds with about ``budget`` products, at least one restart included."""
    basis = min(operator.shape[0], max(count + 1, (budget + count) // 2))
    restarts = max(1, (budget - basis) // (basis - count))
    try:
        return eigsh(
            operator, count, which=end, v0=start, ncv=basis, maxiter=restarts, tol=ACCURACY, rng=0
        )
    except ArpackNoConvergence as error:
        return error.eigenvalues.real, error.eigenvectors.real
