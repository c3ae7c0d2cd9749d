"""The search for close points of a decision boundary: crossings of lines, then projections.

:func:`robustness_geometry.attacks.nearest` and
:func:`robustness_geometry.geometry.boundary_points` share it.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from robustness_geometry.attacks.crossings import crossings
from robustness_geometry.attacks.gradients import difference_gradients, linearise
from robustness_geometry.attacks.protocol import Clip, per_image
from robustness_geometry.attacks.steepest import Curve, share_of_steepest, steepest_curve
from robustness_geometry.attacks.subspaces import Projection
from robustness_geometry.norms import norms
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import (
    Classifier,
    Images,
    Labels,
    Logits,
    PerImage,
    class_logits,
)

__all__ = ["BoundarySearch", "Pairs", "leaving", "opposing", "reaching"]

Pairs: TypeAlias = Callable[[Logits, Tensor], tuple[Tensor, Tensor]]
"""Classes (plus, minus), each (k, 1), such that F = f_plus - f_minus is 0 on the boundary and
negative on the image's side; from logits (k, classes) and the indices (k,) of their images."""


def leaving(labels: Labels) -> Pairs:
    """The pairs of an image that leaves its label: the foremost other class against the label."""

    def pairs(logits: Logits, rows: Tensor) -> tuple[Tensor, Tensor]:
        own = labels[rows, None]
        return logits.scatter(1, own, -torch.inf).argmax(dim=1, keepdim=True), own

    return pairs


def reaching(targets: Labels) -> Pairs:
    """The pairs of an image that reaches its target: the target against the foremost other one."""

    def pairs(logits: Logits, rows: Tensor) -> tuple[Tensor, Tensor]:
        goal = targets[rows, None]
        return goal, logits.scatter(1, goal, -torch.inf).argmax(dim=1, keepdim=True)

    return pairs


def opposing(labels: Labels, targets: Labels) -> Pairs:
    """The pairs of the boundary of two classes, even where a third one leads."""
    return lambda _, rows: (targets[rows, None], labels[rows, None])


