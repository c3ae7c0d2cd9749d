"""Figure 7.9 (left), Section 7.5: detecting perturbed images by the curvature (Algorithm 6).

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 7.5.
    A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, S. Soatto, "Classification regions of deep neural
    networks", arXiv:1705.09552, 2017.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
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
    POINTS,
    DetectorStudy,
    ScoreSettings,
    common_notes,
    roc_figure,
)
from pipeline.studies.detector_answers import at_both_ends, look, together
from pipeline.studies.detector_options import (
    SCORES,
    Choice,
    ScoreMeasurement,
    Trial,
    measure_scores,
)
from pipeline.tables import columns, shown
from robustness_geometry.detection import threshold_at
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "detect_roc"]

SECTION = "Section 7.5, Algorithm 6, Figure 7.9 (left)"

DETECTORS = {
    "normalised": "curvature, divided by the gradient's norm (Algorithm 6)",
    "undivided": "curvature, not divided",
    "confidence": "1 − largest probability",
    "both": "curvature and probability together",
}
"""Suffix of the numbers -> name of the detector in tables and figures."""

JUDGED = "curvature"
"""Stands in the numbers' names for the one of SCORES that claims are judged by."""


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
    measured = measure_scores(network, data, settings, executor, _quantities, _statistics)
    choice, samples = measured.choice, measured.samples
    numbers = _with_judged(measured.numbers, choice)
    swept = _swept(choice, settings)
    return Findings(
        numbers=numbers,
        tables={"detectors": _table(numbers, choice), "options": _options(choice, swept)},
        figures={
            "figure_7_9_left": _curves(network, samples, choice),
            "scores": _histogram(network, samples, choice),
            "options": _sweep_figure(network, choice, swept),
        },
        tensors=_tensors(samples, choice),
        notes=_notes(measured, numbers),
    )


def _tensors(samples: Mapping[str, Tensor], choice: Choice) -> dict[str, Tensor]:
    """The judged scores (seeds, images) of the clean and of both kinds of perturbed images."""
    kinds = ("clean", "perturbed", "perturbed (crossing)")
    names = ("score_clean", "score_perturbed", "score_perturbed_crossing")
    return {
        name: samples[f"{choice.judged} {kind}"].float()
        for name, kind in zip(names, kinds, strict=True)
    }


