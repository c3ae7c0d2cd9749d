"""Products of the Hessian of F = f_target - f_label with vectors.

They are taken by central differences of gradients, or by differentiating twice.
"""

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks.protocol import Number, check_precise, per_image
from robustness_geometry.checks import GivenLabels, check_positive
from robustness_geometry.geometry.normals import Directions, Margin, passes_at_once
from robustness_geometry.norms import norms
from robustness_geometry.second_derivatives import (
    check_once,
    refusing_missing,
    twice_differentiable,
)
from robustness_geometry.types import Classifier, Images

__all__ = ["Stencil", "default_h", "hessian_vector_products"]


def default_h(dimension: int) -> float:
    """The default length over which curvature is measured: 0.0195 sqrt(d), in pixel l2 units.

    It is about five of 255 grey levels per pixel. The thesis does not give its own.

    Args:
        dimension: d, the number of pixels and channels.

    Example:
        >>> from robustness_geometry.geometry import default_h
        >>> round(default_h(28 * 28), 2), round(default_h(3 * 32 * 32), 2)
        (0.55, 1.08)
    """
    return 0.0195 * math.sqrt(dimension)


class Stencil:
    """How Hessian-vector products are taken.

    Args:
        model: a classifier, for the size of its activations.
        points: (N, C, H, W), for their size and device.
        h: half the length of the central difference, in pixel l2 units; None: :func:`default_h`.
        exact: differentiate twice instead, which gives zero for a network of ReLUs.
        at_once: gradients in one pass; None: what suits the device.

    Raises:
        InputError: h is not a finite number above 0, ``at_once`` is below 2, or the model has no
            second derivatives to differentiate by.
    """

    def __init__(
        self,
        model: Classifier,
        points: Images,
        h: Number | None = None,
        *,
        exact: bool = False,
        at_once: int | None = None,
    ) -> None:
        check_precise(model, points)
        self.h = default_h(points.shape[1:].numel()) if h is None else check_positive("h", h)
        self.exact = exact
        if exact:
            check_once(model, points)
        self.pairs = passes_at_once(points, at_once, model) // 2

    def products(self, margin: Margin, points: Images, vectors: Directions) -> Directions:
        """H v at each point for each of its vectors (N, K, C, H, W), a few of all N K at once."""
        count = vectors.shape[1]
        # Vector v of image n is item n K + v of one long list, which is cut into even parts.
        found = points.new_empty(len(points) * count, *points.shape[1:])
        for start in range(0, len(found), self.pairs):
            stop = min(start + self.pairs, len(found))
            part = torch.arange(start, stop, device=points.device)
            rows, first = part // count, start // count
            if first == (stop - 1) // count:  # one image: views instead of copies
                place = points[first].expand(stop - start, *points.shape[1:])
                some = vectors[first, start - first * count : stop - first * count]
            else:
                place, some = points[rows], vectors[rows, part % count]
            product = _twice if self.exact else self._difference
            found[start:stop] = product(margin, place, some, rows)
        return found.view(vectors.shape)

    def _difference(self, margin: Margin, points: Images, vectors: Images, rows: Tensor) -> Images:
        # H v = ||v|| (grad F(z + h v / ||v||) - grad F(z - h v / ||v||)) / (2 h).
        lengths = per_image(norms(vectors), vectors)
        scale = self.h / lengths.clamp_min(torch.finfo(vectors.dtype).tiny)
        around = points.new_empty(2, *vectors.shape)
        for side, sign in zip(around, (1, -1), strict=True):
            torch.addcmul(points, vectors, scale, value=sign, out=side)
        ahead, behind = margin.gradients(around.flatten(0, 1), torch.cat([rows, rows]))[1].chunk(2)
        return (ahead - behind).mul_(lengths / (2 * self.h))


def _twice(margin: Margin, points: Images, vectors: Images, rows: Tensor) -> Images:
    """H v as the gradient of <grad F, v>, without touching the model's parameters."""
    with torch.enable_grad(), twice_differentiable(), refusing_missing():
        leaf = points.clone().requires_grad_()
        values = margin.with_graph(leaf, rows)
        if not values.requires_grad:
            return torch.zeros_like(vectors)
        grad = partial(torch.autograd.grad, allow_unused=True, materialize_grads=True)
        (gradient,) = grad(values.sum(), leaf, create_graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like(vectors)
        (product,) = grad((gradient * vectors).sum(), leaf)
    return product


def hessian_vector_products(
    model: Classifier,
    points: Images,
    vectors: Float[Tensor, "..."],
    *,
    labels: GivenLabels,
    targets: GivenLabels,
    h: Number | None = None,
    exact: bool = False,
    output: str = "logits",
    at_once: int | None = None,
) -> Directions:
    """H v with H the Hessian of F = f_target - f_label in the input, for several vectors per image.

    By default H v = ||v|| (grad F(z + h v / ||v||) - grad F(z - h v / ||v||)) / (2 h), a central
    difference over a length h that is chosen and not small. The logits of a network of ReLUs are
    piecewise linear: their Hessian is zero wherever it exists, although their boundary bends over
    any such length.

    Args:
        model: a classifier in evaluation mode.
        points: z, (N, C, H, W); they need not lie on a boundary.
        vectors: v, (N, K, C, H, W), or (K, C, H, W) for the same ones at every point.
        labels: (N,) the classes on the points' own side.
        targets: (N,) the classes on the other side.
        h: length of the difference, in pixel l2 units; None: :func:`default_h`.
        exact: differentiate twice instead, without ``h``; for smooth networks.
        output: ``logits``, or ``softmax`` for f the probabilities.
        at_once: number of gradients in one pass; None: as many as suit the device.

    Returns:
        (N, K, C, H, W), in logits (or probabilities) per squared pixel unit, for v without a unit.

    Raises:
        InputError: h <= 0, a target that equals its label, or anything else that cannot be used.

    References:
        Thesis, Section 7.4, for H_F; Section 8.2, footnote 3, for the finite length.
        S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato and P. Frossard, "Robustness via curvature
        regularization, and vice versa", CVPR 2019, arXiv:1811.09716.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, hessian_vector_products
        >>> image, vectors = torch.zeros(1, 1, 1, 2), torch.eye(2).view(2, 1, 1, 2)
        >>> label, target = torch.tensor([0]), torch.tensor([1])
        >>> found = hessian_vector_products(
        ...     Ball(radius=2.0), image, vectors, labels=label, targets=target
        ... )
        >>> found.view(2, 2).abs().round(decimals=3)
        tensor([[2., 0.],
                [0., 2.]])
    """
    margin = Margin.checked(model, points, labels, targets, output)
    stencil = Stencil(model, points, h, exact=exact, at_once=at_once)
    points = points.detach()
    shared = vectors.ndim == points.ndim
    vectors = vectors.expand(len(points), *vectors.shape) if shared else vectors
    return stencil.products(margin, points, vectors.detach().to(points))
