"""Extreme curvatures without forming a Hessian, by Lanczos iterations on its products."""

import math
from typing import Literal, Protocol, Unpack, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from robustness_geometry.checks import GivenLabels, check_choice, check_count, refuse
from robustness_geometry.geometry.boundary import Boundary
from robustness_geometry.geometry.curvature import Curvatures
from robustness_geometry.geometry.surface import CurvatureOptions, Surface
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import Classifier, Images

__all__ = ["SymmetricOperator", "extreme_eigenpairs", "hessian_operator", "leading_curvatures"]

Array = NDArray[np.float64]
WHICH = ("largest", "smallest", "magnitude")
PRODUCTS = 15
"""Default number of products per wanted eigenvalue: 150 for ten, below a twentieth of d = 3,072."""

ACCURACY = 1e-3
"""Residual of an eigenpair at which it counts as found, as a share of the operator's size."""


@runtime_checkable
class SymmetricOperator(Protocol):
    """A symmetric matrix that is known by its products, as SciPy's ``LinearOperator`` is."""

    @property
    def shape(self) -> tuple[int, int]:
        """The dimensions (d, d)."""
        ...

    def matvec(self, vector: Array, /) -> Array:
        """The product (d,) with a vector (d,), in float64."""
        ...


def hessian_operator(
    model: Classifier,
    points: Boundary | Images,
    *,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    projected: bool = True,
    normalised: bool = False,
    **options: Unpack[CurvatureOptions],
) -> SymmetricOperator:
    """The matrix of :func:`robustness_geometry.geometry.mean_hessian`, without forming it.

    v -> n^-1 sum_i P_i H_i P_i v takes 2 N gradients. The result is a SciPy ``LinearOperator``:
    SciPy's solvers and :func:`robustness_geometry.geometry.curved_directions` accept it.
    Differences over a finite h make it only nearly linear for a network that is not smooth.

    Args:
        model: a classifier in evaluation mode.
        points: z_i on the boundary, at least one: a Boundary, or images (N, C, H, W) with
            ``labels`` and ``targets``.
        labels: (N,) the classes on the images' own side; a Boundary brings them.
        targets: (N,) the classes on the other side; a Boundary brings them.
        projected: put P on both sides of each Hessian.
        normalised: divide each Hessian by ||grad F||: for one point, the eigenvalues are then
            curvatures.
        **options: h, exact, output, tolerance and at_once, see
            :class:`robustness_geometry.geometry.CurvatureOptions`.

    Returns:
        A float64 operator (d, d).

    Raises:
        InputError: no points, or as :func:`robustness_geometry.geometry.normal_curvatures`.

    References:
        Thesis, Section 6.4.1.
        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard and S. Soatto, "Robustness of
        classifiers to universal perturbations: a geometric perspective", ICLR 2018,
        arXiv:1705.09554.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points, hessian_operator
        >>> ball, image = Ball(radius=2.0), torch.tensor([0.5, 0.0]).view(1, 1, 1, 2)
        >>> operator = hessian_operator(ball, boundary_points(ball, image))
        >>> [round(abs(value), 3) for value in operator.matvec([1.0, 1.0]).tolist()]
        [0.0, 2.0]
    """
    check_count("len(points)", len(points))
    surface = Surface.checked(model, points, labels, targets, **options)
    return _operator(surface, projected=projected, normalised=normalised)


def _operator(surface: Surface, *, projected: bool, normalised: bool) -> SymmetricOperator:
    from scipy.sparse.linalg import LinearOperator  # here, because it takes half a second

    d, points = surface.dimension, surface.points

    def matvec(vector: Array) -> Array:
        image = torch.from_numpy(
            np.ascontiguousarray(vector, dtype=np.float64).reshape(points.shape[1:])
        )
        # The same vector at every point, projected before and after the product if wanted.
        vectors = image.to(points).expand(len(points), 1, *points.shape[1:])
        products = surface.products(surface.project(vectors) if projected else vectors)
        products = surface.project(products) if projected else products
        weights = 1 / surface.sizes if normalised else torch.ones_like(surface.sizes)
        mean = torch.einsum("n,nd->d", weights.double(), products.flatten(1).double()) / len(points)
        return mean.cpu().numpy()

    return LinearOperator((d, d), matvec=matvec, dtype=np.float64)


