"""Adversarial images of the original and of the CURE network side by side (Figure 8.11)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import judged, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import Panel, image_grid
from pipeline.statistics import Estimate, difference, mean, stack
from pipeline.studies.cure import TITLES, Common, Study, notes, studies
from pipeline.tables import class_name, interval
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.norms import norms
from robustness_geometry.types import Dataset, Network, Perturbed, predict

__all__ = ["SECTION", "Settings", "cure_visual"]

SECTION = "Section 8.5.3, Figure 8.11"

NETWORKS = ("original", "cure")


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        shown: images in the figure.
        scale: what the smallest perturbations are multiplied with, for the figure and for the other
            networks' view.
    """

    samples: int = 200
    shown: int = 5
    scale: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("shown", self.shown)
        check_positive("scale", self.scale)


def cure_visual(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Show what fools each network, and ask networks of other training seeds what they see.

    Whether an image resembles a class is for the eye to judge. As a stand-in, the original networks
    of the other
    training seeds are asked: an adversarial image that they, too, take for the new class shows
    something of it.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs trainings and attacks.

    Returns:
        ``norm_*``: the mean l2 norm of DeepFool's perturbations; with two training seeds or more
        ``seen_by_others_*``: the share of other seeds' original networks that give the perturbed
        image the new class; their differences.
    """
    settings = settings.of(network)
    found = studies(network, data, settings, executor)
    samples = stack(executor.each(lambda study: _measured(study, found, settings), found))
    statistics = {name: mean(name) for name in samples}
    for key in ("norm", "seen_by_others"):
        statistics[f"{key}_cure - {key}_original"] = difference(f"{key}_cure", f"{key}_original")
    numbers = measured(paired_bootstrap(samples, statistics, resamples=settings.resamples))
    failed = {name: int(samples[f"norm_{name}"].isnan().sum()) for name in NETWORKS}
    return Findings(
        numbers=numbers,
        tables={"figure_8_11": _table(numbers)},
        figures=_figures(network, data, found[0], settings),
        notes=[
            *notes(found),
            f"l2 DeepFool on {len(found[0].test)} held-out images, times {settings.scale:g} where "
            "images are looked at "
            f"(unclipped); it failed in {failed['original']} cases on the original and "
            f"{failed['cure']} on the CURE "
            "network, which are left out.",
            "What resembles a class is for the eye to judge; the other seeds' networks only stand "
            "in for it.",
        ],
    )


def _attacked(study: Study, name: str) -> Perturbed:
    """DeepFool on the network ``name``, on its own labels."""
    work = partial(judged, partial(deepfool), study.tuned(name).model)
    return study.executor.cached(work, study.test.images).value


def _measured(study: Study, found: Sequence[Study], settings: Settings) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    others = [other for other in found if other.seed != study.seed]
    for name in NETWORKS:
        result = _attacked(study, name)
        moved = study.test.images + settings.scale * result.perturbations
        seen = [
            other.executor.cached(partial(predict, other.original), moved).value
            == result.adversarial_labels
            for other in others
        ]
        share = (
            torch.stack(seen).double().mean(dim=0) if seen else torch.full((len(moved),), torch.nan)
        )
        values[f"norm_{name}"] = valid(norms(result.perturbations), result.success)
        values[f"seen_by_others_{name}"] = valid(share, result.success)
    return values


def _table(numbers: dict[str, Estimate]) -> pd.DataFrame:
    titles = {
        "norm": "mean l2 norm, in pixel units",
        "seen_by_others": "share of other networks that see the new class",
    }
    rows = [
        {"network": TITLES[name], "quantity": title, "value": e.value, **interval(e)}
        for key, title in titles.items()
        for name in NETWORKS
        for e in [numbers.get(f"{key}_{name}")]
        if e is not None
    ]
    return pd.DataFrame(rows)


def _figures(
    network: Network, data: Dataset, study: Study, settings: Settings
) -> dict[str, Figure]:
    """For each image: itself, then for each network the perturbed image and the perturbation, magnified alike.

    They are images that both networks label right and that DeepFool fools both with; without any
    there is no figure.
    """
    results = {name: _attacked(study, name) for name in NETWORKS}
    right = torch.stack(
        [study.right(study.tuned(name).model).bool() & results[name].success for name in NETWORKS]
    )
    chosen = _one_a_class(study.test.labels, right.all(dim=0))[: settings.shown]
    rows: list[list[Panel | None]] = []
    for index in chosen.tolist():
        image, label = study.test.images[index], study.test.labels[index]
        row: list[Panel | None] = [Panel(image, class_name(data, label))]
        for name in NETWORKS:
            r = settings.scale * results[name].perturbations[index]
            new = class_name(data, results[name].adversarial_labels[index])
            row += [
                Panel((image + r).clamp(0, 1), new),
                Panel(r, f"{float(r.norm()):.2f} in l2", perturbation=True),
            ]
        rows.append(row)
    titles = [
        "image",
        *(title for name in NETWORKS for title in (TITLES[name], "its perturbation")),
    ]
    title = f"What fools each network, {network.name}"
    return (
        {"figure_8_11": image_grid(rows, title=title, column_titles=titles, side=1.9)}
        if rows
        else {}
    )


def _one_a_class(labels: Tensor, usable: Tensor) -> Tensor:
    """Indices of usable images, the first of each class before the second of any."""
    rows = usable.nonzero()[:, 0]
    own = labels[rows]
    turn = (
        torch.stack([(own[:place] == own[place]).sum() for place in range(len(own))])
        if len(own)
        else own
    )
    return rows[torch.argsort(turn * (int(labels.max()) + 1) + own, stable=True)]
