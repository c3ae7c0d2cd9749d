"""Figure 7.9 (left), Section 7.5: detecting perturbed images by the curvature (Algorithm 6).

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 7.5.
    A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, S. Soatto, "Classification regions of deep neural
    networks", arXiv:1705.09552, 2017.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, histogram_figure, line_figure
from pipeline.statistics import (
    Estimate,
    Statistic,
    auc,
    auc_difference,
    balanced_accuracy,
    median,
    share,
)
from pipeline.studies.detector import (
    DetectorStudy,
    Option,
    ScoreSettings,
    common_notes,
    moved,
    roc_figure,
)
from pipeline.studies.detector_options import Choice, ScoreMeasurement, Trial, measure_scores
from pipeline.tables import columns, shown
from robustness_geometry.detection import threshold_at
from robustness_geometry.types import Dataset, Images, Network

__all__ = ["SECTION", "Settings", "detect_roc"]

SECTION = "Section 7.5, Algorithm 6, Figure 7.9 (left)"

DETECTORS = {
    "curvature": "curvature",
    "confidence": "1 − largest probability",
    "both": "both together",
}
"""Suffix of the numbers -> name of the detector in tables and figures."""


@dataclass(frozen=True)
class Settings(ScoreSettings):
    """The settings of all experiments that compute the score of Algorithm 6."""


def detect_roc(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Measure how well Algorithm 6, confidence, and both together tell perturbed from clean images.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs the attack and the scores.

    Returns:
        Areas under the ROC curve with their differences, accuracies at the best threshold, shares
        flagged at the calibrated threshold and at 0, how the curvature at the image goes with that
        at the boundary, and the sweep over the options; the scores (seeds, images) as tensors.
    """
    measured = measure_scores(network, data, settings, executor, _quantities, _statistics())
    choice, samples, numbers = measured.choice, measured.samples, measured.numbers
    swept = _swept(choice, settings)
    return Findings(
        numbers=numbers,
        tables={"detectors": _table(numbers), "options": _options(choice, swept)},
        figures={
            "figure_7_9_left": _curves(network, samples),
            "scores": _histogram(network, samples, choice.detection),
            "options": _sweep_figure(network, choice, swept),
        },
        tensors={
            f"score_{kind}": samples[f"curvature {kind}"].float() for kind in ("clean", "perturbed")
        },
        notes=_notes(measured),
    )


@dataclass(frozen=True)
class Looked:
    """What the detectors say of some images.

    Attributes:
        curvature: (n,) the scores of Algorithm 6 of the clean and of the perturbed images, NaN for
            a perturbed image on which the attack failed.
        confidence: the same of 1 - the largest probability.
    """

    curvature: tuple[Tensor, Tensor]
    confidence: tuple[Tensor, Tensor]


def _look(study: DetectorStudy[ScoreSettings], images: Images, option: Option) -> Looked:
    """What the detectors say of ``images`` and of their perturbed versions."""
    attacked = study.attacked(images)
    perturbed = moved(images, attacked)
    scores = study.score(images, option).scores, study.score(perturbed, option).scores
    baseline = study.confidence(images).scores, study.confidence(perturbed).scores
    return Looked(
        (scores[0], valid(scores[1], attacked.success)),
        (baseline[0], valid(baseline[1], attacked.success)),
    )


