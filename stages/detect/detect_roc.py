"""Detecting perturbed images by the sign of the curvature (Section 7.5, Algorithm 6, Figure 7.9 left)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
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
    stack,
)
from pipeline.studies.detector import (
    Common,
    Option,
    Study,
    common_notes,
    moved,
    roc_figure,
    studies,
)
from pipeline.studies.detector_options import Choice, Trial, choose
from pipeline.tables import shown
from robustness_geometry.detection import threshold_at
from robustness_geometry.types import Dataset, Images, Network

__all__ = ["SECTION", "Settings", "detect_roc"]

SECTION = "Section 7.5, Algorithm 6, Figure 7.9 (left)"

DETECTORS = {
    "curvature": "curvature",
    "confidence": "1 − largest probability",
    "both": "both together",
}
"""Suffix of the numbers -> what tables and figures call a detector."""


@dataclass(frozen=True)
class Settings(Common):
    """The settings of the stage."""


def detect_roc(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Tell perturbed from clean images by Algorithm 6, by confidence, and by both.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attack and the scores.

    Returns:
        Areas under the ROC curve with their differences, accuracies at the best threshold, shares
        flagged at the calibrated threshold and at 0, how the curvature at the image goes with that
        at the boundary, and the sweep over the options; the scores (seeds, images) as tensors.
    """
    found = studies(network, data, settings, executor)
    choice = choose(found[0])
    samples = stack(executor.each(lambda study: _quantities(study, choice.detection), found))
    numbers = measured(paired_bootstrap(samples, _statistics(), resamples=settings.resamples))
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
        notes=_notes(found, choice, numbers, samples),
    )


@dataclass(frozen=True)
class Looked:
    """What the detectors see of some images (n,): clean and perturbed, NaN for a perturbed one that does not count.

    Attributes:
        curvature: the scores of Algorithm 6.
        confidence: 1 - the largest probability.
    """

    curvature: tuple[Tensor, Tensor]
    confidence: tuple[Tensor, Tensor]


def _look(study: Study, images: Images, option: Option) -> Looked:
    attacked = study.attacked(images)
    perturbed = moved(images, attacked)
    scores = study.score(images, option).scores, study.score(perturbed, option).scores
    baseline = study.confidence(images).scores, study.confidence(perturbed).scores
    return Looked(
        (scores[0], valid(scores[1], attacked.success)),
        (baseline[0], valid(baseline[1], attacked.success)),
    )


