"""Fine-tuning on DeepFool perturbations magnified by alpha (Figure 3.7), and what they look like (Figure 3.8)."""

from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import Panel, estimate_line, image_grid, line_figure
from pipeline.statistics import Estimate, Statistic, difference, mean, stack
from pipeline.studies.finetuning import Common, Study, notes, recipe_of, studies, tune_all
from pipeline.tables import interval
from robustness_geometry.checks import check_positive, refuse
from robustness_geometry.norms import norms
from robustness_geometry.training import Recipe
from robustness_geometry.types import Dataset, Network, Perturbed, predict

__all__ = ["SECTION", "Settings", "advft_magnified"]

SECTION = "Section 3.3, Figures 3.7 and 3.8"

SHOWN = ("1", "7")
"""The classes of Figure 3.8: a digit of the first that DeepFool turns into the second."""


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        learning_rate_factor: what the learning rate is multiplied with, 0.5 in Section 3.3.
        alphas: by which the perturbations are magnified, ascending.
    """

    learning_rate_factor: float = 0.5
    alphas: tuple[float, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("learning_rate_factor", self.learning_rate_factor)
        for alpha in self.alphas:
            check_positive("alphas", alpha)
        if not self.alphas or list(self.alphas) != sorted(set(self.alphas)):
            refuse("alphas", self.alphas, "one or more ascending numbers > 0")


def advft_magnified(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure rho_adv (Equation 3.10) by DeepFool after fine-tuning on x + alpha r, r DeepFool's perturbation.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs attacks and trainings.

    Returns:
        ``rho_alpha_<alpha>`` after the last extra epoch and the differences of neighbours.
    """
    found = studies(network, data, settings, executor)
    recipe = recipe_of(network, settings, settings.learning_rate_factor)
    tune_all(found, [("deepfool", float(alpha)) for alpha in settings.alphas], recipe, executor)
    samples = stack(executor.each(lambda study: _rho(study, recipe, settings), found))
    estimates = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    failed = int(sum(values.isnan().sum() for values in samples.values()))
    cases = sum(values.numel() for values in samples.values())
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
            "figure_3_8": _digit(data, found[0], settings),
        },
        notes=[
            *notes(found, recipe),
            f"rho is measured on {len(found[0].test)} held-out images; DeepFool failed in {failed} "
            f"of {cases} "
            "cases, which are left out. The rho of an alpha is the one after the last extra epoch.",
        ],
    )


def _rho(study: Study, recipe: Recipe, settings: Settings) -> dict[str, Tensor]:
    """Network -> (n,) relative norms."""
    rho = {"original": study.rho(study.model)}
    for alpha in settings.alphas:
        for epoch, model in enumerate(study.tuned(study.perturbed("deepfool", alpha), recipe), 1):
            rho[f"{alpha:g} {epoch}"] = study.rho(model)
    return rho


def _statistics(settings: Settings) -> dict[str, Statistic]:
    """The numbers; a leading underscore marks what only the table and the figure show."""
    found = {"rho_original": mean("original")}
    for alpha in settings.alphas:
        for epoch in range(1, settings.epochs + 1):
            found[f"_{alpha:g} {epoch}"] = mean(f"{alpha:g} {epoch}")
        found[f"rho_alpha_{alpha:g}"] = mean(f"{alpha:g} {settings.epochs}")
    for first, second in pairwise(f"{alpha:g}" for alpha in settings.alphas):
        pair = (f"{first} {settings.epochs}", f"{second} {settings.epochs}")
        found[f"rho_alpha_{first} - rho_alpha_{second}"] = difference(*pair)
    return found


def _points(
    estimates: dict[str, Estimate], alpha: float, settings: Settings
) -> dict[int, Estimate]:
    """Extra epoch -> rho, from the original network (epoch 0) on; an epoch without a value is missing."""
    names = ["rho_original", *(f"_{alpha:g} {epoch}" for epoch in range(1, settings.epochs + 1))]
    return {epoch: estimates[name] for epoch, name in enumerate(names) if name in estimates}


def _table(estimates: dict[str, Estimate], settings: Settings) -> pd.DataFrame:
    rows = [
        {"alpha": alpha, "epoch": epoch, "rho": rho.value, **interval(rho)}
        for alpha in settings.alphas
        for epoch, rho in _points(estimates, alpha, settings).items()
    ]
    return pd.DataFrame(rows)


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


def _digit(data: Dataset, study: Study, settings: Settings) -> Figure:
    """Figure 3.8: one training image and its magnified perturbations, with what the network takes them for."""
    found = study.run(study.deepfool())
    index = _example(data, study, found)
    image, perturbation = study.clean.images[index], found.perturbations[index]
    shown = torch.stack([image, *(image + alpha * perturbation for alpha in settings.alphas)])
    labels = predict(study.model, shown.to(study.executor.device)).tolist()
    size = float(norms(perturbation[None])[0] / norms(image[None])[0])
    top: list[Panel | None] = [Panel(shown[0], f"original: “{data.classes[labels[0]]}”")]
    bottom: list[Panel | None] = [None]
    for alpha, picture, label in zip(settings.alphas, shown[1:], labels[1:], strict=True):
        top.append(Panel(picture.clamp(0, 1), f"alpha = {alpha:g}: “{data.classes[label]}”"))
        norm = f"relative norm {alpha * size:.3g}"
        bottom.append(Panel(alpha * perturbation, norm, perturbation=True))
    title = f"A “{data.classes[int(study.clean.labels[index])]}” and its magnified perturbations"
    return image_grid([top, bottom], title=title)


def _example(data: Dataset, study: Study, found: Perturbed) -> int:
    """An image of the classes SHOWN, of the median norm; without such classes or images, any that is fooled."""
    right = found.success & (found.labels == study.clean.labels)
    chosen = right
    if set(SHOWN) <= set(data.classes):
        first, second = (data.classes.index(name) for name in SHOWN)
        chosen = right & (found.labels == first) & (found.adversarial_labels == second)
    for mask in (chosen, right, torch.ones_like(right)):
        candidates = mask.nonzero().flatten()
        if len(candidates):
            break
    order = candidates[norms(found.perturbations[candidates]).argsort()]
    return int(order[len(order) // 2])