def leading_curvatures(
    model: Classifier,
    points: Boundary | Images,
    *,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    count: int = 10,
    which: str = "largest",
    directions: bool = False,
    products: int | None = None,
    generator: Generators = None,
    **options: Unpack[CurvatureOptions],
) -> Curvatures:
    """The principal curvatures at one end of the spectrum, by Lanczos iterations (Section 7.4).

    The matrix P H_F P / ||grad F|| is never formed: each point takes at most ``products`` products
    of 2 gradients, however large d is.

    Args:
        model: a classifier in evaluation mode.
        points: z on the boundary: a Boundary, or images (N, C, H, W) with ``labels`` and
            ``targets``.
        labels: (N,) the classes on the images' own side; a Boundary brings them.
        targets: (N,) the classes on the other side; a Boundary brings them.
        count: K, 1 <= K <= d - 1.
        which: ``largest`` (the most positive first), ``smallest`` (the most negative first), or
            ``magnitude``.
        directions: also return the principal directions.
        products: largest number of Hessian-vector products per point; None: 15 K.
        generator: draws the first vector of the iteration.
        **options: h, exact, output, tolerance and at_once, see
            :class:`robustness_geometry.geometry.CurvatureOptions`.

    Returns:
        Curvatures (N, K), found to 1e-3 of the operator's size or better; NaN, last, for those that
        the products did not suffice for.

    Raises:
        InputError: ``count`` not in 1..d - 1, too few ``products``, or as
            :func:`robustness_geometry.geometry.normal_curvatures`.

    References:
        Thesis, Section 7.4, for the principal curvatures; the iteration is ARPACK's: R. B. Lehoucq,
        D. C. Sorensen and C. Yang, "ARPACK users' guide", SIAM, 1998.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points, leading_curvatures
        >>> ball, image = Ball(radius=2.0), torch.full((1, 1, 2, 4), 0.5)
        >>> found = leading_curvatures(ball, boundary_points(ball, image), count=2)
        >>> [round(value, 2) for value in found.values[0].tolist()]
        [0.5, 0.5]
    """
    check_choice("which", which, WHICH)
    surface = Surface.checked(model, points, labels, targets, **options)
    d = surface.dimension
    _check(count, d - 1, products)
    z = surface.points
    starts = normal(z.new_empty(z.shape), generator).flatten(1).double().cpu().numpy()
    values = np.empty((len(z), count))
    vectors = np.empty((len(z), count if directions else 0, d))
    for index, start in enumerate(starts):
        one = surface.at(index)
        unit = one.normals.flatten().double().cpu().numpy()
        operator = _operator(one, projected=True, normalised=True)
        values[index], found = extreme_eigenpairs(
            operator, count, which, start, products=products, null=unit
        )
        vectors[index] = found[: vectors.shape[1]]
    curvatures = torch.from_numpy(values).to(z.device)
    return Curvatures(curvatures, torch.from_numpy(vectors).to(z) if directions else None)


def _check(count: int, most: int, products: int | None) -> None:
    if check_count("count", count) > most:
        refuse("count", count, f"a whole number from 1 to {most}")
    if products is not None and check_count("products", products) < count + 2:
        refuse("products", products, f"a whole number >= count + 2 = {count + 2}")


def extreme_eigenpairs(
    operator: SymmetricOperator,
    count: int,
    which: str,
    start: Array,
    *,
    products: int | None = None,
    null: Array | None = None,
) -> tuple[Array, Array]:
    """Eigenvalues (count,) and eigenvectors (count, d) at one end of an operator's spectrum.

    Args:
        operator: A, (d, d).
        count: 1 <= count < d.
        which: ``largest``, ``smallest`` or ``magnitude``.
        start: (d,) the first vector.
        products: largest number of products A v; None: 15 per wanted eigenvalue.
        null: a unit vector with A null = 0 whose eigenvalue is not wanted.

    Returns:
        The eigenpairs, the outermost first, NaN for those that were not found.

    References:
        R. B. Lehoucq, D. C. Sorensen and C. Yang, "ARPACK users' guide", SIAM, 1998.

    Example:
        >>> import numpy as np
        >>> from scipy.sparse.linalg import aslinearoperator
        >>> from robustness_geometry.geometry.leading import extreme_eigenpairs
        >>> operator = aslinearoperator(np.diag([3.0, -1.0, 2.0, 0.0, 1.0]))
        >>> values, vectors = extreme_eigenpairs(operator, 2, "largest", np.ones(5))
        >>> values.round(2).tolist()
        [3.0, 2.0]
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
    # ARPACK may return fewer pairs than wanted.
    found, rows = np.full(count, np.nan), np.full((count, d), np.nan)
    found[: len(order)] = sign * (values[order] - (0.0 if which == "magnitude" else size))
    rows[: len(order)] = vectors.T[order]
    return found, rows


def _shifted(
    operator: SymmetricOperator, sign: float, size: float, null: Array | None
) -> SymmetricOperator:
    """The operator sign A + size I, which makes the wanted end the largest in magnitude.

    Accuracy is then relative to the size of A; ``null`` moves below all others.
    """
    from scipy.sparse.linalg import LinearOperator  # here, because it takes half a second

    def matvec(vector: Array) -> Array:
        vector = vector.ravel()
        product = sign * operator.matvec(vector) + size * vector
        return product if null is None else product - 3 * size * (null @ vector) * null

    return LinearOperator(operator.shape, matvec=matvec, dtype=np.float64)


def _lanczos(
    operator: SymmetricOperator, count: int, end: Literal["LM", "LA"], start: Array, budget: int
) -> tuple[Array, Array]:
    """What ARPACK finds with about ``budget`` products, at least one restart included."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # see above

    # Half of the products build the basis, the others its restarts.
    basis = min(operator.shape[0], max(count + 1, (budget + count) // 2))
    restarts = max(1, (budget - basis) // (basis - count))
    matrix = LinearOperator(operator.shape, matvec=operator.matvec, dtype=np.float64)
    try:
        return eigsh(
            matrix, count, which=end, v0=start, ncv=basis, maxiter=restarts, tol=ACCURACY, rng=0
        )
    except ArpackNoConvergence as error:
        return error.eigenvalues.real, error.eigenvectors.real
