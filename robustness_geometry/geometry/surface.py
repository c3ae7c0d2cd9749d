"""The decision boundary at given points, with what every curvature there needs."""

import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks.protocol import Number
from robustness_geometry.checks import NOTHING, Described, GivenLabels, check_choice, refuse
from robustness_geometry.geometry.boundary import Boundary, allowed_distance
from robustness_geometry.geometry.hessian import Stencil
from robustness_geometry.geometry.normals import Directions, Margin, normals_of, tangent_projection
from robustness_geometry.geometry.subspaces import dct_band
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Images, PerImage

__all__ = ["CurvatureOptions", "SpreadAxes", "Surface", "axes_of"]

BASES = ("pixels", "spread")
"""What Hessians are multiplied with: single pixels, or orthonormal vectors spread over all."""


class CurvatureOptions(TypedDict, total=False):
    """The keyword arguments that all curvature functions share.

    Attributes:
        h: length of the central difference by which second derivatives are taken, in pixel l2
            units; None: :func:`robustness_geometry.geometry.default_h`.
        exact: differentiate twice instead. This is for smooth networks only: piecewise linear ones
            have no curvature then. Default: False.
        output: ``logits`` (the default), or ``softmax`` for f the probabilities.
        tolerance: how far, |F| / ||grad F|| in pixel units, points may lie from the boundary;
            None: 1e-3 of the default h; ``inf`` for points anywhere.
        at_once: number of gradients in one pass, which does not affect results; None: as many as
            suit the device.

    Example:
        >>> from robustness_geometry.geometry import Ball, boundary_points, principal_curvatures
        >>> import torch
        >>> ball = Ball(radius=2.0)
        >>> near = boundary_points(ball, torch.tensor([0.5, 0.0]).view(1, 1, 1, 2))
        >>> found = principal_curvatures(ball, near, h=0.1, at_once=8)
        >>> [round(value, 3) for value in found.values.flatten().tolist()]
        [0.5]
    """

    h: Number | None
    exact: bool
    output: str
    tolerance: Number | None
    at_once: int | None


@dataclass(frozen=True)
class Surface:
    """The boundary at given points.

    Attributes:
        margin: F.
        points: z, (N, C, H, W).
        normals: n, (N, C, H, W).
        sizes: ||grad F(z)||, (N,).
        stencil: how products with the Hessian are taken.
    """

    margin: Margin
    points: Images
    normals: Images
    sizes: PerImage
    stencil: Stencil

    @classmethod
    def checked(
        cls,
        model: Classifier,
        points: Boundary | Images,
        labels: GivenLabels,
        targets: GivenLabels,
        *,
        h: Number | None = None,
        exact: bool = False,
        output: str = "logits",
        tolerance: Number | None = None,
        at_once: int | None = None,
    ) -> "Surface":
        """The boundary at points, after a check that they lie on it.

        Args:
            model: a classifier in evaluation mode.
            points: z, a Boundary, or images (N, C, H, W) that need ``labels`` and ``targets``.
            labels: (N,) the classes on the images' own side; None with a Boundary.
            targets: (N,) the classes on the other side; None with a Boundary.
            h: see :class:`CurvatureOptions`, as for all that follow.
            exact: likewise.
            output: likewise.
            tolerance: likewise.
            at_once: likewise.

        Raises:
            InputError: an option or a point that cannot be used, or a point off the boundary, and
                how far off.
        """
        points, labels, targets = _unpacked(points, labels, targets)
        margin = Margin.checked(model, points, labels, targets, output)
        stencil = Stencil(model, points, h, exact=exact, at_once=at_once)
        allowed = allowed_distance(points, tolerance)
        points = points.detach()
        normals, sizes, distances = normals_of(margin, points, at_once=at_once)
        off = int((~(distances.abs() <= allowed)).sum())
        if off:
            refuse(
                "points",
                Described(
                    f"{off} of {len(points)} not on the boundary, the farthest "
                    f"{float(distances.abs().max()):.3g} away"
                ),
                f"within |F| / ||grad F|| <= {allowed:.3g} pixel units (tolerance) of the boundary",
            )
        return cls(margin, points, normals, sizes, stencil)

    @property
    def dimension(self) -> int:
        """The number d of pixels and channels."""
        return self.points.shape[1:].numel()

    def at(self, index: int) -> "Surface":
        """The boundary at one of the points."""
        row = slice(index, index + 1)
        margin = Margin(
            self.margin.model, self.margin.labels[row], self.margin.targets[row], self.margin.output
        )
        return Surface(margin, self.points[row], self.normals[row], self.sizes[row], self.stencil)

    def project(self, vectors: Directions) -> Directions:
        """The tangent parts of vectors (N, K, C, H, W)."""
        return tangent_projection(vectors, self.normals)

    def products(self, vectors: Directions) -> Directions:
        """The Hessian's products with vectors (N, K, C, H, W)."""
        return self.stencil.products(self.margin, self.points, vectors)

    def hessian(self, axes: "SpreadAxes | None" = None) -> Float[Tensor, "d d"]:
        """The Hessian of F at the only point, symmetrised, in float64.

        Args:
            axes: what it is multiplied with; None: single pixels.
        """
        d = self.dimension
        rows = (
            torch.eye(d, dtype=self.points.dtype, device=self.points.device)
            if axes is None
            else axes.rows
        )
        products = self.products(rows.view(1, d, *self.points.shape[1:])).view(d, d)
        matrix = (products if axes is None else axes.combine(products)).double()
        # Differences over a finite length give no symmetric matrix where F is not quadratic.
        return (matrix + matrix.T).div_(2)


