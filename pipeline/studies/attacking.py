"""How experiments attack a network: which DeepFool they run, and FGSM at one eps for all images."""

import inspect
import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pipeline.evaluation import judged, valid
from pipeline.executor import Executor, Mapped
from pipeline.studies.subject import placed
from robustness_geometry.attacks import alignment, deepfool, fgsm, fgsm_smallest_eps
from robustness_geometry.attacks.protocol import attack_name, takes_generator
from robustness_geometry.attacks.subspaces import Subspace
from robustness_geometry.checks import check_norm
from robustness_geometry.norms import norms, relative_norms
from robustness_geometry.types import Attack, Classifier, Images, Perturbed, predict

__all__ = [
    "EPS_MAX",
    "SharedEps",
    "alignments",
    "deepfool_of",
    "fgsm_at_rate",
    "fooled_at",
    "inside",
    "is_deepfool",
    "relative",
    "run",
    "smallest_eps",
]

EPS_MAX = 1.0
"""The largest eps of FGSM that is tried, in pixel units: the whole range of a pixel."""

GRID = 24
"""Points of the geometric grid of eps; bisection refines the first of them that fools enough."""


def deepfool_of(attack: Attack, **options: object) -> Attack:
    """The attack under study if it is a DeepFool, else the default DeepFool.

    Args:
        attack: the attack under study.
        options: options of DeepFool that replace those of the attack. With ``subspace`` all classes
            take part (``prune=None``), as it is not known there which could be left out.
    """
    chosen = attack if attack_name(attack) == "deepfool" else deepfool
    return partial(chosen, **({"prune": None} if "subspace" in options else {}), **options)


def is_deepfool(attack: Attack, norm: float) -> bool:
    """Whether ``attack`` is DeepFool with this norm, so that it need not be measured twice."""
    options = getattr(attack, "keywords", {})
    return (
        attack_name(attack) == "deepfool" and check_norm("norm", options.get("norm", 2.0)) == norm
    )


def run(attack: Attack, model: Classifier, images: Tensor, executor: Executor) -> Mapped[Perturbed]:
    """``attack`` on ``images``, its success recomputed; computed once for all experiments."""
    return executor.cached(
        partial(judged, attack, model), images, randomness=takes_generator(attack)
    )


def alignments(
    attack: Attack,
    result: Perturbed,
    model: Classifier,
    images: Images,
    executor: Executor,
    *,
    norm: float = 2.0,
) -> Tensor:
    """How nearly the perturbations are smallest ones, to first order; cos(r, n) in l_2.

    Every table of minimum norms has it beside them; 1 is the best. Computed once for all
    experiments.

    Args:
        attack: what found the perturbations; if it keeps them in a box, so does the comparison.
        result: its perturbations of the images.
        model: the classifier.
        images: (N, C, H, W).
        executor: keeps the result.
        norm: p of the norm that is small.

    Returns:
        (N,) in float64, NaN where the attack failed, r = 0 or the gradient is zero.
    """
    clip = inspect.signature(attack).parameters.get("clip")
    box = None if clip is None else clip.default
    measure = partial(alignment, model, norm=norm, clip=box)
    values = executor.cached(measure, images, result.perturbations).value
    return valid(values, result.success)


def inside(attack: Attack, subspace: Subspace, model: Classifier, images: Images) -> Perturbed:
    """``attack``, if it is a DeepFool, else the default one, inside a subspace.

    Returns:
        Perturbed, with the ``alignment`` of r and the projection of the normal onto the subspace.
    """
    boundary = deepfool_of(attack, norm=2.0, subspace=subspace)
    found = judged(boundary, model, images)
    aligned = alignment(model, images, found.perturbations, subspace=subspace)
    return replace(found, alignment=aligned.masked_fill(~found.success, math.nan))


def relative(
    perturbations: Tensor, images: Tensor, kept: Tensor | None = None, p: float = 2.0
) -> Tensor:
    """||r||_p / ||x||_p of each image (Equation 3.10), in float64.

    Args:
        perturbations: r, (N, C, H, W).
        images: x, (N, C, H, W).
        kept: (N,) which cases count; None counts all.
        p: exponent of both norms, in [1, inf].

    Returns:
        (N,), NaN for a case that does not count and for an image that is black everywhere.
    """
    counts = norms(images, p) > 0 if kept is None else kept & (norms(images, p) > 0)
    return valid(relative_norms(perturbations, images, p), counts)


@dataclass(frozen=True)
class SharedEps:
    """The smallest eps of FGSM, one for all images, that fools a wanted share of them.

    Attributes:
        eps: the eps, in pixel units; where no eps is enough, the one that fools most.
        rate: the share of the images that it fools.
        reachable: whether ``rate`` is at least the wanted share.
    """

    eps: float
    rate: float
    reachable: bool


def smallest_eps(model: Classifier, images: Tensor, rate: float, executor: Executor) -> SharedEps:
    """Search FGSM's smallest single eps that fools a share ``rate`` of ``images`` (Section 3.2.3).

    Args:
        model: the classifier.
        images: (N, C, H, W), at least one.
        rate: the wanted share, in (0, 1].
        executor: keeps the result for all experiments.
    """
    search = partial(_search_eps, model, images, rate)
    found = executor.shared_task(search, name=f"FGSM's eps on {len(images)} images").value
    eps, share, reachable = (float(found[name]) for name in ("eps", "rate", "reachable"))
    return SharedEps(eps, share, bool(reachable))


def _search_eps(model: Classifier, images: Tensor, rate: float) -> dict[str, Tensor]:
    """The fields of :class:`SharedEps` as tensors, as a task of the executor returns them."""
    found = fgsm_smallest_eps(model, placed(images, model), rate=rate, eps_max=EPS_MAX, grid=GRID)
    values = {"eps": found.eps, "rate": found.rate, "reachable": float(found.reachable)}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def fgsm_at_rate(
    model: Classifier, images: Tensor, rate: float, executor: Executor
) -> tuple[float, Mapped[Perturbed] | None]:
    """FGSM at the smallest single eps that fools a share ``rate`` of the images (Section 3.2.3).

    Returns:
        The eps and the perturbations at it; NaN and None where no eps fools so many.
    """
    found = smallest_eps(model, images, rate, executor)
    if not found.reachable:
        return math.nan, None
    return found.eps, run(partial(fgsm, eps=found.eps), model, images, executor)


def fooled_at(model: Classifier, images: Images, *, eps: tuple[float, ...]) -> Tensor:
    """Whether FGSM without clipping changes the label at each step, (N, len(eps)).

    One gradient serves all steps: the perturbation is linear in eps.
    """
    labels = predict(model, images)
    signs = fgsm(model, images, eps=1.0).perturbations
    return torch.stack([predict(model, images + step * signs) != labels for step in eps], dim=1)