def _quantities(study: DetectorStudy[ScoreSettings], choice: Choice) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed: scores, flags, and curvatures with their ranks."""
    images, rate = study.test.images, study.settings.false_positive_rate
    # What is learned or calibrated comes from the calibration images alone.
    calibration = look(study, study.train.images, choice, "closest")
    values: dict[str, Tensor] = {}
    for point, suffix in POINTS.items():
        report = look(study, images, choice, point)
        seen = {**report, "both": together(calibration, report, choice.judged)}
        learned = {**calibration, "both": together(calibration, calibration, choice.judged)}
        for name, (clean, perturbed) in seen.items():
            threshold = threshold_at(learned[name][0], rate)
            for kind, scores in (("clean", clean), (f"perturbed{suffix}", perturbed)):
                values[f"{name} {kind}"] = scores
                flagged = {"flags": scores >= threshold, "at zero": scores >= 0}
                values |= {
                    f"{name} {what} {kind}": valid(each.double(), ~scores.isnan())
                    for what, each in flagged.items()
                }
        values[f"alignment{suffix}"] = study.alignment(images, point)
    return values | at_both_ends(study, choice)


def _statistics(choice: Choice) -> dict[str, Statistic]:
    numbers: dict[str, Statistic] = {}
    names = [name for name in DETECTORS if name in choice.options or name not in SCORES]
    for suffix in POINTS.values():
        pairs = {name: (f"{name} clean", f"{name} perturbed{suffix}") for name in names}
        for name, pair in pairs.items():
            flags = f"{name} flags perturbed{suffix}"
            numbers |= {
                f"auc_{name}{suffix}": auc(*pair),
                f"accuracy_best_{name}{suffix}": balanced_accuracy(*pair),
                f"share_flagged_perturbed_{name}{suffix}": share(flags),
                f"share_flagged_clean_{name}": share(f"{name} flags clean"),
            }
        for title, name in ((JUDGED, choice.judged), ("both", "both")):
            numbers[f"auc_{title} - auc_confidence{suffix}"] = auc_difference(
                pairs[name], pairs["confidence"]
            )
        numbers |= _signs(choice.judged, suffix)
        for title, end in (("pearson", "kappa"), ("spearman", "rank")):
            ends = f"{end} z{suffix}", f"{end} x{suffix}"
            numbers[f"{title}(kappa_z, kappa_x){suffix}"] = Statistic(
                ends, _pearson_within_seeds, within=(-1.0, 1.0)
            )
        numbers[f"alignment{suffix}"] = median(f"alignment{suffix}")
    return numbers


def _signs(judged: str, suffix: str) -> dict[str, Statistic]:
    """What the sign of the judged score says, at its threshold in the thesis."""
    numbers = {}
    for kind in ("clean", f"perturbed{suffix}"):
        numbers[f"median_score_{kind}"] = median(f"{judged} {kind}")
        what, _, end = kind.partition(" ")
        name = f"share_flagged_{what}_at_zero" + (f" {end}" if end else "")
        numbers[name] = share(f"{judged} at zero {kind}")
    numbers[f"median_score_clean * median_score_perturbed{suffix}"] = Statistic(
        (f"{judged} clean", f"{judged} perturbed{suffix}"), _product_of_medians
    )
    return numbers


def _with_judged(numbers: Mapping[str, Estimate], choice: Choice) -> dict[str, Estimate]:
    """The numbers, those of the judged score also under the names that claims know."""
    mine = {name: each for name, each in numbers.items() if choice.judged in name}
    judged = {name.replace(choice.judged, JUDGED): each for name, each in mine.items()}
    return {**judged, **numbers}


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


def _table(numbers: Mapping[str, Estimate], choice: Choice) -> pd.DataFrame:
    """One row per point and detector."""
    rows = []
    for point, suffix in POINTS.items():
        for detector, title in DETECTORS.items():
            if f"auc_{detector}{suffix}" not in numbers:
                continue
            row: dict[str, object] = {"point": point, "detector": title}
            row["option"] = str(choice.options.get(detector, ""))
            row["judged"] = "yes" if (point, detector) == ("closest", choice.judged) else ""
            for name in ("auc", "accuracy_best", "share_flagged_clean", "share_flagged_perturbed"):
                end = "" if name == "share_flagged_clean" else suffix
                estimate = numbers[f"{name}_{detector}{end}"]
                row |= {**columns(name, estimate), "images": estimate.n, "seeds": estimate.seeds}
            if (aligned := numbers.get(f"alignment{suffix}")) is not None:
                row["cos(r, n)"] = aligned.value
            rows.append(row)
    return pd.DataFrame(rows)


def _swept(choice: Choice, settings: Settings) -> list[Estimate]:
    """The area under the ROC curve of every option on the calibration images, with its interval."""
    samples: dict[str, Tensor] = {}
    for index, trial in enumerate(choice.trials):
        samples[f"clean {index}"] = trial.clean
        samples[f"perturbed {index}"] = trial.perturbed["closest"]
    statistics = {str(i): auc(f"clean {i}", f"perturbed {i}") for i in range(len(choice.trials))}
    return list(paired_bootstrap(samples, statistics, resamples=settings.resamples).values())


def _options(choice: Choice, swept: Sequence[Estimate]) -> pd.DataFrame:
    """One row per option that was tried, on the calibration images of the first training seed."""
    rows = []
    for trial, area in zip(choice.trials, swept, strict=True):
        row = {
            "output": trial.option.output,
            "h": trial.option.h,
            "h / default": trial.factor,
            "divided by gradient norm": trial.option.normalise,
            "auc": area.value,
            "low": area.low,
            "high": area.high,
            "images": area.n,
            "clean below 0": _share(trial.clean < 0, trial.clean),
        }
        for point, suffix in POINTS.items():
            perturbed = trial.perturbed[point]
            row |= {
                f"auc{suffix}": trial.auc(point),
                f"perturbed at least 0{suffix}": _share(perturbed >= 0, perturbed),
                f"label recovered at 0{suffix}": float(trial.recovered[point].nanmean()),
            }
        row |= {"out of rounding": trial.resolved, "chosen for": _role(choice, trial)}
        rows.append(row)
    return pd.DataFrame(rows)


def _share(holds: Tensor, values: Tensor) -> float:
    """The share of images for which ``holds`` is True, among those that have a value."""
    return float(valid(holds.double(), ~values.isnan()).nanmean())


def _role(choice: Choice, trial: Trial) -> str:
    """Which of SCORES the option was chosen for, the judged one marked."""
    name = next((name for name, each in choice.options.items() if each == trial.option), "")
    return f"{name}, judged" if name == choice.judged else name


def _curves(network: Network, samples: Mapping[str, Tensor], choice: Choice) -> Figure:
    curves = {}
    for point, suffix in POINTS.items():
        for name in (choice.judged, "confidence"):
            title = "curvature" if name == choice.judged else DETECTORS[name]
            curves[f"{title}, {point}"] = (
                samples[f"{name} clean"],
                samples[f"{name} perturbed{suffix}"],
            )
    return roc_figure(curves, title=f"Clean or perturbed? {network.name}")


def _histogram(network: Network, samples: Mapping[str, Tensor], choice: Choice) -> Figure:
    """The scores on an asinh scale, as they differ in sign and by orders of magnitude."""
    size = samples[f"{choice.judged} clean"].abs().nanmedian()
    kinds = {"clean images": "clean"}
    kinds |= {f"perturbed images, {point}": f"perturbed{end}" for point, end in POINTS.items()}
    scaled = {
        title: (samples[f"{choice.judged} {kind}"] / size).asinh() for title, kind in kinds.items()
    }
    option, xlabel = choice.option, r"asinh$(\rho\,/\,$median of clean $|\rho|)$"
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


def _notes(measured: ScoreMeasurement, numbers: Mapping[str, Estimate]) -> list[str]:
    study, choice, samples = measured.studies[0], measured.choice, measured.samples
    settings, option = study.settings, choice.option
    failed = {
        point: int(samples[f"{choice.judged} perturbed{end}"].isnan().sum())
        for point, end in POINTS.items()
    }
    lost = int(samples["kappa z"].isnan().sum())
    notes = common_notes(measured.studies, failed)
    edge = option.h in (min(study.steps), max(study.steps)) and len(study.steps) > 1
    others = [f"{name}: {each}" for name, each in choice.options.items() if name != choice.judged]
    notes += [
        f"Algorithm 6 with {option}, T = {settings.directions} random directions: the option of "
        "the largest area under the ROC curve at closest points, on the calibration images of the "
        f"first training seed, out of {len(choice.trials)} (table options)."
        + (" Its h is at an end of the steps that were tried." if edge else "")
        + f" Claims are judged by it, in the recovery of labels too; {_printed(choice)}. The other "
        f"score has its own best option ({'; '.join(others) or 'none'}).",
        f"Flagged: at or above the threshold that flags at most {settings.false_positive_rate:.0%} "
        "of the clean calibration images, one for each training seed; 'at zero' is the thesis' "
        "threshold for the sign. accuracy_best is at the best threshold for the reported images "
        "themselves, as in the thesis.",
        "'Curvature and probability together' is a logistic regression on the ranks of the judged "
        "score and of 1 − the largest probability, fitted on the calibration images at closest "
        "points.",
        "kappa_z is the mean curvature at the boundary point, kappa_x the score at the image, both "
        f"divided by the gradient's norm; the closest point was not found for {lost} images.",
    ]
    return [*notes, *_verdict(numbers)]


def _printed(choice: Choice) -> str:
    """Whether the judged score is the one that Algorithm 6 prints."""
    if choice.option.normalise:
        return "it is divided by the gradient's norm, as Algorithm 6 prints it"
    return "Algorithm 6 prints the score divided by the gradient's norm, which this one is not"


def _verdict(numbers: Mapping[str, Estimate]) -> list[str]:
    """Whether the curvature adds to what the probabilities tell anyway."""
    needed = ("auc_curvature", "auc_confidence", "auc_both", "auc_both - auc_confidence")
    if not all(name in numbers for name in needed):
        return ["No perturbed image counts: nothing can be said about detection."]
    curvature, confidence, both, gain = (numbers[name] for name in needed)
    flagged = {
        name: numbers[f"share_flagged_perturbed_{name}"] for name in ("curvature", "confidence")
    }
    said = (
        f"At closest points, AUC {shown(curvature)} for the curvature, {shown(confidence)} for 1 − "
        f"the largest probability, {shown(both)} for both together. At the calibrated thresholds "
        f"the curvature flags {shown(flagged['curvature'])} of the perturbed images, the "
        f"probability {shown(flagged['confidence'])}."
    )
    if (beside := numbers.get("auc_curvature (crossing)")) is not None:
        said += f" For the attack under study the curvature has AUC {shown(beside)}."
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