def _quantities(study: DetectorStudy[ScoreSettings], choice: Choice) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed: scores, flags, and curvatures with their ranks."""
    option, images = choice.detection, study.test.images
    calibration = _look(study, study.train.images, option)
    report = _look(study, images, option)
    # Detector -> its scores of clean and of perturbed images. What is learned or calibrated comes
    # from the calibration images alone.
    calibrating, reported = (
        {
            "curvature": seen.curvature,
            "confidence": seen.confidence,
            "both": _both(calibration, seen),
        }
        for seen in (calibration, report)
    )
    values: dict[str, Tensor] = {}
    for detector in DETECTORS:
        clean, _ = calibrating[detector]
        threshold = threshold_at(clean, study.settings.false_positive_rate)
        for kind, scores in zip(("clean", "perturbed"), reported[detector], strict=True):
            values[f"{detector} {kind}"] = scores
            values[f"{detector} flags {kind}"] = valid(
                (scores >= threshold).double(), ~scores.isnan()
            )
    # The threshold of the thesis: the sign of the curvature.
    for kind, scores in zip(("clean", "perturbed"), report.curvature, strict=True):
        values[f"zero flags {kind}"] = valid((scores >= 0).double(), ~scores.isnan())
    # Curvatures at the image x and at its boundary point z. The score is divided by the gradient's
    # norm after the measurement, so this option costs no new measurement.
    values["kappa x"] = study.score(images, Option(option.output, option.h, True)).scores
    values["kappa z"] = study.boundary(images, option.output, (option.h,)).values[:, 0]
    return values | {
        f"rank {end}": _order(values[f"kappa {end}"], values["kappa z"]) for end in "xz"
    }


def _order(values: Tensor, other: Tensor) -> Tensor:
    """The ranks (n,) of ``values`` among the images that have ``other`` too."""
    kept = ~(values.isnan() | other.isnan())
    ranks = torch.full_like(values, math.nan)
    ranks[kept] = values[kept].argsort().argsort().double()
    return ranks


def _both(calibration: Looked, seen: Looked) -> tuple[Tensor, Tensor]:
    """A logistic regression on the ranks of the two scores among those of the calibration images.

    Returns:
        (n,) its scores of the clean and of the perturbed images; NaN without a calibration image of
        each kind.
    """
    kinds = [_ranks(calibration, calibration, kind) for kind in (0, 1)]
    kinds = [ranks[~ranks.isnan().any(dim=1)] for ranks in kinds]
    if not all(map(len, kinds)):
        clean, perturbed = (torch.full_like(scores, math.nan) for scores in seen.curvature)
        return clean, perturbed
    labels = torch.cat([torch.full((len(ranks),), kind) for kind, ranks in enumerate(kinds)])
    model = LogisticRegression().fit(torch.cat(kinds).numpy(), labels.numpy())
    weights, bias = torch.from_numpy(model.coef_[0]), float(model.intercept_[0])
    clean, perturbed = (_ranks(calibration, seen, kind) @ weights + bias for kind in (0, 1))
    return clean, perturbed


def _ranks(calibration: Looked, seen: Looked, kind: int) -> Tensor:
    """The ranks of both scores among those of all calibration images, clean and perturbed.

    Args:
        calibration: the scores of the calibration images.
        seen: the scores of the images to rank.
        kind: 0 for the clean images, 1 for the perturbed ones.

    Returns:
        (n, 2) ranks in [0, 1] of the curvature and of the confidence; NaN stays NaN.
    """
    both = []
    for known, new in (
        (calibration.curvature, seen.curvature),
        (calibration.confidence, seen.confidence),
    ):
        every = torch.cat(known)
        ordered = every[~every.isnan()].sort().values
        ranks = torch.searchsorted(ordered, new[kind]).double() / len(ordered)
        both.append(valid(ranks, ~new[kind].isnan()))
    return torch.stack(both, dim=1)


def _statistics() -> dict[str, Statistic]:
    pairs = {detector: (f"{detector} clean", f"{detector} perturbed") for detector in DETECTORS}
    numbers: dict[str, Statistic] = {
        f"auc_{detector}": auc(*pair) for detector, pair in pairs.items()
    }
    numbers["auc_curvature - auc_confidence"] = auc_difference(
        pairs["curvature"], pairs["confidence"]
    )
    numbers["auc_both - auc_confidence"] = auc_difference(pairs["both"], pairs["confidence"])
    for detector, pair in pairs.items():
        numbers[f"accuracy_best_{detector}"] = balanced_accuracy(*pair)
        for kind in ("clean", "perturbed"):
            numbers[f"share_flagged_{kind}_{detector}"] = share(f"{detector} flags {kind}")
    for kind in ("clean", "perturbed"):
        numbers[f"share_flagged_{kind}_at_zero"] = share(f"zero flags {kind}")
        numbers[f"median_score_{kind}"] = median(f"curvature {kind}")
    numbers["median_score_clean * median_score_perturbed"] = Statistic(
        pairs["curvature"], _product_of_medians
    )
    numbers["pearson(kappa_z, kappa_x)"] = Statistic(("kappa z", "kappa x"), _pearson_within_seeds)
    numbers["spearman(kappa_z, kappa_x)"] = Statistic(("rank z", "rank x"), _pearson_within_seeds)
    return numbers


def _product_of_medians(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Below 0 where the two medians, over images and training seeds, have opposite signs."""
    first, second = (values.flatten(-2).nanquantile(0.5, dim=-1) for values in (clean, perturbed))
    return first * second


