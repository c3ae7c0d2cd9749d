"""The checked options of DeepFool."""

import math
from dataclasses import dataclass

from robustness_geometry.attacks.hyperplanes import AUTO, Prune
from robustness_geometry.attacks.protocol import Clip, Number
from robustness_geometry.attacks.subspaces import Subspace
from robustness_geometry.checks import number, refuse
from robustness_geometry.types import Labels

__all__ = ["Options", "check_combination", "check_prune"]


@dataclass(frozen=True)
class Options:
    """The checked options of :func:`robustness_geometry.attacks.deepfool`, which explains them."""

    norm: float
    overshoot: float
    steps: int
    candidates: int | None
    prune: Prune
    variant: str
    clip: Clip


def check_prune(value: Number | None) -> Prune:
    """Return DeepFool's option ``prune``: auto or a number of at least 1; None is infinity."""
    if value == AUTO:
        return AUTO
    prune = math.inf if value is None else number("prune", value)
    if not prune >= 1:
        refuse("prune", value, "auto, None or a number >= 1")
    return prune


def check_combination(options: Options, targets: Labels | None, subspace: Subspace | None) -> None:
    """Refuse options that cannot go together."""
    if subspace is not None and options.norm != 2:
        refuse("norm", options.norm, "2 with a subspace")
    if subspace is not None and options.clip is not None:
        refuse("clip", options.clip, "None with a subspace, which clipping would leave")
    if options.prune not in (AUTO, math.inf) and subspace is not None:
        refuse("prune", options.prune, "auto or None with a subspace")
    if targets is not None and options.candidates is not None:
        refuse(
            "candidates",
            options.candidates,
            "None with targets, which name the only class to reach",
        )
