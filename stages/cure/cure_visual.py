"""Figure 8.11: adversarial images of the original and of the CURE network side by side.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.5.3.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
    S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate method to fool
    deep neural networks", arXiv:1511.04599, 2016.
"""

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
from pipeline.pictures import Panel, image_grid
from pipeline.statistics import Estimate, difference, mean, stack
from pipeline.studies.cure import TITLES, CureStudy, cure_studies, notes
from pipeline.studies.cure_settings import CureSettings
from pipeline.tables import class_name, interval
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.norms import norms
from robustness_geometry.types import Dataset, Network, Perturbed, predict

__all__ = ["SECTION", "Settings", "cure_visual"]

SECTION = "Section 8.5.3, Figure 8.11"

NETWORKS = ("original", "cure")


@dataclass(frozen=True)
class Settings(CureSettings):
    """What to measure.

    Attributes:
        shown: number of images in the figure, at least 1.
        scale: factor of the smallest perturbations, > 0, in the figure and in what the other
            networks see.
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
    """Show what fools each network, and measure what networks of other training seeds see in it.

    Whether an image resembles a class is for the eye to judge. As a stand-in, the adversarial image
    is given to the original networks of the other training seeds: if they, too, see the new class,
    the image shows something of it.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and attacks.

    Returns:
        ``norm_*``: the mean l2 norm of DeepFool's perturbations; with two training seeds or more
        ``seen_by_others_*``: the share of other seeds' original networks that give the perturbed
        image the new class; their differences.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    samples = stack(executor.each(lambda study: _measured(study, studies), studies))
    statistics = {name: mean(name) for name in samples}
    for key in ("norm", "seen_by_others"):
        statistics[f"{key}_cure - {key}_original"] = difference(f"{key}_cure", f"{key}_original")
    numbers = measured(paired_bootstrap(samples, statistics, resamples=settings.resamples))
    failed = {name: int(samples[f"norm_{name}"].isnan().sum()) for name in NETWORKS}
    return Findings(
        numbers=numbers,
        tables={"figure_8_11": _table(numbers)},
        figures=_figures(network, data, studies[0]),
        notes=[
            *notes(studies),
            f"l2 DeepFool on {len(studies[0].test)} held-out images, times {settings.scale:g} "
            f"where images are looked at (unclipped); it failed in {failed['original']} cases on "
            f"the original and {failed['cure']} on the CURE network, which are left out.",
            "What resembles a class is for the eye to judge; the other seeds' networks only stand "
            "in for it.",
        ],
    )


def _attacked(study: CureStudy[Settings], name: str) -> Perturbed:
    """DeepFool on the network ``name``, on its own labels."""
    work = partial(judged, partial(deepfool, prune=None), study.tuned(name).model)
    return study.executor.cached(work, study.test.images).value


def _measured(
    study: CureStudy[Settings], studies: Sequence[CureStudy[Settings]]
) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed; NaN where DeepFool failed."""
    values: dict[str, Tensor] = {}
    others = [other for other in studies if other.seed != study.seed]
    for name in NETWORKS:
        result = _attacked(study, name)
        moved = study.test.images + study.settings.scale * result.perturbations
        seen = [
            other.executor.cached(partial(predict, other.model), moved).value
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


def _figures(network: Network, data: Dataset, study: CureStudy[Settings]) -> dict[str, Figure]:
    """Figure 8.11: each image, then for each network the perturbed image and the perturbation.

    They are images that both networks label right and that DeepFool fools both with; without any
    there is no figure.
    """
    settings = study.settings
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