def _quantities(study: Study, option: Option) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed."""
    calibration, report = (
        _look(study, images, option) for images in (study.calibration, study.report)
    )
    first, second = (
        {
            "curvature": seen.curvature,
            "confidence": seen.confidence,
            "both": _both(calibration, seen),
        }
        for seen in (calibration, report)
    )
    values: dict[str, Tensor] = {}
    for detector in DETECTORS:
        threshold = threshold_at(first[detector][0], study.settings.false_positive_rate)
        for kind, scores in zip(("clean", "perturbed"), second[detector], strict=True):
            values[f"{detector} {kind}"] = scores
            values[f"{detector} flags {kind}"] = valid(
                (scores >= threshold).double(), ~scores.isnan()
            )
    for kind, scores in zip(("clean", "perturbed"), report.curvature, strict=True):
        values[f"zero flags {kind}"] = valid((scores >= 0).double(), ~scores.isnan())
    # The normalisation is put on after the measurement: nothing is measured anew here.
    values["kappa x"] = study.score(study.report, Option(option.output, option.h, True)).scores
    values["kappa z"] = study.boundary(study.report, option.output, (option.h,)).values[:, 0]
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
    """A logistic regression on the two scores, each replaced by its rank among those of the calibration images."""
    rows = [_ranks(calibration, calibration, kind) for kind in (0, 1)]
    rows = [row[~row.isnan().any(dim=1)] for row in rows]
    if not all(map(len, rows)):
        return torch.full_like(seen.curvature[0], math.nan), torch.full_like(
            seen.curvature[1], math.nan
        )
    labels = torch.cat([torch.full((len(row),), kind) for kind, row in enumerate(rows)])
    model = LogisticRegression().fit(torch.cat(rows).numpy(), labels.numpy())
    weights, bias = torch.from_numpy(model.coef_[0]), float(model.intercept_[0])
    return _ranks(calibration, seen, 0) @ weights + bias, _ranks(
        calibration, seen, 1
    ) @ weights + bias


def _ranks(calibration: Looked, seen: Looked, kind: int) -> Tensor:
    """(n, 2) the ranks in [0, 1] of both scores of the clean (0) or the perturbed (1) images; NaN stays NaN."""
    columns = []
    for known, new in (
        (calibration.curvature, seen.curvature),
        (calibration.confidence, seen.confidence),
    ):
        every = torch.cat(known)
        ordered = every[~every.isnan()].sort().values
        ranks = torch.searchsorted(ordered, new[kind]).double() / len(ordered)
        columns.append(valid(ranks, ~new[kind].isnan()))
    return torch.stack(columns, dim=1)


def _statistics() -> dict[str, Statistic]:
    pairs = {detector: (f"{detector} clean", f"{detector} perturbed") for detector in DETECTORS}
    found: dict[str, Statistic] = {
        f"auc_{detector}": auc(*pair) for detector, pair in pairs.items()
    }
    found["auc_curvature - auc_confidence"] = auc_difference(
        pairs["curvature"], pairs["confidence"]
    )
    found["auc_both - auc_confidence"] = auc_difference(pairs["both"], pairs["confidence"])
    for detector, pair in pairs.items():
        found[f"accuracy_best_{detector}"] = balanced_accuracy(*pair)
        for kind in ("clean", "perturbed"):
            found[f"share_flagged_{kind}_{detector}"] = share(f"{detector} flags {kind}")
    for kind in ("clean", "perturbed"):
        found[f"share_flagged_{kind}_at_zero"] = share(f"zero flags {kind}")
        found[f"median_score_{kind}"] = median(f"curvature {kind}")
    found["median_score_clean * median_score_perturbed"] = Statistic(
        pairs["curvature"], _product_of_medians
    )
    found["pearson(kappa_z, kappa_x)"] = Statistic(("kappa z", "kappa x"), _pearson)
    found["spearman(kappa_z, kappa_x)"] = Statistic(("rank z", "rank x"), _pearson)
    return found


def _product_of_medians(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Below 0 where the two medians, over images and training seeds, have opposite signs."""
    first, second = (values.flatten(-2).nanquantile(0.5, dim=-1) for values in (clean, perturbed))
    return first * second


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    """The correlation within each training seed, averaged over the seeds."""
    a, b = (values - values.nanmean(dim=-1, keepdim=True) for values in (first, second))
    return (
        (a * b).nansum(dim=-1) / (a.square().nansum(dim=-1) * b.square().nansum(dim=-1)).sqrt()
    ).nanmean(dim=-1)


# Tables, figures, words


def _table(numbers: dict[str, Estimate]) -> pd.DataFrame:
    """One row a detector."""
    rows = []
    for detector, title in DETECTORS.items():
        row: dict[str, object] = {"detector": title}
        for name in ("auc", "accuracy_best", "share_flagged_clean", "share_flagged_perturbed"):
            if (found := numbers.get(f"{name}_{detector}")) is not None:
                row |= {
                    name: found.value,
                    f"{name}_low": found.low,
                    f"{name}_high": found.high,
                    "images": found.n,
                }
                row["seeds"] = found.seeds
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
    """One row for each option that was tried, on the calibration images of the first training seed."""
    return pd.DataFrame(
        [
            {
                "output": trial.option.output,
                "h": trial.option.h,
                "h / default": trial.factor,
                "divided by gradient norm": trial.option.normalise,
                "auc": found.value,
                "low": found.low,
                "high": found.high,
                "images": found.n,
                "clean below 0": _share(trial.clean < 0, trial.clean),
                "perturbed at least 0": _share(trial.perturbed >= 0, trial.perturbed),
                "label recovered at 0": trial.recovery,
                "label named": float(trial.named.nanmean()),
                "out of rounding": trial.resolved,
                "chosen for": _role(choice, trial),
            }
            for trial, found in zip(choice.trials, swept, strict=True)
        ]
    )


