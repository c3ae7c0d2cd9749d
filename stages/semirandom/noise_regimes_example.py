"""Random noise, semi-random and worst-case perturbations (Section 5.6, Figure 5.4)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid
from pipeline.plots import histogram_figure
from pipeline.statistics import (
    Estimate,
    Statistic,
    median,
    median_difference,
    ratio_of_medians,
    scaled_median_of_ratios,
    share,
    stack,
)
from pipeline.studies.attacking import alignments, deepfool_of, run
from pipeline.studies.boundary import BoundarySettings, as_perturbed, closest_points, or_infinite
from pipeline.studies.semirandom import search_inside
from pipeline.tables import class_name, columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Dataset, Images, Network, Perturbed

__all__ = ["SECTION", "Settings", "noise_regimes_example"]

SECTION = "Section 5.6, Figure 5.4"

REGIMES = {"random": "random noise", "semirandom": "semi-random", "worst": "worst case"}
"""Suffix of the numbers -> the name of the regime in tables and figures."""

DEEPFOOL = {"semirandom": "semirandom (DeepFool)", "worst": "worst (DeepFool)"}
"""Regime -> the name of what DeepFool finds in it, as the thesis measured it."""

SHOWN = {name: ("closest", title) for name, title in REGIMES.items()} | {
    found: ("DeepFool", REGIMES[name]) for name, found in DEEPFOOL.items()
}
"""Quantity -> its search and the name of its regime in the table."""


@dataclass(frozen=True)
class Settings(BoundarySettings):
    """What to measure.

    Attributes:
        m: dimension of the semi-random subspaces, at least 2 and below that of the images.
        lines: number of random lines of each subspace, at least 1, along which the first change of
            label is searched; the first one is the random noise.
    """

    m: int = 10
    lines: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("lines", self.lines)
        check_count("m", self.m, minimum=2)

    def check(self, data: Dataset) -> None:
        """Check that the subspaces are smaller than the space of the images.

        Raises:
            InputError: m is not below the number of dimensions.
        """
        if self.m >= (d := math.prod(data.shape)):
            refuse("m", self.m, f"a whole number below d = {d}")


def noise_regimes_example(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure how large perturbations of the three regimes have to be to change the label.

    Random noise is the smallest |t| at which the label changes along a random line through the
    image, in either direction; a semi-random perturbation is the smallest one found in m random
    dimensions, the worst case the smallest one found at all (Section 5.3). The line is drawn in the
    random subspace, and so uniform among all lines, so that no semi-random perturbation can be
    longer than the noise.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        The median norms, their differences and ratios, and the share of images that all three
        perturbations take to one label; all of them again with DeepFool as the only search. As
        tensors, the norms (seeds, images), infinite where no perturbation was found.

    References:
        Sections 5.3 and 5.6 of the thesis; Fawzi, Moosavi-Dezfooli and Frossard, "Robustness of
        classifiers: from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
    """
    d = math.prod(data.shape)
    images = held_out(data, settings.samples).images
    found = [
        _measure(model, images, settings, executor.for_seed(seed), seed)
        for seed, model in sorted(network.models.items())
    ]
    samples = stack([_quantities(results) for results in found])
    numbers = measured(paired_bootstrap(samples, _statistics(d), resamples=settings.resamples))
    return Findings(
        numbers=numbers,
        tables={"regimes": _table(numbers, samples, settings.m)},
        figures={
            "figure_5_4": _example(data, images, found[0], settings.m),
            "norms": _histogram(network, samples),
        },
        tensors={f"norm_{name}": samples[name].float() for name in REGIMES},
        notes=_notes(samples, settings, d),
    )


def _measure(
    model: Classifier, images: Images, settings: Settings, executor: Executor, seed: int
) -> dict[str, Perturbed]:
    """Quantity -> the perturbations of one training seed, with their alignment."""
    attack = settings.boundary_attack
    search = partial(search_inside, attack, settings.m, settings.lines, seed, True, model)
    inside = executor.map(search, images, randomness=True).value
    deepfool = deepfool_of(attack, norm=2.0, clip=None)
    found = run(deepfool, model, images, executor).value
    aligned = alignments(deepfool, found, model, images, executor)
    return {
        "random": inside.line,
        "semirandom": inside.best,
        "worst": as_perturbed(closest_points(model, images, executor)),
        DEEPFOOL["semirandom"]: inside.deepfool,
        DEEPFOOL["worst"]: replace(found, alignment=aligned),
    }


def _quantities(results: Mapping[str, Perturbed]) -> dict[str, Tensor]:
    """Name -> (n,) values of one seed: norms, alignments, and whether one label is reached."""
    return {
        "agree": _agreement([results[name] for name in REGIMES]),
        "agree (DeepFool)": _agreement([results[DEEPFOOL.get(name, name)] for name in REGIMES]),
        **{name: or_infinite(result) for name, result in results.items()},
        **{
            f"alignment {name}": valid(result.alignment, result.success)
            for name, result in results.items()
            if result.alignment is not None
        },
    }


def _agreement(results: Sequence[Perturbed]) -> Tensor:
    """(n,) whether all results lead to one label, NaN where one of them failed."""
    labels = torch.stack([result.adversarial_labels for result in results])
    fooled = torch.stack([result.success for result in results]).all(dim=0)
    return torch.where(fooled, (labels == labels[0]).all(dim=0).double(), math.nan)


