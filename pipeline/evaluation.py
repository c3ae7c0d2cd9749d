"""Judging attacks by the tensors that they return, and the images that they are judged on."""

import math
from dataclasses import replace

import torch

from robustness_geometry.checks import check_count
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.norms import relative_norms
from robustness_geometry.types import (
    Attack,
    Classifier,
    Dataset,
    Images,
    Labels,
    Mask,
    PerImage,
    Perturbed,
    Split,
    predict,
)

__all__ = [
    "accuracy",
    "correct",
    "held_out",
    "judged",
    "recomputed_success",
    "relative_robustness",
    "valid",
]


def recomputed_success(model: Classifier, images: Images, perturbed: Perturbed) -> Mask:
    """Whether each returned perturbation changes the label, recomputed from the tensors.

    Args:
        model: the classifier.
        images: (N, C, H, W) the clean images.
        perturbed: result of the attack; its own ``success`` is not used.

    Returns:
        (N,) True where ``images + perturbations`` is finite and its label differs from
        ``perturbed.labels``.
    """
    finite = torch.isfinite(perturbed.perturbations).flatten(1).all(dim=1)
    return finite & (predict(model, perturbed.adversarial(images)) != perturbed.labels)


def judged(attack: Attack, model: Classifier, images: Images, **options: object) -> Perturbed:
    """Run ``attack`` and replace its own account of success by :func:`recomputed_success`.

    A module-level function, so that ``executor.map(partial(judged, attack, model), images)`` can
    key it.

    Args:
        attack: attack with its options bound.
        model: the classifier.
        images: (N, C, H, W).
        options: further options of the attack, such as ``generator``.

    Returns:
        The attack's result with recomputed ``adversarial_labels`` and ``success``.
    """
    result = attack(model, images, **options)
    labels = predict(model, result.adversarial(images))
    return replace(
        result, adversarial_labels=labels, success=recomputed_success(model, images, result)
    )


def held_out(data: Dataset, count: int) -> Split:
    """``count`` held-out images, or all if there are fewer.

    They are the first of a fixed random order with stratified prefixes: a smaller sample is part of
    a larger one, and a folder sorted by class is sampled evenly.
    """
    order = stratified_order(data.test.labels, "evaluation")[: check_count("samples", count)]
    return Split(data.test.images[order], data.test.labels[order])


def correct(model: Classifier, images: Images, labels: Labels) -> Mask:
    """(N,) whether ``model`` gives each image its label."""
    return predict(model, images) == labels


def accuracy(model: Classifier, images: Images, labels: Labels) -> float:
    """The share of ``images`` that ``model`` labels rightly, in [0, 1]; NaN without images."""
    return float(correct(model, images, labels).double().mean())


def relative_robustness(perturbations: Images, images: Images, p: float = 2.0) -> float:
    """rho_adv = mean of ||r||_p / ||x||_p (Equation 3.10); the caller leaves failed cases out."""
    return float(relative_norms(perturbations, images, p).double().mean())


def valid(values: PerImage, success: Mask) -> PerImage:
    """(N,) ``values`` in float64, NaN where ``success`` is False: means leave failed cases out."""
    return values.double().masked_fill(~success, math.nan)
