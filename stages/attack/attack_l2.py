"""Average l_2 robustness by DeepFool, FGSM and L-BFGS (Section 3.2.3, Table 3.1, Figure 3.5)."""

import math
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out
from pipeline.executor import Executor, Mapped
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid, perturbed_panels
from pipeline.plots import estimate_line, histogram_figure, line_figure
from pipeline.statistics import (
    Estimate,
    Statistic,
    difference,
    mean,
    padded,
    ratio_of_means,
    share,
    stack,
)
from pipeline.studies.attacking import (
    alignments,
    deepfool_of,
    fgsm_at_rate,
    fooled_at,
    is_deepfool,
    relative,
    run,
)
from pipeline.tables import class_name, interval, shown, titled, value
from robustness_geometry.attacks import deepfool, lbfgs, nearest
from robustness_geometry.attacks.protocol import attack_name
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.types import Attack, Classifier, Dataset, Images, Network, Perturbed

__all__ = ["SECTION", "Settings", "attack_l2"]

SECTION = "Section 3.2.3, Table 3.1 and Figure 3.5"

METHODS = {
    "df": "DeepFool",
    "fgsm": "FGSM",
    "lbfgs": "L-BFGS",
    "minimum": "minimum-norm judge",
    "attack": "attack under study",
}
"""Suffix of the numbers -> the name of the method in tables and figures."""

EPS = tuple(float(eps) for eps in torch.logspace(-3, 1, 33, dtype=torch.float64))
"""The steps of the fooling curve, in pixel units: from invisible to far beyond a pixel's range."""

QUANTITIES = ("rho", "centred", "fooled", "steps", "seconds", "alignment")
"""What is measured of each method on each image."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        attack: the attack under study, reported as ``rho_attack``; if it is a DeepFool, its options
            also make the DeepFool of the table, with norm 2.
        lbfgs: the penalised attack that DeepFool is compared with; the default's fewer constants
            and steps give norms within one percent of the full attack's at a fraction of its time.
        judge: an accurate minimum-norm attack that DeepFool is judged by: the default takes the
            nearest boundary points from DeepFool and from a descent as DDN's, the better of the two
            for each image. Like DeepFool, it does not clip.
        samples: number of held-out images for DeepFool, FGSM and the attack under study.
        lbfgs_samples: number of these images for L-BFGS, which is slow.
        judge_samples: number of these images for the judge.
        curve_samples: number of these images for the curve of what FGSM fools over eps.
        fooling_rate: share of the images that FGSM's one eps must fool, in (0, 1].
        resamples: number of resamples of the bootstrap behind every interval.
    """

    attack: Attack = field(default_factory=lambda: partial(deepfool))
    lbfgs: Attack = field(default_factory=lambda: partial(lbfgs, constants=6, steps=20))
    judge: Attack = field(default_factory=lambda: partial(nearest, start="both"))
    samples: int = 1000
    lbfgs_samples: int = 100
    judge_samples: int = 1000
    curve_samples: int = 500
    fooling_rate: float = 0.9
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("samples", "lbfgs_samples", "judge_samples", "curve_samples", "resamples"):
            check_count(name, getattr(self, name))
        if not 0 < self.fooling_rate <= 1:
            refuse("fooling_rate", self.fooling_rate, "a share in (0, 1]")


@dataclass(frozen=True)
class SeedResults:
    """The perturbations of one training seed.

    Attributes:
        results: method -> its perturbations of the first images; FGSM is missing where no eps
            fools enough of them.
        alignments: method -> cos(r, n) of each image; FGSM, whose norm is not small, has none.
        eps: FGSM's step; NaN where no eps is enough.
        curve: (curve_samples, len(EPS)) whether FGSM fools each image at each eps.
    """

    results: dict[str, Mapped[Perturbed]]
    alignments: dict[str, Tensor]
    eps: float
    curve: Tensor