def _statistics(d: int) -> dict[str, Statistic]:
    """The numbers: medians, their differences and ratios, the share of one label, alignments."""
    found: dict[str, Statistic] = {}
    for suffix in ("", " (DeepFool)"):
        inside, worst = (f"{name}{suffix}" for name in ("semirandom", "worst"))
        own = {
            "median_semirandom": median(inside),
            "median_worst": median(worst),
            "median_semirandom - median_worst": median_difference(inside, worst),
            "median_random - median_semirandom": median_difference("random", inside),
            "median_random / median_semirandom": ratio_of_medians("random", inside),
            "random / (sqrt(d) worst)": scaled_median_of_ratios("random", worst, 1 / math.sqrt(d)),
            "random / worst": scaled_median_of_ratios("random", worst, 1.0),
            "share_one_label": share(f"agree{suffix}"),
            "alignment_semirandom": median(f"alignment {inside}"),
            "alignment_worst": median(f"alignment {worst}"),
        }
        found |= {f"{name}{suffix}": statistic for name, statistic in own.items()}
    return {"median_random": median("random"), **found}


def _table(numbers: dict[str, Estimate], samples: dict[str, Tensor], m: int) -> pd.DataFrame:
    """One row per regime and search: the median norm, the alignment and the failures."""
    rows = []
    for name, (search, title) in SHOWN.items():
        estimate = numbers[f"median_{name}"]
        aligned = numbers.get(f"alignment_{name}")
        rows.append(
            {
                "regime": f"{title}, m = {m}" if name.startswith("semirandom") else title,
                "search": "line" if name == "random" else search,
                **columns("median_norm", estimate),
                "cos(r, n)": math.nan if aligned is None else aligned.value,
                "failed": int(samples[name].isinf().sum()),
                "images": estimate.n,
            }
        )
    return pd.DataFrame(rows)


def _example(data: Dataset, images: Images, results: dict[str, Perturbed], m: int) -> Figure:
    """Figure 5.4: the original and the three perturbed images, with the perturbations below."""
    index = _typical(results)
    label = class_name(data, results["worst"].labels[index])
    top: list[Panel | None] = [Panel(images[index], f"original\n{label}")]
    bottom: list[Panel | None] = [None]
    for result in (results[name] for name in REGIMES):
        r = result.perturbations[index]
        outcome = (
            class_name(data, result.adversarial_labels[index])
            if result.success[index]
            else "not fooled"
        )
        top.append(Panel((images[index] + r).clamp(0, 1), f"perturbed\n{outcome}"))
        bottom.append(Panel(r, f"norm {float(r.norm()):.3g}", perturbation=True))
    names = ["", "random noise", f"semi-random, m = {m}", "worst case"]
    return image_grid(
        [top, bottom], column_titles=names, title="From random noise to the worst case"
    )


def _typical(results: dict[str, Perturbed]) -> int:
    """The image whose norm of random noise over the worst case is the median.

    It is chosen among those that all regimes take to one label; without any, among those that all
    regimes fool; without those, among all.
    """
    quantities = _quantities(results)
    fooled = torch.stack([results[name].success for name in REGIMES]).all(dim=0)
    chosen = next(
        (mask for mask in (quantities["agree"] == 1, fooled) if bool(mask.any())),
        torch.ones_like(fooled),
    )
    rows = chosen.nonzero().flatten()
    order = (
        norms(results["random"].perturbations[rows]) / norms(results["worst"].perturbations[rows])
    ).argsort()
    return int(rows[order[len(order) // 2]])


def _histogram(network: Network, samples: dict[str, Tensor]) -> Figure:
    """The norms of the three regimes."""
    shown = {title: samples[name] for name, title in REGIMES.items()}
    title = f"How large a perturbation has to be, {network.name}"
    return histogram_figure(shown, xlabel=r"$\|r\|_2$ (pixel units)", title=title, log_x=True)


def _notes(samples: dict[str, Tensor], settings: Settings, d: int) -> list[str]:
    """Notes on the dimensions, the searches, the random noise and the failures."""
    cases = samples["worst"].numel()
    failed = [
        f"{title} ({search}) {int(samples[name].isinf().sum())} of {cases}"
        for name, (search, title) in SHOWN.items()
    ]
    return [
        f"{samples['worst'].shape[1]} held-out images where the thesis shows one; d = {d}, sqrt(d) "
        f"= {math.sqrt(d):.4g}, m = {settings.m}; a random subspace of its own for each image.",
        "Random noise is the nearer of the two crossings on a random line of that subspace, which "
        "is uniform among all lines through the image.",
        "Without a suffix the worst case is the closest point of the boundary, and the semi-random "
        "perturbation the smallest that DeepFool, nearest, "
        f"{settings.lines} lines (the noise's among them) and projections found in the subspace; "
        "(DeepFool) is DeepFool alone, as the thesis measured both. cos(r, n) is a median, inside "
        "the subspace for the semi-random ones.",
        "Not found (counted as infinite, in the medians too): " + ", ".join(failed) + ".",
    ]
