"""The curvature of the loss in the input, by finite differences of gradients.

Sections 8.2 and 8.3.
"""

from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from robustness_geometry.attacks.gradients import linearise
from robustness_geometry.attacks.protocol import (
    Number,
    as_logits,
    check_input,
    check_precise,
    per_image,
)
from robustness_geometry.checks import GivenLabels, check_choice, check_positive
from robustness_geometry.geometry.hessian import default_h
from robustness_geometry.geometry.normals import Directions, passes_at_once
from robustness_geometry.norms import norms
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Classifier, Images, Labels, PerImage

__all__ = ["LossCurvature", "loss_curvature", "loss_gradients", "loss_hessian_products"]

SCHEMES = ("forward", "central")

Vectors: TypeAlias = Float[Tensor, "count ..."]


@dataclass(frozen=True)
class LossCurvature:
    """The loss around several images to second order.

    Attributes:
        losses: l(x), (N,).
        gradients: grad l(x), (N, C, H, W).
        eigenvalues: (N, d) eigenvalues of the Hessian of l, the largest first, float64, per squared
            pixel unit.
        leading: u, (N, C, H, W), the unit eigenvector of the largest eigenvalue.

    References:
        Thesis, Section 8.2 (the curvature profile) and Section 8.3, Remark 3 (the alignment).

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import LossCurvature
        >>> gradient = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
        >>> leading = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> LossCurvature(torch.ones(1), gradient, torch.ones(1, 2), leading).alignments
        tensor([0.6000])
    """

    losses: PerImage
    gradients: Images
    eigenvalues: Float[Tensor, "batch d"]
    leading: Images

    @property
    def alignments(self) -> PerImage:
        """|g.u| / ||g||_2 of each image (Remark 3); NaN where the gradient vanishes."""
        along = (self.gradients * self.leading).flatten(1).sum(dim=1).abs()
        return along / norms(self.gradients)


@dataclass(frozen=True)
class _Loss:
    """The cross-entropy at the images' true labels."""

    model: Classifier
    labels: Labels
    h: float
    scheme: str

    @classmethod
    def checked(
        cls, model: Classifier, images: Images, labels: GivenLabels, h: Number | None, scheme: str
    ) -> "_Loss":
        check_choice("scheme", scheme, SCHEMES)
        given = check_input(model, images, labels=labels)
        model, images, labels, _ = cast(tuple[Classifier, Images, Labels, None], given)
        length = default_h(images.shape[1:].numel()) if h is None else check_positive("h", h)
        if len(images):
            with torch.no_grad():
                as_logits(logits_at(model, images), labels)
        return cls(model, labels, length, scheme)

    def at(self, points: Images, rows: Tensor) -> tuple[PerImage, Images]:
        """Losses (k,) and gradients (k, C, H, W) at points near the images ``rows`` (k,)."""
        logits, pull = linearise(self.model, points)
        own = one_hot(self.labels[rows], logits.shape[1]).bool()
        others = logits.softmax(dim=1).masked_fill(own, 0.0)
        # The derivatives of the loss in the logits are p - e_y. p_y - 1 is taken as minus the sum
        # of the other probabilities, as rounding would lose it on a network that is sure.
        weights = others - own * others.sum(dim=1, keepdim=True)
        return torch.nn.functional.cross_entropy(logits, self.labels[rows], reduction="none"), pull(
            weights
        )

    def products(self, points: Images, here: Images, vectors: Images, rows: Tensor) -> Images:
        """H v for one vector a point, whose gradients ``here`` are known."""
        lengths = per_image(norms(vectors), vectors)
        steps = self.h * vectors / lengths.clamp_min(torch.finfo(vectors.dtype).tiny)
        if self.scheme == "forward":
            return (self.at(points + steps, rows)[1] - here) * (lengths / self.h)
        _, both = self.at(torch.cat([points + steps, points - steps]), torch.cat([rows, rows]))
        ahead, behind = both.chunk(2)
        return (ahead - behind) * (lengths / (2 * self.h))


def loss_gradients(
    model: Classifier, images: Images, labels: GivenLabels
) -> tuple[PerImage, Images]:
    """The cross-entropy l(x) of each image and its gradient per pixel unit.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        labels: (N,) the true labels.

    Returns:
        Losses (N,) and gradients (N, C, H, W).

    Raises:
        InputError: an image, a label or a logit that cannot be used, or a model in training mode.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, loss_gradients
        >>> image = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
        >>> losses, gradients = loss_gradients(Ball(radius=2.0), image, torch.tensor([0]))
        >>> round(losses.item(), 4), gradients.flatten().tolist()
        (0.6931, [2.0, 0.0])
    """
    loss = _Loss.checked(model, images, labels, None, "forward")
    return _here(loss, images.detach())