def _share(holds: Tensor, values: Tensor) -> float:
    return float(valid(holds.double(), ~values.isnan()).nanmean())


def _role(choice: Choice, trial: Trial) -> str:
    roles = {"detection": choice.detection, "recovery": choice.recovery}
    return ", ".join(role for role, option in roles.items() if option == trial.option)


def _curves(network: Network, samples: dict[str, Tensor]) -> Figure:
    curves = {DETECTORS[d]: (samples[f"{d} clean"], samples[f"{d} perturbed"]) for d in DETECTORS}
    return roc_figure(curves, title=f"Clean or perturbed? {network.name}")


def _histogram(network: Network, samples: dict[str, Tensor], option: Option) -> Figure:
    """Scores differ by orders of magnitude: asinh keeps their signs and shows both ends."""
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
                (trial.option.h, found)
                for trial, found in zip(choice.trials, swept, strict=True)
                if (trial.option.output, trial.option.normalise) == (output, normalise) and found.n
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


def _notes(
    found: Sequence[Study], choice: Choice, numbers: dict[str, Estimate], samples: dict[str, Tensor]
) -> list[str]:
    settings, option = found[0].settings, choice.detection
    failed = int(samples["curvature perturbed"].isnan().sum())
    lost = int(samples["kappa z"].isnan().sum())
    notes = common_notes(found, failed)
    edge = option.h in (min(found[0].steps), max(found[0].steps)) and len(found[0].steps) > 1
    notes += [
        f"Algorithm 6 with {option}, T = {settings.directions} random directions: the option of "
        "the largest area under "
        "the ROC curve on the calibration images of the first training seed, out of "
        f"{len(choice.trials)} (table "
        "options)." + (" Its h is at an end of the steps that were tried." if edge else ""),
        f"Flagged: at or above the threshold that flags at most {settings.false_positive_rate:.0%} "
        "of the clean "
        "calibration images, one for each training seed; 'at zero' is the thesis' threshold for "
        "the sign. "
        "accuracy_best is at the best threshold for the reported images themselves, as in the "
        "thesis.",
        "'Both together' is a logistic regression on the ranks of the two scores, fitted on the "
        "calibration images.",
        "kappa_z is the mean curvature of the nearest boundary where the way that the attack takes "
        "crosses it, kappa_x "
        f"the score at the image, both divided by the gradient's norm; z was not found for {lost} "
        "images.",
    ]
    return notes + _verdict(numbers)


def _verdict(numbers: dict[str, Estimate]) -> list[str]:
    """Where the curvature adds to what the probabilities tell anyway, said plainly."""
    needed = ("auc_curvature", "auc_confidence", "auc_both", "auc_both - auc_confidence")
    if not all(name in numbers for name in needed):
        return ["No perturbed image counts: nothing can be said about detection."]
    first, second, both, gain = (numbers[name] for name in needed)
    found = {
        name: numbers[f"share_flagged_perturbed_{name}"] for name in ("curvature", "confidence")
    }
    said = (
        f"AUC {shown(first)} for the curvature, {shown(second)} for 1 − the largest probability, "
        f"{shown(both)} for "
        "both together. At the calibrated thresholds the curvature flags "
        f"{shown(found['curvature'])} of the perturbed "
        f"images, the probability {shown(found['confidence'])}."
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
