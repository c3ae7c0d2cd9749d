"""The loss's Hessian on the images of this stage, shared by the profile and the alignment."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.studies.cure import Common, Study
from robustness_geometry.checks import check_choice, check_count, check_positive
from robustness_geometry.geometry import loss_curvature
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Images, Labels

__all__ = ["WithProfile", "profile", "profiles"]

CHUNK = 25
"""Images a chunk: each takes as many gradients as it has pixels."""


@dataclass(frozen=True)
class WithProfile(Common):
    """The settings of the experiments on the loss's Hessian.

    Attributes:
        profile_seeds: training seeds whose Hessians are taken, which needs as many gradients an
            image as it has pixels.
        curvature_h: step of the differences, in pixel l2 units; None:
            :func:`robustness_geometry.geometry.default_h`.
        scheme: ``forward`` (Equation 8.1) or ``central``.
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
    """The spectrum of the loss's Hessian at each image, and how the gradient lies to its top eigenvector.

    Returns:
        ``eigenvalues`` (N, d), the largest first; ``alignment`` (N,): |g.u| / ||g||; ``gradient``
        (N,): ||g||.
    """
    found = loss_curvature(model, images, labels, h=h, scheme=scheme)
    return {
        "eigenvalues": found.eigenvalues.float(),
        "alignment": found.alignments,
        "gradient": norms(found.gradients),
    }


def profile(study: Study, name: str, *, h: float | None, scheme: str) -> dict[str, Tensor]:
    """:func:`profiles` of the study's held-out images on the network ``name``, in float64."""
    work = partial(profiles, study.tuned(name).model, h=h, scheme=scheme)
    found = study.executor.cached(work, study.test.images, study.test.labels, chunk=CHUNK).value
    return {key: torch.as_tensor(values).double() for key, values in found.items()}
