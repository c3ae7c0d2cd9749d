"""Random noise, semi-random and worst-case perturbations of the same images (Section 5.6, Figure 5.4)."""

import math
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, judged
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import Panel, histogram_figure, image_grid
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
from pipeline.studies.attacking import deepfool_of, run
from pipeline.studies.boundary import Common, in_own_subspace, or_infinite
from pipeline.tables import class_name, columns
from robustness_geometry.attacks import random_noise
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Dataset, Images, Network, Perturbed

__all__ = ["SECTION", "Settings", "noise_regimes_example"]

SECTION = "Section 5.6, Figure 5.4"

REGIMES = {"random": "random noise", "semirandom": "semi-random", "worst": "worst case"}


@dataclass(frozen=True)
class Settings(Common):
    """What to measure, beyond what :class:`Common` says.

    Attributes:
        m: dimension of the semi-random subspaces.
    """

    m: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("m", self.m, minimum=2)

    def check(self, data: Dataset) -> None:
        """Hold that the subspaces are smaller than the space of the images."""
        if self.m >= (d := math.prod(data.shape)):
            refuse("m", self.m, f"a whole number below d = {d}")


def noise_regimes_example(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure how large random noise, a perturbation in m random dimensions, and the worst case have to be.

    Random noise is min |t| over a random line, both its directions: the random-noise regime of
    Section 5.3.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        The median norms, their differences and ratios, and the share of images that all three
        perturbations take to one label; as tensors, the norms (seeds, images), infinite where no
        perturbation was found.

    Raises:
        InputError: m is not below the number of dimensions.
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
        notes=_notes(samples, settings.m, d),
    )


def _measure(
    model: Classifier, images: Images, settings: Settings, executor: Executor, seed: int
) -> dict[str, Perturbed]:
    attack = settings.boundary_attack
    noise = partial(judged, partial(random_noise, two_sided=True), model)
    inside = partial(in_own_subspace, attack, settings.m, seed, model)
    return {
        "random": executor.map(noise, images, randomness=True).value,
        "semirandom": executor.map(inside, images, randomness=True).value,
        "worst": run(deepfool_of(attack, norm=2.0, clip=None), model, images, executor).value,
    }


def _quantities(results: dict[str, Perturbed]) -> dict[str, Tensor]:
    labels = torch.stack([result.adversarial_labels for result in results.values()])
    fooled = torch.stack([result.success for result in results.values()]).all(dim=0)
    agree = torch.where(fooled, (labels == labels[0]).all(dim=0).double(), math.nan)
    return {"agree": agree, **{name: or_infinite(result) for name, result in results.items()}}


def _statistics(d: int) -> dict[str, Statistic]:
    return {
        **{f"median_{name}": median(name) for name in REGIMES},
        "median_semirandom - median_worst": median_difference("semirandom", "worst"),
        "median_random - median_semirandom": median_difference("random", "semirandom"),
        "median_random / median_semirandom": ratio_of_medians("random", "semirandom"),
        "random / (sqrt(d) worst)": scaled_median_of_ratios("random", "worst", 1 / math.sqrt(d)),
        "random / worst": scaled_median_of_ratios("random", "worst", 1.0),
        "share_one_label": share("agree"),
    }


def _table(numbers: dict[str, Estimate], samples: dict[str, Tensor], m: int) -> pd.DataFrame:
    rows = []
    for name, title in REGIMES.items():
        estimate = numbers[f"median_{name}"]
        failed = int(samples[name].isinf().sum())
        shown = f"{title}, m = {m}" if name == "semirandom" else title
        rows.append(
            {
                "regime": shown,
                **columns("median_norm", estimate),
                "failed": failed,
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
    for result in results.values():
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
    """The image of median amplification among those that all three take to one label, else among those fooled."""
    quantities = _quantities(results)
    fooled = torch.stack([result.success for result in results.values()]).all(dim=0)
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
    shown = {title: samples[name] for name, title in REGIMES.items()}
    title = f"How large a perturbation has to be, {network.name}"
    return histogram_figure(shown, xlabel=r"$\|r\|_2$ (pixel units)", title=title, log_x=True)


def _notes(samples: dict[str, Tensor], m: int, d: int) -> list[str]:
    cases = samples["worst"].numel()
    failed = {title: int(samples[name].isinf().sum()) for name, title in REGIMES.items()}
    return [
        f"{samples['worst'].shape[1]} held-out images where the thesis shows one; d = {d}, sqrt(d) "
        "= "
        f"{math.sqrt(d):.4g}, m = {m}; a random direction and a random subspace of its own for "
        "each image.",
        "Random noise is the nearer of the two crossings on a random line through the image.",
        "Not found (counted as infinite, in the medians too): "
        + ", ".join(f"{title} {count} of {cases}" for title, count in failed.items())
        + ".",
    ]
