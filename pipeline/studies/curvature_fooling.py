"""Which images the vectors of a subspace fool, beside those of Algorithm 4 (Chapter 6)."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.executor import Executor
from pipeline.statistics import Estimate
from pipeline.studies.curvature import CurvatureStudy, curvature_studies
from pipeline.studies.curvature_settings import Fooling, TrainPoints
from pipeline.studies.noise import noise_needed, noise_radius
from pipeline.studies.universal import UniversalStudy, universal_study
from pipeline.studies.universal_settings import MakingSettings, UniversalSettings
from robustness_geometry.geometry import random_directions
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Images, Network

__all__ = [
    "fooled_shares",
    "fooling_studies",
    "fooling_vectors",
    "noise_norm",
    "radius_note",
    "share_inside",
    "universal_of",
    "within",
    "without",
]

SATURATED = 0.1
"""Share of images that random vectors fool, above which other vectors can hardly stand out."""

LEFT = 1e-6
"""Share of a vector's norm below which what a projection leaves of it is rounding."""

FoolingSettings = TypeVar("FoolingSettings", bound=Fooling)


def universal_of(
    study: CurvatureStudy[Fooling], data: Dataset, images: int, orders: int | None = None
) -> UniversalStudy:
    """The universal vectors of the same classifier, as the stage ``universal`` makes them.

    Args:
        study: the classifier.
        data: its data set.
        images: number of images in X.
        orders: number of shufflings of X that vectors are made for together; None: vectors are made
            one by one.
    """
    settings = study.settings
    making = MakingSettings(
        attack=settings.universal,
        train_samples=images,
        samples=settings.fool_samples,
        resamples=settings.resamples,
    )
    if orders is not None:
        making = UniversalSettings(**vars(making), orders=orders)
    return universal_study(study.model, study.seed, data, making, study.executor)


def fooling_studies(
    network: Network,
    data: Dataset,
    settings: FoolingSettings,
    executor: Executor,
    *,
    images: int,
    orders: int | None = None,
) -> list[tuple[CurvatureStudy[FoolingSettings], UniversalStudy]]:
    """The subspaces of each training seed, with its universal vectors.

    They are made where DeepFool's r cross the boundary, as in the thesis.

    Args:
        network: the trained classifiers.
        data: their data set.
        settings: the settings of the experiment.
        executor: runs all work.
        images: number of images in X.
        orders: number of shufflings of X, see :func:`universal_of`.
    """
    studies = curvature_studies(network, data, settings, executor, point="crossing")
    return [(study, universal_of(study, data, images, orders)) for study in studies]


def fooled_shares(universal: UniversalStudy, sets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> the share of a set's vectors (K, C, H, W) that fool each held-out image, (n,)."""
    fooled = universal.fooled(universal.test.images, torch.cat(list(sets.values())))
    parts = fooled.split([len(vectors) for vectors in sets.values()], dim=1)
    return {name: part.mean(dim=1) for name, part in zip(sets, parts, strict=True)}


def noise_norm(study: CurvatureStudy[TrainPoints], share: float) -> float:
    """``share`` times the median norm that random noise needs, measured on training images.

    See :func:`pipeline.studies.noise.noise_radius`.
    """
    needed = noise_needed(study.model, study.train.images, study.executor)
    return noise_radius(needed, share, study.d)


def radius_note(
    study: CurvatureStudy[TrainPoints], universal: UniversalStudy, radius: float, random: Estimate
) -> str:
    """What a radius is of the norm that random noise needs, measured and by the flat formula."""
    needed = noise_norm(study, 1.0)
    flat = float(universal.flat_noise().nanquantile(0.5))
    line = (
        f"Of the first training seed's training images, half change their label by random noise of "
        f"norm {needed:.3g}, measured along one random line each; sqrt(d) times the median ||r||, "
        f"as if the boundary were flat, is {flat:.3g}. The vectors' norm {radius:.3g} is "
        f"{radius / needed:.2g} of the measured one. Random vectors of that norm fool "
        f"{random.value:.1%}."
    )
    if random.value > SATURATED:
        line += " That is so much that it says little about what fools at this norm."
    return line


def within(basis: Tensor, like: Images, count: int, radius: float, *purpose: object) -> Tensor:
    """Random vectors of norm ``radius``, uniform on the sphere of a subspace.

    Args:
        basis: orthonormal rows (m, d).
        like: images (n, C, H, W) whose shape the vectors take.
        count: number of vectors.
        radius: their l_2 norm, in pixel units.
        purpose: names the stream of random numbers.

    Returns:
        (count, C, H, W).
    """
    empty = torch.empty(count, *like.shape[1:])
    return radius * random_directions(empty, seeded("within", *purpose), basis=basis.float())


def fooling_vectors(
    basis: Tensor, like: Images, count: int, radius: float, *purpose: object
) -> Tensor:
    """:func:`within`, but both signs of the only direction of a subspace of one dimension.

    Returns:
        (count, C, H, W), or (2, C, H, W).
    """
    vectors = within(basis, like, count, radius, *purpose)
    return torch.cat([vectors[:1], -vectors[:1]]) if len(basis) == 1 else vectors


def without(vectors: Tensor, basis: Tensor) -> Tensor:
    """Vectors (K, C, H, W) less their parts in a subspace (m, d), at the norms that they had.

    It is zero for a vector that lies in the subspace.
    """
    flat, rows = vectors.flatten(1).double(), basis.double()
    before = flat.norm(dim=1, keepdim=True)
    rest = flat - flat @ rows.T @ rows
    rest = rest - rest @ rows.T @ rows  # once more, for what rounding left
    after = rest.norm(dim=1, keepdim=True)
    scaled = torch.where(after > LEFT * before, rest * before / after, 0.0)
    return scaled.to(vectors).view_as(vectors)


def share_inside(vectors: Tensor, basis: Tensor) -> Tensor:
    """(K,) ||P v|| / ||v|| of vectors (K, C, H, W) and the projector on a subspace (m, d)."""
    flat = vectors.flatten(1).double()
    return (flat @ basis.double().T).norm(dim=1) / flat.norm(dim=1)
