"""The boundary near held-out images (Chapter 5): settings, nearest points, semi-random attacks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.evaluation import judged
from pipeline.executor import Executor
from pipeline.studies.attacking import deepfool_of
from robustness_geometry.attacks import deepfool, nearest
from robustness_geometry.checks import check_count
from robustness_geometry.geometry import Boundary, RandomSubspaces, boundary_points
from robustness_geometry.norms import norms
from robustness_geometry.types import Attack, Classifier, Images, Perturbed

__all__ = [
    "BoundarySettings",
    "closest_points",
    "crossing_points",
    "in_own_subspace",
    "once",
    "or_infinite",
]


@dataclass(frozen=True)
class BoundarySettings:
    """The settings that the experiments on a network's boundary share.

    Attributes:
        boundary_attack: the attack that finds the smallest perturbations; if it is a DeepFool, its
            options also hold inside a subspace, else the default DeepFool is taken for both.
        samples: number of held-out images.
        resamples: number of resamples of the bootstrap behind every interval.
    """

    boundary_attack: Attack = field(default_factory=lambda: partial(deepfool))
    samples: int = 1000
    resamples: int = 2000

    binds: ClassVar[Mapping[str, Mapping[str, str]]] = {"boundary_attack": {"norm": "", "clip": ""}}
    """Attack -> its options that the experiments set themselves, whatever is given."""

    def __post_init__(self) -> None:
        check_count("samples", self.samples)
        check_count("resamples", self.resamples)


def in_own_subspace(
    attack: Attack,
    m: int,
    seed: int,
    model: Classifier,
    images: Images,
    *,
    generator: Sequence[torch.Generator],
) -> Perturbed:
    """DeepFool on each image inside its own random m-dimensional subspace.

    Algorithm 3 and the semi-random regime of Section 5.3.

    Args:
        attack: the boundary attack.
        m: dimension of the subspaces.
        seed: seed of the frame that all subspaces share.
        model: the classifier.
        images: (N, C, H, W).
        generator: one generator per image.
    """
    subspaces = RandomSubspaces(images.shape[1:], m, generator, seed=seed, like=images[:0])
    return judged(deepfool_of(attack, norm=2.0, clip=None, subspace=subspaces), model, images)


def closest_points(model: Classifier, images: Images, executor: Executor) -> Boundary:
    """The points of the boundary closest to the images, by :func:`nearest` and further projections.

    Equations 6.1 and 7.1 define r as the smallest perturbation. Computed once for all experiments.
    """
    return executor.cached(
        partial(boundary_points, model, attack=partial(nearest, start="both")), images
    ).value


def crossing_points(
    attack: Attack, model: Classifier, images: Images, executor: Executor
) -> Boundary:
    """The points x + t r, 0 < t <= 1, at which the perturbations r of DeepFool cross the boundary.

    So the thesis, which takes DeepFool's perturbations, has measured. Computed once for all
    experiments.
    """
    outward = deepfool_of(attack, norm=2.0, clip=None)
    return executor.cached(
        partial(boundary_points, model, attack=outward, refinements=0), images
    ).value


def or_infinite(result: Perturbed) -> Tensor:
    """||r||_2 of each image in float64, infinite where no perturbation was found.

    An infinite norm takes its place in a median, where a missing one would be left out.
    """
    return norms(result.perturbations).double().masked_fill(~result.success, math.inf)


def once(
    function: "partial[dict[str, Tensor]]", executor: Executor, name: str
) -> dict[str, Tensor]:
    """The result of a function that uses no network, computed once for all networks and seeds."""
    return executor.shared_task(function, name=name).value
