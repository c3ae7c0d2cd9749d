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
from robustness_geometry.checks import check_choice, check_count, check_positive
from robustness_geometry.geometry import loss_curvature
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Images, Labels

__all__ = ["HessianSettings", "profile", "profiles", "profiles_of_seeds"]

CHUNK = 25
"""Images per chunk: each takes as many gradients as it has pixels."""


@dataclass(frozen=True)
class HessianSettings(CureSettings):
    """The settings of the experiments on the loss's Hessian.

    Attributes:
        profile_seeds: number of training seeds, at least 1, whose Hessians are computed; each takes
            as many gradients per image as it has pixels.
        curvature_h: step of the differences, in pixel l2, > 0; None:
            :func:`robustness_geometry.geometry.default_h`.
        scheme: the differences of gradients: ``forward`` (Equation 8.1) or ``central``.
    """

    profile_seeds: int = 3
    curvature_h: float | None = None
    scheme: str = "forward"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("profile_seeds", self.profile_seeds)
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


def profile(study: CureStudy[HessianSettings], name: str) -> dict[str, Tensor]:
    """:func:`profiles` of the study's held-out images on the network ``name``, in float64."""
    settings = study.settings
    model = study.tuned(name).model
    work = partial(profiles, model, h=settings.curvature_h, scheme=settings.scheme)
    values = study.executor.cached(work, study.test.images, study.test.labels, chunk=CHUNK).value
    return {key: torch.as_tensor(each).double() for key, each in values.items()}


def profiles_of_seeds(
    studies: Sequence[CureStudy[HessianSettings]], name: str, quantity: str
) -> Tensor:
    """One quantity of :func:`profile` on the network ``name`` for all seeds, (seeds, n, ...)."""
    each = studies[0].executor.each(lambda study: profile(study, name), studies)
    return torch.stack([values[quantity] for values in each])
