"""Detecting larger perturbations, other attacks and one that knows the detector (Section 7.5, Figure 7.9 right)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure, estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, auc, auc_difference, share, stack
from pipeline.studies.detector import Common, Study, common_notes, moved, roc_figure, studies
from pipeline.studies.detector_options import Choice, choose
from pipeline.studies.unforeseen import (
    ATTACKS,
    EVADED,
    EVASIONS,
    Unforeseen,
    quantities,
    statistics,
    table_of_attacks,
    table_of_evasions,
)
from pipeline.tables import shown
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "detect_scaled"]

SECTION = "Section 7.5, Figure 7.9 (right), and beyond the thesis"


@dataclass(frozen=True)
class Settings(Common):
    """What to measure beside the settings of the stage.

    Attributes:
        alphas: factors by which perturbations are scaled, the smallest first.
        unforeseen_seeds: training seeds, the first ones, on which other attacks are tried.
        eps_factor: eps of FGSM and PGD in units of the median norm of l_inf DeepFool's
            perturbations.
        knowing_radius: of the attack that knows the detector, in units of the norm of the attack
            under study.
        knowing_steps: of it.
    """

    alphas: tuple[float, ...] = (1.0, 2.0, 5.0)
    unforeseen_seeds: int = 1
    eps_factor: float = 2.0
    knowing_radius: float = 2.0
    knowing_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alphas or list(self.alphas) != sorted(set(self.alphas)):
            refuse("alphas", self.alphas, "numbers > 0, the smallest first")
        for alpha in self.alphas:
            check_positive("alphas", alpha)
        for name in ("unforeseen_seeds", "knowing_steps"):
            check_count(name, getattr(self, name))
        check_positive("eps_factor", self.eps_factor)
        if check_positive("knowing_radius", self.knowing_radius) < 1:
            refuse("knowing_radius", self.knowing_radius, "a number >= 1")


def detect_scaled(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Detect scaled perturbations, other attacks, and an attack that has the detector's score in its loss.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks and the scores.

    Returns:
        Areas under the ROC curve of each factor and each attack for curvature and confidence, with
        their differences, and the shares of wrong labels that evade each detector; the scores
        (seeds, images) as tensors.
    """
    found = studies(network, data, settings, executor)
    choice = choose(found[0])
    samples = stack([_quantities(study, choice, settings.alphas) for study in found])
    options = Unforeseen(settings.eps_factor, settings.knowing_radius, settings.knowing_steps)
    others = stack(
        [quantities(s, choice.detection, options) for s in found[: settings.unforeseen_seeds]]
    )
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
        notes=_notes(found, choice, numbers, samples, settings),
    )