class SpreadAxes:
    """An orthonormal basis whose vectors each move all pixels by about the same amount.

    The vectors are products of cosines of rows and of columns, all with one set of random signs, so
    that sums over them need no product of large matrices.

    Attributes:
        rows: a_j, (d, d).
    """

    def __init__(self, points: Images) -> None:
        *others, width = points.shape[1:]
        sides = (math.prod(others), width)
        self._factors = [
            dct_band((1, side, 1), 0, side, dtype=torch.float64).to(points) for side in sides
        ]
        drawn = torch.randint(2, (sides[0] * sides[1],), generator=seeded("axes", *sides))
        self._signs = (2 * drawn - 1).to(points)
        self.rows = torch.kron(*self._factors) * self._signs

    def combine(self, products: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
        """sum_j a_j p_j^T for the rows p_j of ``products``."""
        # The rows are Kronecker products: two small sums replace one product of (d, d) matrices.
        first, second = self._factors
        half = torch.einsum("ar,abx->rbx", first, products.view(len(first), len(second), -1))
        return (
            torch.einsum("bc,rbx->rcx", second, half).reshape(products.shape) * self._signs[:, None]
        )


def axes_of(basis: str, points: Images) -> SpreadAxes | None:
    """The vectors that the Hessians at ``points`` are multiplied with; None for single pixels.

    Raises:
        InputError: another basis.
    """
    return None if check_choice("basis", basis, BASES) == "pixels" else SpreadAxes(points)


def _unpacked(
    points: Boundary | Images, labels: GivenLabels, targets: GivenLabels
) -> tuple[Images, GivenLabels, GivenLabels]:
    """The images, labels and targets of a Boundary, or of bare images given with both.

    Raises:
        InputError: classes beside a Boundary, bare images without them, or a Boundary of images
            that have no point.
    """
    if not isinstance(points, Boundary):
        if labels is None or targets is None:
            given = "given with bare images (only a Boundary brings its own)"
            refuse("labels and targets", NOTHING, given)
        return points, labels, targets
    if labels is not None or targets is not None:
        refuse("labels and targets", Described("both"), "left out with a Boundary, which has them")
    lost = int((~points.success).sum())
    if lost:
        missing = Described(f"{lost} of {len(points)} images without a point")
        refuse("points", missing, "a Boundary whose images all have a point: see Boundary.found")
    return points.points, points.labels, points.targets
