"""Boundary points near images, curvatures along directions, and shared subspaces S_c, S_f, u_i.

The instruments of Chapter 6 and Section 7.4.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pipeline.evaluation import held_out
from pipeline.executor import Executor
from pipeline.studies.boundary import closest_points, crossing_points
from pipeline.studies.curvature_measures import along, at_random, ends, extremes, inside
from pipeline.studies.curvature_settings import (
    Curvatures,
    CurvatureSettings,
    Leading,
    MeanHessian,
    SharedDirections,
    TrainPoints,
    UnseenPoints,
    check_products,
)
from pipeline.studies.subject import Subject
from robustness_geometry.checks import Described, InputError, check_choice, refuse
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.geometry import (
    Boundary,
    RitzPairs,
    default_h,
    orthonormalise,
    shared_directions,
)
from robustness_geometry.norms import norms
from robustness_geometry.types import Dataset, Images, Network, Split

__all__ = [
    "POINTS",
    "CurvatureStudy",
    "curvature_studies",
    "training_split",
    "unit",
    "unseen_split",
]

POINTS = {"crossing": "closest", "closest": "crossing"}
"""Where the boundary is measured near an image -> the other place, which is shown beside it."""

ROOM = 50_000_000
"""Numbers that the directions of a chunk of images may hold together."""

MOST_IMAGES = 250
"""Images per chunk at most."""

FEW_PRODUCTS = 30
"""Products that S_c is found by at each multiple of h, for its leading directions alone."""

BESIDE = 30
"""Products that a small S_c is found by at the points that are shown beside a study's own."""

AnySettings = TypeVar("AnySettings", bound=CurvatureSettings)
Settings_co = TypeVar("Settings_co", bound=CurvatureSettings, covariant=True)


