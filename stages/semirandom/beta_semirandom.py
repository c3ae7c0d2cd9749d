"""Semi-random over worst-case robustness (Section 5.6, Table 5.1).

Beside the measured ratios stands their law where the boundaries between the classes are flat.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import largest, measured, paired_bootstrap, smallest
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import (
    Estimate,
    Statistic,
    difference,
    mean,
    median,
    of_means,
    share,
    stack,
)
from pipeline.studies.attacking import alignments, deepfool_of, run
from pipeline.studies.boundary import BoundarySettings, closest_points
from pipeline.studies.semirandom import (
    SemiRandom,
    flat_ratios,
    pooled_std,
    search_inside,
    std_over_images,
)
from pipeline.tables import columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import (
    beta_spread,
    corollary1_bounds,
    expected_beta,
    theorem1_bounds,
)
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Dataset, Images, Network, Perturbed

__all__ = ["SECTION", "Settings", "beta_semirandom"]

SECTION = "Section 5.6, Table 5.1"


SEARCHES = {"": "closest", " (DeepFool)": "DeepFool"}
"""Suffix of the numbers -> where both perturbations of a ratio come from.

Without a suffix both are the smallest that any search found; DeepFool in both places is how the
thesis measured the ratio.
"""

UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0, seeds=0)
"""Stands for a number without a case."""

DELTA = 0.002
"""delta of Theorem 1: with ten classes it promises 1 - 2 (L + 1) delta = 0.956; 0.05 promises
nothing."""


@dataclass(frozen=True)
class Settings(BoundarySettings):
    """What to measure.

    Attributes:
        ratios: d / m of the random subspaces: two or more rising whole numbers >= 1.
        lines: number of random lines of each subspace, at least 1, along which the first change of
            label is searched.
        flat_draws: number of subspaces per image and ratio behind the law of flat boundaries.
    """

    ratios: tuple[int, ...] = (4, 16, 36, 64, 100)
    lines: int = 30
    flat_draws: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("lines", self.lines)
        check_count("flat_draws", self.flat_draws)
        if (
            len(self.ratios) < 2
            or list(self.ratios) != sorted(set(self.ratios))
            or self.ratios[0] < 1
        ):
            refuse("ratios", self.ratios, "two or more rising whole numbers >= 1")

    def check(self, data: Dataset) -> None:
        """Check that the smallest subspace has at least two dimensions.

        Raises:
            InputError: the images have too few dimensions for that.
        """
        d = math.prod(data.shape)
        if round(d / self.ratios[-1]) < 2:
            refuse(
                "ratios",
                self.ratios[-1],
                f"at most {d // 2}, for subspaces of two of the {d} dimensions",
            )


def beta_semirandom(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure beta(f; m) = sqrt(m / d) mean ||r_S|| / ||r*||, with one random subspace S per image.

    r_S is the smallest perturbation found inside S, which has m of the d dimensions, and r* the
    smallest one found in the whole space. Where the boundary is flat, beta is close to 1.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the searches.

    Returns:
        beta and its spread over the images for each d / m, their largest distance from 1, the
        differences of neighbouring spreads, and the shares of images within the bounds of Theorem 1
        and of Corollary 1; all of them again for DeepFool in both places. As tensors, the scaled
        ratios (seeds, images), NaN where no perturbation was found.

    References:
        Section 5.6 of the thesis; Fawzi, Moosavi-Dezfooli and Frossard, "Robustness of classifiers:
        from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
    """
    d = math.prod(data.shape)
    dimensions = {ratio: round(d / ratio) for ratio in settings.ratios}
    images = held_out(data, settings.samples).images
    classes = max(2, len(data.classes))
    samples = stack(
        [
            _measure(model, images, dimensions, classes, settings, executor.for_seed(seed), seed)
            for seed, model in sorted(network.models.items())
        ]
    )
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings.ratios), resamples=settings.resamples)
    )
    numbers |= _extremes(numbers, settings.ratios)
    return Findings(
        numbers=numbers,
        tables={"table_5_1": _table(numbers, samples, dimensions, d, classes)},
        figures={"table_5_1": _figure(network, numbers, dimensions)},
        tensors={
            f"beta_{ratio}{'_deepfool' if suffix else ''}": samples[_name(ratio, suffix)].float()
            for ratio in settings.ratios
            for suffix in SEARCHES
        },
        notes=_notes(samples, dimensions, d, settings),
    )


