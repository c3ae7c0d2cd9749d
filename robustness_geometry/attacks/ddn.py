"""Decoupled direction and norm (DDN): an accurate l_2 attack, to judge DeepFool by."""

import math

import torch

from robustness_geometry.attacks.fgsm import unit_ascent
from robustness_geometry.attacks.gradients import linearise, loss_weights
from robustness_geometry.attacks.protocol import (
    Bounds,
    Number,
    check_clip,
    check_input,
    clean_labels,
    confine,
    is_reached,
    judge,
    nothing,
    per_image,
)
from robustness_geometry.checks import GivenLabels, check_count, check_positive, number, refuse
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Images, PerImage, Perturbed

__all__ = ["ddn"]

SMALLEST_ALPHA = 0.01
"""The final length of the gradient steps, in pixel units, as in the paper."""

LARGEST = 10
"""Largest radius, as a multiple of the norm of an image of ones."""


def ddn(
    model: Classifier,
    images: Images,
    *,
    steps: int = 1000,
    gamma: Number = 0.05,
    init_norm: Number = 1.0,
    alpha: Number = 1.0,
    clip: Bounds | None = None,
    labels: GivenLabels = None,
) -> Perturbed:
    """Find a perturbation of small l_2 norm by gradient steps on a sphere of changing radius.

    Each step sets d <- d + a g / ||g||_2 with g the gradient of the cross-entropy at x + d; then
    the radius e <- (1 - gamma) e if x + d is fooled, else (1 + gamma) e; then d <- e d / ||d||_2,
    clipped. The length a falls from ``alpha`` to 0.01 along a cosine. The smallest d met that fools
    is returned, not quantised.

    Args:
        model: a classifier in evaluation mode.
        images: x, (N, C, H, W).
        steps: gradient steps, taken by every image.
        gamma: change of the radius, in (0, 1).
        init_norm: the first radius e, in pixel units.
        alpha: the first length of a gradient step, at least 0.01, in pixel units.
        clip: lowest and highest pixel value, such as (0, 1); None does not clip.
        labels: (N,) the labels to leave; None: the classifier's own.

    Returns:
        Perturbed; the last iterate where nothing fooled.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.

    References:
        Not in the thesis; a reference for the perturbations of Chapter 3.

        J. Rony, L. G. Hafemann, L. S. Oliveira, I. Ben Ayed, R. Sabourin, E. Granger, "Decoupling
        direction and norm for efficient gradient-based L2 adversarial attacks and defenses", CVPR
        2019, arXiv:1811.09600.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import ddn, deepfool
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.rand(4, 1, 4, 4)
        >>> result = ddn(model, images, steps=100)
        >>> exact = deepfool(model, images, overshoot=0)  # the model is linear
        >>> ratio = result.perturbations.norm() / exact.perturbations.norm()
        >>> bool(result.success.all() and ratio < 1.1)
        True
    """
    check_count("steps", steps)
    change = number("gamma", gamma)
    if not 0 < change < 1:
        refuse("gamma", gamma, "a number in (0, 1)")
    first, box = check_positive("alpha", alpha), check_clip(clip)
    radius = check_positive("init_norm", init_norm)
    if first < SMALLEST_ALPHA:
        refuse("alpha", alpha, f"a number >= {SMALLEST_ALPHA}")
    model, images, labels, _ = check_input(model, images, clip=box, labels=labels)
    if not len(images):
        return nothing(images)
    labels = clean_labels(model, images, labels)
    moved, best = torch.zeros_like(images), torch.zeros_like(images)
    smallest = images.new_full((len(images),), torch.inf)
    radii, largest = torch.full_like(smallest, radius), LARGEST * images[0].numel() ** 0.5
    for step in range(steps + 1):
        # Keep the smallest perturbation that fools so far.
        logits, pull = linearise(model, images + moved)
        fooled = torch.isfinite(logits).all(dim=1) & is_reached(logits.argmax(dim=1), labels, None)
        sizes = norms(moved)
        better = fooled & (sizes < smallest)
        smallest = torch.where(better, sizes, smallest)
        # Without a success so far, the last iterate stands in.
        best = torch.where(per_image(better | smallest.isinf(), images), moved, best)
        if step == steps:
            break
        # Step along the gradient, change the radius, and go back to the sphere and the box.
        length = (
            SMALLEST_ALPHA + (first - SMALLEST_ALPHA) * (1 + math.cos(math.pi * step / steps)) / 2
        )
        moved = moved + length * unit_ascent(pull(loss_weights(logits, labels)), 2.0)
        radii = (radii * torch.where(fooled, 1 - change, 1 + change).to(radii)).clamp_max(largest)
        moved = confine(images, _scaled(moved, radii), box)
    return judge(model, images, best, labels, torch.full_like(labels, steps))


def _scaled(vectors: Images, lengths: PerImage) -> Images:
    """``vectors`` brought to the given l_2 norms; a zero vector stays."""
    sizes = norms(vectors)
    return per_image(torch.where(sizes > 0, lengths / sizes, 0.0), vectors) * vectors
