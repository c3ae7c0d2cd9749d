"""Robustness to perturbations of one frequency band (Section 3.4.2, Figures 3.10 and 3.11)."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid, typical
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import (
    Estimate,
    Statistic,
    mean,
    median,
    median_difference,
    ratio_of_means,
    spearman,
    stack,
)
from pipeline.studies.attacking import alignments, deepfool_of, inside, run
from pipeline.studies.bands import Bands
from pipeline.studies.boundary import or_infinite
from pipeline.tables import class_name, outcome, value
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import (
    block_side,
    expected_beta,
    project_onto_band,
    random_subspace,
)
from robustness_geometry.norms import norms, relative_norms
from robustness_geometry.types import (
    Attack,
    Classifier,
    Dataset,
    Images,
    Network,
    Perturbed,
    picture_shape,
)

__all__ = ["SECTION", "Settings", "dct_bands", "in_random_subspace"]

SECTION = "Section 3.4.2, Figures 3.10 and 3.11"

LARGEST_RANDOM = 300
"""The largest dimension of a random subspace: the thesis' m at 224 pixels; it bounds memory."""

LARGEST_BASES = 100_000_000
"""Limit on memory: how many numbers the bases of one chunk of images may hold together."""

NOTHING = Estimate(math.nan, math.nan, math.nan, 0)
"""Stands in the table and the figure for a band in which no image has a perturbation."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        attack: the attack under study; if it is a DeepFool, its options are used, else the default
            ones.
        samples: number of held-out images.
        random_samples: number of these images for the random subspaces.
        steps: largest number of steps of DeepFool inside a subspace; where it succeeds it needs
            few.
        block: side K of the frequency blocks, in coefficients; None: 10 at 224 pixels, elsewhere in
            proportion.
        resamples: number of resamples of the bootstrap behind every interval.
    """

    attack: Attack = field(default_factory=lambda: partial(deepfool))
    samples: int = 100
    random_samples: int = 100
    steps: int = 20
    block: int | None = None
    resamples: int = 2000
    pictures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("samples", "random_samples", "steps", "resamples"):
            check_count(name, getattr(self, name))
        if self.block is not None:
            check_count("block", self.block)

    def bands(self, data: Dataset) -> Bands:
        """The bands of the data's images."""
        return Bands(picture_shape(data), self.block or block_side(*data.shape[1:]))

    def check(self, data: Dataset) -> None:
        """Check that there are three bands.

        Raises:
            InputError: the images are too small for three bands of this block.
        """
        if (bands := self.bands(data)).count < 3:
            refuse(
                "block",
                bands.block,
                f"at most {(min(data.shape[1:]) - 1) // 2}, for three bands of {data.name}",
            )