def loss_hessian_products(
    model: Classifier,
    images: Images,
    labels: GivenLabels,
    vectors: Directions,
    *,
    h: Number | None = None,
    scheme: str = "forward",
    at_once: int | None = None,
) -> Directions:
    """Products H v of the loss's Hessian in the input with vectors (Equation 8.1).

    H v = ||v|| (grad l(x + h v / ||v||) - grad l(x)) / h for the forward scheme, and the symmetric
    quotient for the central one. h is a length to measure over and not a small number, since the
    logits of a network of ReLUs have no second derivatives (Section 8.2, footnote 3). The thesis
    does not give its h.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        vectors: v, (N, K, C, H, W).
        h: length of the difference, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        scheme: ``forward`` or ``central``.
        at_once: number of gradients in one pass; None: as many as suit the device.

    Returns:
        (N, K, C, H, W).

    Raises:
        InputError: h <= 0, or anything else that cannot be used.

    References:
        Thesis, Section 8.2, Equation 8.1.
        S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato and P. Frossard, "Robustness via curvature
        regularization, and vice versa", CVPR 2019, arXiv:1811.09716.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, loss_hessian_products
        >>> image, vector = torch.zeros(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2)
        >>> found = loss_hessian_products(Ball(radius=2.0), image, torch.tensor([0]), vector)
        >>> [round(value, 2) for value in found.flatten().tolist()]
        [0.04, 0.0]
    """
    loss = _Loss.checked(model, images, labels, h, scheme)
    check_precise(model, images)
    images = images.detach()
    _, here = _here(loss, images)
    count = vectors.shape[1]
    flat = vectors.detach().to(images).flatten(0, 1)
    rows = torch.arange(len(images), device=images.device).repeat_interleave(count)
    return _in_parts(loss, images, here, flat, rows, at_once).view(vectors.shape)


def loss_curvature(
    model: Classifier,
    images: Images,
    labels: GivenLabels,
    *,
    h: Number | None = None,
    scheme: str = "forward",
    at_once: int | None = None,
) -> LossCurvature:
    """The spectrum of the loss's Hessian in the input (Section 8.2), and its top eigenvector.

    The Hessian takes d (forward) or 2 d (central) gradients per image, along the pixels' axes, and
    is symmetrised; its spectrum, the curvature profile, is computed in float64, image by image.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        h: length of the difference, in pixel units; None:
            :func:`robustness_geometry.geometry.default_h`.
        scheme: ``forward`` (Equation 8.1) or ``central``.
        at_once: number of gradients in one pass; None: as many as suit the device.

    Returns:
        LossCurvature.

    Raises:
        InputError: h <= 0, or anything else that cannot be used.

    References:
        Thesis, Section 8.2, Equation 8.1 and the curvature profiles.
        S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato and P. Frossard, "Robustness via curvature
        regularization, and vice versa", CVPR 2019, arXiv:1811.09716.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, loss_curvature
        >>> found = loss_curvature(Ball(radius=1.0), torch.zeros(1, 1, 1, 2), torch.tensor([0]))
        >>> [round(value, 2) for value in found.eigenvalues[0].tolist()]
        [0.54, 0.54]
    """
    loss = _Loss.checked(model, images, labels, h, scheme)
    check_precise(model, images)
    images = images.detach()
    losses, gradients = _here(loss, images)
    d = images.shape[1:].numel()
    axes = torch.eye(d, dtype=images.dtype, device=images.device).view(d, *images.shape[1:])
    values, leading = (
        images.new_zeros(len(images), d, dtype=torch.float64),
        torch.zeros_like(images),
    )
    for index in range(len(images)):
        # Products with the d unit vectors are the rows of the Hessian.
        rows = torch.full((d,), index, device=images.device)
        matrix = _in_parts(loss, images, gradients, axes, rows, at_once).view(d, d).double()
        spectrum, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        values[index] = spectrum.flip(0)
        leading[index] = vectors[:, -1].to(images.dtype).view(images.shape[1:])
    return LossCurvature(losses, gradients, values, leading)


def _here(loss: _Loss, images: Images) -> tuple[PerImage, Images]:
    """Losses and gradients at the images themselves, a few at a time."""
    if not len(images):
        return images.new_zeros(0), torch.zeros_like(images)
    rows = torch.arange(len(images), device=images.device)
    found = [loss.at(images[part], part) for part in rows.split(passes_at_once(images))]
    return torch.cat([value for value, _ in found]), torch.cat([gradient for _, gradient in found])


def _in_parts(
    loss: _Loss, images: Images, here: Images, vectors: Vectors, rows: Tensor, at_once: int | None
) -> Vectors:
    """H v for vectors (k, C, H, W) that belong to the images ``rows`` (k,), a few at a time."""
    if not len(vectors):
        return torch.zeros_like(vectors)
    size = max(1, passes_at_once(images, at_once) // (1 if loss.scheme == "forward" else 2))
    parts = torch.arange(len(vectors), device=images.device).split(size)
    return torch.cat(
        [loss.products(images[rows[p]], here[rows[p]], vectors[p], rows[p]) for p in parts]
    )
