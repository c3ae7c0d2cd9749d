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
from pipeline.statistics import Estimate, Statistic, difference, median, ratio_of_means, share
from pipeline.studies.detector import POINTS, DetectorStudy, ScoreSettings, common_notes, moved
from pipeline.studies.detector_options import SCORES, Choice, ScoreMeasurement, measure_scores
from pipeline.tables import interval, shown
from robustness_geometry.detection import threshold_at
from robustness_geometry.types import Dataset, Mask, Network

__all__ = ["SECTION", "Settings", "label_recovery"]

SECTION = "Section 7.5, Algorithm 6"

RULES = {
    "": "largest curvature, score at least 0",
    "_calibrated": "largest curvature, score at least the calibrated threshold",
    "_named": "largest curvature, whatever the score",
    "_normalised": "largest curvature over the gradient's norm (Algorithm 6), score at least 0",
    "_undivided": "largest curvature, not divided, score at least 0",
    "_runner_up": "runner-up class",
}
"""Suffix of share_recovered -> name of the rule in tables; the first three use the score that
claims are judged by."""


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
    measured = measure_scores(network, data, settings, executor, _quantities, _statistics)
    return Findings(
        numbers=measured.numbers,
        tables={"rules": _table(measured)},
        figures={"rules": _figure(network, measured.numbers)},
        tensors={
            f"recovered{rule}": measured.samples[f"recovered{rule}"].float()
            for rule in _rules(measured.choice)
        },
        notes=_notes(measured),
    )


def _rules(choice: Choice) -> list[str]:
    """The rules that can be tried: a score without an option has none."""
    return [rule for rule in RULES if rule[1:] not in SCORES or rule[1:] in choice.options]


def _quantities(study: DetectorStudy[ScoreSettings], choice: Choice) -> dict[str, Tensor]:
    """Name -> (n,) whether it holds for each image of one training seed; NaN without an r."""
    images = study.test.images
    calibration = study.scores(study.train.images, choice.options)[choice.judged].scores
    limit = threshold_at(calibration, study.settings.false_positive_rate)
    clean = study.scores(images, choice.options)[choice.judged].scores
    values = {
        "relabelled": (clean >= 0).double(),
        "relabelled_calibrated": (clean >= limit).double(),
    }
    for point, suffix in POINTS.items():
        attacked = study.perturbed(images, point)
        holds = _holds(study, choice, point, limit)
        values |= {
            f"{name}{suffix}": valid(each.double(), attacked.success)
            for name, each in holds.items()
        }
        values[f"alignment{suffix}"] = study.alignment(images, point)
    return values


def _holds(
    study: DetectorStudy[ScoreSettings], choice: Choice, point: str, limit: float
) -> dict[str, Mask]:
    """Name -> (N,) whether each rule recovers the label at one of POINTS, and whether 0 is reached.

    Args:
        study: one training seed.
        choice: the options.
        point: one of POINTS.
        limit: the calibrated threshold of the judged score.
    """
    attacked = study.perturbed(study.test.images, point)
    perturbed = moved(study.test.images, attacked)
    scored = study.scores(perturbed, choice.options)
    judged = scored[choice.judged]
    named = judged.recovered == attacked.labels
    at_zero = {
        f"recovered_{name}": (each.recovered == attacked.labels) & (each.scores >= 0)
        for name, each in scored.items()
    }
    return {
        "recovered": at_zero[f"recovered_{choice.judged}"],
        "recovered_calibrated": named & (judged.scores >= limit),
        "recovered_named": named,
        **at_zero,
        "recovered_runner_up": study.confidence(perturbed).runner_up == attacked.labels,
        "flagged": judged.scores >= 0,
    }


def _statistics(choice: Choice) -> dict[str, Statistic]:
    numbers: dict[str, Statistic] = {}
    for suffix in POINTS.values():
        numbers |= {
            f"share_recovered{rule}{suffix}": share(f"recovered{rule}{suffix}")
            for rule in _rules(choice)
        }
        numbers |= {
            f"share_recovered - share_recovered_runner_up{suffix}": difference(
                f"recovered{suffix}", f"recovered_runner_up{suffix}"
            ),
            f"share_recovered_of_flagged{suffix}": ratio_of_means(
                f"recovered{suffix}", f"flagged{suffix}", within=(0.0, 1.0)
            ),
            f"share_flagged_at_zero{suffix}": share(f"flagged{suffix}"),
            f"alignment{suffix}": median(f"alignment{suffix}"),
        }
    return numbers | {
        "share_clean_relabelled": share("relabelled"),
        "share_clean_relabelled_calibrated": share("relabelled_calibrated"),
    }


def _table(measured: ScoreMeasurement) -> pd.DataFrame:
    """One row per point and rule."""
    rows, numbers, judged = [], measured.numbers, measured.choice.judged
    for point, suffix in POINTS.items():
        for rule in _rules(measured.choice):
            if (recovered := numbers.get(f"share_recovered{rule}{suffix}")) is None:
                continue
            name = rule[1:] if rule[1:] in SCORES else judged
            option = "" if rule == "_runner_up" else str(measured.choice.options[name])
            row = {"point": point, "rule": RULES[rule], "share recovered": recovered.value}
            row |= interval(recovered)
            if (aligned := numbers.get(f"alignment{suffix}")) is not None:
                row["cos(r, n)"] = aligned.value
            rows.append({**row, "option": option})
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: dict[str, Estimate]) -> Figure:
    names = {
        "": "score ≥ 0",
        "_calibrated": "score ≥\ncalibrated",
        "_named": "any score",
        "_runner_up": "runner-up\nclass",
    }
    groups = {
        title: {
            point: numbers[f"share_recovered{rule}{suffix}"]
            for point, suffix in POINTS.items()
            if f"share_recovered{rule}{suffix}" in numbers
        }
        for rule, title in names.items()
    }
    title = f"Recovering the label of perturbed images, {network.name}"
    return bar_figure(groups, ylabel="share of perturbed images", title=title)


def _notes(measured: ScoreMeasurement) -> list[str]:
    choice, numbers, study = measured.choice, measured.numbers, measured.studies[0]
    classes = study.scores(study.test.images, choice.options)[choice.judged].curvatures.shape[1]
    failed = {
        point: int(measured.samples[f"recovered{end}"].isnan().sum())
        for point, end in POINTS.items()
    }
    others = [f"{name}: {each}" for name, each in choice.options.items() if name != choice.judged]
    notes = common_notes(measured.studies, failed)
    notes += [
        "share_recovered: the class of the largest curvature is the label that the classifier gave "
        "to the clean image, and the score is at least 0, over all perturbed images; guessing "
        f"among the other classes would give {1 / max(1, classes - 1):.2f}. It uses "
        f"{choice.option}: the option of the largest area under the ROC curve on the calibration "
        "images of the first training seed, in detection and here alike. Claims are judged by it; "
        f"the other score has its own best option ({'; '.join(others) or 'none'}).",
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
