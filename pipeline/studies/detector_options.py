"""Choosing the output, step and normalisation of Algorithm 6 on images set aside for that."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.statistics import Estimate, Statistic, stack
from pipeline.studies.detector import (
    OUTPUTS,
    POINTS,
    DetectorStudy,
    Option,
    ScoreSettings,
    detector_studies,
    moved,
)
from robustness_geometry.attacks.protocol import attack_name
from robustness_geometry.checks import refuse
from robustness_geometry.detection import scored
from robustness_geometry.geometry import ClassCurvatures
from robustness_geometry.types import Dataset, Images, Network, Perturbed

__all__ = ["SCORES", "Choice", "ScoreMeasurement", "Trial", "choose", "measure_scores"]

SCORES = {"normalised": True, "undivided": False}
"""Part of the numbers' names -> whether the curvature is divided by the norm of the gradient, as
Algorithm 6 prints it."""


@dataclass(frozen=True)
class Trial:
    """What one option gives on the calibration images of the first training seed.

    Attributes:
        option: the option.
        factor: its h in units of the default one.
        clean: (n,) the scores of the clean images.
        perturbed: for each of POINTS (n,) those of the perturbed ones, NaN where there is none.
        recovered: likewise, whether the score is at least 0 and the class of the largest curvature
            is the original one.
        resolved: the share of images, clean or perturbed, whose curvature exceeds rounding errors.
    """

    option: Option
    factor: float
    clean: Tensor
    perturbed: Mapping[str, Tensor]
    recovered: Mapping[str, Tensor]
    resolved: float

    def auc(self, point: str = "closest") -> float:
        """Area under the ROC curve of perturbed against clean images; NaN without both kinds."""
        perturbed = self.perturbed[point]
        kept = self.clean.isfinite() & perturbed.isfinite()
        if not bool(kept.any()):
            return math.nan
        count = int(kept.sum())
        scores = torch.cat([self.clean[kept], perturbed[kept]]).numpy()
        return float(roc_auc_score([0] * count + [1] * count, scores))


@dataclass(frozen=True)
class Choice:
    """The options of the largest area under the ROC curve on the calibration images.

    Attributes:
        trials: all options that were tried.
        options: the best option of each of SCORES that has one.
        judged: the one of SCORES whose area is the largest: claims are judged by it, in detection
            and in the recovery of labels alike.
    """

    trials: tuple[Trial, ...]
    options: Mapping[str, Option]
    judged: str

    @property
    def option(self) -> Option:
        """The option that claims are judged by."""
        return self.options[self.judged]


def choose(study: DetectorStudy[ScoreSettings]) -> Choice:
    """Try every output, step and normalisation on the calibration images of one training seed.

    Raises:
        InputError: the attack fools none of them, or the Hessian vanishes at every step.
    """
    images = study.train.images
    attacked = {point: study.perturbed(images, point) for point in POINTS}
    if not bool(attacked["crossing"].success.any()):
        refuse(
            "attack",
            attack_name(study.settings.attack),
            "an attack that fools some of the calibration images",
        )
    curved = {point: _curved(study, moved(images, each)) for point, each in attacked.items()}
    clean = _curved(study, images)
    trials = []
    for index, (output, step) in enumerate(product(OUTPUTS, range(len(study.steps)))):
        near = {point: each[index] for point, each in curved.items()}
        trials += [
            _trial(study, attacked, clean[index], near, Option(output, study.steps[step], divided))
            for divided in SCORES.values()
        ]
    # An option whose differences are mostly rounding errors cannot be chosen.
    usable = [trial for trial in trials if trial.resolved >= 0.5 and not math.isnan(trial.auc())]
    if not usable:
        refuse(
            "h_factors",
            study.settings.h_factors,
            "steps at which the network bends (its Hessian vanishes at all of these)",
        )
    best: dict[str, Trial] = {}
    for name, divided in SCORES.items():
        if fitting := [trial for trial in usable if trial.option.normalise == divided]:
            best[name] = max(fitting, key=lambda trial: trial.auc())
    judged = max(best, key=lambda name: best[name].auc())
    return Choice(tuple(trials), {name: trial.option for name, trial in best.items()}, judged)


def _curved(study: DetectorStudy[ScoreSettings], images: Images) -> tuple[ClassCurvatures, ...]:
    """The curvatures at ``images`` for all pairs of output and step."""
    return study.curvatures(images, OUTPUTS, study.steps)


def _trial(
    study: DetectorStudy[ScoreSettings],
    attacked: Mapping[str, Perturbed],
    at_clean: ClassCurvatures,
    near: Mapping[str, ClassCurvatures],
    option: Option,
) -> Trial:
    """What one option gives, from the curvatures at the clean and at the perturbed images."""
    clean = scored(at_clean, normalise=option.normalise)
    perturbed = {point: scored(each, normalise=option.normalise) for point, each in near.items()}
    recovered = {
        point: (seen.recovered == attacked[point].labels) & (seen.scores >= 0)
        for point, seen in perturbed.items()
    }
    success = {point: each.success for point, each in attacked.items()}
    resolved = torch.cat([clean.resolved, perturbed["closest"].resolved])
    return Trial(
        option,
        study.settings.h_factors[study.steps.index(option.h)],
        clean.scores,
        {point: valid(seen.scores, success[point]) for point, seen in perturbed.items()},
        {point: valid(holds.double(), success[point]) for point, holds in recovered.items()},
        float(resolved.double().mean()),
    )


@dataclass(frozen=True)
class ScoreMeasurement:
    """What an experiment with Algorithm 6's score measures over all training seeds.

    Attributes:
        studies: one study for each training seed.
        choice: the options, chosen on the first seed's calibration images.
        samples: name -> (seeds, n) the quantities.
        numbers: name -> the statistics of the quantities that rest on at least one image.
    """

    studies: Sequence[DetectorStudy[ScoreSettings]]
    choice: Choice
    samples: Mapping[str, Tensor]
    numbers: dict[str, Estimate]


def measure_scores(
    network: Network,
    data: Dataset,
    settings: ScoreSettings,
    executor: Executor,
    quantities: Callable[[DetectorStudy[ScoreSettings], Choice], dict[str, Tensor]],
    statistics: Callable[[Choice], Mapping[str, Statistic]],
) -> ScoreMeasurement:
    """Choose the options of Algorithm 6, then measure every training seed with them.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings of the experiment.
        executor: runs the attack and the scores.
        quantities: what is measured of one training seed: name -> (n,).
        statistics: the statistics of the quantities, by the names of their numbers.

    Raises:
        InputError: no option can be chosen.
    """
    studies = detector_studies(network, data, settings, executor)
    choice = choose(studies[0])
    samples = stack(executor.each(lambda study: quantities(study, choice), studies))
    numbers = paired_bootstrap(samples, statistics(choice), resamples=settings.resamples)
    return ScoreMeasurement(studies, choice, samples, measured(numbers))
