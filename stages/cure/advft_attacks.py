"""Table 8.1: weak and strong attacks before and after fine-tuning on DeepFool examples.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.2.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
    S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate method to fool
    deep neural networks", arXiv:1511.04599, 2016.
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards deep learning models resistant
    to adversarial attacks", arXiv:1706.06083, 2018 (PGD).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

import pandas as pd
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import correct, recomputed_success
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, of_means, share, stack
from pipeline.studies.cure import BOX, TITLES, CureStudy, cure_studies, notes
from pipeline.studies.cure_settings import CureSettings
from pipeline.tables import interval
from robustness_geometry.attacks import deepfool, fgsm
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Dataset, Images, Labels, Network

__all__ = ["SECTION", "Settings", "advft_attacks", "beyond"]

SECTION = "Section 8.2, Table 8.1"

NETWORKS = ("original", "deepfool")


@dataclass(frozen=True)
class Settings(CureSettings):
    """What to measure.

    Attributes:
        steps: numbers of steps of the two PGDs, each at least 1, in ascending order.
    """

    eps: float | str | None = "4/255"
    steps: tuple[int, ...] = (7, 20)

    binds: ClassVar[Mapping[str, Mapping[str, str]]] = {"attack": {"eps": "cure.eps", "norm": ""}}

    def __post_init__(self) -> None:
        super().__post_init__()
        for steps in self.steps:
            check_count("steps", steps)
        if len(self.steps) != 2 or self.steps[0] >= self.steps[1]:
            refuse("steps", self.steps, "two whole numbers in ascending order")


def advft_attacks(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure accuracy under weak and strong attacks of the original and the fine-tuned network.

    The attacks are FGSM, l_inf DeepFool and two PGDs of eps in l_inf.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and attacks.

    Returns:
        ``acc_<network>_<attack>`` for the networks ``original`` and ``deepfool`` and the attacks
        ``fgsm``, ``linf_df``, ``pgd<steps>``; the differences between neighbouring attacks, and
        between the networks; ``gap_<network>``, from FGSM to the longer PGD, and their ratio.
    """
    if settings.norm != math.inf:  # eps is looked for in the ball that all four attacks share
        own: dict[str, object] = {"norm": math.inf}
        settings = replace(settings, attack=partial(settings.attack, **own))
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    judged = executor.each(_judged, studies)
    samples = stack([values for values, _ in judged])
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    failed = sum(count for _, count in judged)
    bars = {
        title: {TITLES[name]: numbers[f"acc_{name}_{attack}"] for name in NETWORKS}
        for attack, title in _attacks(settings).items()
    }
    return Findings(
        numbers=numbers,
        tables={"table_8_1": _table(numbers, settings)},
        figures={
            "table_8_1": bar_figure(
                bars,
                ylabel="accuracy",
                title=f"Accuracy at eps = {studies[0].eps:.3g}, {network.name}",
                width=9.0,
            )
        },
        notes=[
            *notes(studies),
            f"Accuracies on {len(studies[0].test)} held-out images; all attacks keep the pixels in "
            "[0, 1]. Under l_inf DeepFool an image is right where its own smallest perturbation is "
            f"longer than eps; DeepFool failed in {failed} cases, which count as right.",
        ],
    )


def beyond(model: Classifier, images: Images, labels: Labels, *, eps: float) -> dict[str, Tensor]:
    """Whether l_inf DeepFool's perturbation of each image, within [0, 1], is longer than ``eps``.

    The box is that of the other attacks, without which DeepFool would look stronger than them.

    Args:
        model: the network that is judged.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        eps: radius in l_inf, in pixel units.

    Returns:
        ``right`` (N,): whether an image has its true label and keeps it within eps; ``failed``
        (N,): whether DeepFool did not fool.
    """
    result = deepfool(model, images, norm=math.inf, prune=None, clip=BOX)
    fooled = recomputed_success(model, images, result)
    short = fooled & (norms(result.perturbations, math.inf) <= eps)
    return {"right": correct(model, images, labels) & ~short, "failed": ~fooled}


def _judged(study: CureStudy[Settings]) -> tuple[dict[str, Tensor], int]:
    """Name -> (n,) 1 where an image is still right; and the number of failures of DeepFool."""
    values: dict[str, Tensor] = {}
    failed = 0
    for name in NETWORKS:
        model = study.tuned(name).model
        work = partial(beyond, model, eps=study.eps)
        linf = study.executor.cached(work, study.test.images, study.test.labels).value
        failed += int(linf["failed"].sum())
        values[f"{name} fgsm"] = study.right(model, partial(fgsm, eps=study.eps, clip=BOX))
        values[f"{name} linf_df"] = linf["right"].double()
        for steps in study.settings.steps:
            values[f"{name} pgd{steps}"] = study.right(model, study.pgd(steps=steps, norm=math.inf))
    return values, failed


def _attacks(settings: Settings) -> dict[str, str]:
    titles = {"fgsm": "FGSM", "linf_df": r"$\ell_\infty$ DeepFool"}
    return titles | {f"pgd{steps}": f"PGD({steps})" for steps in settings.steps}


def _statistics(settings: Settings) -> dict[str, Statistic]:
    attacks = list(_attacks(settings))
    numbers: dict[str, Statistic] = {}
    for name in NETWORKS:
        numbers |= {f"acc_{name}_{attack}": share(f"{name} {attack}") for attack in attacks}
        for weak, strong in pairwise(attacks):
            numbers[f"acc_{name}_{weak} - acc_{name}_{strong}"] = difference(
                f"{name} {weak}", f"{name} {strong}"
            )
        numbers[f"gap_{name}"] = difference(f"{name} fgsm", f"{name} {attacks[-1]}")
    for attack in attacks:
        pair = (f"deepfool {attack}", f"original {attack}")
        numbers[f"acc_deepfool_{attack} - acc_original_{attack}"] = difference(*pair)
    ends = ("deepfool fgsm", f"deepfool {attacks[-1]}", "original fgsm", f"original {attacks[-1]}")
    # Of the images that have all four accuracies.
    return numbers | {"gap_deepfool / gap_original": replace(of_means(ends, _shrunk), joint=True)}


def _shrunk(weak: Tensor, strong: Tensor, weak_before: Tensor, strong_before: Tensor) -> Tensor:
    """The gap between two accuracies over the one before fine-tuning."""
    return (weak - strong) / (weak_before - strong_before)


def _table(numbers: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    rows: Sequence[dict[str, object]] = [
        {
            "network": TITLES[name],
            "attack": attack,
            "accuracy": estimate.value,
            **interval(estimate),
        }
        for name in NETWORKS
        for attack in _attacks(settings)
        for estimate in [numbers[f"acc_{name}_{attack}"]]
    ]
    return pd.DataFrame(rows)