def dct_bands(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Measure beta(S_q) = sqrt(m / d) rho_S / rho of every frequency band S_q.

    rho_S is the mean relative norm of DeepFool inside the band, which has m of the d dimensions,
    rho the one in the whole space (Equations 3.19 and 3.20). The reference is a random subspace of
    the same dimension as the first band, a fresh one for each image.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        beta of each band and of random subspaces, in which an image without a perturbation counts
        with the largest relative norm found; ``beta_<band>, found`` of the others alone; the rank
        correlation of beta with frequency, and median norms. As tensors, the relative norms:
        ``rho`` (seeds, images) and ``rho_bands`` (seeds, bands, images), the latter times
        sqrt(m / d), NaN where there is no perturbation.

    References:
        Section 3.4.2 of the thesis.
    """
    bands = settings.bands(data)
    images = held_out(data, settings.samples).images
    found = executor.each(
        lambda seed: _measure(
            network.models[seed], images, bands, settings, executor.for_seed(seed)
        ),
        sorted(network.models),
    )
    samples = stack([quantities for quantities, _ in found])
    estimates = measured(
        paired_bootstrap(samples, _statistics(bands), resamples=settings.resamples)
    )
    table = _table(bands, samples, estimates)
    return Findings(
        numbers={name: e for name, e in estimates.items() if not name.startswith("norm ")},
        curves={"beta": [float(beta) for beta in table["beta"]]},
        tables={"beta": table},
        figures={
            "figure_3_10": _example(data, images, bands, found[0][1]),
            "figure_3_11": _curve(network, bands, estimates),
        },
        tensors={
            "rho": samples["full"].float(),
            "rho_bands": torch.stack(
                [samples[f"found {band}"] for band in range(bands.count)], dim=1
            ).float(),
        },
        notes=_notes(bands, settings, samples),
    )


def in_random_subspace(
    attack: Attack, m: int, model: Classifier, images: Images, *, generator: list[torch.Generator]
) -> Perturbed:
    """DeepFool on each image inside its own random m-dimensional subspace.

    Args:
        attack: a DeepFool with its options bound.
        m: dimension of the subspaces.
        model: the classifier.
        images: (N, C, H, W).
        generator: one generator per image.
    """
    drawn = [random_subspace(images.shape[1:].numel(), m, own) for own in generator]
    d = images.shape[1:].numel()
    bases = torch.stack(drawn).to(images) if drawn else images.new_zeros(0, m, d)
    return inside(attack, bases, model, images)


def _measure(
    model: Classifier, images: Tensor, bands: Bands, settings: Settings, executor: Executor
) -> tuple[dict[str, Tensor], dict[int, Perturbed]]:
    """The quantities of one training seed, and the perturbations of the marked bands."""
    attack = deepfool_of(settings.attack, norm=2.0)
    full = run(attack, model, images, executor).value
    boundary = deepfool_of(settings.attack, steps=settings.steps)
    quantities = {
        "full": valid(relative_norms(full.perturbations, images), full.success),
        "alignment": alignments(attack, full, model, images, executor),
    }
    kept = {}
    for band in range(bands.count):
        projector = partial(project_onto_band, band=band, block=bands.block)
        result = executor.map(partial(inside, boundary, projector, model), images).value
        scaled = _scaled(result, images, bands.dimension(band), bands.total)
        quantities |= {f"found {band}": scaled, f"band {band}": _bounded(scaled)}
        quantities[f"norm {band}"] = or_infinite(result)
        if result.alignment is not None:
            quantities[f"alignment {band}"] = result.alignment
        if band in bands.marked:
            kept[band] = result
    for name, m in _random_dimensions(bands).items():
        few = images[: settings.random_samples]
        function = partial(in_random_subspace, boundary, m, model)
        chunk = max(1, min(100, LARGEST_BASES // (m * bands.total)))
        result = executor.map(function, few, chunk=chunk, randomness=True).value
        scaled = _bounded(_scaled(result, few, m, bands.total))
        quantities[name] = torch.cat([scaled, scaled.new_full((len(images) - len(few),), math.nan)])
    return quantities, kept


def _random_dimensions(bands: Bands) -> dict[str, int]:
    """Dimensions of the random references: the first band's, and one whose law is close to 1."""
    same = min(bands.dimension(0), LARGEST_RANDOM)
    return {"random": same, "random wide": max(same, min(bands.total // 16, LARGEST_RANDOM))}


def _scaled(result: Perturbed, images: Tensor, m: int, d: int) -> Tensor:
    """sqrt(m / d) ||r|| / ||x||, NaN where no perturbation of the subspace was found."""
    return math.sqrt(m / d) * valid(relative_norms(result.perturbations, images), result.success)


def _bounded(scaled: Tensor) -> Tensor:
    """The largest value takes the place of the missing ones, which rank with the most robust.

    Left out, images without a perturbation would make a subspace look less robust than it is. Where
    there is no perturbation at all, no value stands for one.
    """
    largest = scaled.masked_fill(scaled.isnan(), -math.inf).amax().nan_to_num(neginf=math.nan)
    return scaled.where(~scaled.isnan(), largest)


def _statistics(bands: Bands) -> dict[str, Statistic]:
    """The numbers; those named ``norm`` only the table shows."""
    first, middle, last = (f"norm {band}" for band in bands.marked)
    every = tuple(f"band {band}" for band in range(bands.count))
    return {
        **{f"beta_{band}": ratio_of_means(name, "full") for band, name in enumerate(every)},
        **{
            f"beta_{band}, found": ratio_of_means(f"found {band}", "full")
            for band in range(bands.count)
        },
        "beta_random": ratio_of_means("random", "full"),
        "beta_random_wide": ratio_of_means("random wide", "full"),
        "beta_random - beta_first": _beta_difference("random", every[0]),
        "beta_last - beta_first": _beta_difference(every[-1], every[0]),
        "spearman_q_beta": Statistic(("full", *every), _spearman, joint=False, within=(-1.0, 1.0)),
        "median_middle - median_first": median_difference(middle, first),
        "median_last - median_middle": median_difference(last, middle),
        "rho": mean("full"),
        "alignment": mean("alignment"),
        **{f"alignment_{band}": mean(f"alignment {band}") for band in range(bands.count)},
        **{f"norm {band}": median(f"norm {band}") for band in range(bands.count)},
    }


def _beta_difference(first: str, second: str) -> Statistic:
    """beta(first) - beta(second) on the images that have both."""
    return Statistic((first, second, "full"), _difference_of_ratios, of_means=_over_last)


def _difference_of_ratios(first: Tensor, second: Tensor, full: Tensor) -> Tensor:
    """The difference of two ratios of means, from per-image values (..., seeds, n)."""
    return _over_last(*(values.nanmean((-2, -1)) for values in (first, second, full)))


def _over_last(first: Tensor, second: Tensor, full: Tensor) -> Tensor:
    """The same from the means."""
    return (first - second) / full


def _spearman(full: Tensor, *every: Tensor) -> Tensor:
    """Rank correlation of the bands' beta with their index.

    A band in which no image has a perturbation ranks last.
    """
    betas = [
        band.nanmean((-2, -1)) / full.masked_fill(band.isnan(), math.nan).nanmean((-2, -1))
        for band in every
    ]
    return spearman(range(len(every)), *(beta.nan_to_num(nan=math.inf) for beta in betas))


def _table(
    bands: Bands, samples: dict[str, Tensor], estimates: dict[str, Estimate]
) -> pd.DataFrame:
    """One row per band: its frequencies, beta, the median norm, and the share of failures."""
    rows = []
    for band in range(bands.count):
        beta, norm = estimates.get(f"beta_{band}", NOTHING), estimates[f"norm {band}"]
        start = band * bands.block
        rows.append(
            {
                "band": band,
                "first_frequency": start,
                "last_frequency": min(start + bands.block, max(bands.shape[1:])) - 1,
                "m": bands.dimension(band),
                "beta": beta.value,
                "low": beta.low,
                "high": beta.high,
                "beta_found": value(estimates, f"beta_{band}, found"),
                "median_norm": norm.value,
                "cos(r, n)": value(estimates, f"alignment_{band}"),
                "share_infeasible": float(samples[f"norm {band}"].isinf().double().mean()),
                "images": beta.n,
                "seeds": beta.seeds,
            }
        )
    return pd.DataFrame(rows)


def _curve(network: Network, bands: Bands, estimates: dict[str, Estimate]) -> Figure:
    """Figure 3.11: beta over the bands."""
    shown = [estimates.get(f"beta_{band}", NOTHING) for band in range(bands.count)]
    m = _random_dimensions(bands)["random"]
    references = {f"random subspace, affine boundary (m = {m})": expected_beta(bands.total, m)}
    if "beta_random" in estimates:
        references[f"random subspace, measured (m = {m})"] = estimates["beta_random"].value
    return line_figure(
        {"frequency band": estimate_line(range(bands.count), shown)},
        xlabel="band q (low to high frequencies)",
        ylabel=r"$\beta(S_q)$",
        title=f"Robustness in frequency bands, {network.name}",
        references=references,
        log_y=True,
    )


def _example(data: Dataset, images: Tensor, bands: Bands, results: dict[int, Perturbed]) -> Figure:
    """Figure 3.10: one image, perturbed in the first, the middle and the last band."""
    index = _typical(bands, results)
    label = int(results[0].labels[index])
    top: list[Panel | None] = [Panel(images[index], f"original\n{class_name(data, label)}")]
    bottom: list[Panel | None] = [None]
    for band in bands.marked:
        result = results[band]
        perturbation = result.perturbations[index]
        caption = f"perturbed\n{outcome(data, result, index)}"
        top.append(Panel((images[index] + perturbation).clamp(0, 1), caption))
        bottom.append(
            Panel(perturbation, f"norm {float(perturbation.norm()):.3g}", perturbation=True)
        )
    names = ["", *(f"$S_{{{band}}}$" for band in bands.marked)]
    return image_grid(
        [top, bottom],
        column_titles=names,
        title="The smallest perturbations of three frequency bands",
    )


def _typical(bands: Bands, results: dict[int, Perturbed]) -> int:
    """The image of median norm in the last band, of those fooled in all, best to one label."""
    fooled = torch.stack([results[band].success for band in bands.marked]).all(dim=0)
    labels = torch.stack([results[band].adversarial_labels for band in bands.marked])
    alike = fooled & (labels == labels[0]).all(dim=0)
    return typical(norms(results[bands.count - 1].perturbations), alike, fooled)


def _notes(bands: Bands, settings: Settings, samples: dict[str, Tensor]) -> list[str]:
    """Notes on the blocks, the failures and the random subspaces."""
    count, d = samples["full"].shape[1], bands.total
    infeasible = sum(int(samples[f"norm {band}"].isinf().sum()) for band in range(bands.count))
    cases = bands.count * samples["full"].numel()
    same, wide = _random_dimensions(bands).values()
    few = min(settings.random_samples, count)
    return [
        f"{bands.count} diagonal blocks of {bands.block} x {bands.block} DCT coefficients, "
        f"independent in each of {bands.shape[0]} channel(s), on {count} held-out images; beta is "
        "a ratio of means.",
        f"In {infeasible} of {cases} cases DeepFool found no perturbation inside the band: they "
        "count in beta with the largest relative norm found in this band (beta of the others "
        "alone is beta_found), and stand as infinite in the medians.",
        f"Inside a subspace DeepFool takes at most {settings.steps} steps; cos(r, n), in the mean, "
        "is with the normal's projection onto it.",
        f"Random subspaces: a fresh one for each of {few} images, m = {same} as in the first band "
        f"and m = {wide}; an affine boundary would give {expected_beta(d, same):.3f} and "
        f"{expected_beta(d, wide):.3f}.",
        "Differences of beta are taken on the images that have both values.",
    ]
