"""Detecting perturbed images and recovering their labels by curvature (Algorithm 6)."""

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks.protocol import Number, as_logits, check_input
from robustness_geometry.checks import NOTHING, check_choice, check_positive, refuse
from robustness_geometry.geometry import ClassCurvatures, class_curvatures, normal_curvatures
from robustness_geometry.outputs import logits_at
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import Classifier, Images, Labels, Mask, PerImage

__all__ = [
    "Confidence",
    "CurvatureScore",
    "confidence",
    "curvature_score",
    "scored",
    "threshold_at",
]

PerClass: TypeAlias = Float[Tensor, "batch classes"]


@dataclass(frozen=True)
class CurvatureScore:
    """Algorithm 6 on a batch.

    Attributes:
        scores: (N,) rho; an image counts as perturbed where rho is at least the threshold. NaN
            where an output was not finite.
        curvatures: (N, L) mean over the directions of v' G_i v; NaN for the image's own class and
            for classes that took no part or have no gradient.
        labels: (N,) the classifier's own labels k of the images.
        recovered: (N,) the class of the largest curvature: the label of the original, if the image
            is perturbed.
        resolved: (N,) whether any difference behind the score exceeds its rounding error; where
            none does, the sign of rho means nothing.
    """

    scores: PerImage
    curvatures: PerClass
    labels: Labels
    recovered: Labels
    resolved: Mask


@dataclass(frozen=True)
class Confidence:
    """What a single forward pass tells: the baseline for every detector.

    Attributes:
        scores: (N,) 1 - the largest probability, to full relative precision.
        runner_up: (N,) the class of the second largest logit.
    """

    scores: PerImage
    runner_up: Labels


def curvature_score(
    model: Classifier,
    images: Images,
    *,
    h: Number,
    directions: int = 10,
    output: str = "softmax",
    normalise: bool = True,
    candidates: int | None = None,
    by: str = "differences",
    generator: Generators = None,
) -> CurvatureScore:
    """The mean curvature of the boundaries around each image, higher for perturbed images.

    rho = 1 / (L T) sum_{i != k} sum_j v_j' G_i(x) v_j with F_i = f_i - f_k, k the label of x,
    G_i = P H_i P / ||grad F_i||, P = I - n n', n = grad F_i / ||grad F_i||, H_i the Hessian of F_i
    and v_j uniform on the unit sphere. Algorithm 6 compares rho with a threshold; its else branch
    prints ``perturbed = false`` where ``true`` is meant. A curvature is positive where the region
    of k is locally inside a ball. It is measured at the scale h, since piecewise linear networks
    have no second derivatives.

    ``by="differences"`` uses :func:`robustness_geometry.geometry.class_curvatures`, which takes
    2 T + 2 (L - 1) forward passes and L - 1 gradients per image. ``by="products"`` takes
    Hessian-vector products from differences of gradients, class by class and direction by
    direction, 2 T (L - 1) gradients. It is a check, and agrees in the mean over v.

    Args:
        model: a classifier in evaluation mode; logits f of shape (N, 1), whose sign decides, count
            as (0, f).
        images: x, (N, C, H, W), natural or perturbed, of any finite values.
        h: half the length of the central differences, l_2, in pixel units;
            :func:`robustness_geometry.geometry.default_h` is a start. The thesis states none.
        directions: T >= 1, number of random directions v_j.
        output: f, either the ``softmax`` or the ``logits``.
        normalise: divide by ||grad F_i||, as Algorithm 6 does.
        candidates: number of classes that take part, those of the largest logits, the label
            included; None: all.
        by: ``differences`` or ``products``.
        generator: one for the batch or one per image; None starts from seed 0.

    Returns:
        CurvatureScore, in float64.

    Raises:
        InputError: an option, an image or a logit that cannot be used, a model in training mode, or
            an h at which the Hessian vanishes at every image: the network is affine at that scale,
            or the differences are smaller than their rounding error.

    References:
        Thesis: Section 7.5, Algorithm 6 and Equation 7.4.

        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, S. Soatto, "Empirical study of the topology
        and geometry of deep networks", CVPR 2018; arXiv:1705.09552 (2017) under the title
        "Classification regions of deep neural networks".

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import deepfool
        >>> from robustness_geometry.detection import curvature_score, threshold_at
        >>> _ = torch.manual_seed(0)
        >>> first, last = torch.nn.Linear(16, 8), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.Tanh(), last).eval()
        >>> images = torch.rand(4, 1, 4, 4)
        >>> clean = curvature_score(model, images, h=0.5)
        >>> threshold = threshold_at(clean.scores, 0.25)
        >>> int((clean.scores >= threshold).sum())
        1
        >>> moved = deepfool(model, images).adversarial(images)
        >>> perturbed = curvature_score(model, moved, h=0.5).scores >= threshold
        >>> perturbed.shape
        torch.Size([4])
    """
    check_choice("by", by, ("differences", "products"))
    # Algorithm 6, lines 3 to 5: the curvature of each boundary F_i, averaged over random v_j.
    measure = class_curvatures if by == "differences" else _by_products
    (found,) = measure(
        model,
        images,
        h=(h,),
        outputs=(output,),
        directions=directions,
        candidates=candidates,
        generator=generator,
    )
    if len(images) and not bool(found.resolved.any()):
        refuse(
            "h",
            h,
            f"a step over which the {output} bend; at this one rounding hides every difference",
        )
    # Lines 5 to 7: the score rho and the recovered label.
    return scored(found, normalise=normalise)


