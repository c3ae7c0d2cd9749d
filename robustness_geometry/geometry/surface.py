"""The decision boundary at given points, with what every curvature there needs."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks.protocol import Number
from robustness_geometry.checks import check_choice, number, refuse
from robustness_geometry.geometry.hessian import Stencil, default_h
from robustness_geometry.geometry.normals import Directions, Margin, normals_of, tangent_projection
from robustness_geometry.geometry.subspaces import dct_band
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Images, Labels, PerImage

__all__ = ["SpreadAxes", "Surface", "allowed_distance", "axes_of"]

BASES = ("pixels", "spread")
"""What Hessians are multiplied with: single pixels, or orthonormal vectors spread over all of them."""

ON_BOUNDARY = 1e-3
"""How far from the boundary a point may be by default, as a share of the default h."""


def allowed_distance(points: Images, tolerance: Number | None) -> float:
    """How far points may lie from the boundary, in pixel units: ``tolerance``, or 1e-3 of the default h."""
    if tolerance is None:
        return ON_BOUNDARY * default_h(points.shape[1:].numel())
    allowed = number("tolerance", tolerance)
    if math.isnan(allowed) or allowed <= 0:
        refuse("tolerance", tolerance, "a number > 0, or inf")
    return allowed


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
        points: Images,
        labels: Labels,
        targets: Labels,
        *,
        h: Number | None,
        exact: bool,
        output: str,
        tolerance: Number | None,
        at_once: int | None,
    ) -> "Surface":
        """The boundary at points that are held to lie on it.

        Raises:
            InputError: an option or a point that cannot be used, or a point off the boundary, and
                how far off.
        """
        margin = Margin.checked(model, points, labels, targets, output)
        stencil = Stencil(model, points, h, exact=exact, at_once=at_once)
        allowed = allowed_distance(points, tolerance)
        points = points.detach()
        normals, sizes, distances = normals_of(margin, points, at_once=at_once)
        off = int((~(distances.abs() <= allowed)).sum())
        if off:
            refuse(
                "points",
                f"{off} of {len(points)} not on the boundary, the farthest "
                f"{float(distances.abs().max()):.3g} away",
                f"|F| / ||grad F|| of at most {allowed:.3g} pixel units (tolerance)",
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
        """The Hessian of F at the only point, from its products with ``axes`` (None: single pixels); float64.

        It is symmetrised, as differences over a length h are not symmetric.
        """
        d = self.dimension
        rows = (
            torch.eye(d, dtype=self.points.dtype, device=self.points.device)
            if axes is None
            else axes.rows
        )
        products = self.products(rows.view(1, d, *self.points.shape[1:])).view(d, d)
        matrix = (products if axes is None else axes.combine(products)).double()
        return (matrix + matrix.T).div_(2)


class SpreadAxes:
    """An orthonormal basis of the image space, each vector of which moves all pixels by about as much.

    They are the products of cosines of rows and of columns, all with one set of random signs, so
    that sums over them need no product of large matrices.

    Attributes:
        rows: a_j, (d, d).
    """

    def __init__(self, points: Images) -> None:
        channels, height, width = points.shape[1:]
        sides = (channels * height, width)
        self._factors = [
            dct_band((1, side, 1), 0, side, dtype=torch.float64).to(points) for side in sides
        ]
        drawn = torch.randint(2, (sides[0] * sides[1],), generator=seeded("axes", *sides))
        self._signs = (2 * drawn - 1).to(points)
        self.rows = torch.kron(*self._factors) * self._signs

    def combine(self, products: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
        """sum_j a_j p_j^T for the rows p_j of ``products``."""
        first, second = self._factors
        half = torch.einsum("ar,abx->rbx", first, products.view(len(first), len(second), -1))
        return (
            torch.einsum("bc,rbx->rcx", second, half).reshape(products.shape) * self._signs[:, None]
        )


def axes_of(basis: str, points: Images) -> SpreadAxes | None:
    """What the Hessians at ``points`` are multiplied with: nothing but pixels, or spread vectors.

    Raises:
        InputError: another basis.
    """
    return None if check_choice("basis", basis, BASES) == "pixels" else SpreadAxes(points)
