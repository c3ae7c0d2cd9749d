"""Random noise: the smallest multiple of a random direction that changes the label."""

import math

import torch

from pipeline.attacks.protocol import check_input, clean_labels, judge, labels_at, nothing, per_image
from pipeline.checks import check_count, check_norm, check_positive, refuse
from pipeline.norms import norms
from pipeline.randomness import Generators, normal
from pipeline.types import Classifier, Images, Labels, Mask, PerImage, Perturbed

__all__ = ["random_direction", "random_noise"]

BISECTIONS = 20
"""Halvings of the bracket: the norm is then within 1e-6 of its width."""


def random_noise(
    model: Classifier,
    images: Images,
    *,
    norm: float | str = 2,
    directions: int = 1,
    max_norm: float | str | None = None,
    steps: int = 60,
    labels: Labels | None = None,
    generator: Generators = None,
) -> Perturbed:
    """The smallest r = t v that changes the label, v a random direction of unit norm (Section 5.2, m = 1).

    v is uniform on the sphere for ``norm=2`` and a random vector of signs for ``norm=inf``. t rises in equal steps to
    ``max_norm``, then bisection finds the crossing, so a label that changes and changes back within one step is missed.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        norm: 2 or inf.
        directions: directions tried for each image; the best counts.
        max_norm: largest t, in pixel units; None: the norm of an image of ones, sqrt(d) or 1.
        steps: equal steps of the line search.
        labels: (N,) the labels to leave; None: the classifier's own.
        generator: one for the batch, or one an image.

    Returns:
        Perturbed; where nothing up to ``max_norm`` changes the label, ``success`` is False and r has that norm.
        ``steps`` counts the forward passes.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.
    """
    kind = check_norm("norm", norm)
    if kind not in (2.0, math.inf):
        refuse("norm", norm, "2 or inf")
    check_count("directions", directions)
    check_count("steps", steps)
    limit = None if max_norm is None else check_positive("max_norm", max_norm)
    check_input(model, images, labels=labels)
    images = images.detach()
    if not len(images):
        return nothing(images)
    limit = limit or (1.0 if math.isinf(kind) else math.sqrt(images[0].numel()))
    own = clean_labels(model, images, labels)
    best, size = torch.zeros_like(images), images.new_full((len(images),), math.inf)
    for _ in range(directions):
        unit = random_direction(images, kind, generator)
        length = _crossing(model, images, own, unit, limit, steps)
        nearer = (length < size) | (best.flatten(1).abs().amax(dim=1) == 0)
        best = torch.where(per_image(nearer, best), unit * per_image(length.clamp(max=limit), unit), best)
        size = torch.where(nearer, length, size)
    passes = directions * (steps + BISECTIONS)
    return judge(model, images, best, own, torch.full_like(own, passes))


def random_direction(like: Images, norm: float, generator: Generators) -> Images:
    """Random directions of unit norm, (N, C, H, W): uniform on the sphere for 2, signs for inf."""
    drawn = normal(like, generator)
    return drawn.sign() if math.isinf(norm) else drawn / per_image(norms(drawn), drawn)


def _crossing(
    model: Classifier, images: Images, labels: Labels, unit: Images, limit: float, steps: int
) -> PerImage:
    """(N,) the first t at which the label along ``unit`` is another one, from above; inf where there is none."""
    low, high = images.new_zeros(len(images)), images.new_full((len(images),), math.inf)
    for index in range(1, steps + 1):
        length = torch.full_like(low, limit * index / steps)
        fooled = _fooled(model, images, labels, unit, length) & high.isinf()
        high = torch.where(fooled, length, high)
        low = torch.where(high.isinf(), length, low)
        if not bool(high.isinf().any()):
            break
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fooled = _fooled(model, images, labels, unit, middle.clamp(max=limit))
        high = torch.where(fooled & middle.isfinite(), middle, high)
        low = torch.where(fooled, low, middle.clamp(max=limit))
    return high


def _fooled(model: Classifier, images: Images, labels: Labels, unit: Images, length: PerImage) -> Mask:
    found, finite = labels_at(model, images + per_image(length, unit) * unit)
    return (found != labels) & finite
