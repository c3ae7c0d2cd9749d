"""The smallest random noise that changes the label: the reference of chapters 4 and 5."""

import math

import torch

from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    Number,
    check_clip,
    check_input,
    clean_labels,
    confine,
    is_reached,
    judge,
    labels_at,
    nothing,
    per_image,
)
from robustness_geometry.checks import GivenLabels, check_count, check_norm, check_positive
from robustness_geometry.norms import norms
from robustness_geometry.randomness import Generators, normal, stream
from robustness_geometry.types import Classifier, Images, Labels, Mask, PerImage, Perturbed

__all__ = ["random_noise"]

GRID = 60
"""Number of norms that are tried along a direction before bisecting."""

SPAN = 1e4
"""Ratio of the largest norm tried to the smallest."""

BISECTIONS = 16
"""Halvings of the gap between two grid points."""


def random_noise(
    model: Classifier,
    images: Images,
    *,
    norm: Number = 2,
    directions: int = 1,
    two_sided: bool = False,
    max_norm: Number | None = None,
    clip: Bounds | None = None,
    labels: GivenLabels = None,
    generator: Generators = None,
) -> Perturbed:
    """Noise along a random direction, scaled to the smallest norm at which the label changes.

    r = t v with v uniform on the unit sphere, or a random sign vector for norm=inf. The smallest t
    is searched for on a geometric grid; the first grid point that changes the label and the one
    before it are then bisected.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        norm: p, 1 <= p <= inf.
        directions: random directions per image; the one with the smallest norm is kept.
        two_sided: try -v as well as v and keep the smaller norm, min |t|, as in the random noise
            of Section 5.3.
        max_norm: the largest norm tried, in pixel units; None: 10 times the l_p norm of an image of
            ones.
        clip: lowest and highest pixel value; None does not clip.
        labels: (N,) the labels to leave; None: the classifier's own.
        generator: one for the batch or one per image; None starts from seed 0.

    Returns:
        Perturbed; ``success`` is False, and r has norm ``max_norm``, where no norm tried changes
        the label. ``steps`` is 0: no gradients are taken.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.

    References:
        Thesis: Section 4.2 (the norm of random noise, to which that of universal perturbations is
        compared) and Section 5.3 (random noise as a subspace of one dimension).

        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, "Robustness of classifiers: from adversarial
        to random noise", NIPS 2016, arXiv:1608.08967.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import deepfool, random_noise
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.rand(4, 1, 4, 4)
        >>> noise = random_noise(model, images, two_sided=True)
        >>> smallest = deepfool(model, images, overshoot=0)
        >>> sizes = [r.perturbations.flatten(1).norm(dim=1) for r in (smallest, noise)]
        >>> bool((sizes[0] < sizes[1]).all())
        True
    """
    p, box = check_norm("norm", norm), check_clip(clip)
    check_count("directions", directions)
    largest = None if max_norm is None else check_positive("max_norm", max_norm)
    model, images, labels, _ = check_input(model, images, clip=box, labels=labels)
    if not len(images):
        return nothing(images)
    if largest is None:
        largest = 10 * images[0].numel() ** (1 / p)
    labels = clean_labels(model, images, labels)
    best = images.new_full((len(images),), torch.inf)
    perturbations = torch.zeros_like(images)
    draws = stream(generator)
    for _ in range(directions):
        drawn = _unit(images, p, draws)
        for unit in (drawn, -drawn) if two_sided else (drawn,):
            sizes = _smallest_sizes(model, images, unit, labels, largest, box)
            better = sizes < best
            best = torch.where(better, sizes, best)
            scaled = confine(images, per_image(sizes.clamp_max(largest), images) * unit, box)
            # Without a success so far, the last direction stands in.
            perturbations = torch.where(
                per_image(better | best.isinf(), images), scaled, perturbations
            )
    return judge(model, images, perturbations, labels, torch.zeros_like(labels))


def _unit(images: Images, norm: float, generator: Generators) -> Images:
    """Random directions of unit l_p norm."""
    drawn = normal(images, generator)
    if math.isinf(norm):
        drawn = torch.where(drawn >= 0, 1.0, -1.0).to(images)
    return drawn / per_image(norms(drawn, norm), images)


def _smallest_sizes(
    model: Classifier, images: Images, unit: Images, labels: Labels, largest: float, clip: Clip
) -> PerImage:
    """(N,) the smallest t up to ``largest`` at which x + t v has another label, else inf."""

    def changes(now: torch.Tensor, sizes: PerImage) -> Mask:
        moved = confine(images[now], per_image(sizes, images) * unit[now], clip)
        found, finite = labels_at(model, images[now] + moved)
        return finite & is_reached(found, labels[now], None)

    below, above = images.new_zeros(len(images)), images.new_full((len(images),), torch.inf)
    waiting = torch.arange(len(images), device=images.device)
    for size in [0.0, *(largest * SPAN ** (index / (GRID - 1) - 1) for index in range(GRID))]:
        sizes = below.new_full((len(waiting),), size)
        changed = changes(waiting, sizes)
        above[waiting[changed]] = size
        waiting = waiting[~changed]
        if not len(waiting):
            break
        below[waiting] = size
    inside = (above.isfinite() & (above > 0)).nonzero()[:, 0]
    for _ in range(BISECTIONS if len(inside) else 0):
        middle = (below[inside] + above[inside]) / 2
        changed = changes(inside, middle)
        above[inside] = torch.where(changed, middle, above[inside])
        below[inside] = torch.where(changed, below[inside], middle)
    return above
