"""SPSA: an attack without gradients, against which masking gradients does not help."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    Number,
    check_clip,
    check_input,
    clean_labels,
    confine,
    judge,
    nothing,
    per_image,
)
from robustness_geometry.checks import GivenLabels, check_count, check_positive, number, refuse
from robustness_geometry.norms import project
from robustness_geometry.outputs import logits_at
from robustness_geometry.randomness import Generators, stream, uniform
from robustness_geometry.types import Classifier, Images, Labels, PerImage, Perturbed, class_logits

__all__ = ["margin_loss", "spsa"]

BATCH = 2048
"""Largest number of images per call of the model."""

DECAYS = (0.9, 0.999)
"""Decay rates of Adam's two moments, at their usual values."""


@dataclass(frozen=True)
class Options:
    """The checked options of :func:`spsa`."""

    eps: float
    norm: float
    steps: int
    directions: int
    delta: float
    learning_rate: float
    clip: Clip


def spsa(
    model: Classifier,
    images: Images,
    *,
    eps: Number,
    norm: Number = math.inf,
    steps: int = 100,
    directions: int = 128,
    delta: Number = 0.01,
    learning_rate: Number = 0.01,
    clip: Bounds | None = (0.0, 1.0),
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    generator: Generators = None,
) -> Perturbed:
    """Descend the margin loss in the ball of radius ``eps`` without gradients.

    The loss is m(x) = f_y - max_{k != y} f_k. Its gradient is estimated by simultaneous
    perturbations, the mean of (m(x + delta d) - m(x - delta d)) / (2 delta) d over random sign
    vectors d. Adam follows it, and each iterate is projected onto the ball and clipped. The iterate
    with the smallest margin is returned. The thesis gives no options; the defaults are those of the
    paper as cleverhans has them.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        eps: radius of the ball, in pixel units.
        norm: 2 or inf.
        steps: number of steps of Adam, each of 2 directions + 1 forward passes per image.
        directions: number of random d per step; each is used with both signs.
        delta: step of the differences, in pixel units.
        learning_rate: learning rate of Adam, in pixel units.
        clip: lowest and highest pixel value of the perturbed images; None does not clip.
        labels: (N,) the labels y; None: the classifier's own.
        targets: (N,) labels to reach; the loss is then max_{k != t} f_k - f_t.
        generator: one for the batch or one per image; None starts from seed 0.

    Returns:
        Perturbed.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.

    References:
        Thesis: Section 8.5.1 and Figure 8.7.

        J. Uesato, B. O'Donoghue, A. van den Oord, P. Kohli, "Adversarial risk and the dangers of
        evaluating against weak attacks", ICML 2018, arXiv:1802.05666.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import spsa
        >>> from robustness_geometry.attacks.spsa import margin_loss
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.rand(4, 1, 4, 4)
        >>> result = spsa(model, images, eps=0.1, steps=10)
        >>> before = margin_loss(model, images, result.labels)
        >>> after = margin_loss(model, result.adversarial(images), result.labels)
        >>> bool((after < before).all())
        True
    """
    options = _options(eps, norm, steps, directions, delta, learning_rate, clip)
    model, images, labels, targets = check_input(
        model, images, clip=options.clip, labels=labels, targets=targets
    )
    if not len(images):
        return nothing(images)
    labels = clean_labels(model, images, labels, targets)
    with torch.no_grad():
        perturbations = _descend(model, images, labels, targets, options, stream(generator))
    taken = torch.full_like(labels, options.steps)
    return judge(model, images, perturbations, labels, taken, targets)


def margin_loss(
    model: Classifier, images: Images, labels: Labels, *, targets: Labels | None = None
) -> PerImage:
    """(N,) f_y - max_{k != y} f_k, which is negative where the label is not y.

    With targets t it is max_{k != t} f_k - f_t. This is the adversarial loss of Figure 8.7.

    Args:
        model: a classifier.
        images: (N, C, H, W).
        labels: (N,) y.
        targets: (N,) t, instead of ``labels``.
    """
    goal = labels if targets is None else targets
    with torch.no_grad():
        logits = class_logits(logits_at(model, images))
    others = logits.masked_fill(one_hot(goal, logits.shape[1]).bool(), -torch.inf).amax(dim=1)
    margin: Tensor = logits.gather(1, goal[:, None])[:, 0] - others
    return margin if targets is None else -margin


def _options(
    eps: Number,
    norm: Number,
    steps: int,
    directions: int,
    delta: Number,
    learning_rate: Number,
    clip: Bounds | None,
) -> Options:
    p = number("norm", norm)
    if p not in (2, math.inf):
        refuse("norm", norm, "2 or inf")
    return Options(
        check_positive("eps", eps),
        p,
        check_count("steps", steps),
        check_count("directions", directions),
        check_positive("delta", delta),
        check_positive("learning_rate", learning_rate),
        check_clip(clip),
    )


def _descend(
    model: Classifier,
    images: Images,
    labels: Labels,
    targets: Labels | None,
    options: Options,
    generator: Generators,
) -> Images:
    """The iterates of the smallest margin; the clean images count as the first ones."""
    moved, first, second = (
        torch.zeros_like(images),
        torch.zeros_like(images),
        torch.zeros_like(images),
    )
    best, lowest = moved, margin_loss(model, images, labels, targets=targets)
    for step in range(1, options.steps + 1):
        # Adam's step along the estimated gradient, then back into the ball and the box.
        slope = _slopes(model, images + moved, labels, targets, options, generator)
        first = DECAYS[0] * first + (1 - DECAYS[0]) * slope
        second = DECAYS[1] * second + (1 - DECAYS[1]) * slope.square()
        scale = (second / (1 - DECAYS[1] ** step)).sqrt() + 1e-8
        update = options.learning_rate * (first / (1 - DECAYS[0] ** step)) / scale
        moved = confine(images, project(moved - update, options.eps, options.norm), options.clip)
        margin = margin_loss(model, images + moved, labels, targets=targets)
        better = margin < lowest
        best = torch.where(per_image(better, images), moved, best)
        lowest = torch.where(better, margin, lowest)
    return best


def _slopes(
    model: Classifier,
    points: Images,
    labels: Labels,
    targets: Labels | None,
    options: Options,
    generator: Generators,
) -> Images:
    """The estimated gradients of the margin loss, (N, C, H, W)."""
    shape = (len(points), options.directions, *points.shape[1:])
    signs = uniform(points.new_empty(shape), generator, -1.0).sign()
    group = max(1, BATCH // (2 * len(points)))
    total = torch.zeros_like(points)
    for part in signs.split(group, dim=1):
        count = part.shape[1]
        ahead = points[:, None] + options.delta * part
        behind = points[:, None] - options.delta * part
        both = torch.cat([ahead, behind], dim=1).flatten(0, 1)
        own = labels.repeat_interleave(2 * count)
        wanted = None if targets is None else targets.repeat_interleave(2 * count)
        margins = margin_loss(model, both, own, targets=wanted).view(len(points), 2, count)
        change = (margins[:, 0] - margins[:, 1]) / (2 * options.delta)
        total += (change.view(len(points), count, *[1] * (points.ndim - 1)) * part).sum(dim=1)
    return total / options.directions