@dataclass(frozen=True)
class CurvatureStudy(Subject, Generic[Settings_co]):
    """One training seed of a network: training images make subspaces, ``test`` judges them.

    A method states which settings it reads, so that an experiment without them cannot call it.

    Attributes:
        settings: the settings of the experiment.
        point: where the boundary is measured: at the ``closest`` point, whose r is the smallest
            perturbation (Equations 6.1 and 7.1), or at the ``crossing`` of DeepFool's r.
    """

    settings: Settings_co
    point: str = "closest"

    def at(self, point: str) -> "CurvatureStudy[Settings_co]":
        """The same study at the ``crossing`` or at the ``closest`` points."""
        check_choice("point", point, tuple(POINTS))
        return self if point == self.point else replace(self, point=point)

    @cached_property
    def both(self) -> "dict[str, CurvatureStudy[Settings_co]]":
        """What the names of numbers end in -> the study at its own points, and at the others."""
        other = POINTS[self.point]
        return {"": self, f" ({other})": self.at(other)}

    @property
    def d(self) -> int:
        """The number of pixels and channels."""
        return math.prod(self.train.images.shape[1:])

    @property
    def h(self: "CurvatureStudy[Curvatures]") -> float:
        """The length over which curvature is measured, in pixel l2 units."""
        return default_h(self.d) if self.settings.h is None else self.settings.h

    @property
    def h_factors(self: "CurvatureStudy[Curvatures]") -> dict[float, float]:
        """Multiple of h -> that length, for the table of signs over h."""
        return {factor: factor * self.h for factor in self.settings.sweep}

    def near(self, images: Images) -> Boundary:
        """The points of the boundary near images, NaN where there is none."""
        if self.point == "crossing":
            attack = self.settings.boundary_attack
            return crossing_points(attack, self.model, images, self.executor)
        return closest_points(self.model, images, self.executor)

    @cached_property
    def near_train(self) -> Boundary:
        """The boundary points of the training images, NaN for those that have none."""
        return self.near(self.train.images)

    @cached_property
    def near_test(self) -> Boundary:
        """The boundary points of the held-out images, NaN for those that have none."""
        return self.near(self.test.images)

    def train_points(self: "CurvatureStudy[TrainPoints]", count: int | None = None) -> Boundary:
        """The boundary points of the training images that have one, at most ``count``."""
        return _some(self.near_train, count, "train_samples")

    def test_points(self: "CurvatureStudy[UnseenPoints]", count: int | None = None) -> Boundary:
        """The boundary points of the held-out images that have one, at most ``count``."""
        return _some(self.near_test, count, "samples")

    def placed(self, values: Tensor) -> Tensor:
        """Values of the first k held-out images that have a point, at the places of their images.

        So one place belongs to one image, whatever the training seed.

        Args:
            values: (k, ...).

        Returns:
            (m, ...) in float64 for the m held-out images, NaN for the others.
        """
        success = self.near_test.success
        places = torch.full((len(success), *values.shape[1:]), math.nan, dtype=torch.float64)
        places[success.nonzero()[: len(values), 0]] = values.double()
        return places

    def along(
        self: "CurvatureStudy[Curvatures]",
        points: Boundary,
        vectors: Tensor,
        *,
        h: float | None = None,
        normalised: bool = True,
    ) -> Tensor:
        """(n, K) the curvatures at boundary points along vectors (K, C, H, W)."""
        work = partial(along, self.model, vectors, h or self.h, self.settings.output, normalised)
        inputs = (points.points, points.labels, points.targets)
        return self.executor.cached(work, *inputs, chunk=_chunk(vectors.numel())).value

    def at_random(
        self: "CurvatureStudy[Curvatures]",
        points: Boundary,
        count: int,
        *,
        h: float | None = None,
        normalised: bool = True,
    ) -> Tensor:
        """(n, count) the curvatures along tangent directions, drawn anew for each point."""
        work = partial(at_random, self.model, count, h or self.h, self.settings.output, normalised)
        inputs = (points.points, points.normals, points.labels, points.targets)
        chunk = _chunk(count * self.d)
        return self.executor.cached(work, *inputs, chunk=chunk, randomness=True).value

    def inside(
        self: "CurvatureStudy[Curvatures]",
        points: Boundary,
        basis: Tensor,
        count: int,
        *,
        normalised: bool = True,
    ) -> Tensor:
        """(n, count) the curvatures along random directions of a subspace (m, d).

        The directions are drawn anew for each point.
        """
        work = partial(inside, self.model, basis, count, self.h, self.settings.output, normalised)
        inputs = (points.points, points.labels, points.targets)
        chunk = _chunk(count * self.d)
        return self.executor.cached(work, *inputs, chunk=chunk, randomness=True).value

    def extremes(
        self: "CurvatureStudy[Leading]", points: Boundary, *, h: float | None = None
    ) -> RitzPairs:
        """The principal curvatures at both ends of each point's spectrum, and their directions."""
        products = self.products_each
        work = partial(extremes, self.model, products, h or self.h, self.settings.output)
        inputs = (points.points, points.labels, points.targets)
        chunk = _chunk(2 * products * self.d)
        return self.executor.cached(work, *inputs, chunk=chunk, randomness=True).value

    @property
    def products_each(self: "CurvatureStudy[Leading]") -> int:
        """Products with each point's Hessian by which :meth:`extremes` are found."""
        return min(3 * self.settings.leading, self.d - 1)

    @property
    def leading(self: "CurvatureStudy[Leading]") -> int:
        """Principal directions that each point gives to the u_i."""
        return min(self.settings.leading, self.d - 1)

    def ends(
        self: "CurvatureStudy[MeanHessian]",
        points: Boundary | None = None,
        *,
        h: float | None = None,
        products: int | None = None,
    ) -> RitzPairs:
        """Both ends of the spectrum of the average tangent-projected Hessian (Section 6.4.1).

        Its vectors are (1, k, d).
        """
        chosen = self.train_points() if points is None else points
        taken = min(products or self.settings.products, self.d)
        inputs = (chosen.points, chosen.labels, chosen.targets)
        work = partial(ends, self.model, *inputs, taken, h or self.h, self.settings.output)
        name = f"S_c of {len(chosen)} boundary points, seed {self.seed}"
        return self.executor.shared_task(work, name=name).value

    def ends_beside(self: "CurvatureStudy[MeanHessian]", count: int) -> RitzPairs:
        """:meth:`ends` of few products, for ``count`` directions that are shown beside others."""
        return self.ends(products=min(max(BESIDE, 2 * count), self.settings.products))

    @cached_property
    def _ends(self: "CurvatureStudy[MeanHessian]") -> RitzPairs:
        return self.ends()

    def curved(
        self: "CurvatureStudy[MeanHessian]",
        count: int,
        *,
        negative: bool = False,
        ends: RitzPairs | None = None,
    ) -> Tensor:
        """S_c, or the subspace of the most negative eigenvectors.

        Returns:
            Orthonormal rows (count, d), the leading one first.

        Raises:
            InputError: too few products, see :func:`check_products`.
        """
        products = self.settings.products if ends is None else len(ends.vectors[0])
        check_products(products, count, self.d)
        rows = (self._ends if ends is None else ends).vectors[0]
        return (rows.flip(0) if negative else rows)[:count]

    def ends_at(self: "CurvatureStudy[MeanHessian]", factor: float) -> RitzPairs:
        """:meth:`ends` at ``factor`` times h, of few images and few products."""
        few = self.train_points(self.settings.sweep_samples)
        products = min(FEW_PRODUCTS, self.settings.products)
        return self.ends(few, h=factor * self.h, products=products)

    def curved_at(
        self: "CurvatureStudy[MeanHessian]", factor: float, count: int
    ) -> dict[str, Tensor]:
        """S_c (``sc``) and its negative control (``negative``) made at ``factor`` times h.

        Each is orthonormal rows (k, d), k being ``count`` or, of few products, fewer.
        """
        ends = self.ends_at(factor)
        taken = min(count, len(ends.vectors[0]) // 2)
        return {
            kind: self.curved(taken, negative=kind == "negative", ends=ends)
            for kind in ("sc", "negative")
        }

    def normal_basis(self: "CurvatureStudy[TrainPoints]", count: int) -> Tensor:
        """S_f of the training images: at most ``count`` leading singular vectors of unit r."""
        return self._normals[:count]

    @cached_property
    def _normals(self: "CurvatureStudy[TrainPoints]") -> Tensor:
        r = self.train_points().perturbations.flatten(1)
        return orthonormalise(r / norms(r)[:, None])

    def shared(
        self: "CurvatureStudy[SharedDirections]",
        count: int,
        *,
        points: Boundary | None = None,
        h: float | None = None,
    ) -> Tensor:
        """The shared curved directions u_1 ... u_m (Section 7.4), orthonormal rows (count, d)."""
        chosen = self.train_points() if points is None else points
        leading = self.extremes(chosen, h=h).by_size(self.leading).vectors
        rows = leading.shape[0] * leading.shape[1]
        if count > min(rows, self.d):
            refuse(
                "leading",
                self.settings.leading,
                f"large enough for {count} directions of {len(chosen)} images",
            )
        try:
            return shared_directions(leading.float(), count).basis
        except InputError as error:  # the directions of several images coincide
            wanted = f"large enough for {count} independent directions ({error})"
            refuse("leading", self.settings.leading, wanted)

    def shared_at(
        self: "CurvatureStudy[SharedDirections]", h: float, count: int
    ) -> tuple[Tensor, Tensor]:
        """The u_i made of few images at another h.

        Returns:
            Orthonormal rows (k, d), k being ``count`` or, of few images, fewer; and the principal
            curvatures (n, leading) that they are made of.
        """
        few = self.train_points(self.settings.sweep_samples)
        basis = self.shared(min(count, len(few) * self.leading), points=few, h=h)
        return basis, self.extremes(few, h=h).by_size(self.leading).values


def curvature_studies(
    network: Network,
    data: Dataset,
    settings: AnySettings,
    executor: Executor,
    *,
    point: str = "closest",
) -> list[CurvatureStudy[AnySettings]]:
    """One study for each training seed, in ascending order.

    The boundary is measured at ``point``, see :class:`CurvatureStudy`. Where a data set has no
    training images, half of the held-out ones make the subspaces, and the
    others judge them. A study has no images of a kind that the settings do not name.
    """
    made_of = settings.train_samples if isinstance(settings, TrainPoints) else 0
    judged_on = settings.samples if isinstance(settings, UnseenPoints) else 0
    train, test = training_split(data, made_of), unseen_split(data, judged_on)
    if not len(data.train):
        every = held_out(data, len(data.test))
        middle = len(every) // 2
        train = Split(every.images[middle:], every.labels[middle:]).first(made_of)
    return [
        CurvatureStudy(model, seed, train, test, executor.for_seed(seed), settings, point)
        for seed, model in sorted(network.models.items())
    ]


def training_split(data: Dataset, count: int) -> Split:
    """``count`` training images, a stratified choice (all if there are fewer)."""
    order = stratified_order(data.train.labels, "curvature")[:count]
    return Split(data.train.images[order], data.train.labels[order])


def unseen_split(data: Dataset, count: int) -> Split:
    """Held-out images that made no subspace, at most ``count``."""
    every = held_out(data, len(data.test))
    return every.first(count if len(data.train) else min(count, len(every) // 2))


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., d) divided by their l_2 norms."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _chunk(numbers: int) -> int:
    """Images per chunk, so that directions of ``numbers`` entries per image fit into memory."""
    return max(1, min(MOST_IMAGES, ROOM // max(1, numbers)))


def _some(points: Boundary, count: int | None, key: str) -> Boundary:
    """The points that were found, at most ``count``.

    Raises:
        InputError: none was found.
    """
    if not bool(points.success.any()):
        refuse(
            key,
            Described(f"{len(points)} images without a boundary point"),
            "images of which the boundary attack fools at least one",
        )
    reached = points.found()
    return reached if count is None else reached.select(torch.arange(min(count, len(reached))))
