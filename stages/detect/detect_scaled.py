"""Figure 7.9 (right), Section 7.5: detecting scaled perturbations, and attacks not in the thesis.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 7.5.
    A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, S. Soatto, "Classification regions of deep neural
    networks", arXiv:1705.09552, 2017.
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards deep learning models resistant
    to adversarial attacks", arXiv:1706.06083, 2018 (PGD).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure, estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, auc, auc_difference, median, share, stack
from pipeline.studies.detector import (
    POINTS,
    DetectorStudy,
    ScoreSettings,
    common_notes,
    detector_studies,
    moved,
    roc_figure,
)
from pipeline.studies.detector_options import Choice, choose
from pipeline.studies.unforeseen import (
    ATTACKS,
    EVADED,
    EVASIONS,
    Unforeseen,
    quantities,
    row_of,
    statistics,
    table_of_attacks,
    table_of_evasions,
)
from pipeline.tables import shown
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "detect_scaled"]

SECTION = "Section 7.5, Figure 7.9 (right), and beyond the thesis"

DETECTORS = {"auc": "curvature", "auc_confidence": "1 − largest probability"}
"""Beginning of the numbers' names -> name of the detector in figures."""


@dataclass(frozen=True)
class Settings(ScoreSettings):
    """What to measure, beyond the settings of the score.

    Attributes:
        alphas: factors by which perturbations are scaled, each > 0, in ascending order.
        unforeseen_seeds: number of training seeds, from the first on, on which the other attacks
            are tried, at least 1.
        unforeseen_samples: number of the reported images, from the first on, on which the other
            attacks are tried, at least 2.
        eps_factor: eps of FGSM and PGD, > 0, in units of the median norm of l_inf DeepFool's
            perturbations.
        knowing_radius: radius of the attack that knows the detector, at least 1, in units of the
            norm of the perturbation beyond the closest boundary point.
        knowing_steps: number of steps of the attack that knows the detector, at least 1.
    """

    alphas: tuple[float, ...] = (1.0, 2.0, 5.0)
    unforeseen_seeds: int = 1
    unforeseen_samples: int = 1000
    eps_factor: float = 2.0
    knowing_radius: float = 2.0
    knowing_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alphas or list(self.alphas) != sorted(set(self.alphas)):
            refuse("alphas", self.alphas, "one or more numbers > 0, in ascending order")
        for alpha in self.alphas:
            check_positive("alphas", alpha)
        for name in ("unforeseen_seeds", "knowing_steps"):
            check_count(name, getattr(self, name))
        check_count("unforeseen_samples", self.unforeseen_samples, minimum=2)
        check_positive("eps_factor", self.eps_factor)
        if check_positive("knowing_radius", self.knowing_radius) < 1:
            refuse("knowing_radius", self.knowing_radius, "a number >= 1")


