"""What the experiments of this stage share: points of the boundary, S_c, S_f, u_i, curvatures along directions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from pipeline.bootstrap import measured
from pipeline.evaluation import held_out
from pipeline.executor import Executor
from pipeline.statistics import Estimate
from pipeline.studies.boundary import nearest_points
from pipeline.studies.curvature_measures import along, at_random, ends, extremes, inside
from pipeline.studies.universal import Case, Maker, case
from pipeline.studies.universal import Common as UniversalCommon
from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.universal import universal_perturbation
from robustness_geometry.checks import check_choice, check_count, check_positive, refuse
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.geometry import (
    Boundary,
    RitzPairs,
    default_h,
    orthonormalise,
    random_directions,
    shared_directions,
)
from robustness_geometry.geometry.normals import OUTPUTS
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Attack, Classifier, Dataset, Images, Network

__all__ = [
    "Common",
    "Study",
    "WithUniversal",
    "dimension_of",
    "fooled_shares",
    "named",
    "noise_norm",
    "notes",
    "studies",
    "universal_case",
    "unseen_images",
    "within",
]

ROOM = 50_000_000
"""Numbers that the directions of a chunk of images may hold together."""

SWEEP_PRODUCTS = 60
"""Products that S_c is found by in the sweep over h."""

THESIS_D = 3072
"""The dimension of the images that the thesis' counts of directions are for."""


@dataclass(frozen=True)
class Common:
    """The settings that the experiments on a network share.

    Attributes:
        boundary_attack: finds the smallest perturbations, from which the points of the boundary are
            refined.
        h: the length over which curvature is measured, in pixel l2 units; None: 0.0195 sqrt(d).
        output: ``logits``, or ``softmax``, which the names of all numbers then carry.
        train_samples: training images whose boundary points make S_c, S_f and the u_i.
        samples: held-out images at whose boundary points curvature is measured.
        products: products with the average Hessian that S_c is found by; at least twice its
            dimension.
        leading: curved directions that each training image gives to the u_i.
        sweep: multiples of h for the sweep.
        sweep_samples: images of the sweep, which is over one training seed.
        resamples: of the bootstrap.
    """

    boundary_attack: Attack = field(default_factory=lambda: partial(deepfool))
    h: float | None = None
    output: str = "logits"
    train_samples: int = 100
    samples: int = 1000
    products: int = 1200
    leading: int = 10
    sweep: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    sweep_samples: int = 20
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("train_samples", "samples", "sweep_samples", "products"):
            check_count(name, getattr(self, name), minimum=2)
        for name in ("leading", "resamples"):
            check_count(name, getattr(self, name))
        if self.h is not None:
            check_positive("h", self.h)
        check_choice("output", self.output, OUTPUTS)
        for factor in self.sweep:
            check_positive("sweep", factor)


@dataclass(frozen=True)
class WithUniversal(Common):
    """The settings of those that fool images too.

    Attributes:
        universal: Algorithm 4; with the same options the stage ``universal`` has made its vectors
            already.
        universal_samples: training images of its X.
        universal_orders: shufflings of X that are made together.
        fool_samples: held-out images on which fooling is judged.
        vectors: random vectors of each subspace, whose fooling is averaged.
    """

    universal: Maker = field(default_factory=lambda: partial(universal_perturbation))
    universal_samples: int = 10_000
    universal_orders: int = 5
    fool_samples: int = 50_000
    vectors: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("universal_orders", "fool_samples", "vectors"):
            check_count(name, getattr(self, name))
        check_count("universal_samples", self.universal_samples, minimum=2)


