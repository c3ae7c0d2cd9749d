"""Projected gradient descent in an l_inf or l_2 ball."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.attacks.gradients import linearise, loss_weights
from pipeline.attacks.protocol import (
    as_logits,
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
from pipeline.checks import check_count, check_norm, check_positive, refuse
from pipeline.norms import norms, project
from pipeline.randomness import Generators, normal, uniform
from pipeline.types import Classifier, Images, Labels, Mask, Perturbed

__all__ = ["pgd"]


def pgd(
    model: Classifier,
    images: Images,
    *,
    eps: float | str,
    norm: float | str = math.inf,
    steps: int = 20,
    step_size: float | str | None = None,
    restarts: int = 1,
    random_start: bool = True,
    clip: Sequence[float] | None = (0.0, 1.0),
    labels: Labels | None = None,
    targets: Labels | None = None,
    generator: Generators = None,
) -> Perturbed:
    """Maximise the cross-entropy within ||r|| <= eps by ``steps`` projected gradient steps (Section 8.4, Table 8.2).

    r <- P(r + step_size sign(grad J)); with ``norm=2`` the normalised gradient takes the sign's place. P projects onto
    the ball, then onto the box of the pixels. Each restart takes up the images not yet fooled.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        eps: radius of the ball, in pixel units, > 0; may be written as a fraction such as ``8/255``.
        norm: inf or 2.
        steps: gradient steps.
        step_size: length of a step in ``norm``; None: 2.5 eps / steps.
        restarts: independent starts.
        random_start: start uniformly in the ball; False starts at the image (one restart is then enough).
        clip: lowest and highest pixel value; None does not clip.
        labels: (N,) the labels to leave; None: the classifier's own.
        targets: (N,) labels to reach, whose loss is minimised instead.
        generator: one for the batch, or one an image.

    Returns:
        Perturbed; the last iterate of the first restart that fooled, else of the last restart.

    Raises:
        InputError: an option, a label, an image or a logit that cannot be used, or a model in training mode.
    """
    radius, kind = check_positive("eps", eps), check_norm("norm", norm)
    if kind not in (2.0, math.inf):
        refuse("norm", norm, "2 or inf")
    check_count("steps", steps)
    check_count("restarts", restarts)
    length = 2.5 * radius / steps if step_size is None else check_positive("step_size", step_size)
    bounds = check_clip(clip)
    check_input(model, images, clip=bounds, labels=labels, targets=targets)
    images = images.detach()
    if not len(images):
        return nothing(images)
    own = clean_labels(model, images, labels, targets)

    def confined(offsets: Images, at: Images) -> Images:
        return confine(at, project(offsets, radius, kind), bounds)

    best, taken = torch.zeros_like(images), torch.zeros_like(own)
    fooled = torch.zeros_like(own, dtype=torch.bool)
    for _ in range(restarts):
        # Drawn for every image, so that one image's restarts do not depend on the others' success.
        start = _start(images, radius, kind, generator) if random_start else torch.zeros_like(images)
        open_ = (~fooled).nonzero()[:, 0]
        if not len(open_):
            break
        some, goal = images[open_], None if targets is None else targets[open_]
        offsets = confined(start[open_], some)
        for _ in range(steps):
            offsets = confined(offsets + length * _uphill(model, some + offsets, own[open_], goal, kind), some)
        best[open_] = offsets
        taken[open_] += steps
        fooled[open_] = _reached(model, some + offsets, own[open_], goal)
    return judge(model, images, best, own, taken, targets)


def _start(images: Images, radius: float, norm: float, generator: Generators) -> Images:
    """A point drawn uniformly from the ball, (N, C, H, W)."""
    if math.isinf(norm):
        return uniform(images, generator, -radius, radius)
    direction = normal(images, generator)
    share = uniform(images.flatten(1)[:, :1], generator) ** (1 / images[0].numel())
    return direction * per_image(radius * share[:, 0] / norms(direction), direction)


def _uphill(model: Classifier, points: Images, labels: Labels, targets: Labels | None, norm: float) -> Tensor:
    """The step of length 1 that raises the loss of the labels, or lowers that of the targets."""
    raw, pull = linearise(model, points)
    logits = raw.nan_to_num() if not bool(torch.isfinite(raw).all()) else as_logits(raw)
    weights = loss_weights(logits, labels) if targets is None else -loss_weights(logits, targets)
    gradient = pull(weights)
    if math.isinf(norm):
        return gradient.sign()
    return gradient / per_image(norms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny), gradient)


def _reached(model: Classifier, points: Images, labels: Labels, targets: Labels | None) -> Mask:
    found, finite = labels_at(model, points)
    return finite & is_reached(found, labels, targets)
