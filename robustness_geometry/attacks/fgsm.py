"""The fast gradient sign method, and the smallest eps at which it fools a share of images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from robustness_geometry.attacks.gradients import linearise, loss_weights
from robustness_geometry.attacks.protocol import (
    Bounds,
    Number,
    as_logits,
    check_clip,
    check_input,
    confine,
    is_reached,
    judge,
    labels_at,
    nothing,
    per_image,
)
from robustness_geometry.checks import (
    NOTHING,
    GivenLabels,
    check_count,
    check_norm,
    check_positive,
    number,
    refuse,
)
from robustness_geometry.norms import dual, hyperplane_step, norms
from robustness_geometry.types import Classifier, Images, Labels, Perturbed

__all__ = ["SmallestEps", "fgsm", "fgsm_smallest_eps"]

BATCH = 256
"""Batch size of the search for the smallest eps."""

BISECTIONS = 12
"""Halvings of the gap between two grid points: it ends below 1e-4 of eps."""


@dataclass(frozen=True)
class SmallestEps:
    """The outcome of a search for the smallest eps.

    Attributes:
        eps: the smallest eps found at which the wanted share of images is misclassified; where no
            eps reaches it, the (smallest) eps of the largest share.
        rate: the share misclassified at ``eps``.
        reachable: whether ``rate`` is at least the wanted one.
        curve: the pairs (eps, share misclassified) that were tried, eps ascending.
    """

    eps: float
    rate: float
    reachable: bool
    curve: tuple[tuple[float, float], ...]


def fgsm(
    model: Classifier,
    images: Images,
    *,
    eps: Number,
    norm: Number = math.inf,
    clip: Bounds | None = None,
    labels: GivenLabels = None,
) -> Perturbed:
    """One step of length ``eps`` up the cross-entropy J at the label.

    r = eps sign(grad J(x)) for norm=inf, r = eps grad J / ||grad J||_2 for norm=2; in general the
    vector of l_p norm eps that increases J the most to first order.

    Args:
        model: a classifier in evaluation mode.
        images: x, (N, C, H, W).
        eps: the l_p norm of r, in pixel units (``8/255`` is read as well).
        norm: p, 1 <= p <= inf.
        clip: lowest and highest pixel value of the perturbed images; None does not clip.
        labels: (N,) the labels of J; None: the classifier's own.

    Returns:
        Perturbed; r = 0 where the gradient is zero.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.

    References:
        Thesis: Section 3.2.3, which compares DeepFool with it; Tables 3.1 and 8.1.

        I. Goodfellow, J. Shlens, C. Szegedy, "Explaining and harnessing adversarial examples",
        ICLR 2015, arXiv:1412.6572.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import fgsm
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.rand(4, 1, 4, 4)
        >>> result = fgsm(model, images, eps="8/255")
        >>> torch.allclose(result.perturbations.abs(), torch.tensor(8 / 255))
        True
    """
    length, p, box = check_positive("eps", eps), check_norm("norm", norm), check_clip(clip)
    model, images, labels, _ = check_input(model, images, clip=box, labels=labels)
    if not len(images):
        return nothing(images)
    labels, directions = steepest(model, images, labels, p)
    steps = torch.ones_like(labels)
    return judge(model, images, confine(images, length * directions, box), labels, steps)


def steepest(
    model: Classifier, images: Images, labels: Labels | None, norm: float
) -> tuple[Labels, Images]:
    """The labels, and per image the vector of unit l_p norm of the steepest cross-entropy."""
    logits, pull = linearise(model, images)
    logits = as_logits(logits, labels)
    labels = logits.argmax(dim=1) if labels is None else labels
    return labels, unit_ascent(pull(loss_weights(logits, labels)), norm)


def unit_ascent(gradients: Images, norm: float) -> Images:
    """Argmax <g, v> over ||v||_p = 1 for each gradient g; zero where g is zero or not finite."""
    sizes = norms(gradients, dual(norm))
    steps = hyperplane_step(sizes, gradients, norm)
    usable = torch.isfinite(sizes) & (sizes > 0)
    return torch.where(per_image(usable, steps), steps, 0.0)


def fgsm_smallest_eps(
    model: Classifier,
    images: Images,
    *,
    rate: Number = 0.9,
    norm: Number = math.inf,
    eps_max: Number | None = None,
    grid: int = 64,
    clip: Bounds | None = None,
    labels: GivenLabels = None,
) -> SmallestEps:
    """The smallest eps, one for all images, at which FGSM misclassifies a share ``rate`` of them.

    The share is not monotone in eps. It is computed on a geometric grid of eps; the first grid
    point that reaches ``rate`` and the one before it are then bisected, so that a crossing narrower
    than the grid may be missed. Some rates cannot be reached.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W), at least one.
        rate: the share wanted, in (0, 1].
        norm: p of :func:`fgsm`.
        eps_max: the largest eps to try, in pixel units; None: the l_p norm of an image of ones, 1
            for p = inf.
        grid: the number of grid points, from eps_max / 1024 to eps_max.
        clip: as for :func:`fgsm`.
        labels: (N,) as for :func:`fgsm`; an image with another label counts as misclassified.

    Raises:
        InputError: as for :func:`fgsm`, or no images.

    References:
        Thesis: Section 3.2.3 and Table 3.1, where the rate is 0.9.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import fgsm_smallest_eps
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.rand(4, 1, 4, 4)
        >>> found = fgsm_smallest_eps(model, images, rate=0.5)
        >>> found.reachable, found.rate >= 0.5
        (True, True)
    """
    wanted, p, box = number("rate", rate), check_norm("norm", norm), check_clip(clip)
    if not 0 < wanted <= 1:
        refuse("rate", rate, "a number in (0, 1]")
    largest = None if eps_max is None else check_positive("eps_max", eps_max)
    check_count("grid", grid, minimum=2)
    model, images, labels, _ = check_input(model, images, clip=box, labels=labels)
    if not len(images):
        refuse("images", NOTHING, "at least one image")
    if largest is None:
        largest = images[0].numel() ** (1 / p)
    points = torch.logspace(
        math.log10(largest / 1024), math.log10(largest), grid, dtype=torch.float64
    ).tolist()
    share = _share_fooled(model, images, labels, p, box)
    return _search(share, wanted, [0.0, *points])


def _share_fooled(
    model: Classifier,
    images: Images,
    labels: Labels | None,
    norm: float,
    clip: tuple[float, float] | None,
) -> Callable[[float], float]:
    """The share misclassified as a function of eps; the gradients are computed once."""
    parts = []
    for rows in torch.arange(len(images), device=images.device).split(BATCH):
        own = None if labels is None else labels[rows]
        parts.append((images[rows], *steepest(model, images[rows], own, norm)))

    def share(eps: float) -> float:
        fooled = 0
        for part, own, directions in parts:
            found, finite = labels_at(model, part + confine(part, eps * directions, clip))
            fooled += int((finite & is_reached(found, own, None)).sum())
        return fooled / len(images)

    return share


def _search(share: Callable[[float], float], wanted: float, points: Sequence[float]) -> SmallestEps:
    """The first of ``points`` that reaches ``wanted``, refined by bisection below it."""
    shares = {eps: share(eps) for eps in points}
    crossing = next((index for index, eps in enumerate(points) if shares[eps] >= wanted), None)
    if crossing is None:
        best = max(points, key=lambda eps: shares[eps])
        return SmallestEps(best, shares[best], False, tuple(sorted(shares.items())))
    low, high = points[max(crossing - 1, 0)], points[crossing]
    for _ in range(BISECTIONS if crossing else 0):
        middle = (low + high) / 2
        shares[middle] = share(middle)
        low, high = (low, middle) if shares[middle] >= wanted else (middle, high)
    return SmallestEps(high, shares[high], True, tuple(sorted(shares.items())))
