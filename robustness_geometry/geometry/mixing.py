"""Random convex combinations of points of a region (Section 7.3, Figure 7.3)."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks.protocol import check_input
from robustness_geometry.checks import GivenLabels, check_classes, refuse
from robustness_geometry.outputs import logits_at
from robustness_geometry.randomness import Generators, uniform
from robustness_geometry.types import Classifier, Images, Mask, class_logits

__all__ = ["convex_mixtures", "stays_in_region"]


def convex_mixtures(
    images: Float[Tensor, "batch mixed ..."], generator: Generators = None
) -> Images:
    """Random convex combinations sum_i w_i x_i, one per group of k points.

    The weights are uniform on the simplex, Dirichlet(1, ..., 1); the thesis does not say how it
    draws them.

    Args:
        images: (N, k, C, H, W).
        generator: one for the batch or one per group; None starts from seed 0.

    Returns:
        (N, C, H, W).

    Raises:
        InputError: groups without a point.

    References:
        Thesis, Section 7.3, Figure 7.3.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import convex_mixtures
        >>> mixed = convex_mixtures(torch.eye(3).view(1, 3, 1, 1, 3))
        >>> mixed.shape, round(mixed.sum().item(), 3)
        (torch.Size([1, 1, 1, 3]), 1.0)
    """
    if images.ndim < 3 or images.shape[1] < 1:
        refuse("images.shape", tuple(images.shape), "(N, k, ...) with k >= 1")
    drawn = uniform(images.new_empty(images.shape[:2], dtype=torch.float64), generator)
    weights = -torch.log1p(-drawn)  # exponential: normalised, they are uniform on the simplex
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images)
    return torch.einsum("nk,nk...->n...", weights, images)


def stays_in_region(
    model: Classifier,
    images: Float[Tensor, "batch mixed ..."],
    labels: GivenLabels,
    generator: Generators = None,
) -> Mask:
    """Whether a random convex combination of each group of k points has the group's label.

    Args:
        model: a classifier in evaluation mode.
        images: (N, k, C, H, W), each group of k points that the model gives the same label.
        labels: (N,) the labels of the groups.
        generator: one for the batch or one per group; None starts from seed 0.

    Returns:
        (N,).

    Raises:
        InputError: input that cannot be used.

    References:
        Thesis, Section 7.3, Figure 7.3.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, stays_in_region
        >>> corners = torch.eye(3).view(1, 3, 1, 1, 3)
        >>> stays_in_region(Ball(radius=1.5), corners, torch.tensor([0]))
        tensor([True])
    """
    mixed = convex_mixtures(images, generator)
    model, mixed, labels, _ = check_input(model, mixed, labels=labels)
    if not len(mixed):
        return torch.zeros(0, dtype=torch.bool, device=images.device)
    with torch.no_grad():
        logits = class_logits(logits_at(model, mixed))
    check_classes(labels, logits.shape[1])
    return torch.isfinite(logits).all(dim=1) & (logits.argmax(dim=1) == labels)