def attack_l2(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Measure rho_adv = mean ||r||_2 / ||x||_2 (Equation 3.10), steps and seconds of each method.

    A smaller rho is closer to the smallest perturbation. FGSM takes the smallest single eps that
    fools ``fooling_rate`` of the images.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        rho of each method with ratios and differences (on the images that both have), timings, and
        the relative norms (seeds, images) as tensors, NaN where a method failed or was not run.

    References:
        Section 3.2.3 of the thesis; Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and
        accurate method to fool deep neural networks", CVPR 2016, arXiv:1511.04599.
    """
    images = held_out(data, settings.samples).images
    found = [
        _measure(model, images, settings, executor.for_seed(seed))
        for seed, model in sorted(network.models.items())
    ]
    samples = stack([_quantities(seed, images, data) for seed in found])
    estimates = measured(paired_bootstrap(samples, _statistics(), resamples=settings.resamples))
    return Findings(
        numbers={name: e for name, e in estimates.items() if not name.startswith("_")},
        timings=measured(paired_bootstrap(samples, _timings(), resamples=settings.resamples)),
        curves={"fooling_fgsm": [estimates[f"_curve {index}"].value for index in range(len(EPS))]},
        tables={
            "table_3_1": _table(estimates, samples),
            "by_seed": _by_seed(sorted(network.models), found, samples),
            "fgsm_curve": _curve_table(estimates),
        },
        figures={
            "figure_3_5": _examples(
                data, images, next((seed for seed in found if "fgsm" in seed.results), found[0])
            ),
            "fooling_fgsm": _curve(network, estimates, settings),
            "norms": _histogram(network, samples),
        },
        tensors={f"rho_{method}": samples[f"rho {method}"].float() for method in METHODS},
        notes=[*_notes(settings, found, samples), *_compared(estimates)],
    )


def _measure(
    model: Classifier, images: Images, settings: Settings, executor: Executor
) -> SeedResults:
    """Run all methods against one training seed's network."""
    attacks = {
        "df": (deepfool_of(settings.attack, norm=2.0), len(images)),
        "attack": (settings.attack, len(images)),
        "lbfgs": (settings.lbfgs, settings.lbfgs_samples),
        "minimum": (settings.judge, settings.judge_samples),
    }
    if is_deepfool(settings.attack, 2.0):
        attacks["attack"] = attacks["df"]
    results, aligned = {}, {}
    for method, (attack, count) in attacks.items():
        few = images[:count]
        results[method] = run(attack, model, few, executor)
        aligned[method] = alignments(attack, results[method].value, model, few, executor)
    eps, smallest = fgsm_at_rate(model, images, settings.fooling_rate, executor)
    if smallest is not None:
        results["fgsm"] = smallest
    few = images[: settings.curve_samples]
    curve = executor.map(partial(fooled_at, model, eps=EPS), few).value
    return SeedResults(results, aligned, eps, curve)


def _quantities(seed: SeedResults, images: Images, data: Dataset) -> dict[str, Tensor]:
    """Name -> (n,) per-image values; NaN where a method failed or was not run on the image."""
    centred = images - torch.tensor(data.mean).view(-1, *[1] * (images.ndim - 2))
    found: dict[str, Tensor] = {}
    for method in METHODS:
        mapped = seed.results.get(method)
        if mapped is None:
            nothing = torch.full((len(images),), math.nan)
            found |= {f"{what} {method}": nothing for what in QUANTITIES}
            continue
        result = mapped.value
        n = len(result.steps)
        # FGSM's one eps fails on a share of the images by definition: its norm counts on all.
        kept = torch.ones_like(result.success) if method == "fgsm" else result.success
        values = {
            "rho": relative(result.perturbations, images[:n], kept),
            "centred": relative(result.perturbations, centred[:n], kept),
            "fooled": result.success.double(),
            "steps": result.steps.double(),
            "seconds": mapped.seconds,
            "alignment": seed.alignments.get(method, torch.full((n,), math.nan)),
        }
        found |= {f"{what} {method}": padded(value, len(images)) for what, value in values.items()}
    found["below"] = _below(found)
    found |= {f"curve {i}": padded(seed.curve[:, i].double(), len(images)) for i in range(len(EPS))}
    best = seed.curve.double().mean(dim=0).argmax()  # the eps that fools most
    found["limit"] = padded(seed.curve[:, best].double(), len(images))
    return found


def _below(found: dict[str, Tensor]) -> Tensor:
    """1 where DeepFool's norm is below FGSM's, 0 where not or where it failed, NaN without FGSM."""
    below = (found["rho df"] < found["rho fgsm"]).double()
    return below.masked_fill(found["rho fgsm"].isnan(), math.nan)


def _statistics() -> dict[str, Statistic]:
    """The numbers; a leading underscore marks those that only tables and figures show."""
    pairs = {
        "rho_fgsm / rho_df": ratio_of_means("rho fgsm", "rho df"),
        "rho_fgsm - rho_df": difference("rho fgsm", "rho df"),
        "rho_lbfgs - rho_df": difference("rho lbfgs", "rho df"),
        "rho_lbfgs / rho_df": ratio_of_means("rho lbfgs", "rho df"),
        "rho_fgsm - rho_lbfgs": difference("rho fgsm", "rho lbfgs"),
        "rho_df / rho_minimum": ratio_of_means("rho df", "rho minimum"),
        "share_df_below_fgsm": share("below"),
        "fooling_limit_fgsm": share("limit"),
    }
    single = {}
    for method in METHODS:
        single[f"rho_{method}"] = mean(f"rho {method}")
        single[f"share_fooled_{method}"] = share(f"fooled {method}")
        single[f"steps_{method}"] = mean(f"steps {method}")
        single[f"alignment_{method}"] = mean(f"alignment {method}")
        single[f"_centred {method}"] = mean(f"centred {method}")
    return single | pairs | {f"_curve {i}": share(f"curve {i}") for i in range(len(EPS))}


def _timings() -> dict[str, Statistic]:
    """Seconds per image of each method, and their differences."""
    pairs = {
        "t_df - t_fgsm": difference("seconds df", "seconds fgsm"),
        "t_lbfgs - t_df": difference("seconds lbfgs", "seconds df"),
        "t_lbfgs / t_df": ratio_of_means("seconds lbfgs", "seconds df"),
    }
    return {f"t_{method}": mean(f"seconds {method}") for method in METHODS} | pairs


def _table(estimates: dict[str, Estimate], samples: dict[str, Tensor]) -> pd.DataFrame:
    """Table 3.1 for one network, one row per method; the timings hold the seconds."""
    rows = []
    for method, title in METHODS.items():
        fooled, rho = estimates.get(f"share_fooled_{method}"), estimates.get(f"rho_{method}")
        if fooled is None:
            continue
        row: dict[str, object] = {"method": title, "images": fooled.n, "seeds": fooled.seeds}
        if rho is not None:
            centred = estimates[f"_centred {method}"]
            row |= {"rho": rho.value, "low": rho.low, "high": rho.high, "std": rho.std}
            row |= {
                "rho_mean_subtracted": centred.value,
                "rho_mean_subtracted_low": centred.low,
                "rho_mean_subtracted_high": centred.high,
            }
        row |= {
            "share_fooled": fooled.value,
            "failed": int((samples[f"fooled {method}"] == 0).sum()),
        }
        row["cos(r, n)"] = value(estimates, f"alignment_{method}")
        rows.append(row | {"steps": estimates[f"steps_{method}"].value})
    return pd.DataFrame(rows)


def _by_seed(
    seeds: list[int], found: list[SeedResults], samples: dict[str, Tensor]
) -> pd.DataFrame:
    """One row per training seed and method, without intervals."""
    rows = [
        {
            "seed": seed,
            "method": METHODS[method],
            "rho": float(samples[f"rho {method}"][index].nanmean()),
            "share_fooled": float(samples[f"fooled {method}"][index].nanmean()),
            "eps": one.eps if method == "fgsm" else math.nan,
        }
        for index, (seed, one) in enumerate(zip(seeds, found, strict=True))
        for method in one.results
    ]
    return pd.DataFrame(rows)


def _curve_table(estimates: dict[str, Estimate]) -> pd.DataFrame:
    """One row per eps: the share of images that FGSM fools."""
    found = {eps: estimates[f"_curve {i}"] for i, eps in enumerate(EPS)}
    return pd.DataFrame(
        [{"eps": eps, "share_fooled": e.value, **interval(e)} for eps, e in found.items()]
    )


def _curve(network: Network, estimates: dict[str, Estimate], settings: Settings) -> Figure:
    """The share that FGSM fools over eps; it need not reach one (footnote 4)."""
    line = estimate_line(EPS, [estimates[f"_curve {i}"] for i in range(len(EPS))])
    limit = estimates["fooling_limit_fgsm"].value
    return line_figure(
        {"FGSM, not clipped": line},
        xlabel=r"$\epsilon$ (pixels run from 0 to 1)",
        ylabel="share of images fooled",
        title=f"What one FGSM step can reach, {network.name}",
        references={
            f"wanted: {settings.fooling_rate:g}": settings.fooling_rate,
            f"largest: {limit:.3f}": limit,
        },
        log_x=True,
        limits=(0.0, 1.05),
    )


def _histogram(network: Network, samples: dict[str, Tensor]) -> Figure:
    """The relative norms of DeepFool, FGSM and L-BFGS."""
    shown = {METHODS[method]: samples[f"rho {method}"] for method in ("df", "fgsm", "lbfgs")}
    shown = {name: values for name, values in shown.items() if bool(values.isfinite().any())}
    title = f"Norms of the perturbations, {network.name}"
    return histogram_figure(shown, xlabel=r"relative norm $\|r\|_2\,/\,\|x\|_2$", title=title)


def _examples(data: Dataset, images: Images, seed: SeedResults) -> Figure:
    """Figure 3.5: images with their DeepFool and FGSM perturbations."""
    shown: list[str] = [method for method in ("df", "fgsm") if method in seed.results]
    rows: list[list[Panel | None]] = []
    for index in _quartiles(seed, images, shown):
        label = int(seed.results["df"].value.labels[index])
        row: list[Panel | None] = [Panel(images[index], class_name(data, label))]
        for method in shown:
            row += perturbed_panels(data, images[index], seed.results[method].value, index)
        rows.append(row)
    columns = ["image", *(f"{METHODS[m]}: {part}" for m in shown for part in ("image + r", "r"))]
    return image_grid(rows, column_titles=columns, title="DeepFool's and FGSM's perturbations")


def _quartiles(seed: SeedResults, images: Images, methods: list[str]) -> list[int]:
    """Up to three images that all methods fool, at the quartiles of DeepFool's relative norm."""
    fooled = torch.stack([seed.results[method].value.success for method in methods]).all(dim=0)
    chosen = (fooled if bool(fooled.any()) else torch.ones_like(fooled)).nonzero().flatten()
    order = chosen[
        relative(seed.results["df"].value.perturbations[chosen], images[chosen]).argsort()
    ]
    return list(dict.fromkeys(int(order[int(q * (len(order) - 1))]) for q in (0.25, 0.5, 0.75)))


def _compared(numbers: dict[str, Estimate]) -> list[str]:
    """A note on DeepFool's norm beside those of more thorough searches."""
    names = [name for name in ("rho_df / rho_minimum", "rho_lbfgs / rho_df") if name in numbers]
    known = [f"{name} is {shown(numbers[name])}" for name in names]
    text = f"DeepFool is not minimal: {' and '.join(known)}, although L-BFGS keeps the box."
    return [text] if known else []


def _notes(settings: Settings, found: list[SeedResults], samples: dict[str, Tensor]) -> list[str]:
    """Notes on the images, the failures, FGSM's eps and the options of the attacks."""
    n, cases = samples["rho df"].shape[1], samples["rho df"].numel()
    failed = int((samples["fooled df"] == 0).sum())
    unreachable = sum("fgsm" not in seed.results for seed in found)
    steps = ", ".join(f"{seed.eps:.4g}" for seed in found if "fgsm" in seed.results)
    sizes = [
        min(count, n)
        for count in (settings.lbfgs_samples, settings.judge_samples, settings.curve_samples)
    ]
    notes = [
        f"DeepFool, FGSM and the attack under study on {n} held-out images, L-BFGS on the first "
        f"{sizes[0]}, the judge ({attack_name(settings.judge)}) on the first {sizes[1]}, the "
        f"fooling curve on the first {sizes[2]}; ratios and differences are taken on the images "
        "that both methods have.",
        f"DeepFool failed in {failed} of {cases} cases, which are left out of rho and counted.",
        "FGSM's rho is over all images, fooled or not, at the smallest eps that fools "
        f"{settings.fooling_rate:g} of them (one eps a training seed: {steps or 'none'}); its "
        "intervals take that eps as given.",
        f"{titled(settings.lbfgs)}, the judge {titled(settings.judge)}: L-BFGS keeps the pixels in "
        "[0, 1] (the box) unless its clip says otherwise, which the other methods do not.",
        f"Attack under study: {titled(settings.attack)}; its rho is over the images that it fools.",
        "Norms are of raw pixels; the mean-subtracted column divides by ||x - mean||, mean by "
        "channel.",
        "cos(r, n) is between the perturbation and the normal of the boundary where it ends, in "
        "the mean; of a smallest perturbation it is 1, as its tangent plane is nowhere nearer.",
    ]
    if unreachable:
        notes.append(
            f"For {unreachable} of {len(found)} training seeds no eps fools "
            f"{settings.fooling_rate:g} of the images: they are left out of FGSM's numbers."
        )
    return notes
