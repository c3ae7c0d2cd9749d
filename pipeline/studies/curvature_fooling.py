"""Which images the vectors of a subspace fool, beside those of Algorithm 4 (Chapter 6)."""

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.executor import Executor
from pipeline.studies.curvature import CurvatureStudy, curvature_studies
from pipeline.studies.curvature_settings import Fooling
from pipeline.studies.universal import UniversalStudy, universal_study
from pipeline.studies.universal_settings import MakingSettings, UniversalSettings
from robustness_geometry.geometry import random_directions
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Images, Network

__all__ = ["fooled_shares", "fooling_studies", "noise_norm", "universal_of", "within"]

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

    Args:
        network: the trained classifiers.
        data: their data set.
        settings: the settings of the experiment.
        executor: runs all work.
        images: number of images in X.
        orders: number of shufflings of X, see :func:`universal_of`.
    """
    studies = curvature_studies(network, data, settings, executor)
    return [(study, universal_of(study, data, images, orders)) for study in studies]


def fooled_shares(universal: UniversalStudy, sets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> the share of a set's vectors (K, C, H, W) that fool each held-out image, (n,)."""
    fooled = universal.fooled(universal.test.images, torch.cat(list(sets.values())))
    parts = fooled.split([len(vectors) for vectors in sets.values()], dim=1)
    return {name: part.mean(dim=1) for name, part in zip(sets, parts, strict=True)}


def noise_norm(universal: UniversalStudy, share: float) -> float:
    """``share`` times the norm that random noise needs, sqrt(d) times the median ||r||_2.

    It is in pixel units, and at most the norm of an image of ones: no two images differ by more.
    """
    largest = math.sqrt(universal.train.images[0].numel())
    return min(share * float(universal.noise().nanquantile(0.5)), largest)


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
