"""What the experiments of this stage share: which DeepFool they run, and how an attack is run and judged."""

import math
from functools import partial

import torch
from torch import Tensor

from pipeline.evaluation import judged, valid
from pipeline.executor import Executor, Mapped
from robustness_geometry.attacks import deepfool, fgsm, fgsm_smallest_eps
from robustness_geometry.attacks.protocol import attack_name, takes_generator
from robustness_geometry.checks import check_norm
from robustness_geometry.norms import norms, relative_norms
from robustness_geometry.types import Attack, Classifier, Perturbed

__all__ = [
    "deepfool_of",
    "fgsm_at_rate",
    "is_deepfool",
    "relative",
    "run",
]


GRID = 24
"""Grid points of the search for FGSM's one eps; bisection then refines the first that fools enough."""


def deepfool_of(attack: Attack, **options: object) -> Attack:
    """The attack under study if it is a DeepFool, else the default DeepFool; ``options`` go on top.

    In a subspace all classes take part, as DeepFool does not know there which could be left out.
    """
    chosen = attack if attack_name(attack) == "deepfool" else deepfool
    return partial(chosen, **({"prune": None} if "subspace" in options else {}), **options)


def run(attack: Attack, model: Classifier, images: Tensor, executor: Executor) -> Mapped[Perturbed]:
    """``attack`` on ``images``, its success recomputed; what experiments ask for alike is computed once."""
    return executor.cached(
        partial(judged, attack, model), images, randomness=takes_generator(attack)
    )


def relative(
    perturbations: Tensor, images: Tensor, kept: Tensor | None = None, p: float = 2.0
) -> Tensor:
    """||r||_p / ||x||_p of each image (Equation 3.10), in float64.

    Args:
        perturbations: (N, C, H, W).
        images: (N, C, H, W).
        kept: (N,) which cases count; None counts all.
        p: of both norms.

    Returns:
        (N,), NaN for a case that does not count and for an image without any ink.
    """
    counts = norms(images, p) > 0 if kept is None else kept & (norms(images, p) > 0)
    return valid(relative_norms(perturbations, images, p), counts)


def fgsm_at_rate(
    model: Classifier, images: Tensor, rate: float, executor: Executor
) -> tuple[float, Mapped[Perturbed] | None]:
    """FGSM at the smallest single eps that fools a share ``rate`` of the images (Section 3.2.3).

    Returns:
        The eps and the perturbations at it; NaN and None where no eps fools so many.
    """
    search = partial(smallest_eps, model, images, rate=rate)
    eps = float(executor.shared_task(search, name="FGSM's eps").value["eps"])
    if math.isnan(eps):
        return eps, None
    return eps, run(partial(fgsm, eps=eps), model, images, executor)


def smallest_eps(model: Classifier, images: Tensor, *, rate: float) -> dict[str, Tensor]:
    """The eps of :func:`robustness_geometry.attacks.fgsm_smallest_eps` as a tensor, NaN where the rate is out of reach."""
    like = next(iter(model.parameters()), images)
    found = fgsm_smallest_eps(model, images.to(like.device, like.dtype), rate=rate, grid=GRID)
    return {"eps": torch.tensor(found.eps if found.reachable else math.nan, dtype=torch.float64)}


def is_deepfool(attack: Attack, norm: float) -> bool:
    """Whether ``attack`` is DeepFool with this norm, so that it need not be measured twice."""
    options = getattr(attack, "keywords", {})
    return (
        attack_name(attack) == "deepfool" and check_norm("norm", options.get("norm", 2.0)) == norm
    )
