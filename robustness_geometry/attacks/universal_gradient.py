"""Universal perturbations by projected gradient descent on a smooth share of unfooled images."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustness_geometry.attacks._look_ahead import moved
from robustness_geometry.attacks.fgsm import unit_ascent
from robustness_geometry.attacks.fooling import BATCH, fooled_by, labels_to_change
from robustness_geometry.attacks.gradients import linearise
from robustness_geometry.attacks.protocol import Bounds, Number, check_clip, check_input
from robustness_geometry.attacks.universal import Universal, check_ball
from robustness_geometry.checks import Described, GivenLabels, check_count, check_positive, refuse
from robustness_geometry.norms import project
from robustness_geometry.outputs import logits_at
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Images, Labels, PerImage, class_logits

__all__ = ["universal_gradient"]


def universal_gradient(
    model: Classifier,
    images: Images,
    *,
    norm: Number = 2,
    radius: Number,
    iterations: int = 150,
    batch_size: int = 64,
    step: Number = 0.2,
    clip: Bounds | None = None,
    labels: GivenLabels = None,
    generator: torch.Generator | None = None,
) -> Universal:
    """Find one vector v, ||v||_p <= radius, that fools as many of the images X as gradients can.

    It minimises the mean of sigmoid(m(x + v) / s) over X, where m is the margin f_label - max f_k
    over the other classes, and s its median over the clean images: a smooth form of the share of
    images that v does not fool. Each iteration takes a batch of X, makes a step of fixed length
    along the descent direction (the normalised gradient for p = 2, its sign for p = inf) and
    projects v onto the ball. Steps shrink linearly to zero. After each pass over X, and at the end,
    the share that v fools is measured; the best v is returned.

    Where Algorithm 4 (:func:`universal_perturbation`) adds one image's smallest perturbation after
    another, this takes a whole batch into account. It is the stronger judge of how many images one
    vector of a radius can fool, and the weaker model of how little it takes: it uses all of the
    radius.

    Args:
        model: a classifier in evaluation mode.
        images: X, (N, ...), at least one.
        norm: p of the ball, 2 or inf.
        radius: xi of the ball, in pixel units; at most the l_p norm of an image of ones.
        iterations: number of gradient steps.
        batch_size: number of images of each step; the last ones of a pass may be fewer.
        step: length of the first step, as a share of the radius, above 0.
        clip: lowest and highest pixel value of x + v; None does not clip.
        labels: (N,) the labels to change; None: the classifier's own.
        generator: generator of the orders of X; None starts from seed 0.

    Returns:
        Universal; ``visits`` counts the images and ``updates`` the steps of each pass, ``reached``
        says whether v fools all of X. An image with logits that are not finite has no part in a
        step.

    Raises:
        InputError: an option, an image or a clean logit that cannot be used, no images, or a model
            in training mode.

    References:
        A. Shafahi, M. Najibi, Z. Xu, J. Dickerson, L. Davis, T. Goldstein, "Universal adversarial
        training", AAAI 2020, arXiv:1811.11304, for stochastic gradients on a bounded loss.

        Thesis: Section 4.2 and Equation 4.1, for the problem.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import universal_gradient
        >>> model = torch.nn.Flatten().eval()  # the two pixels are the logits
        >>> images = torch.tensor([[0.6, 0.4], [0.9, 0.8], [0.7, 0.1]]).view(3, 1, 1, 2)
        >>> found = universal_gradient(model, images, norm="inf", radius=0.4)
        >>> found.fooling_rate, [round(value, 2) for value in found.perturbation.flatten().tolist()]
        (1.0, [-0.32, 0.32])
    """
    p, size = check_ball(norm, radius, math.prod(images.shape[1:]))
    if p == 1:
        refuse("norm", norm, "2 or inf")
    check_count("iterations", iterations)
    check_count("batch_size", batch_size)
    length, box = check_positive("step", step) * size, check_clip(clip)
    model, images, labels, _ = check_input(model, images, clip=box, labels=labels)
    if not len(images):
        refuse("images", Described("no images"), "at least one image")
    labels = labels_to_change(model, images, labels)
    scale = _margins(model, images, labels).abs().median().clamp_min(1e-12)

    vector = best = torch.zeros_like(images[:1])
    history, visits, updates = list[float](), list[int](), list[int]()
    order = _batches(len(images), batch_size, generator or seeded(0))
    seen = made = 0
    for index in range(iterations):
        rows, last = next(order)
        slope = _slope(model, moved(images[rows], vector, box), labels[rows], scale)
        shorter = length * (1 - index / iterations)
        vector = project(vector - shorter * unit_ascent(slope, p), size, p)
        seen, made = seen + len(rows), made + 1
        if last or index == iterations - 1:
            rate = float(fooled_by(model, images, vector, labels, box).double().mean())
            best = vector if rate > max(history, default=-1.0) else best
            history.append(rate)
            visits.append(seen)
            updates.append(made)
            seen = made = 0
            if rate == 1:
                break
    rates = torch.tensor(history, dtype=torch.float64)
    counts = torch.tensor(visits), torch.tensor(updates)
    return Universal(best, rates, *counts, reached=rates.max() == 1)


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, bool]]:
    """Indices of the images of each step, pass after pass, and whether they end their pass."""
    while True:
        parts = torch.randperm(count, generator=generator).split(size)
        for index, part in enumerate(parts):
            yield part, index == len(parts) - 1


def _margins(model: Classifier, images: Images, labels: Labels) -> PerImage:
    """f_label - max f_k over the other classes, (N,)."""
    found = []
    for part, own in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        with torch.no_grad():
            logits = class_logits(logits_at(model, part))
        rival = logits.scatter(1, own[:, None], -torch.inf).amax(dim=1)
        found.append(logits.gather(1, own[:, None])[:, 0] - rival)
    return torch.cat(found)


def _slope(model: Classifier, points: Images, labels: Labels, scale: Tensor) -> Tensor:
    """The gradient of the summed sigmoid(m / scale) with respect to v, (1, ...)."""
    logits, pull = linearise(model, points)
    rivals = logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    pairs = one_hot(labels, logits.shape[1]) - one_hot(rivals, logits.shape[1])
    share = torch.sigmoid((logits * pairs).sum(dim=1) / scale)
    gradients = pull((share * (1 - share))[:, None] * pairs)
    finite = torch.isfinite(gradients).flatten(1).all(dim=1)
    kept = gradients[finite]
    # Far from every boundary the sigmoid is flat in floating point: then v stays where it is.
    return kept.sum(dim=0, keepdim=True)
