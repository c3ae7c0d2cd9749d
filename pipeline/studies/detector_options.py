"""Which output, step and normalisation Algorithm 6 takes: what does best on the calibration images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pipeline.evaluation import valid
from pipeline.studies.detector import OUTPUTS, Option, Study, moved
from robustness_geometry.attacks.protocol import attack_name
from robustness_geometry.checks import refuse
from robustness_geometry.detection import scored
from robustness_geometry.geometry import ClassCurvatures
from robustness_geometry.types import Perturbed

__all__ = ["Choice", "Trial", "choose"]


@dataclass(frozen=True)
class Trial:
    """What one option gives on the calibration images of the first training seed.

    Attributes:
        option: the option.
        factor: its h in units of the default one.
        clean: (n,) the scores of the clean images, NaN where the attack failed.
        perturbed: (n,) those of the perturbed ones.
        recovered: (n,) whether the score is at least 0 and the class of the largest curvature the
            original one.
        named: (n,) whether that class is the original one, whatever the score.
        resolved: the share of images, clean or perturbed, whose curvature stands out of rounding.
    """

    option: Option
    factor: float
    clean: Tensor
    perturbed: Tensor
    recovered: Tensor
    named: Tensor
    resolved: float

    @property
    def auc(self) -> float:
        """Of telling perturbed from clean images; NaN without both."""
        kept = self.clean.isfinite() & self.perturbed.isfinite()
        if not bool(kept.any()):
            return math.nan
        count = int(kept.sum())
        scores = torch.cat([self.clean[kept], self.perturbed[kept]]).numpy()
        return float(roc_auc_score([0] * count + [1] * count, scores))

    @property
    def recovery(self) -> float:
        """The share of perturbed images whose label is recovered at threshold 0."""
        return float(self.recovered.nanmean())


@dataclass(frozen=True)
class Choice:
    """The options that the calibration images ask for.

    Attributes:
        trials: all that was tried.
        detection: the option of the largest area under the ROC curve.
        recovery: the option that recovers most labels at threshold 0.
    """

    trials: tuple[Trial, ...]
    detection: Option
    recovery: Option


def choose(study: Study) -> Choice:
    """Try every output, step and normalisation on the calibration images of one training seed.

    Raises:
        InputError: the attack fools none of them, or the Hessian vanishes at every step.
    """
    attacked = study.attacked(study.calibration)
    if not bool(attacked.success.any()):
        refuse(
            "attack",
            attack_name(study.settings.attack),
            "an attack that fools some of the calibration images",
        )
    kinds = (study.calibration, moved(study.calibration, attacked))
    pairs = [study.curvatures(images, OUTPUTS, study.steps) for images in kinds]
    trials = []
    for index, (output, step) in enumerate(product(OUTPUTS, range(len(study.steps)))):
        both = [found[index] for found in pairs]
        trials += [
            _trial(study, attacked, both, output, step, normalise) for normalise in (True, False)
        ]
    # An option whose differences are mostly rounding is no option.
    usable = [trial for trial in trials if trial.resolved >= 0.5 and not math.isnan(trial.auc)]
    if not usable:
        refuse(
            "h_factors",
            study.settings.h_factors,
            "steps at which the network bends: at these its Hessian vanishes",
        )
    best, naming = (
        max(usable, key=key) for key in (lambda trial: trial.auc, lambda trial: trial.recovery)
    )
    return Choice(tuple(trials), best.option, naming.option)


def _trial(
    study: Study,
    attacked: Perturbed,
    both: Sequence[ClassCurvatures],
    output: str,
    step: int,
    normalise: bool,
) -> Trial:
    clean, perturbed = (scored(found, normalise=normalise) for found in both)
    named = perturbed.recovered == attacked.labels
    return Trial(
        Option(output, study.steps[step], normalise),
        study.settings.h_factors[step],
        valid(clean.scores, attacked.success),
        valid(perturbed.scores, attacked.success),
        valid((named & (perturbed.scores >= 0)).double(), attacked.success),
        valid(named.double(), attacked.success),
        float(torch.cat([clean.resolved, perturbed.resolved]).double().mean()),
    )
