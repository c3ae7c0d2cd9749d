"""Points of the decision boundary, as close to given images as can be found.

Chapters 6 and 7 measure the boundary at z = x + r, where r is the smallest perturbation of x
(Sections 6.2 and 7.4).
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robustness_geometry.attacks.boundary_search import BoundarySearch, leaving, opposing
from robustness_geometry.attacks.deepfool import deepfool
from robustness_geometry.attacks.gradients import linearise
from robustness_geometry.attacks.protocol import Number, check_input, clean_labels
from robustness_geometry.checks import (
    Described,
    GivenLabels,
    check_count,
    check_positive,
    number,
    refuse,
)
from robustness_geometry.geometry.hessian import default_h
from robustness_geometry.geometry.normals import passes_at_once
from robustness_geometry.types import (
    Attack,
    Classifier,
    Images,
    Labels,
    Mask,
    PerImage,
)

__all__ = ["Boundary", "allowed_distance", "boundary_points"]

ON_BOUNDARY = 1e-3
"""How far from the boundary a point may be by default, as a share of the default h."""


@dataclass(frozen=True)
class Boundary:
    """One point of the decision boundary per image.

    Images without a point have NaN everywhere, and their own label as target.

    Attributes:
        points: z = x + r, (N, C, H, W).
        perturbations: r, (N, C, H, W), in pixel units.
        labels: (N,) the classes of the images, on this side of the boundary.
        targets: (N,) the classes on the other side.
        normals: n = grad F / ||grad F|| for F = f_target - f_label at z, (N, C, H, W).
        gradient_norms: (N,) ||grad F(z)||, in logits per pixel unit.
        angles: (N,) between r and n, in radians; 0 where z is a closest point of a smooth boundary.
        distances: (N,) |F(z)| / ||grad F(z)||, how far z is from the boundary, in pixel units.
        success: (N,) whether a point was found.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points
        >>> images = torch.tensor([[0.5, 0.0], [0.0, 0.5]]).view(2, 1, 1, 2)
        >>> near = boundary_points(Ball(radius=2.0), images)
        >>> len(near), len(near.select(near.angles > 1)), len(near.found())
        (2, 0, 2)
    """

    points: Images
    perturbations: Images
    labels: Labels
    targets: Labels
    normals: Images
    gradient_norms: PerImage
    angles: PerImage
    distances: PerImage
    success: Mask

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, chosen: Tensor) -> "Boundary":
        """The points of some images, chosen by a mask (N,) or by indices (k,)."""
        return Boundary(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def found(self) -> "Boundary":
        """Only the images that have a point, as the curvature functions need them.

        ``success.nonzero()`` says which images these are.
        """
        return self.select(self.success)


def allowed_distance(points: Images, tolerance: Number | None) -> float:
    """How far points may lie from the boundary, in pixel units.

    Args:
        points: (N, C, H, W), for their dimension.
        tolerance: the distance; None: 1e-3 of the default h.

    Raises:
        InputError: a tolerance that is not above 0.
    """
    if tolerance is None:
        return ON_BOUNDARY * default_h(points.shape[1:].numel())
    allowed = number("tolerance", tolerance)
    if math.isnan(allowed) or allowed <= 0:
        refuse("tolerance", tolerance, "a number > 0, or inf")
    return allowed


def boundary_points(
    model: Classifier,
    images: Images,
    *,
    attack: Attack | None = None,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    bisections: int = 60,
    refinements: int = 20,
    angle: Number = 0.01,
    tolerance: Number | None = None,
) -> Boundary:
    """Find a nearby point z = x + r on the boundary of each image's region.

    First, an attack leads out of the region. The line from the image to where the attack ends is
    searched for the crossing, by halving and by secants, until F = f_target - f_label is as small
    as rounding allows. As long as r is not along the normal n, z is then projected: the point of
    its tangent plane nearest to x lies along n, so that the line from x along n is searched next,
    or, if that crosses no nearer, a line halfway to it. The distance ||r|| therefore never grows.

    Args:
        model: a classifier in evaluation mode.
        images: x, (N, C, H, W).
        attack: finds a first perturbation that leaves the region; None:
            :func:`robustness_geometry.attacks.deepfool`. It is called with ``labels`` and
            ``targets`` if they are given.
        labels: (N,) the classes of the images; None: the predicted ones. Images that are predicted
            otherwise fail.
        targets: (N,) the classes on the other side: the boundary is then that between these two
            classes, even where a third one leads. None: the class that takes over from the label.
        bisections: largest number of evaluations in the search of one line.
        refinements: largest number of projections.
        angle: angle between r and the normal, in radians, at which an image is no longer projected.
        tolerance: largest distance |F| / ||grad F|| of a point from the boundary, in pixel units;
            None: 1e-3 of the default h.

    Returns:
        Boundary.

    Raises:
        InputError: an option, a label or an image that cannot be used, targets that equal the
            label, or logits that do not depend on the input at any image.

    References:
        Thesis, Equations 6.1 and 7.1 define r. The first perturbation is DeepFool's:
        S.-M. Moosavi-Dezfooli, A. Fawzi and P. Frossard, "DeepFool: a simple and accurate method
        to fool deep neural networks", CVPR 2016, arXiv:1511.04599.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, boundary_points
        >>> image = torch.tensor([0.5, 0.0]).view(1, 1, 1, 2)
        >>> near = boundary_points(Ball(radius=2.0), image)
        >>> [round(value, 3) for value in near.points.flatten().tolist()]
        [2.0, 0.0]
    """
    check_count("bisections", bisections)
    check_count("refinements", refinements, minimum=0)
    parallel = check_positive("angle", angle, zero=True)
    model, images, labels, targets = check_input(model, images, labels=labels, targets=targets)
    allowed = allowed_distance(images, tolerance)
    if not len(images):
        return _nothing(images)
    own = clean_labels(model, images, labels, targets)
    if targets is not None and bool((own == targets).any()):
        refuse("targets", Described("the label itself"), "other classes than the labels")
    # The attack sees only the options that were given, as not every attack takes them.
    given = {
        name: value
        for name, value in (("labels", labels), ("targets", targets))
        if value is not None
    }
    outward = (attack or deepfool)(model, images, **given).perturbations
    # The search takes as many images at once as the device's memory or cache holds.
    parts = []
    for rows in torch.arange(len(images), device=images.device).split(
        passes_at_once(images, None, model)
    ):
        labels_here = own[rows]
        pairs = leaving(labels_here) if targets is None else opposing(labels_here, targets[rows])
        search = BoundarySearch(model, images[rows], pairs, bisections)
        search.run(outward[rows], refinements, parallel)
        parts.append(_result(search, labels_here, allowed))
    found = Boundary(
        **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Boundary)}
    )
    if not bool(found.success.any()):
        _check_dependence(model, images)
    return found


def _nothing(images: Images) -> Boundary:
    """The result for an empty batch, for which no model is called."""
    classes, values = torch.zeros(0, dtype=torch.int64, device=images.device), images.new_zeros(0)
    return Boundary(
        images, images, classes, classes, images, values, values, values, classes.bool()
    )


def _check_dependence(model: Classifier, images: Images) -> None:
    """Check that some logit depends on the input at some image."""
    for part in images.split(passes_at_once(images, None, model)):
        logits, pull = linearise(model, part)
        classes = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        if any(bool(pull(row.expand_as(logits)).any()) for row in classes):
            return
    refuse(
        "model",
        Described("logits that do not depend on the input"),
        "a classifier that has a boundary",
    )


def _result(search: BoundarySearch, labels: Labels, allowed: float) -> Boundary:
    """The points of a search that are within ``allowed`` of the boundary."""
    success = search.distances <= allowed

    def kept(values: Tensor) -> Tensor:
        return values.masked_fill(~success.view(-1, *[1] * (values.ndim - 1)), torch.nan)

    return Boundary(
        points=kept(search.images + search.perturbations),
        perturbations=kept(search.perturbations),
        labels=labels,
        targets=torch.where(success, search.targets, labels),
        normals=kept(search.normals),
        gradient_norms=kept(search.sizes),
        angles=kept(search.angles),
        distances=kept(search.distances),
        success=success,
    )