def _pearson_within_seeds(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation over the images within each training seed, averaged over the seeds."""
    a, b = (values - values.nanmean(dim=-1, keepdim=True) for values in (first, second))
    return (
        (a * b).nansum(dim=-1) / (a.square().nansum(dim=-1) * b.square().nansum(dim=-1)).sqrt()
    ).nanmean(dim=-1)


# Tables, figures and notes


def _table(numbers: dict[str, Estimate]) -> pd.DataFrame:
    """One row per detector."""
    rows = []
    for detector, title in DETECTORS.items():
        row: dict[str, object] = {"detector": title}
        for name in ("auc", "accuracy_best", "share_flagged_clean", "share_flagged_perturbed"):
            if (estimate := numbers.get(f"{name}_{detector}")) is not None:
                row |= {**columns(name, estimate), "images": estimate.n, "seeds": estimate.seeds}
        rows.append(row)
    return pd.DataFrame(rows)


def _swept(choice: Choice, settings: Settings) -> list[Estimate]:
    """The area under the ROC curve of every option on the calibration images, with its interval."""
    samples: dict[str, Tensor] = {}
    for index, trial in enumerate(choice.trials):
        samples |= {f"clean {index}": trial.clean, f"perturbed {index}": trial.perturbed}
    statistics = {str(i): auc(f"clean {i}", f"perturbed {i}") for i in range(len(choice.trials))}
    return list(paired_bootstrap(samples, statistics, resamples=settings.resamples).values())


def _options(choice: Choice, swept: Sequence[Estimate]) -> pd.DataFrame:
    """One row per option that was tried, on the calibration images of the first training seed."""
    return pd.DataFrame(
        [
            {
                "output": trial.option.output,
                "h": trial.option.h,
                "h / default": trial.factor,
                "divided by gradient norm": trial.option.normalise,
                "auc": area.value,
                "low": area.low,
                "high": area.high,
                "images": area.n,
                "clean below 0": _share(trial.clean < 0, trial.clean),
                "perturbed at least 0": _share(trial.perturbed >= 0, trial.perturbed),
                "label recovered at 0": trial.recovery,
                "label named": float(trial.named.nanmean()),
                "out of rounding": trial.resolved,
                "chosen for": _role(choice, trial),
            }
            for trial, area in zip(choice.trials, swept, strict=True)
        ]
    )


def _share(holds: Tensor, values: Tensor) -> float:
    """The share of images for which ``holds`` is True, among those that have a value."""
    return float(valid(holds.double(), ~values.isnan()).nanmean())


def _role(choice: Choice, trial: Trial) -> str:
    roles = {"detection": choice.detection, "recovery": choice.recovery}
    return ", ".join(role for role, option in roles.items() if option == trial.option)


def _curves(network: Network, samples: Mapping[str, Tensor]) -> Figure:
    curves = {DETECTORS[d]: (samples[f"{d} clean"], samples[f"{d} perturbed"]) for d in DETECTORS}
    return roc_figure(curves, title=f"Clean or perturbed? {network.name}")


def _histogram(network: Network, samples: Mapping[str, Tensor], option: Option) -> Figure:
    """The scores on an asinh scale, as they differ in sign and by orders of magnitude."""
    size = samples["curvature clean"].abs().nanmedian()
    scaled = {
        f"{kind} images": (samples[f"curvature {kind}"] / size).asinh()
        for kind in ("clean", "perturbed")
    }
    xlabel = r"asinh$(\rho\,/\,$median of clean $|\rho|)$"
    return histogram_figure(
        scaled, xlabel=xlabel, title=f"Scores: {option.output}, h = {option.h:.3g}, {network.name}"
    )


def _sweep_figure(network: Network, choice: Choice, swept: Sequence[Estimate]) -> Figure:
    lines = {}
    for output in dict.fromkeys(trial.option.output for trial in choice.trials):
        for normalise, style in ((True, "-"), (False, "--")):
            shown_here = [
                (trial.option.h, area)
                for trial, area in zip(choice.trials, swept, strict=True)
                if (trial.option.output, trial.option.normalise) == (output, normalise) and area.n
            ]
            name = f"{output}, over the gradient's norm" if normalise else output
            lines[name] = estimate_line(
                [h for h, _ in shown_here], [e for _, e in shown_here], style=style
            )
    return line_figure(
        lines,
        xlabel="step h (l2, pixels run from 0 to 1)",
        ylabel="area under the ROC curve",
        title=f"Options on the calibration images, {network.name}",
        references={"chance": 0.5},
        log_x=True,
        limits=(0.0, 1.45),  # room for the legend
    )


def _notes(measured: ScoreMeasurement) -> list[str]:
    study, choice, samples = measured.studies[0], measured.choice, measured.samples
    settings, option = study.settings, choice.detection
    failed = int(samples["curvature perturbed"].isnan().sum())
    lost = int(samples["kappa z"].isnan().sum())
    notes = common_notes(measured.studies, failed)
    edge = option.h in (min(study.steps), max(study.steps)) and len(study.steps) > 1
    notes += [
        f"Algorithm 6 with {option}, T = {settings.directions} random directions: the option of "
        "the largest area under the ROC curve on the calibration images of the first training "
        f"seed, out of {len(choice.trials)} (table "
        "options)." + (" Its h is at an end of the steps that were tried." if edge else ""),
        f"Flagged: at or above the threshold that flags at most {settings.false_positive_rate:.0%} "
        "of the clean calibration images, one for each training seed; 'at zero' is the thesis' "
        "threshold for the sign. accuracy_best is at the best threshold for the reported images "
        "themselves, as in the thesis.",
        "'Both together' is a logistic regression on the ranks of the two scores, fitted on the "
        "calibration images.",
        "kappa_z is the mean curvature of the nearest boundary where the way that the attack takes "
        "crosses it, kappa_x the score at the image, both divided by the gradient's norm; z was "
        f"not found for {lost} images.",
    ]
    return notes + _verdict(measured.numbers)


def _verdict(numbers: dict[str, Estimate]) -> list[str]:
    """Whether the curvature adds to what the probabilities tell anyway."""
    needed = ("auc_curvature", "auc_confidence", "auc_both", "auc_both - auc_confidence")
    if not all(name in numbers for name in needed):
        return ["No perturbed image counts: nothing can be said about detection."]
    curvature, confidence, both, gain = (numbers[name] for name in needed)
    flagged = {
        name: numbers[f"share_flagged_perturbed_{name}"] for name in ("curvature", "confidence")
    }
    said = (
        f"AUC {shown(curvature)} for the curvature, {shown(confidence)} for 1 − the largest "
        f"probability, {shown(both)} for both together. At the calibrated thresholds the curvature "
        f"flags {shown(flagged['curvature'])} of the perturbed images, the probability "
        f"{shown(flagged['confidence'])}."
    )
    if gain.low > 0:
        return [f"{said} The curvature adds to the probabilities: {shown(gain)} of area."]
    if gain.high < 0:
        return [
            f"{said} Adding the curvature to the probabilities makes detection worse: "
            f"{shown(gain)} of area."
        ]
    return [
        f"{said} No gain from adding the curvature to the probabilities can be seen: {shown(gain)} "
        "of area."
    ]