def _quantities(study: Study, choice: Choice, alphas: Sequence[float]) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed, NaN where the attack failed."""
    attacked, images = study.attacked(study.report), study.report
    found = {
        "curvature clean": study.score(images, choice.detection).scores,
        "confidence clean": study.confidence(images).scores,
    }
    for alpha in alphas:
        points = moved(images, attacked, alpha)
        scored = study.score(points, choice.detection)
        values = {
            "curvature": scored.scores,
            "confidence": study.confidence(points).scores,
            "wrong": (scored.labels != attacked.labels).double(),
        }
        found |= {
            f"{name} {alpha:g}": valid(value, attacked.success) for name, value in values.items()
        }
    return found


def _statistics(alphas: Sequence[float]) -> dict[str, Statistic]:
    found: dict[str, Statistic] = {}
    for alpha in alphas:
        curvature, confidence = (
            (f"{detector} clean", f"{detector} {alpha:g}")
            for detector in ("curvature", "confidence")
        )
        found |= {
            f"auc_alpha_{alpha:g}": auc(*curvature),
            f"auc_confidence_alpha_{alpha:g}": auc(*confidence),
            f"auc_alpha_{alpha:g} - auc_confidence_alpha_{alpha:g}": auc_difference(
                curvature, confidence
            ),
            f"share_wrong_alpha_{alpha:g}": share(f"wrong {alpha:g}"),
        }
    for less, more in pairwise(alphas):
        pairs = [("curvature clean", f"curvature {alpha:g}") for alpha in (less, more)]
        found[f"auc_alpha_{less:g} - auc_alpha_{more:g}"] = auc_difference(pairs[0], pairs[1])
    return found


def _table(numbers: Mapping[str, Estimate], alphas: Sequence[float]) -> pd.DataFrame:
    """One row a factor."""
    names = {"auc curvature": "auc", "auc confidence": "auc_confidence"}
    rows = []
    for alpha in alphas:
        row: dict[str, object] = {"alpha": alpha}
        for column, name in names.items():
            if (found := numbers.get(f"{name}_alpha_{alpha:g}")) is not None:
                row |= {
                    column: found.value,
                    f"{column} low": found.low,
                    f"{column} high": found.high,
                }
                row |= {"images": found.n, "seeds": found.seeds}
        if (wrong := numbers.get(f"share_wrong_alpha_{alpha:g}")) is not None:
            row["wrong label"] = wrong.value
        rows.append(row)
    return pd.DataFrame(rows)


def _curves(network: Network, samples: Mapping[str, Tensor], alphas: Sequence[float]) -> Figure:
    clean = samples["curvature clean"]
    curves = {
        rf"$\alpha$ = {alpha:g}": (clean, samples[f"curvature {alpha:g}"]) for alpha in alphas
    }
    return roc_figure(curves, title=f"Scaled perturbations, {network.name}")


def _lines(network: Network, numbers: Mapping[str, Estimate], alphas: Sequence[float]) -> Figure:
    lines = {}
    for name, title in (("auc", "curvature"), ("auc_confidence", "1 − largest probability")):
        found = {
            alpha: numbers[f"{name}_alpha_{alpha:g}"]
            for alpha in alphas
            if f"{name}_alpha_{alpha:g}" in numbers
        }
        lines[title] = estimate_line(list(found), list(found.values()))
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
        found = {
            detector: numbers[number] for detector, number in bars.items() if number in numbers
        }
        if found:
            groups[title.replace("l_inf", r"$\ell_\infty$").replace(" on the", "\non the")] = found
    return bar_figure(
        groups, ylabel="area under the ROC curve", title=f"Attacks not built for, {network.name}"
    )


def _notes(
    found: Sequence[Study],
    choice: Choice,
    numbers: Mapping[str, Estimate],
    samples: Mapping[str, Tensor],
    settings: Settings,
) -> list[str]:
    few = min(settings.unforeseen_seeds, len(found))
    first = f"curvature {settings.alphas[0]:g}"
    notes = common_notes(found, int(samples[first].isnan().sum()))
    notes += [
        f"Curvature: {choice.detection}, T = {settings.directions}: chosen at alpha = 1 on the "
        "calibration images of "
        "the first training seed, for every factor and attack.",
        "A scaled perturbation counts where the unscaled one fooled; 'wrong label' says how many "
        "still fool. Scaled "
        "images are not clipped.",
        f"Other attacks on the first {few} training seed{'s' if few > 1 else ''}, each on the "
        "images that it fools: "
        f"l_inf DeepFool; FGSM and PGD at eps = {settings.eps_factor:g} times the median norm of "
        "its perturbations.",
        "The attack on the detector starts from the attack under study, scaled by "
        f"{settings.knowing_radius:g}, and "
        f"takes {settings.knowing_steps} steps in the l2 ball of that norm: down the score while "
        "the label is wrong, "
        "and back across the boundary while it is right. It knows all but the directions that the "
        "detector then draws. "
        "Evading: a wrong label that is not flagged, by the curvature at threshold 0 or at the one "
        "calibrated to "
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
    words = []
    for detector, title in EVADED.items():
        found = [numbers.get(f"share_evading_{detector}_{name}") for name in EVASIONS]
        if all(found):
            values = ", ".join(shown(estimate) for estimate in found if estimate)
            words.append(f"{title} {values}")
    scaled = "as they are, scaled, and after the attack on the detector"
    return [f"Wrong labels that are not flagged, {scaled}: {'; '.join(words)}."] if words else []
