"""How nearly a perturbation is smallest, to first order: its alignment with the gradient."""

import torch
from torch import Tensor

from robustness_geometry.attacks.boundary_search import leaving, reaching
from robustness_geometry.attacks.gradients import difference_gradients, linearise
from robustness_geometry.attacks.protocol import (
    Bounds,
    Number,
    check_clip,
    check_input,
    clean_labels,
)
from robustness_geometry.attacks.steepest import share_of_steepest
from robustness_geometry.attacks.subspaces import Subspace, projection_onto
from robustness_geometry.checks import Described, GivenLabels, check_norm, refuse
from robustness_geometry.types import Classifier, Images, PerImage

__all__ = ["alignment"]

BATCH = 128
"""Images per step on a CPU: with more of them the activations no longer fit in the cache."""

OUTSIDE = 1e-5
"""How far outside the box rounding may take a perturbed image, as a share of the box."""


def alignment(
    model: Classifier,
    images: Images,
    perturbations: Images,
    *,
    norm: Number = 2,
    clip: Bounds | None = None,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    subspace: Subspace | None = None,
) -> PerImage:
    """The first-order certificate <r, g> / (||r||_p ||g||_q) of perturbations on the boundary.

    Here g = grad F(x + r), where F = f_k - f_label with k the foremost class beside the label,
    and 1/p + 1/q = 1. It is 1 where r is a smallest perturbation to first order, as a local
    minimum is wherever the boundary is smooth. In l_2 it is the cosine of the angle between r and
    the normal. Seen from x, the tangent plane at x + r is at this share of the distance ||r||_p:
    1 - alignment is what a step along the plane would save.

    In a box, ||r||_p ||g||_q is replaced by the largest <e, g> with ||e||_p <= ||r||_p and x + e in
    the box, and in a subspace g by its projection. A smallest perturbation there has 1 again.

    Args:
        model: a classifier in evaluation mode.
        images: x, (N, C, H, W).
        perturbations: r, (N, C, H, W), of any attack. They should end at the boundary: those of
            DeepFool end 2% beyond it, which matters little.
        norm: p of the norm that was made small, 1 <= p <= inf.
        clip: the box in which the perturbed images had to stay; None: none.
        labels: (N,) the labels to leave; None: the classifier's own on the images.
        targets: (N,) the labels to reach, for targeted attacks: F is then f_target minus the
            foremost other logit.
        subspace: the one that r had to stay in, as for
            :func:`robustness_geometry.attacks.deepfool`; needs ``norm=2`` and ``clip=None``.

    Returns:
        (N,) at most 1; NaN where r or g is zero or not finite.

    Raises:
        InputError: an option, an image, a perturbation or a logit that cannot be used, or a model
            in training mode.

    References:
        Equation 3.12 of the thesis holds with equality exactly where the alignment is 1 (Hoelder's
        inequality).

    Example:
        For a linear classifier the perturbation of DeepFool is the smallest one:

        >>> import torch
        >>> from robustness_geometry.attacks import alignment, deepfool
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.rand(2, 1, 4, 4)
        >>> result = deepfool(model, images)
        >>> bool((alignment(model, images, result.perturbations) > 0.999).all())
        True
        >>> noise = torch.rand(2, 1, 4, 4)
        >>> bool((alignment(model, images, noise) < 0.9).all())
        True
    """
    p, box = check_norm("norm", norm), check_clip(clip)
    check_subspace_options(subspace, p, box)
    model, images, labels, targets = check_input(
        model, images, clip=box, labels=labels, targets=targets
    )
    _check_perturbations(perturbations, images, box)
    moves = perturbations.detach().to(images)
    project = projection_onto(subspace, images)
    if not len(images):
        return images.new_zeros(0)
    batch = BATCH if images.device.type == "cpu" else len(images)
    parts = []
    for rows in torch.arange(len(images), device=images.device).split(batch):
        own = clean_labels(
            model,
            images[rows],
            *(None if given is None else given[rows] for given in (labels, targets)),
        )
        pairs = leaving(own) if targets is None else reaching(targets[rows])
        logits, pull = linearise(model, images[rows] + moves[rows])
        plus, minus = pairs(logits, torch.arange(len(rows), device=rows.device))
        normals = project(difference_gradients(pull, logits.shape[1], plus, minus), rows)[:, 0]
        parts.append(share_of_steepest(images[rows], moves[rows], normals, p, box))
    return torch.cat(parts)


def check_subspace_options(
    subspace: Subspace | None, norm: float, clip: tuple[float, float] | None
) -> None:
    """Check that a subspace comes with the l_2 norm and without a box."""
    if subspace is not None and norm != 2:
        refuse("norm", norm, "2 with a subspace")
    if subspace is not None and clip is not None:
        refuse("clip", clip, "None with a subspace, which clipping would leave")


def _check_perturbations(
    perturbations: Tensor, images: Images, clip: tuple[float, float] | None
) -> None:
    if perturbations.shape != images.shape:
        refuse(
            "perturbations.shape",
            tuple(perturbations.shape),
            f"that of the images, {tuple(images.shape)}",
        )
    if clip is None:
        return
    outside = OUTSIDE * (clip[1] - clip[0])
    moved = images + perturbations
    if bool(((moved < clip[0] - outside) | (moved > clip[1] + outside)).any()):
        refuse("perturbations", Described("perturbed images outside the box"), f"within {clip}")
