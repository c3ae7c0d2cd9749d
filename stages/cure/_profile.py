"""The loss's Hessian on the images of this stage, shared by the profile and the alignment."""

from functools import partial

import torch
from torch import Tensor

from pipeline.geometry import loss_curvature
from pipeline.norms import norms
from pipeline.types import Classifier, Images, Labels
from stages.cure._shared import Study

__all__ = ["profile", "profiles"]

CHUNK = 25
"""Images a chunk: each takes as many gradients as it has pixels."""


def profiles(model: Classifier, images: Images, labels: Labels, *, h: float | None, scheme: str) -> dict[str, Tensor]:
    """The spectrum of the loss's Hessian at each image, and how the gradient lies to its top eigenvector.

    Returns:
        ``eigenvalues`` (N, d), the largest first; ``alignment`` (N,): |g.u| / ||g||; ``gradient`` (N,): ||g||.
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
