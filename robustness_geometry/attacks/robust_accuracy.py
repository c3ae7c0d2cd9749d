"""Robust accuracy at every eps at once, from the distances of a minimum-norm attack."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustness_geometry.checks import Described, refuse
from robustness_geometry.types import Mask, PerImage

__all__ = ["robust_accuracy_area", "robust_accuracy_curve"]


def robust_accuracy_curve(
    distances: PerImage, success: Mask, eps: Tensor | Sequence[float]
) -> Tensor:
    """The share of images that no perturbation of norm at most eps was found for, at each eps.

    It is an upper bound on the robust accuracy, as is the accuracy under any attack.

    Args:
        distances: (N,) norms of the smallest perturbations found; 0 for an image that is
            misclassified without any.
        success: (N,) whether there is one; the distance of other images counts as infinite.
        eps: (E,) radii >= 0, in the units of ``distances`` and in any order.

    Returns:
        (E,) in [0, 1], in double precision.

    Raises:
        InputError: no images, tensors of different lengths, a distance or an eps that is negative
            or not a number.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import robust_accuracy_curve
        >>> distances, success = torch.tensor([0.0, 1.0, 2.0, 9.0]), torch.tensor([1, 1, 1, 0]) > 0
        >>> robust_accuracy_curve(distances, success, [0.0, 0.5, 1.0, 50.0]).tolist()
        [0.75, 0.75, 0.5, 0.25]
    """
    found = _distances(distances, success)
    radii = torch.as_tensor(eps, dtype=torch.float64, device=found.device)
    if radii.ndim != 1 or not bool((radii >= 0).all()):
        refuse("eps", Described(str(radii.tolist())), "a list of numbers >= 0")
    # The number of distances of at most eps, by a search in their order.
    fooled = torch.searchsorted(found.sort().values, radii, right=True)
    return 1 - fooled.double() / len(found)


def robust_accuracy_area(distances: PerImage, success: Mask, largest: float) -> float:
    """The area under :func:`robust_accuracy_curve` from eps = 0 to ``largest``.

    It is the mean of min(distance, largest). The area of the best known distances as a share of
    that of an attack says how near to the best the attack is, failures included.

    Args:
        distances: (N,) norms of the smallest perturbations found.
        success: (N,) whether there is one.
        largest: the eps at which the area ends, above 0.

    Raises:
        InputError: as for :func:`robust_accuracy_curve`, or a ``largest`` that is not above 0.

    References:
        A. E. Cina et al., "AttackBench: evaluating gradient-based attacks for adversarial
        examples", AAAI 2025, arXiv:2404.19460 (optimality).

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks.robust_accuracy import robust_accuracy_area
        >>> robust_accuracy_area(torch.tensor([1.0, 3.0]), torch.tensor([True, False]), 2.0)
        1.5
    """
    if not (largest > 0 and math.isfinite(largest)):
        refuse("largest", largest, "a finite number > 0")
    return float(_distances(distances, success).clamp_max(largest).mean())


def _distances(distances: PerImage, success: Mask) -> Tensor:
    """The distances in double precision, infinite where the attack failed."""
    if distances.ndim != 1 or distances.shape != success.shape or not len(distances):
        refuse(
            "distances.shape",
            tuple(distances.shape),
            f"(N,) with N >= 1, as that of success is {tuple(success.shape)}",
        )
    found = distances.double().where(success.bool(), torch.inf)
    if not bool((found >= 0).all()):
        refuse("distances", Described("a distance below 0 or not a number"), "numbers >= 0")
    return found
