"""The loss's Hessian at the images of chapter 8, for its profile and for the gradient's alignment.

References:
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.studies.cure import CureStudy
from pipeline.studies.cure_settings import CureSettings
from robustness_geometry.attacks.protocol import per_image
from robustness_geometry.checks import check_choice, check_count, check_positive
from robustness_geometry.geometry import (
    default_h,
    loss_curvature,
    loss_gradients,
    loss_hessian_products,
)
from robustness_geometry.norms import norms
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import Classifier, Images, Labels

__all__ = [
    "HessianSettings",
    "power_curvature",
    "powers_of_seeds",
    "profile",
    "profiles",
    "profiles_of_seeds",
    "smoothed_curvature",
    "smoothed_of_seeds",
]

CHUNK = 25
"""Images per chunk: each takes as many gradients as it has pixels."""


@dataclass(frozen=True)
class HessianSettings(CureSettings):
    """The settings of the experiments on the loss's Hessian.

    Attributes:
        profile_seeds: number of training seeds, at least 1, whose whole Hessians are computed; each
            takes as many gradients per image as it has pixels.
        profile_samples: number of held-out images, at least 1, whose whole Hessians are computed.
        power_steps: number of steps of the power iteration for the largest eigenvalue, at least 1;
            it runs on all images and training seeds.
        curvature_h: step of the differences, in pixel l2, > 0; None:
            :func:`robustness_geometry.geometry.default_h`.
        scheme: the differences of gradients: ``forward`` (Equation 8.1) or ``central``.
    """

    profile_seeds: int = 3
    profile_samples: int = 100
    power_steps: int = 20
    curvature_h: float | None = None
    scheme: str = "forward"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("profile_seeds", "profile_samples", "power_steps"):
            check_count(name, getattr(self, name))
        check_choice("scheme", self.scheme, ("forward", "central"))
        if self.curvature_h is not None:
            check_positive("curvature_h", self.curvature_h)


def profiles(
    model: Classifier, images: Images, labels: Labels, *, h: float | None, scheme: str
) -> dict[str, Tensor]:
    """The spectrum of the loss's Hessian at each image, and the gradient's alignment with it.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        h: step of the differences, in pixel l2; None: the default of ``loss_curvature``.
        scheme: ``forward`` or ``central``.

    Returns:
        ``eigenvalues`` (N, d), the largest first; ``alignment`` (N,): |g.u| / ||g|| for the top
        eigenvector u, NaN where g vanishes; ``gradient`` (N,): ||g||.
    """
    curvature = loss_curvature(model, images, labels, h=h, scheme=scheme)
    return {
        "eigenvalues": curvature.eigenvalues.float(),
        "alignment": curvature.alignments,
        "gradient": norms(curvature.gradients),
    }


def power_curvature(
    model: Classifier,
    images: Images,
    labels: Labels,
    *,
    steps: int,
    h: float | None,
    scheme: str,
    generator: Generators = None,
) -> dict[str, Tensor]:
    """The Hessian's eigenvalue of largest size by power iteration on Equation 8.1's products.

    The differences of gradients of a network of ReLUs make no symmetric matrix; its symmetric part
    has larger eigenvalues than any direction v that Hv reproduces. Power iteration finds such a
    direction, along which the quotient v.Hv is the change of the gradient over ``h``.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        steps: number of products with H per image, from a random direction on.
        h: step of the differences, in pixel l2; None: the default of ``loss_hessian_products``.
        scheme: ``forward`` or ``central``.
        generator: one for the batch or one per image.

    Returns:
        ``power`` (N,): v.Hv for the unit vector v of the last step, 0 where H vanishes;
        ``alignment`` (N,): |g.v| / ||g||, NaN where g or H vanishes; ``gradient`` (N,): ||g||;
        ``loss`` (N,).
    """
    vectors = normal(torch.empty_like(images), generator)
    products = partial(loss_hessian_products, model, images, labels, h=h, scheme=scheme)
    for _ in range(steps):
        vectors = products(_unit(vectors)[:, None])[:, 0]
    unit = _unit(vectors)
    power = (unit * products(unit[:, None])[:, 0]).flatten(1).sum(dim=1)
    losses, gradients = loss_gradients(model, images, labels)
    size, along = norms(gradients), (gradients * unit).flatten(1).sum(dim=1).abs()
    found = norms(unit) > 0
    return {
        "power": power,
        "alignment": (along / size).where(found, torch.nan),
        "gradient": size,
        "loss": losses,
    }


def smoothed_curvature(
    model: Classifier,
    images: Images,
    labels: Labels,
    *,
    steps: int,
    draws: int,
    h: float | None,
    scheme: str,
    generator: Generators = None,
) -> dict[str, Tensor]:
    """The eigenvalue of largest size of the Hessian of the smoothed loss E l(x + noise).

    A network of ReLUs has no second derivatives, but the mean of its loss over normal noise has
    them, and they form a symmetric matrix. The noise is as long as the step of the differences:
    ||noise|| is about ``h``. The same draws serve all steps of the power iteration.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        steps: number of products with H per image, from a random direction on.
        draws: number of points around each image.
        h: step of the differences, in pixel l2; None:
            :func:`robustness_geometry.geometry.default_h`.
        scheme: ``forward`` or ``central``.
        generator: one for the batch or one per image.

    Returns:
        ``smoothed`` (N,): v.Hv for the unit vector v of the last step, 0 where H vanishes.
    """
    h = h or default_h(images[0].numel())
    drawn = normal(images.new_empty(len(images), draws + 1, *images.shape[1:]), generator)
    vectors, noise = drawn[:, 0], drawn[:, 1:] * (h / images[0].numel() ** 0.5)
    around = (images[:, None] + noise).flatten(0, 1)
    by = partial(loss_hessian_products, model, around, labels.repeat_interleave(draws), h=h)

    def product(unit: Tensor) -> Tensor:
        each = by(unit.repeat_interleave(draws, dim=0)[:, None], scheme=scheme)
        return each.view_as(noise).mean(dim=1)

    for _ in range(steps):
        vectors = product(_unit(vectors))
    unit = _unit(vectors)
    return {"smoothed": (unit * product(unit)).flatten(1).sum(dim=1)}


def _unit(vectors: Tensor) -> Tensor:
    """Vectors (N, ...) of length 1, or 0 where they vanish."""
    return vectors / per_image(norms(vectors), vectors).clamp_min(torch.finfo(vectors.dtype).tiny)


def profile(study: CureStudy[HessianSettings], name: str) -> dict[str, Tensor]:
    """:func:`profiles` of the study's first held-out images on the network ``name``, in float64."""
    settings = study.settings
    work = partial(
        profiles, study.tuned(name).model, h=settings.curvature_h, scheme=settings.scheme
    )
    test = study.test.first(settings.profile_samples)
    values = study.executor.cached(work, test.images, test.labels, chunk=CHUNK).value
    return {key: torch.as_tensor(each).double() for key, each in values.items()}


