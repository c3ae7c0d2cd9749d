"""Section 7.5, Algorithm 6: recovering the label of perturbed images by the largest curvature.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 7.5.
    A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, S. Soatto, "Classification regions of deep neural
    networks", arXiv:1705.09552, 2017.
"""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, ratio_of_means, share
from pipeline.studies.detector import DetectorStudy, Option, ScoreSettings, common_notes, moved
from pipeline.studies.detector_options import Choice, ScoreMeasurement, measure_scores
from pipeline.tables import interval, shown
from robustness_geometry.detection import threshold_at
from robustness_geometry.types import Dataset, Images, Labels, Mask, Network

__all__ = ["SECTION", "Settings", "label_recovery"]

SECTION = "Section 7.5, Algorithm 6"

RULES = {
    "": "largest curvature, score at least 0",
    "_calibrated": "largest curvature, score at least the calibrated threshold",
    "_named": "largest curvature, whatever the score",
    "_of_detection": "largest curvature, score at least 0, option chosen for detection",
    "_runner_up": "runner-up class",
}
"""Suffix of share_recovered -> name of the rule in tables."""


@dataclass(frozen=True)
class Settings(ScoreSettings):
    """The settings of all experiments that compute the score of Algorithm 6."""


def label_recovery(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure how often Algorithm 6 names the label that a perturbed image had before.

    The largest curvature names a class; the baseline is the classifier's second best class.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs the attack and the scores.

    Returns:
        The shares of perturbed images whose label is recovered by each rule, with their differences
        from the runner-up class, and whether each image's is (seeds, images) as tensors.
    """
    measured = measure_scores(network, data, settings, executor, _quantities, _statistics())
    return Findings(
        numbers=measured.numbers,
        tables={"rules": _table(measured.numbers)},
        figures={"rules": _figure(network, measured.numbers)},
        tensors={
            f"recovered{rule}": measured.samples[f"recovered{rule}"].float() for rule in RULES
        },
        notes=_notes(measured),
    )


def _quantities(study: DetectorStudy[ScoreSettings], choice: Choice) -> dict[str, Tensor]:
    """Name -> (n,) whether it holds for each image of one training seed; NaN where r failed."""
    images = study.test.images
    attacked = study.attacked(images)
    perturbed = moved(images, attacked)
    limit = threshold_at(
        study.score(study.train.images, choice.recovery).scores, study.settings.false_positive_rate
    )
    scored = study.score(perturbed, choice.recovery)
    named = scored.recovered == attacked.labels
    detecting = _at_zero(study, perturbed, attacked.labels, choice.detection)
    holds = {
        "recovered": named & (scored.scores >= 0),
        "recovered_calibrated": named & (scored.scores >= limit),
        "recovered_named": named,
        "recovered_of_detection": detecting,
        "recovered_runner_up": study.confidence(perturbed).runner_up == attacked.labels,
        "flagged": scored.scores >= 0,
    }
    values = {name: valid(each.double(), attacked.success) for name, each in holds.items()}
    clean = study.score(images, choice.recovery).scores
    return values | {
        "relabelled": (clean >= 0).double(),
        "relabelled_calibrated": (clean >= limit).double(),
    }


def _at_zero(
    study: DetectorStudy[ScoreSettings], perturbed: Images, labels: Labels, option: Option
) -> Mask:
    """(N,) whether the class of the largest curvature is the label and the score at least 0."""
    scored = study.score(perturbed, option)
    return (scored.recovered == labels) & (scored.scores >= 0)


def _statistics() -> dict[str, Statistic]:
    shares = {f"share_recovered{rule}": share(f"recovered{rule}") for rule in RULES}
    return shares | {
        "share_recovered - share_recovered_runner_up": difference(
            "recovered", "recovered_runner_up"
        ),
        "share_recovered_of_flagged": ratio_of_means("recovered", "flagged"),
        "share_flagged_at_zero": share("flagged"),
        "share_clean_relabelled": share("relabelled"),
        "share_clean_relabelled_calibrated": share("relabelled_calibrated"),
    }


def _table(numbers: dict[str, Estimate]) -> pd.DataFrame:
    rows = []
    for rule, title in RULES.items():
        if (recovered := numbers.get(f"share_recovered{rule}")) is not None:
            rows.append({"rule": title, "share recovered": recovered.value, **interval(recovered)})
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: dict[str, Estimate]) -> Figure:
    names = {
        "": "score ≥ 0",
        "_calibrated": "score ≥\ncalibrated",
        "_named": "any score",
        "_runner_up": "runner-up\nclass",
    }
    groups = {
        title: {"labels recovered": numbers[f"share_recovered{rule}"]}
        for rule, title in names.items()
        if f"share_recovered{rule}" in numbers
    }
    title = f"Recovering the label of perturbed images, {network.name}"
    return bar_figure(groups, ylabel="share of perturbed images", title=title)


def _notes(measured: ScoreMeasurement) -> list[str]:
    choice, numbers, study = measured.choice, measured.numbers, measured.studies[0]
    classes = study.score(study.test.images, choice.recovery).curvatures.shape[1]
    notes = common_notes(measured.studies, int(measured.samples["recovered"].isnan().sum()))
    notes += [
        "share_recovered: the class of the largest curvature is the label that the classifier gave "
        "to the clean image, and the score is at least 0, over all perturbed images; guessing "
        f"among the other classes would give {1 / max(1, classes - 1):.2f}. It uses "
        f"{choice.recovery}: the option that recovers most on the calibration images of the first "
        "training seed. share_recovered_of_detection uses the one chosen for detection, "
        f"{choice.detection}.",
        "share_clean_relabelled: clean images with a score of at least 0, whose label Algorithm 6 "
        "would replace.",
    ]
    gap = numbers.get("share_recovered - share_recovered_runner_up")
    if gap is not None:
        known = shown(numbers["share_recovered_runner_up"])
        better = (
            "more" if gap.low > 0 else "fewer" if gap.high < 0 else "neither clearly more nor fewer"
        )
        notes.append(
            f"The curvature recovers {better} labels than the runner-up class, which is right for "
            f"{known}: the difference is {shown(gap)}."
        )
    return notes
