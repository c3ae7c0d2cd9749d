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
from robustness_geometry.types import Dataset, Network, Perturbed

__all__ = ["Choice", "ScoreMeasurement", "Trial", "choose", "measure_scores"]


@dataclass(frozen=True)
class Trial:
    """What one option gives on the calibration images of the first training seed.

    Attributes:
        option: the option.
        factor: its h in units of the default one.
        clean: (n,) the scores of the clean images, NaN where the attack failed.
        perturbed: (n,) those of the perturbed ones.
        recovered: (n,) whether the score is at least 0 and the class of the largest curvature is
            the original one.
        named: (n,) whether that class is the original one, whatever the score.
        resolved: the share of images, clean or perturbed, whose curvature exceeds rounding errors.
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
        """Area under the ROC curve of perturbed against clean images; NaN without both kinds."""
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
    """The options that do best on the calibration images.

    Attributes:
        trials: all options that were tried.
        detection: the option of the largest area under the ROC curve.
        recovery: the option that recovers most labels at threshold 0.
    """

    trials: tuple[Trial, ...]
    detection: Option
    recovery: Option


def choose(study: DetectorStudy[ScoreSettings]) -> Choice:
    """Try every output, step and normalisation on the calibration images of one training seed.

    Raises:
        InputError: the attack fools none of them, or the Hessian vanishes at every step.
    """
    images = study.train.images
    attacked = study.attacked(images)
    if not bool(attacked.success.any()):
        refuse(
            "attack",
            attack_name(study.settings.attack),
            "an attack that fools some of the calibration images",
        )
    kinds = (images, moved(images, attacked))
    pairs = [study.curvatures(each, OUTPUTS, study.steps) for each in kinds]
    trials = []
    for index, (output, step) in enumerate(product(OUTPUTS, range(len(study.steps)))):
        both = [curvatures[index] for curvatures in pairs]
        trials += [
            _trial(study, attacked, both, output, step, normalise) for normalise in (True, False)
        ]
    # An option whose differences are mostly rounding errors cannot be chosen.
    usable = [trial for trial in trials if trial.resolved >= 0.5 and not math.isnan(trial.auc)]
    if not usable:
        refuse(
            "h_factors",
            study.settings.h_factors,
            "steps at which the network bends (its Hessian vanishes at all of these)",
        )
    detection = max(usable, key=lambda trial: trial.auc)
    recovery = max(usable, key=lambda trial: trial.recovery)
    return Choice(tuple(trials), detection.option, recovery.option)


def _trial(
    study: DetectorStudy[ScoreSettings],
    attacked: Perturbed,
    both: Sequence[ClassCurvatures],
    output: str,
    step: int,
    normalise: bool,
) -> Trial:
    """What one option gives, from the curvatures of the clean and of the perturbed images."""
    clean, perturbed = (scored(curvatures, normalise=normalise) for curvatures in both)
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
    statistics: Mapping[str, Statistic],
) -> ScoreMeasurement:
    """Choose the options of Algorithm 6, then measure every training seed with them.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings of the experiment.
        executor: runs the attack and the scores.
        quantities: what is measured of one training seed: name -> (n,).
        statistics: name of a number -> statistic of the quantities.

    Raises:
        InputError: no option can be chosen.
    """
    studies = detector_studies(network, data, settings, executor)
    choice = choose(studies[0])
    samples = stack(executor.each(lambda study: quantities(study, choice), studies))
    numbers = paired_bootstrap(samples, statistics, resamples=settings.resamples)
    return ScoreMeasurement(studies, choice, samples, measured(numbers))