def profiles_of_seeds(
    studies: Sequence[CureStudy[HessianSettings]], name: str
) -> dict[str, Tensor]:
    """:func:`profile` on the network ``name`` for the first ``profile_seeds``, (seeds, n, ...)."""
    few = studies[: studies[0].settings.profile_seeds]
    return _stacked(few[0].executor.each(lambda study: profile(study, name), few))


def powers_of_seeds(studies: Sequence[CureStudy[HessianSettings]], name: str) -> dict[str, Tensor]:
    """:func:`power_curvature` on the network ``name`` at all images of all seeds, (seeds, n)."""

    def power(study: CureStudy[HessianSettings]) -> dict[str, Tensor]:
        settings, test = study.settings, study.test
        work = partial(
            power_curvature,
            study.tuned(name).model,
            steps=settings.power_steps,
            h=settings.curvature_h,
            scheme=settings.scheme,
        )
        values = study.executor.cached(work, test.images, test.labels, randomness=True).value
        return {key: torch.as_tensor(each).double() for key, each in values.items()}

    return _stacked(studies[0].executor.each(power, studies))


def smoothed_of_seeds(
    studies: Sequence[CureStudy[HessianSettings]], name: str, draws: int
) -> dict[str, Tensor]:
    """:func:`smoothed_curvature` on the network ``name`` at images of all seeds, (seeds, n)."""

    def smoothed(study: CureStudy[HessianSettings]) -> dict[str, Tensor]:
        settings = study.settings
        work = partial(
            smoothed_curvature,
            study.tuned(name).model,
            steps=settings.power_steps,
            draws=draws,
            h=settings.curvature_h,
            scheme=settings.scheme,
        )
        test = study.test.first(settings.profile_samples)
        values = study.executor.cached(
            work, test.images, test.labels, chunk=CHUNK, randomness=True
        ).value
        return {key: torch.as_tensor(each).double() for key, each in values.items()}

    return _stacked(studies[0].executor.each(smoothed, studies))


def _stacked(seeds: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([values[key] for values in seeds]) for key in seeds[0]}
