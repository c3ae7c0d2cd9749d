"""Weak and strong attacks before and after fine-tuning on DeepFool examples (Table 8.1)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pandas as pd
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import correct, recomputed_success
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, share, stack
from pipeline.studies.cure import BOX, TITLES, Common, Study, notes, studies
from pipeline.tables import interval
from robustness_geometry.attacks import deepfool, fgsm
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Dataset, Images, Labels, Network

__all__ = ["SECTION", "Settings", "advft_attacks", "beyond"]

SECTION = "Section 8.2, Table 8.1"

NETWORKS = ("original", "deepfool")


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        steps: of the two PGDs, ascending.
    """

    eps: float | str | None = "4/255"
    steps: tuple[int, ...] = (7, 20)

    def __post_init__(self) -> None:
        super().__post_init__()
        for steps in self.steps:
            check_count("steps", steps)
        if len(self.steps) != 2 or self.steps[0] >= self.steps[1]:
            refuse("steps", self.steps, "two whole numbers, ascending")


def advft_attacks(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure accuracy under FGSM, l_inf DeepFool and PGD of the original and the fine-tuned network.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs trainings and attacks.

    Returns:
        ``acc_<network>_<attack>`` for the networks ``original`` and ``deepfool`` and the attacks
        ``fgsm``, ``linf_df``, ``pgd<steps>``; the differences between neighbouring attacks, and
        between the networks; ``gap_<network>``, from FGSM to the longer PGD, and their ratio.
    """
    settings = settings.of(network)
    found = studies(network, data, settings, executor)
    judged = executor.each(lambda study: _judged(study, settings), found)
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
                title=f"Accuracy at eps = {found[0].eps:.3g}, {network.name}",
                width=9.0,
            )
        },
        notes=[
            *notes(found),
            f"Accuracies on {len(found[0].test)} held-out images. Under l_inf DeepFool an image is "
            "right where its own "
            f"smallest perturbation is longer than eps; DeepFool failed in {failed} cases, which "
            "count as right.",
        ],
    )


def beyond(model: Classifier, images: Images, labels: Labels, *, eps: float) -> dict[str, Tensor]:
    """Where DeepFool's perturbation for l_inf is longer than ``eps``.

    Returns:
        ``right`` (N,): whether an image has its true label and keeps it within eps; ``failed``
        (N,): whether DeepFool found nothing.
    """
    result = deepfool(model, images, norm=math.inf)
    fooled = recomputed_success(model, images, result)
    short = fooled & (norms(result.perturbations, math.inf) <= eps)
    return {"right": correct(model, images, labels) & ~short, "failed": ~fooled}


def _judged(study: Study, settings: Settings) -> tuple[dict[str, Tensor], int]:
    """Name -> (n,) 1 where an image is still right, and how often DeepFool failed."""
    values: dict[str, Tensor] = {}
    failed = 0
    for name in NETWORKS:
        model = study.tuned(name).model
        work = partial(beyond, model, eps=study.eps)
        found = study.executor.cached(work, study.test.images, study.test.labels).value
        failed += int(found["failed"].sum())
        values[f"{name} fgsm"] = study.right(model, partial(fgsm, eps=study.eps, clip=BOX))
        values[f"{name} linf_df"] = found["right"].double()
        for steps in settings.steps:
            values[f"{name} pgd{steps}"] = study.right(model, study.pgd(steps=steps, norm=math.inf))
    return values, failed


def _attacks(settings: Settings) -> dict[str, str]:
    titles = {"fgsm": "FGSM", "linf_df": r"$\ell_\infty$ DeepFool"}
    return titles | {f"pgd{steps}": f"PGD({steps})" for steps in settings.steps}


def _statistics(settings: Settings) -> dict[str, Statistic]:
    attacks = list(_attacks(settings))
    found: dict[str, Statistic] = {}
    for name in NETWORKS:
        found |= {f"acc_{name}_{attack}": share(f"{name} {attack}") for attack in attacks}
        for weak, strong in pairwise(attacks):
            found[f"acc_{name}_{weak} - acc_{name}_{strong}"] = difference(
                f"{name} {weak}", f"{name} {strong}"
            )
        found[f"gap_{name}"] = difference(f"{name} fgsm", f"{name} {attacks[-1]}")
    for attack in attacks:
        pair = (f"deepfool {attack}", f"original {attack}")
        found[f"acc_deepfool_{attack} - acc_original_{attack}"] = difference(*pair)
    ends = ("deepfool fgsm", f"deepfool {attacks[-1]}", "original fgsm", f"original {attacks[-1]}")
    return found | {"gap_deepfool / gap_original": Statistic(ends, _over, of_means=_shrunk)}


def _shrunk(weak: Tensor, strong: Tensor, weak_before: Tensor, strong_before: Tensor) -> Tensor:
    return (weak - strong) / (weak_before - strong_before)


def _over(*values: Tensor) -> Tensor:
    return _shrunk(*(each.nanmean(dim=(-2, -1)) for each in values))


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