def detect_scaled(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure how well scaled perturbations and other attacks are detected.

    The other attacks are not in the thesis; one of them knows the detector and minimises its score.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs the attacks and the scores.

    Returns:
        Areas under the ROC curve of each factor and each attack for curvature and confidence, with
        their differences, and the shares of wrong labels that evade each detector; the scores
        (seeds, images) as tensors.
    """
    studies = detector_studies(network, data, settings, executor)
    choice = choose(studies[0])
    samples = stack([_quantities(study, choice, settings.alphas) for study in studies])
    options = Unforeseen(settings.eps_factor, settings.knowing_radius, settings.knowing_steps)
    few = [
        replace(study, test=study.test.first(settings.unforeseen_samples))
        for study in studies[: settings.unforeseen_seeds]
    ]
    others = stack([quantities(study, choice, options) for study in few])
    estimates = paired_bootstrap(
        samples, _statistics(settings.alphas), resamples=settings.resamples
    )
    known = {name: each for name, each in statistics().items() if set(each.names) <= set(others)}
    estimates |= paired_bootstrap(others, known, resamples=settings.resamples)
    numbers = measured(estimates)
    return Findings(
        numbers=numbers,
        tables={
            "scaled": _table(numbers, settings.alphas),
            "attacks": table_of_attacks(numbers),
            "evasions": table_of_evasions(numbers),
        },
        figures={
            "figure_7_9_right": _curves(network, samples, settings.alphas),
            "detectors": _lines(network, numbers, settings.alphas),
            "attacks": _bars(network, numbers),
        },
        tensors={
            f"score_alpha_{alpha:g}": samples[f"curvature {alpha:g}"].float()
            for alpha in settings.alphas
        },
        notes=_notes(studies, choice, numbers, samples),
    )


def _quantities(
    study: DetectorStudy[ScoreSettings], choice: Choice, alphas: Sequence[float]
) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed, NaN without a perturbation."""
    images = study.test.images
    values = {
        "curvature clean": study.scores(images, choice.options)[choice.judged].scores,
        "confidence clean": study.confidence(images).scores,
    }
    for point, suffix in POINTS.items():
        attacked = study.perturbed(images, point)
        values[f"alignment{suffix}"] = study.alignment(images, point)
        for alpha in alphas:
            points = moved(images, attacked, alpha)
            # At alpha = 1 other experiments need the scores of all options.
            options = choice.options if alpha == 1 else {choice.judged: choice.option}
            scored = study.scores(points, options)[choice.judged]
            seen = {
                "curvature": scored.scores,
                "confidence": study.confidence(points).scores,
                "wrong": (scored.labels != attacked.labels).double(),
            }
            values |= {
                f"{name} {alpha:g}{suffix}": valid(each, attacked.success)
                for name, each in seen.items()
            }
    return values


def _statistics(alphas: Sequence[float]) -> dict[str, Statistic]:
    numbers: dict[str, Statistic] = {}
    for suffix in POINTS.values():
        for alpha in alphas:
            curvature, confidence = (
                (f"{detector} clean", f"{detector} {alpha:g}{suffix}")
                for detector in ("curvature", "confidence")
            )
            numbers |= {
                f"auc_alpha_{alpha:g}{suffix}": auc(*curvature),
                f"auc_confidence_alpha_{alpha:g}{suffix}": auc(*confidence),
                f"share_wrong_alpha_{alpha:g}{suffix}": share(f"wrong {alpha:g}{suffix}"),
            }
        numbers[f"alignment{suffix}"] = median(f"alignment{suffix}")
    return numbers | _differences(alphas)


def _differences(alphas: Sequence[float]) -> dict[str, Statistic]:
    """Curvature against confidence, and each factor against the next, at closest points."""
    curvature, confidence = (
        {alpha: (f"{detector} clean", f"{detector} {alpha:g}") for alpha in alphas}
        for detector in ("curvature", "confidence")
    )
    numbers = {
        f"auc_alpha_{alpha:g} - auc_confidence_alpha_{alpha:g}": auc_difference(
            curvature[alpha], confidence[alpha]
        )
        for alpha in alphas
    }
    for less, more in pairwise(alphas):
        numbers[f"auc_alpha_{less:g} - auc_alpha_{more:g}"] = auc_difference(
            curvature[less], curvature[more]
        )
    return numbers


def _table(numbers: Mapping[str, Estimate], alphas: Sequence[float]) -> pd.DataFrame:
    """One row per point and factor."""
    rows = []
    for point, suffix in POINTS.items():
        for alpha in alphas:
            names = {
                "auc curvature": f"auc_alpha_{alpha:g}{suffix}",
                "auc confidence": f"auc_confidence_alpha_{alpha:g}{suffix}",
            }
            row = {"point": point, "alpha": alpha, **row_of(numbers, names)}
            for column, name in (
                ("wrong label", f"share_wrong_alpha_{alpha:g}{suffix}"),
                ("cos(r, n)", f"alignment{suffix}"),
            ):
                if (found := numbers.get(name)) is not None:
                    row[column] = found.value
            rows.append(row)
    return pd.DataFrame(rows)


def _curves(network: Network, samples: Mapping[str, Tensor], alphas: Sequence[float]) -> Figure:
    clean = samples["curvature clean"]
    curves = {
        rf"$\alpha$ = {alpha:g}": (clean, samples[f"curvature {alpha:g}"]) for alpha in alphas
    }
    return roc_figure(curves, title=f"Scaled perturbations (closest points), {network.name}")


def _lines(network: Network, numbers: Mapping[str, Estimate], alphas: Sequence[float]) -> Figure:
    lines = {}
    for (point, suffix), (name, title) in product(POINTS.items(), DETECTORS.items()):
        areas = {
            alpha: numbers[f"{name}_alpha_{alpha:g}{suffix}"]
            for alpha in alphas
            if f"{name}_alpha_{alpha:g}{suffix}" in numbers
        }
        style = "-" if point == "closest" else "--"
        lines[f"{title}, {point}"] = estimate_line(list(areas), list(areas.values()), style=style)
    return line_figure(
        lines,
        xlabel=r"factor $\alpha$ of the perturbation",
        ylabel="area under the ROC curve",
        title=f"What detects scaled perturbations, {network.name}",
        references={"chance": 0.5},
        limits=(0.0, 1.05),
    )


def _bars(network: Network, numbers: Mapping[str, Estimate]) -> Figure:
    groups = {}
    for name, title in ATTACKS.items():
        bars = {"curvature": f"auc_{name}", "1 − largest probability": f"auc_confidence_{name}"}
        areas = {
            detector: numbers[number] for detector, number in bars.items() if number in numbers
        }
        if areas:
            label = title.replace("l_inf", r"$\ell_\infty$").replace(" on the", "\non the")
            groups[label] = areas
    return bar_figure(
        groups, ylabel="area under the ROC curve", title=f"Attacks not built for, {network.name}"
    )


def _notes(
    studies: Sequence[DetectorStudy[Settings]],
    choice: Choice,
    numbers: Mapping[str, Estimate],
    samples: Mapping[str, Tensor],
) -> list[str]:
    settings = studies[0].settings
    few = min(settings.unforeseen_seeds, len(studies))
    smallest = f"curvature {settings.alphas[0]:g}"
    failed = {
        point: int(samples[f"{smallest}{end}"].isnan().sum()) for point, end in POINTS.items()
    }
    images = min(settings.unforeseen_samples, len(studies[0].test))
    notes = common_notes(studies, failed)
    notes += [
        f"Curvature: {choice.option}, T = {settings.directions}: chosen at alpha = 1 and closest "
        "points on the calibration images of the first training seed, for every factor, point and "
        "attack.",
        "A scaled perturbation counts where the unscaled one fooled; 'wrong label' says how many "
        "still fool. Scaled images are not clipped.",
        f"Other attacks on the first {few} training seed{'s' if few > 1 else ''} and the first "
        f"{images} images, each on those that it fools: l_inf DeepFool; FGSM and PGD at eps = "
        f"{settings.eps_factor:g} times the median norm of its perturbations.",
        "The attack on the detector starts from the perturbation at the closest point, scaled by "
        f"{settings.knowing_radius:g}, and takes {settings.knowing_steps} steps in the l2 ball of "
        "that norm: down the score while the label is wrong, and back across the boundary while it "
        "is right. It knows all but the directions that the detector then draws. Evading: a wrong "
        "label that is not flagged, by the curvature at threshold 0 or at the one calibrated to "
        f"{settings.false_positive_rate:.0%} false positives, by confidence at its own calibrated "
        "one, or by both.",
    ]
    return [*notes, *_said(numbers, settings.alphas), *_said_of_evasion(numbers)]


def _said(numbers: Mapping[str, Estimate], alphas: Sequence[float]) -> list[str]:
    """For each factor and attack, whether the curvature detects better than the probabilities."""
    words = []
    cases = {f"alpha = {alpha:g}": f"alpha_{alpha:g}" for alpha in alphas}
    cases |= {title: name for name, title in ATTACKS.items()}
    for title, name in cases.items():
        gap = numbers.get(f"auc_{name} - auc_confidence_{name}")
        if gap is not None:
            said = (
                "better"
                if gap.low > 0
                else "worse"
                if gap.high < 0
                else "neither clearly better nor worse"
            )
            words.append(f"{title} {said} ({shown(gap)})")
    return (
        [f"Curvature against 1 − the largest probability, difference of areas: {'; '.join(words)}."]
        if words
        else []
    )


def _said_of_evasion(numbers: Mapping[str, Estimate]) -> list[str]:
    """For each detector, the share of wrong labels that it misses."""
    words = []
    for detector, title in EVADED.items():
        shares = [numbers.get(f"share_evading_{detector}_{name}") for name in EVASIONS]
        if all(shares):
            values = ", ".join(shown(estimate) for estimate in shares if estimate)
            words.append(f"{title} {values}")
    scaled = "as they are, scaled, and after the attack on the detector"
    return [f"Wrong labels that are not flagged, {scaled}: {'; '.join(words)}."] if words else []
