"""The curvature at boundary points, and points that are not the closest ones (Section 7.5).

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Equation 7.4 and Section 7.5.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from pipeline.evaluation import valid
from robustness_geometry.attacks import random_noise
from robustness_geometry.attacks.protocol import per_image
from robustness_geometry.detection import scored
from robustness_geometry.geometry import Boundary, boundary_points, class_curvatures
from robustness_geometry.randomness import Generators
from robustness_geometry.types import Classifier, Images, Labels, Perturbed, predict

__all__ = [
    "along_random_directions",
    "boundary_curvature",
    "of_other_classes",
    "on_lines_to",
    "on_ways_back",
]


def boundary_curvature(
    model: Classifier,
    points: Images,
    labels: Labels,
    targets: Labels,
    *,
    output: str,
    h: Sequence[float],
    directions: int,
    generator: Generators = None,
) -> Tensor:
    """The mean curvature of F = f_target - f_label at boundary points.

    Args:
        model: a classifier in evaluation mode.
        points: z, (N, C, H, W); NaN where there is none.
        labels: (N,) the classes of the images, on this side of the boundary.
        targets: (N,) the classes on the other side.
        output: one of OUTPUTS: what F is a difference of.
        h: the steps of the differences, in pixel l2.
        directions: number of random directions over which the curvature is averaged.
        generator: one for the batch or one per image.

    Returns:
        (N, H) the curvature for each step, float64; NaN where there is no point.
    """
    found = points.isfinite().flatten(1).all(dim=1)
    # A failed image needs some point and some other class to be looked at; its value is dropped.
    rivals = torch.where(found, targets, (labels == 0).long())[:, None]
    curved = class_curvatures(
        model,
        torch.where(per_image(found, points), points, 0.0),
        h=h,
        outputs=(output,),
        directions=directions,
        labels=labels,
        rivals=rivals,
        generator=generator,
    )
    values = [scored(each, normalise=True).curvatures.gather(1, rivals)[:, 0] for each in curved]
    return torch.stack([valid(each, found) for each in values], dim=1)


def of_other_classes(images: Images, labels: Labels) -> Images:
    """For each image (N, C, H, W) the next one of another class, in the order that they come in.

    Args:
        images: (N, C, H, W).
        labels: (N,) their classes; where all are the same, an image gets the one after it.
    """
    partners = []
    for index in range(len(labels)):
        order = torch.arange(index + 1, index + 1 + len(labels)) % len(labels)
        others = order[labels[order] != labels[index]]
        partners.append(others[0] if len(others) else order[0])
    return images[torch.stack(partners)] if partners else images


def on_lines_to(model: Classifier, images: Images, others: Images) -> Boundary:
    """Where the straight lines from ``images`` to ``others``, both (N, C, H, W), leave a region."""
    return boundary_points(model, images, attack=partial(_towards, others), refinements=0)


def on_ways_back(model: Classifier, images: Images, originals: Images) -> Boundary:
    """The closest boundary points of moved images, from where their way back leaves the region.

    Beyond a closest boundary point the way back is a start as good as an attack's, and free.
    """
    return boundary_points(model, images, attack=partial(_towards, originals))


def _towards(others: Images, model: Classifier, images: Images) -> Perturbed:
    """The way to other images, passed off as an attack's result."""
    own = predict(model, images)
    return Perturbed(others - images, own, own, torch.ones_like(own).bool(), torch.zeros_like(own))


def along_random_directions(
    model: Classifier, images: Images, *, generator: Generators = None
) -> Boundary:
    """Where a random direction from each image first leaves its region."""
    noise = partial(random_noise, generator=generator)
    return boundary_points(model, images, attack=noise, refinements=0)