def scored(found: ClassCurvatures, *, normalise: bool) -> CurvatureScore:
    """The score and the recovered label from the curvatures of all classes (Algorithm 6).

    These are lines 5 and 7; the threshold of line 6 is the caller's.

    Args:
        found: from :func:`robustness_geometry.geometry.class_curvatures`.
        normalise: divide by ||grad F_i||, as Algorithm 6 does.
    """
    taken = found.slopes > 0
    parts = found.curvatures / found.slopes if normalise else found.curvatures
    parts = parts.masked_fill(~taken, math.nan)
    # Line 5: the sum over the classes, divided by L, which counts the image's own class too.
    # A class without a gradient adds nothing.
    count = (~found.slopes.isnan()).sum(dim=1) + 1
    scores = (parts.nansum(dim=1) / count).masked_fill(
        (taken & ~parts.isfinite()).any(dim=1), math.nan
    )
    # Line 7: the class of the largest curvature.
    recovered = parts.nan_to_num(nan=-math.inf).argmax(dim=1)
    return CurvatureScore(scores, parts, found.labels, recovered, found.resolved)


def _by_products(
    model: Classifier,
    images: Images,
    *,
    h: tuple[Number],
    outputs: tuple[str],
    directions: int,
    candidates: int | None,
    generator: Generators,
) -> tuple[ClassCurvatures]:
    """The curvatures from Hessian-vector products along tangent vectors.

    These have unit length where P v has not: the factor E ||P v||^2 = (d - 1) / d makes up for it.
    """
    (like,) = class_curvatures(
        model, images, h=h, outputs=outputs, directions=1, candidates=candidates
    )
    vectors = normal(images.new_empty(len(images), directions, *images.shape[1:]), generator)
    rivals = (~like.slopes.isnan()).nonzero()[:, 1].view(len(images), -1)
    curvatures = torch.full_like(like.slopes, math.nan)
    for rival in rivals.T:
        pair = {"labels": like.labels, "targets": rival, "h": h[0], "output": outputs[0]}
        along = normal_curvatures(
            model, images, vectors, **pair, normalised=False, tolerance=math.inf
        )
        curvatures.scatter_(1, rival[:, None], along.mean(dim=1, keepdim=True).to(curvatures))
    d = images.shape[1:].numel()
    return (replace(like, curvatures=(d - 1) / d * curvatures),)


def confidence(model: Classifier, images: Images) -> Confidence:
    """1 - the largest probability, and the runner-up class, of each image (N, C, H, W).

    Example:
        >>> import torch
        >>> from robustness_geometry.detection import confidence
        >>> model = torch.nn.Flatten().eval()  # the pixels are the logits
        >>> found = confidence(model, torch.tensor([0.0, 3.0, 1.0]).view(1, 1, 1, 3))
        >>> round(float(found.scores), 3), int(found.runner_up)
        (0.156, 2)
    """
    model, images, *_ = check_input(model, images)
    if not len(images):
        return Confidence(images.new_zeros(0, dtype=torch.float64), images.new_zeros(0).long())
    with torch.no_grad():
        logits = as_logits(logits_at(model, images)).double()
    first, second = logits.topk(2, dim=1).indices.unbind(dim=1)
    others = logits.softmax(dim=1).scatter(1, first[:, None], 0.0)
    return Confidence(others.sum(dim=1), second)


def threshold_at(scores: PerImage, rate: Number) -> float:
    """The lowest threshold with a false-positive rate of at most ``rate`` on clean images.

    Args:
        scores: (n,) scores of held-out clean images, n >= 1; one that is NaN counts as perturbed at
            any threshold.
        rate: the wanted share of clean images that count as perturbed, in [0, 1].

    Raises:
        InputError: another rate, or no score.

    Example:
        >>> import torch
        >>> from robustness_geometry.detection import threshold_at
        >>> scores = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
        >>> (scores >= threshold_at(scores, 0.25)).tolist()
        [False, False, False, True]
    """
    share = check_positive("rate", rate, zero=True)
    if share > 1:
        refuse("rate", rate, "a share in [0, 1]")
    if not len(scores):
        refuse("scores", NOTHING, "the scores of at least one clean image")
    ordered = scores.double().nan_to_num(nan=math.inf).sort(descending=True).values
    allowed = math.floor(share * len(ordered) * (1 + 1e-12))
    # Just above the largest score that must not count as perturbed.
    return (
        -math.inf if allowed >= len(ordered) else math.nextafter(float(ordered[allowed]), math.inf)
    )