class BoundarySearch:
    """Boundary points of a few images as the search goes on; NaN where there is none yet.

    Indices ``rows`` (k,) say which of the images a step is for: finished ones leave the batch.

    Args:
        model: a classifier in evaluation mode.
        images: x, (N, ...).
        pairs: the classes whose boundary it is.
        bisections: largest number of evaluations in the search of one line.
        norm: p of the norm that is made small.
        clip: the box in which x and the points lie.
        project: the projection of gradients onto the subspace of the perturbations.

    Attributes:
        start: (N,) F at the images; those where it is not negative are no images of this side.
        perturbations: r, (N, ...).
        normals: n = grad F / ||grad F||_2 at x + r, projected, (N, ...).
        targets: (N,) the classes on the other side; 0 where there is no point.
        sizes: (N,) ||grad F||_2.
        angles: (N,) between r and n in radians; in other norms and in a box, the angle whose
            cosine is the alignment (see :func:`robustness_geometry.attacks.alignment`).
        distances: (N,) |F| / ||grad F||_2, how far the points are from the boundary.
        looks: (N,) number of gradients taken.
    """

    def __init__(
        self,
        model: Classifier,
        images: Images,
        pairs: Pairs,
        bisections: int,
        *,
        norm: float = 2.0,
        clip: Clip = None,
        project: Projection | None = None,
    ) -> None:
        self.model, self.images, self.pairs = model, images, pairs
        self.bisections, self.norm, self.clip, self.project = bisections, norm, clip, project
        self.targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.perturbations, self.normals = (
            torch.full_like(images, torch.nan),
            torch.full_like(images, torch.nan),
        )
        self.sizes, self.angles, self.distances = images.new_full((3, len(images)), torch.nan)
        self.weights = images.new_ones(len(images))
        self.looks = torch.zeros_like(self.targets)
        self.start, _ = self._gaps(images, torch.arange(len(images), device=images.device))

    def run(self, outward: Images, refinements: int, angle: float) -> None:
        """Search the lines to ``outward`` (N, ...), then project.

        Args:
            outward: perturbations that end on the other side; lines to others are given up.
            refinements: largest number of projections.
            angle: angle in radians at which an image is no longer projected.
        """
        self._look(self.cross(outward))
        for _ in range(refinements):
            rows = (self.angles > angle).nonzero()[:, 0]
            if not len(rows):
                break
            self._look(self._turn(rows))

    def cross(self, outward: Images) -> Tensor:
        """Take as r the places where the lines to ``outward`` (N, ...) cross the boundary.

        Returns:
            The indices of the images whose line has a crossing.
        """
        inside = (self.start < 0).nonzero()[:, 0]
        return self._shorten(inside, _line(outward[inside]))

    def _gaps(self, points: Images, rows: Tensor) -> tuple[PerImage, PerImage]:
        """F (k,), and bounds on its rounding error (k,)."""
        with torch.no_grad():
            logits = class_logits(logits_at(self.model, points))
        plus, minus = self.pairs(logits, rows)
        gaps = logits.gather(1, plus) - logits.gather(1, minus)
        return gaps[:, 0], 4 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)

    def _shorten(self, rows: Tensor, curve: Curve) -> Tensor:
        """Take as r the place where ``curve``, from 0 at the image, crosses the boundary.

        Returns:
            The indices of the images whose curve has a crossing.
        """
        outward = curve(
            self.images.new_ones(len(rows)), torch.arange(len(rows), device=rows.device)
        )
        ends, _ = self._gaps(self.images[rows] + outward, rows)
        crossing = (ends >= 0) & torch.isfinite(outward).flatten(1).all(dim=1)
        crossed = crossing.nonzero()[:, 0]
        rows, ends = rows[crossed], ends[crossed]

        def along(places: PerImage, few: Tensor) -> tuple[PerImage, PerImage]:
            return self._gaps(self.images[rows[few]] + curve(places, crossed[few]), rows[few])

        shares = crossings(along, self.start[rows], ends, self.bisections)
        self.perturbations[rows] = curve(shares, crossed)
        return rows

    def _turn(self, rows: Tensor) -> Tensor:
        """Search curves that end as far from the image as r, turned from r towards the normal.

        Returns:
            The indices of the images whose r became shorter.
        """
        curve = (self._towards_normal if self._is_round() else self._towards_steepest)(rows)
        # A line that crosses nothing is tried again turned by half as much. After a success the
        # weight doubles (it was halved before), so that it finds its way back to the normal.
        self.weights[rows] /= 2
        moved = self._shorten(rows, curve)
        self.weights[moved] = (4 * self.weights[moved]).clamp_max(1.0)
        return moved

    def _is_round(self) -> bool:
        """Whether the points within a distance are a ball in the usual sense."""
        return self.norm == 2 and self.clip is None

    def _towards_normal(self, rows: Tensor) -> Curve:
        """Lines of the length of r, turned from r towards the normal by ``weights``."""
        r = self.perturbations[rows]
        length = per_image(norms(r), r)
        direction = torch.lerp(r / length, self.normals[rows], per_image(self.weights[rows], r))
        return _line(length * direction / per_image(norms(direction), r))

    def _towards_steepest(self, rows: Tensor) -> Curve:
        """Means of r and of the point as far away with the largest <n, e>, along both at once.

        The ball and the box are convex: the mean is no farther away than r and within the box.
        """
        r, weights = self.perturbations[rows], self.weights[rows]
        steepest = self._steepest(rows)

        def mean(shares: PerImage, few: Tensor) -> Images:
            kept = per_image(shares * (1 - weights[few]), r) * r[few]
            return kept + per_image(weights[few], r) * steepest(shares, few)

        return mean

    def _steepest(self, rows: Tensor) -> Curve:
        lengths = norms(self.perturbations[rows], self.norm)
        return steepest_curve(self.images[rows], self.normals[rows], lengths, self.norm, self.clip)

    def _look(self, rows: Tensor) -> None:
        """Evaluate the points of ``rows``: class on the other side, normal, angle and distance."""
        points = self.images[rows] + self.perturbations[rows]
        if not len(rows):
            return
        logits, pull = linearise(self.model, points)
        plus, minus = self.pairs(logits, rows)
        gradients = difference_gradients(pull, logits.shape[1], plus, minus)
        if self.project is not None:
            gradients = self.project(gradients, rows)
        sizes = norms(gradients[:, 0])
        unit = gradients[:, 0] / per_image(sizes, gradients[:, 0])
        self.targets[rows], self.normals[rows], self.sizes[rows] = plus[:, 0], unit, sizes
        self.angles[rows] = self._angles(rows)
        self.looks[rows] += 1
        self.distances[rows] = (logits.gather(1, plus) - logits.gather(1, minus))[
            :, 0
        ].abs() / sizes

    def _angles(self, rows: Tensor) -> PerImage:
        r, unit = self.perturbations[rows], self.normals[rows]
        along = (unit * r).flatten(1).sum(dim=1)
        if self._is_round():
            # From both of its legs: an arc cosine is inaccurate near 0.
            return torch.atan2(norms(r - per_image(along, unit) * unit), along)
        return share_of_steepest(self.images[rows], r, unit, self.norm, self.clip).acos()


def _line(outward: Images) -> Curve:
    return lambda shares, few: per_image(shares, outward) * outward[few]