@dataclass(frozen=True)
class Study:
    """One training seed of a network, with the images that make its subspaces and those that judge them.

    What several experiments ask for alike has the same key and is computed once.

    Attributes:
        model: the classifier.
        seed: its training seed.
        known: the training images (n, C, H, W) of S_c, S_f and the u_i.
        unseen: the held-out images (m, C, H, W).
        settings: the experiment's.
        executor: of the stage.
    """

    model: Classifier
    seed: int
    known: Images
    unseen: Images
    settings: Common
    executor: Executor

    @property
    def d(self) -> int:
        """The number of pixels and channels."""
        return self.known[0].numel()

    @property
    def h(self) -> float:
        """The length over which curvature is measured."""
        return default_h(self.d) if self.settings.h is None else self.settings.h

    @property
    def heights(self) -> dict[float, float]:
        """Multiple -> length of the sweep."""
        return {factor: factor * self.h for factor in self.settings.sweep}

    def near(self, images: Images) -> Boundary:
        """The points of the boundary nearest to images, NaN where there is none."""
        return nearest_points(self.settings.boundary_attack, self.model, images, self.executor)

    @cached_property
    def near_known(self) -> Boundary:
        """The boundary points of the training images, NaN for those that have none."""
        return self.near(self.known)

    @cached_property
    def near_unseen(self) -> Boundary:
        """The boundary points of the held-out images, NaN for those that have none."""
        return self.near(self.unseen)

    def known_points(self, count: int | None = None) -> Boundary:
        """The boundary points of the training images that have one, or the first ``count`` of them."""
        return _some(self.near_known, count, "train_samples")

    def unseen_points(self, count: int | None = None) -> Boundary:
        """The boundary points of the held-out images that have one, or the first ``count`` of them."""
        return _some(self.near_unseen, count, "samples")

    def placed(self, values: Tensor) -> Tensor:
        """Values (k, ...) of the first k held-out images that have a point, as (m, ...) in float64, NaN for the others.

        So that one place belongs to one image, whatever the training seed.
        """
        success = self.near_unseen.success
        found = torch.full((len(success), *values.shape[1:]), math.nan, dtype=torch.float64)
        found[success.nonzero()[: len(values), 0]] = values.double()
        return found

    def along(
        self, points: Boundary, vectors: Tensor, *, h: float | None = None, normalised: bool = True
    ) -> Tensor:
        """(n, K) the curvatures at boundary points along vectors (K, C, H, W), the same at every point."""
        work = partial(along, self.model, vectors, h or self.h, self.settings.output, normalised)
        chunk = max(1, min(250, ROOM // max(1, vectors.numel())))
        return self.executor.cached(
            work, points.points, points.labels, points.targets, chunk=chunk
        ).value

    def at_random(
        self, points: Boundary, count: int, *, h: float | None = None, normalised: bool = True
    ) -> Tensor:
        """(n, count) the curvatures along tangent directions, drawn anew for each point."""
        work = partial(at_random, self.model, count, h or self.h, self.settings.output, normalised)
        chunk = max(1, min(250, ROOM // (count * self.d)))
        inputs = (points.points, points.normals, points.labels, points.targets)
        return self.executor.cached(work, *inputs, chunk=chunk, randomness=True).value

    def inside(
        self, points: Boundary, basis: Tensor, count: int, *, normalised: bool = True
    ) -> Tensor:
        """(n, count) the curvatures along random directions of a subspace (m, d), drawn anew for each point."""
        work = partial(inside, self.model, basis, count, self.h, self.settings.output, normalised)
        chunk = max(1, min(250, ROOM // (count * self.d)))
        inputs = (points.points, points.labels, points.targets)
        return self.executor.cached(work, *inputs, chunk=chunk, randomness=True).value

    def extremes(
        self, points: Boundary, *, h: float | None = None, steps: int | None = None
    ) -> RitzPairs:
        """The principal curvatures at both ends of each point's spectrum, and their directions."""
        taken = min(steps or 3 * self.settings.leading, self.d - 1)
        work = partial(extremes, self.model, taken, h or self.h, self.settings.output)
        chunk = max(1, min(250, ROOM // (2 * taken * self.d)))
        inputs = (points.points, points.labels, points.targets)
        return self.executor.cached(work, *inputs, chunk=chunk, randomness=True).value

    def ends(
        self, points: Boundary | None = None, *, h: float | None = None, steps: int | None = None
    ) -> RitzPairs:
        """Both ends of the spectrum of the average tangent-projected Hessian (Section 6.4.1), vectors (1, k, d)."""
        chosen = self.known_points() if points is None else points
        taken = min(steps or self.settings.products, self.d)
        inputs = (chosen.points, chosen.labels, chosen.targets)
        work = partial(ends, self.model, *inputs, taken, h or self.h, self.settings.output)
        name = f"S_c of {len(chosen)} boundary points, seed {self.seed}"
        return self.executor.shared_task(work, name=name).value

    @cached_property
    def _ends(self) -> RitzPairs:
        return self.ends()

    def curved(
        self, count: int, *, negative: bool = False, ends: RitzPairs | None = None
    ) -> Tensor:
        """S_c, or the subspace of the most negative eigenvectors: orthonormal rows (count, d), the leading one first.

        Raises:
            InputError: too few products, see :meth:`check_curved`.
        """
        self.check_curved(count, None if ends is None else len(ends.vectors[0]))
        rows = (self._ends if ends is None else ends).vectors[0]
        return (rows.flip(0) if negative else rows)[:count]

    def check_curved(self, count: int, products: int | None = None) -> None:
        """Hold that S_c of ``count`` dimensions can be had: of 2 ``count`` products, or of d, which leave nothing out.

        Args:
            count: m.
            products: that it is made of; None: those of the settings.

        Raises:
            InputError: it cannot.
        """
        check_products(products or self.settings.products, count, self.d)

    def swept(self, factor: float) -> RitzPairs:
        """:meth:`ends` with ``factor`` times h, of the few images and products of the sweep."""
        few = self.known_points(self.settings.sweep_samples)
        return self.ends(few, h=factor * self.h, steps=min(SWEEP_PRODUCTS, self.settings.products))

    def normal_basis(self, count: int) -> Tensor:
        """S_f of the training images: the leading singular vectors of their unit r, all of them if there are fewer."""
        return self._normals[:count]

    @cached_property
    def _normals(self) -> Tensor:
        r = self.known_points().perturbations.flatten(1)
        return orthonormalise(r / norms(r)[:, None])

    def shared(
        self, count: int, *, points: Boundary | None = None, h: float | None = None
    ) -> Tensor:
        """The shared curved directions u_1 ... u_m (Section 7.4), orthonormal rows (count, d)."""
        chosen = self.known_points() if points is None else points
        leading = self.extremes(chosen, h=h).by_size(min(self.settings.leading, self.d - 1)).vectors
        rows = leading.shape[0] * leading.shape[1]
        if count > min(rows, self.d):
            refuse(
                "leading",
                self.settings.leading,
                f"enough for {count} directions of {len(chosen)} images",
            )
        return shared_directions(leading.float(), count).basis


def studies(network: Network, data: Dataset, settings: Common, executor: Executor) -> list[Study]:
    """One study for each training seed.

    Where a data set has no training images, half of the held-out ones make the subspaces, and the
    others judge them.
    """
    order = stratified_order(data.train.labels, "curvature")[: settings.train_samples]
    known = data.train.images[order]
    if not len(known):
        images = held_out(data, len(data.test)).images
        known = images[len(images) // 2 :][: settings.train_samples]
    unseen = unseen_images(data, settings.samples)
    return [
        Study(model, seed, known, unseen, settings, executor.for_seed(seed))
        for seed, model in sorted(network.models.items())
    ]


def unseen_images(data: Dataset, count: int) -> Images:
    """Held-out images that made no subspace, at most ``count``."""
    images = held_out(data, len(data.test)).images
    return images[:count] if len(data.train) else images[: len(images) // 2][:count]


def universal_case(study: Study, data: Dataset, settings: WithUniversal) -> Case:
    """The universal vectors of the same classifier, as the stage ``universal`` makes them."""
    options = UniversalCommon(
        attack=settings.universal,
        train_samples=settings.universal_samples,
        orders=settings.universal_orders,
        samples=settings.fool_samples,
        resamples=settings.resamples,
    )
    return case(study.model, study.seed, data, options, study.executor)


def fooled_shares(case: Case, sets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> the share of a set's vectors (K, C, H, W) that fool each held-out image, (n,)."""
    fooled = case.fooled(case.unseen, torch.cat(list(sets.values())))
    parts = fooled.split([len(vectors) for vectors in sets.values()], dim=1)
    return {name: part.mean(dim=1) for name, part in zip(sets, parts, strict=True)}


def noise_norm(case: Case, share: float) -> float:
    """``share`` times the norm that random noise needs, sqrt(d) times the median ||r||_2, in pixel units."""
    return share * float(case.noise().nanquantile(0.5))


def within(basis: Tensor, like: Images, count: int, radius: float, *purpose: object) -> Tensor:
    """Random vectors (count, C, H, W) of norm ``radius``, uniform on the sphere of a subspace with basis (m, d)."""
    empty = torch.empty(count, *like.shape[1:])
    return radius * random_directions(empty, seeded("within", *purpose), basis=basis.float())


def dimension_of(count: int, d: int) -> int:
    """A number of directions that the thesis gives for d = 3,072, in proportion where d is smaller."""
    return max(1, round(count * min(1.0, d / THESIS_D)))


def check_products(products: int, count: int, d: int) -> None:
    """Hold that ``products`` with the average Hessian give S_c of ``count`` dimensions in d.

    Raises:
        InputError: they do not, see :meth:`Study.check_curved`.
    """
    made = min(products, d)
    if count > d or (2 * count > made and made < d):
        refuse(
            "products", made, f"at least twice the dimension {count} of the subspace, in d = {d}"
        )


def named(numbers: Mapping[str, Estimate], settings: Common) -> dict[str, Estimate]:
    """The numbers that rest on a case, with the output in their names where it is not that of the claims."""
    suffix = "" if settings.output == "logits" else f" ({settings.output})"
    return {f"{name}{suffix}": estimate for name, estimate in measured(numbers).items()}


def notes(found: Sequence[Study]) -> list[str]:
    """What was measured at which points, and with which h."""
    first, settings = found[0], found[0].settings
    points = [study.near_unseen for study in found]
    reached = [each.found() for each in points]
    angles = torch.cat([each.angles for each in reached])
    missing = sum(int((~each.success).sum()) for each in points)
    cases = sum(len(each) for each in points)
    shown = [f"{float(angles.quantile(q)):.2g}" for q in (0.5, 0.9)] if len(angles) else ["-", "-"]
    return [
        f"F is the {'logit' if settings.output == 'logits' else settings.output + ' output'} of "
        "the other class minus "
        "that of the image's own: positive curvature bends the boundary towards the image. "
        "Curvature is measured over "
        f"h = {first.h:.3g} (l2, pixel units); the table 'sweep' has "
        f"{', '.join(f'{factor:g}' for factor in settings.sweep)} times that for training seed "
        f"{first.seed} and "
        f"{settings.sweep_samples} images.",
        f"Boundary points of {len(first.unseen)} held-out images a training seed; {missing} of "
        f"{cases} have none and "
        f"are left out. The angle between r and the normal is {shown[0]} rad in the median, below "
        f"{shown[1]} for 90%.",
    ]


def _some(points: Boundary, count: int | None, key: str) -> Boundary:
    """The points that were found; held to be at least one."""
    if not bool(points.success.any()):
        refuse(
            key,
            f"{len(points)} images without a boundary point",
            "images that the boundary attack fools",
        )
    found = points.found()
    return found if count is None else found.select(torch.arange(min(count, len(found))))
