"""Random convex combinations of points of a region, and whether they stay in it (Section 7.3, Figure 7.3)."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks.protocol import check_input, labels_at
from robustness_geometry.checks import refuse
from robustness_geometry.randomness import Generators, uniform
from robustness_geometry.types import Classifier, Images, Labels, Mask

__all__ = ["convex_mixtures", "stays_in_region"]


def convex_mixtures(
    images: Float[Tensor, "batch mixed channels height width"], generator: Generators = None
) -> Images:
    """sum_i w_i x_i of each group of k points, with weights uniform on the simplex: Dirichlet(1, ..., 1).

    The thesis does not say how it draws the weights.

    Args:
        images: (N, k, C, H, W).
        generator: one for the batch or one a group; None starts from seed 0.

    Returns:
        (N, C, H, W).
    """
    if images.shape[1] < 1:
        refuse("images.shape", tuple(images.shape), "(N, k, C, H, W) with k >= 1")
    drawn = uniform(images.new_empty(images.shape[:2], dtype=torch.float64), generator)
    weights = -torch.log1p(-drawn)  # exponential: normalised, they are uniform on the simplex
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images)
    return torch.einsum("nk,nkchw->nchw", weights, images)


def stays_in_region(
    model: Classifier,
    images: Float[Tensor, "batch mixed channels height width"],
    labels: Labels,
    generator: Generators = None,
) -> Mask:
    """Whether a random convex combination of each group of k points has the group's label.

    Args:
        model: a classifier in evaluation mode.
        images: (N, k, C, H, W), each group of points to which the model gives one label.
        labels: (N,) these labels.
        generator: one for the batch or one a group; None starts from seed 0.

    Returns:
        (N,).

    Raises:
        InputError: input that cannot be used.
    """
    mixed = convex_mixtures(images, generator)
    check_input(model, mixed, labels=labels)
    if not len(mixed):
        return torch.zeros(0, dtype=torch.bool, device=images.device)
    found, finite = labels_at(model, mixed)
    return finite & (found == labels)
