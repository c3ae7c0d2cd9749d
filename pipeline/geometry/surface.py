"""The decision boundary at given points, with what every curvature there needs."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.attacks.protocol import Number
from pipeline.checks import check_choice, number, refuse
from pipeline.geometry.hessian import Stencil, default_h
from pipeline.geometry.normals import Directions, Margin, normals_of, tangent_projection
from pipeline.geometry.subspaces import dct_band
from pipeline.randomness import seeded
from pipeline.types import Classifier, Images, Labels, PerImage

__all__ = ["Surface", "allowed_distance", "axes_of"]

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
            InputError: an option or a point that cannot be used, or a point off the boundary, and how far off.
        """
        margin = Margin.checked(model, points, labels, targets, output)
        stencil = Stencil(points, h, exact=exact, at_once=at_once)
        allowed = allowed_distance(points, tolerance)
        points = points.detach()
        normals, sizes, distances = normals_of(margin, points, at_once=at_once)
        off = int((~(distances.abs() <= allowed)).sum())
        if off:
            refuse(
                "points",
                f"{off} of {len(points)} not on the boundary, the farthest {float(distances.abs().max()):.3g} away",
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
        margin = Margin(self.margin.model, self.margin.labels[row], self.margin.targets[row], self.margin.output)
        return Surface(margin, self.points[row], self.normals[row], self.sizes[row], self.stencil)

    def project(self, vectors: Directions) -> Directions:
        """The tangent parts of vectors (N, K, C, H, W)."""
        return tangent_projection(vectors, self.normals)

    def products(self, vectors: Directions) -> Directions:
        """The Hessian's products with vectors (N, K, C, H, W)."""
        return self.stencil.products(self.margin, self.points, vectors)

    def hessian(self, axes: Float[Tensor, "d d"] | None = None) -> Float[Tensor, "d d"]:
        """The Hessian of F at the only point, from its products with orthonormal rows (None: single pixels); float64.

        It is symmetrised, as differences over a length h are not symmetric.
        """
        d = self.dimension
        rows = torch.eye(d, dtype=self.points.dtype, device=self.points.device) if axes is None else axes
        products = self.products(rows.view(1, d, *self.points.shape[1:])).view(d, d)
        matrix = (products if axes is None else axes.T @ products).double()
        return (matrix + matrix.T) / 2


def axes_of(basis: str, points: Images) -> Float[Tensor, "d d"] | None:
    """The rows that Hessians are multiplied with; None for ``pixels``.

    ``spread``: cosines with one set of random signs, each of which moves all pixels by about as much.

    Raises:
        InputError: another basis.
    """
    if check_choice("basis", basis, BASES) == "pixels":
        return None
    d = points.shape[1:].numel()
    signs = 2 * torch.randint(2, (d,), generator=seeded("axes", d)).double() - 1
    return (dct_band((1, d, 1), 0, d, dtype=torch.float64) * signs).to(points)