def _name(ratio: int, suffix: str = "") -> str:
    """The quantity of one d / m."""
    return f"scaled {ratio}{suffix}"


def _measure(
    model: Classifier,
    images: Images,
    dimensions: dict[int, int],
    classes: int,
    settings: Settings,
    executor: Executor,
    seed: int,
) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed."""
    attack = settings.boundary_attack
    near = closest_points(model, images, executor)
    deepfool = deepfool_of(attack, norm=2.0, clip=None)
    found = run(deepfool, model, images, executor).value
    worst = {
        "": _positive(norms(near.perturbations), near.success),
        " (DeepFool)": _positive(norms(found.perturbations), found.success),
    }
    quantities = {
        "alignment": valid(near.angles.cos(), near.success),
        "alignment (DeepFool)": alignments(deepfool, found, model, images, executor),
    }
    law = partial(flat_ratios, tuple(dimensions.values()), settings.flat_draws, model)
    flat = executor.map(law, images, randomness=True).value
    for place, (ratio, m) in enumerate(dimensions.items()):
        search = partial(search_inside, attack, m, settings.lines, seed, False, model)
        inside = executor.map(search, images, randomness=True).value
        quantities |= _ratios(inside, worst, images[0].numel(), ratio, m, classes)
        quantities[f"flat {ratio}"] = flat[:, place].mean(dim=1)
        quantities[f"flat square {ratio}"] = flat[:, place].square().mean(dim=1)
    return quantities


def _positive(lengths: Tensor, success: Tensor) -> Tensor:
    """||r*||, NaN where no perturbation was found or none is needed."""
    return valid(lengths, success & (lengths > 0))


def _ratios(
    inside: SemiRandom, worst: dict[str, Tensor], d: int, ratio: int, m: int, classes: int
) -> dict[str, Tensor]:
    """What one d / m adds: scaled ratios, infinite ones for medians, Theorem 1, and alignments."""
    promises = {
        "within": theorem1_bounds(d, m, DELTA, classes),
        "corollary": corollary1_bounds(d, m, DELTA, classes),
    }
    quantities: dict[str, Tensor] = {}
    for suffix, result in (("", inside.best), (" (DeepFool)", inside.deepfool)):
        found = norms(result.perturbations).double() / worst[suffix]
        known = found.masked_fill(~result.success & ~worst[suffix].isnan(), math.inf)
        scaled = math.sqrt(m / d) * known
        quantities |= {
            _name(ratio, suffix): valid(scaled, scaled.isfinite()),
            f"ordered {ratio}{suffix}": scaled,
            **{
                f"{name} {ratio}{suffix}": valid(
                    (known >= bounds.low) & (known <= bounds.high), ~known.isnan()
                )
                for name, bounds in promises.items()
            },
            f"inside {ratio}{suffix}": valid(_aligned(result), result.success),
        }
    return quantities


def _aligned(result: Perturbed) -> Tensor:
    """cos(r_S, P_S n) of a result that has it."""
    assert result.alignment is not None, "search_inside measures it"
    return result.alignment


def _statistics(ratios: tuple[int, ...]) -> dict[str, Statistic]:
    found: dict[str, Statistic] = {}
    for suffix in SEARCHES:
        found |= _of_search(ratios, suffix)
    for ratio in ratios:
        found |= {
            f"beta_flat_{ratio}": mean(f"flat {ratio}"),
            f"std_flat_{ratio}": Statistic((f"flat {ratio}", f"flat square {ratio}"), pooled_std),
            f"beta_{ratio} - beta_flat_{ratio}": difference(_name(ratio), f"flat {ratio}"),
        }
    return found


def _of_search(ratios: tuple[int, ...], suffix: str) -> dict[str, Statistic]:
    """The numbers of one search in both places."""
    found: dict[str, Statistic] = {
        f"std_{small} - std_{large}": Statistic(
            (_name(small, suffix), _name(large, suffix)),
            lambda a, b: std_over_images(a) - std_over_images(b),
        )
        for large, small in pairwise(ratios)
    }
    for ratio in ratios:
        found |= {
            f"beta_{ratio}": mean(_name(ratio, suffix)),
            f"std_{ratio}": Statistic((_name(ratio, suffix),), std_over_images),
            f"median_{ratio}": median(f"ordered {ratio}{suffix}"),
            f"share_within_theorem1_{ratio}": share(f"within {ratio}{suffix}"),
            f"share_within_corollary1_{ratio}": share(f"corollary {ratio}{suffix}"),
            f"|beta_{ratio} - 1|": of_means(
                [_name(ratio, suffix)], lambda beta: (beta - 1).abs(), (0.0, math.inf)
            ),
            f"alignment_inside_{ratio}": median(f"inside {ratio}{suffix}"),
        }
    found["alignment"] = median(f"alignment{suffix}")
    return {f"{name}{suffix}": statistic for name, statistic in found.items()}


def _extremes(numbers: dict[str, Estimate], ratios: tuple[int, ...]) -> dict[str, Estimate]:
    """The largest and the smallest beta over d / m."""
    found = {}
    for suffix in SEARCHES:
        betas = [numbers.get(f"beta_{ratio}{suffix}", UNKNOWN) for ratio in ratios]
        gaps = [numbers.get(f"|beta_{ratio} - 1|{suffix}", UNKNOWN) for ratio in ratios]
        found[f"largest |beta - 1|{suffix}"] = largest(gaps)
        found[f"smallest beta{suffix}"] = smallest(betas)
        found[f"largest beta{suffix}"] = largest(betas)
    return measured(found)


def _table(
    numbers: dict[str, Estimate],
    samples: dict[str, Tensor],
    dimensions: dict[int, int],
    d: int,
    classes: int,
) -> pd.DataFrame:
    """Table 5.1 for one network, one row per d / m and search."""
    rows = []

    def shown(name: str) -> Estimate:
        return numbers.get(name, UNKNOWN)

    for ratio, m in dimensions.items():
        bounds = theorem1_bounds(d, m, DELTA, classes)
        law = {
            "beta_flat": shown(f"beta_flat_{ratio}").value,
            "std_flat": shown(f"std_flat_{ratio}").value,
            "beta_flat_two_classes": expected_beta(d, m),
            "std_flat_two_classes": beta_spread(d, m),
            "theorem1_low": math.sqrt(m / d) * bounds.low,
            "theorem1_high": math.sqrt(m / d) * bounds.high,
            "theorem1_promises": bounds.probability,
        }
        for suffix, search in SEARCHES.items():
            beta = shown(f"beta_{ratio}{suffix}")
            row = {"m_over_d": f"1/{ratio}", "m": m, "search": search, **columns("beta", beta)}
            row |= columns("std", shown(f"std_{ratio}{suffix}"))
            row |= {
                "median": shown(f"median_{ratio}{suffix}").value,
                "cos(r*, n)": shown(f"alignment{suffix}").value,
                "cos(r_S, P_S n)": shown(f"alignment_inside_{ratio}{suffix}").value,
                **{
                    name: shown(f"{name}_{ratio}{suffix}").value
                    for name in ("share_within_theorem1", "share_within_corollary1")
                },
                **law,
                "failed": int(samples[_name(ratio, suffix)].isnan().sum()),
            }
            rows.append({**row, "images": beta.n, "seeds": beta.seeds})
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: dict[str, Estimate], dimensions: dict[int, int]) -> Figure:
    """Measured beta with its spread over the images, beside the law of flat boundaries."""
    laws = {
        "smallest found": ("beta_{}", "std_{}"),
        "DeepFool in both places": ("beta_{} (DeepFool)", "std_{} (DeepFool)"),
        "flat boundaries of these classes": ("beta_flat_{}", "std_flat_{}"),
    }
    places = list(range(len(dimensions)))
    figure, grid = axes_grid()
    axes = grid[0, 0]
    with styled():
        for index, (name, (centre, spread)) in enumerate(laws.items()):
            shown = [
                (place + 0.2 * (index - 1), numbers[centre.format(r)].value, yerr)
                for place, r in zip(places, dimensions, strict=True)
                if centre.format(r) in numbers
                for yerr in (numbers[spread.format(r)].value,)
            ]
            x, means, bars = zip(*shown, strict=True) if shown else ((), (), ())
            axes.errorbar(
                x, means, yerr=bars, fmt="o^s"[index], color=COLOURS[index], capsize=4, label=name
            )
        axes.axhline(1.0, color="#6b7580", linestyle="--", linewidth=1.2)
        axes.set_xticks(places, [f"1/{ratio}\n(m = {m})" for ratio, m in dimensions.items()])
        axes.set(xlabel="m / d", ylabel=r"$\sqrt{m/d}\;\|r_S\|_2\,/\,\|r^*\|_2$")
        axes.set_title(f"Random subspaces, {network.name}: mean ± standard deviation")
        axes.legend(loc="upper left")
    return figure


def _notes(
    samples: dict[str, Tensor], dimensions: dict[int, int], d: int, settings: Settings
) -> list[str]:
    """Notes on the sizes of the subspaces, the searches, the failures and the laws."""
    images = samples["alignment"].shape[1]
    sizes = ", ".join(f"{m} (1/{ratio})" for ratio, m in dimensions.items())
    notes = [
        f"{images} held-out images, a random subspace of its own for each; m of d = {d}: {sizes}.",
        "Without a suffix both r_S and r* are the smallest perturbations found: r* that of the "
        "closest point of the boundary, r_S the best of DeepFool in S, of nearest in S, of the "
        f"first change of label on DeepFool's ray and on {settings.lines} lines of S in both "
        "directions, and of projections from there. (DeepFool) has DeepFool's perturbation in both "
        "places, as the thesis measured it. Neither DeepFool is an argmin, and r_S is the longer "
        "way, so that it overestimates r_S the more the smaller m is.",
    ]
    for suffix, search in SEARCHES.items():
        cases = torch.stack([samples[_name(ratio, suffix)] for ratio in dimensions])
        failed = int(cases.isnan().sum())
        notes.append(
            f"{search}: in {failed} of {cases.numel()} cases ({failed / cases.numel():.2%}) no "
            "perturbation was found. The means leave them out; they are the hard cases, so that "
            "beta and its spread are then too small. The medians count them as infinite: a region "
            "may have no end inside a subspace, or one so far away that it decides a mean."
        )
    return [
        *notes,
        "beta is a mean of ratios; its spread is the standard deviation over the images, in the "
        "mean over the seeds. beta_flat is the law of these very classes: the logits linearised at "
        f"the image, {settings.flat_draws} fresh subspaces, the minimum over the classes. "
        "beta_flat_two_classes is the exact law of one hyperplane, ||P_S n||^2 ~ Beta(m/2, "
        "(d - m)/2).",
        f"Theorem 1 is about affine classifiers; its bounds (delta = {DELTA:g}) stand here in "
        "units of sqrt(d / m), and share_within_theorem1 is the share of images whose ratio keeps "
        "them. A case without a perturbation counts as one that does not. Corollary 1, whose "
        "bounds share_within_corollary1 takes, allows boundaries that bend a little.",
        f"1,000 images would take {1000 / images:.2g} times as long as these {images}; the part "
        f"of an interval that comes from the images would be {math.sqrt(images / 1000):.2g} times "
        "as long, the part that comes from the training seeds as long as now.",
    ]
