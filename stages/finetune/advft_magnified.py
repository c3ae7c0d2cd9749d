"""Fine-tuning on magnified DeepFool perturbations (Section 3.3, Figures 3.7 and 3.8)."""

from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
import torch
from matplotlib.figure import Figure

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, difference, mean, stack
from pipeline.studies.attacking import deepfool_of
from pipeline.studies.finetuning import (
    FineTuningStudy,
    RobustnessSettings,
    by_epoch,
    fine_tuning_notes,
    fine_tuning_studies,
    mean_alignments,
    rho_by_epoch,
    rho_note,
    tune_all,
)
from pipeline.studies.subject import placed
from pipeline.tables import class_name, interval, value
from robustness_geometry.checks import check_positive, refuse
from robustness_geometry.norms import norms
from robustness_geometry.types import Dataset, Network, Perturbed, predict

__all__ = ["SECTION", "Settings", "advft_magnified"]

SECTION = "Section 3.3, Figures 3.7 and 3.8"

SHOWN = ("1", "7")
"""The classes of Figure 3.8: a digit of the first that DeepFool turns into the second."""


@dataclass(frozen=True)
class Settings(RobustnessSettings):
    """What to measure.

    Attributes:
        alphas: factors > 0 by which the perturbations are magnified, ascending.
    """

    alphas: tuple[float, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        for alpha in self.alphas:
            check_positive("alphas", alpha)
        if not self.alphas or list(self.alphas) != sorted(set(self.alphas)):
            refuse("alphas", self.alphas, "one or more ascending numbers > 0")


def advft_magnified(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure rho_adv (Equation 3.10) after fine-tuning on x + alpha r, r DeepFool's perturbation.

    DeepFool measures rho after each extra epoch, once for each alpha.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs attacks and trainings.

    Returns:
        ``rho_alpha_<alpha>`` after the last extra epoch and the differences of neighbours.

    References:
        Section 3.3 of the thesis; Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and
        accurate method to fool deep neural networks", CVPR 2016, arXiv:1511.04599.
    """
    test, factor = held_out(data, settings.samples), settings.learning_rate_factor
    studies = fine_tuning_studies(network, data, settings, executor, test=test, factor=factor)
    tune_all(studies, [("deepfool", float(alpha)) for alpha in settings.alphas], executor)
    sets = {f"{alpha:g}": ("deepfool", alpha) for alpha in settings.alphas}
    samples = stack(executor.each(lambda study: rho_by_epoch(study, sets), studies))
    estimates = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    return Findings(
        numbers={name: e for name, e in estimates.items() if not name.startswith("_")},
        curves={
            f"rho_alpha_{alpha:g}": [
                rho.value for rho in _points(estimates, alpha, settings).values()
            ]
            for alpha in settings.alphas
        },
        tables={"figure_3_7": _table(estimates, settings)},
        figures={
            "figure_3_7": _figure(network, estimates, settings),
            "figure_3_8": _digit(data, studies[0], settings),
        },
        notes=[
            *fine_tuning_notes(studies),
            f"{rho_note(studies, samples)} The rho of an alpha is the one after the last extra "
            "epoch.",
        ],
    )


def _statistics(settings: Settings) -> dict[str, Statistic]:
    """The numbers; a leading underscore marks those that only the table and the figure show."""
    found = {"rho_original": mean("original")}
    for alpha in settings.alphas:
        for epoch in range(1, settings.epochs + 1):
            found[f"_{alpha:g} {epoch}"] = mean(f"{alpha:g} {epoch}")
        found[f"rho_alpha_{alpha:g}"] = mean(f"{alpha:g} {settings.epochs}")
    for first, second in pairwise(f"{alpha:g}" for alpha in settings.alphas):
        pair = (f"{first} {settings.epochs}", f"{second} {settings.epochs}")
        found[f"rho_alpha_{first} - rho_alpha_{second}"] = difference(*pair)
    tuned = {
        f"alpha_{alpha:g}_{epoch}": f"{alpha:g} {epoch}"
        for alpha in settings.alphas
        for epoch in range(1, settings.epochs + 1)
    }
    return found | mean_alignments({"original": "original", **tuned})


def _points(
    estimates: dict[str, Estimate], alpha: float, settings: Settings
) -> dict[int, Estimate]:
    """Extra epoch -> rho, from the original network (epoch 0) on."""
    tuned = [f"_{alpha:g} {epoch}" for epoch in range(1, settings.epochs + 1)]
    return by_epoch(estimates, ["rho_original", *tuned])


def _table(estimates: dict[str, Estimate], settings: Settings) -> pd.DataFrame:
    rows = [
        {
            "alpha": alpha,
            "epoch": epoch,
            "rho": rho.value,
            **interval(rho),
            "cos(r, n)": value(estimates, _alignment(alpha, epoch)),
        }
        for alpha in settings.alphas
        for epoch, rho in _points(estimates, alpha, settings).items()
    ]
    return pd.DataFrame(rows)


def _alignment(alpha: float, epoch: int) -> str:
    """The name of the cos(r, n) behind one rho."""
    return f"alignment_alpha_{alpha:g}_{epoch}" if epoch else "alignment_original"


def _figure(network: Network, estimates: dict[str, Estimate], settings: Settings) -> Figure:
    lines = {}
    for alpha in settings.alphas:
        points = _points(estimates, alpha, settings)
        lines[f"alpha = {alpha:g}"] = estimate_line(list(points), list(points.values()))
    return line_figure(
        lines,
        xlabel="extra epochs",
        ylabel="robustness rho (DeepFool)",
        title=f"Fine-tuning on magnified perturbations, {network.name}",
    )


def _digit(data: Dataset, study: FineTuningStudy, settings: Settings) -> Figure:
    """Figure 3.8: a training image, its magnified perturbations and the labels they lead to."""
    result = study.attacked(deepfool_of(settings.attack))
    index = _example(data, study, result)
    image, perturbation = study.train.images[index], result.perturbations[index]
    shown = torch.stack([image, *(image + alpha * perturbation for alpha in settings.alphas)])
    labels = predict(study.model, placed(shown, study.model)).tolist()
    size = float(norms(perturbation[None])[0] / norms(image[None])[0])
    top: list[Panel | None] = [Panel(shown[0], f"original: {class_name(data, labels[0])}")]
    bottom: list[Panel | None] = [None]
    for alpha, picture, label in zip(settings.alphas, shown[1:], labels[1:], strict=True):
        top.append(Panel(picture.clamp(0, 1), f"alpha = {alpha:g}: {class_name(data, label)}"))
        norm = f"relative norm {alpha * size:.3g}"
        bottom.append(Panel(alpha * perturbation, norm, perturbation=True))
    name = class_name(data, study.train.labels[index])
    title = f"A {name} and its magnified perturbations"
    return image_grid([top, bottom], title=title)


def _example(data: Dataset, study: FineTuningStudy, result: Perturbed) -> int:
    """The image of median norm among those of the classes SHOWN.

    Without such classes or images, among all that are labelled rightly and fooled; without those,
    among all.
    """
    right = result.success & (result.labels == study.train.labels)
    chosen = right
    if set(SHOWN) <= set(data.classes):
        before, after = (data.classes.index(name) for name in SHOWN)
        chosen = right & (result.labels == before) & (result.adversarial_labels == after)
    masks = (chosen, right, torch.ones_like(right))
    candidates = next(mask for mask in masks if bool(mask.any())).nonzero().flatten()
    order = candidates[norms(result.perturbations[candidates]).argsort()]
    return int(order[len(order) // 2])
