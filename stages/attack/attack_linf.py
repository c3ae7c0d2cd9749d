"""Average l_inf robustness by DeepFool and FGSM (Section 3.2.3, Table 3.2)."""

import math
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import histogram_figure
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
    is_deepfool,
    relative,
    run,
)
from pipeline.tables import titled, value
from robustness_geometry.attacks import deepfool, nearest
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.types import (
    Attack,
    Classifier,
    Dataset,
    Images,
    Mask,
    Network,
    Perturbed,
)

__all__ = ["SECTION", "Settings", "attack_linf"]

SECTION = "Section 3.2.3, Table 3.2"

METHODS = {
    "df": "l_inf DeepFool",
    "fgsm": "FGSM",
    "minimum": "minimum-norm judge",
    "attack": "attack under study",
}
"""Suffix of the numbers -> the name of the method in tables and figures."""

QUANTITIES = ("rho", "fooled", "alignment")
"""What is measured of each method on each image."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        attack: the attack under study, reported as ``rho_inf_attack``; if it is a DeepFool, its
            options also make the DeepFool of the table, with norm inf.
        judge: an accurate attack of minimum l_inf norm that DeepFool is judged by.
        samples: number of held-out images.
        judge_samples: number of these images for the judge.
        fooling_rate: share of the images that FGSM's one eps must fool, in (0, 1].
        resamples: number of resamples of the bootstrap behind every interval.
    """

    attack: Attack = field(default_factory=lambda: partial(deepfool))
    judge: Attack = field(default_factory=lambda: partial(nearest, norm=math.inf, start="both"))
    samples: int = 1000
    judge_samples: int = 1000
    fooling_rate: float = 0.9
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("samples", "judge_samples", "resamples"):
            check_count(name, getattr(self, name))
        if not 0 < self.fooling_rate <= 1:
            refuse("fooling_rate", self.fooling_rate, "a share in (0, 1]")


def attack_linf(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure rho_inf = mean ||r||_inf / ||x||_inf of DeepFool with p = inf and of FGSM.

    FGSM takes the smallest single eps that fools ``fooling_rate`` of the images.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        rho_inf of each method, their ratio and their difference, and the relative norms (seeds,
        images) as tensors, NaN where a method failed.

    References:
        Section 3.2.3, Table 3.2 of the thesis; Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a
        simple and accurate method to fool deep neural networks", CVPR 2016, arXiv:1511.04599.
    """
    images = held_out(data, settings.samples).images
    seeds = sorted(network.models)
    scopes = {seed: executor.for_seed(seed) for seed in seeds}
    found = [_measure(network.models[seed], images, settings, scopes[seed]) for seed in seeds]
    samples = stack([quantities for quantities, _ in found])
    numbers = measured(paired_bootstrap(samples, _statistics(), resamples=settings.resamples))
    return Findings(
        numbers=numbers,
        tables={"table_3_2": _table(numbers, samples), "by_seed": _by_seed(seeds, found)},
        figures={"norms": _histogram(network, samples)},
        tensors={f"rho_inf_{method}": samples[f"rho {method}"].float() for method in METHODS},
        notes=_notes(settings, samples, [eps for _, eps in found]),
    )


def _measure(
    model: Classifier, images: Images, settings: Settings, executor: Executor
) -> tuple[dict[str, Tensor], float]:
    """Name -> (n,) values of one training seed, and FGSM's eps (NaN where none is enough)."""
    attacks = {
        "df": (deepfool_of(settings.attack, norm=math.inf), len(images)),
        "minimum": (settings.judge, settings.judge_samples),
        "attack": (settings.attack, len(images)),
    }
    if is_deepfool(settings.attack, math.inf):
        attacks["attack"] = attacks["df"]
    found: dict[str, Tensor] = {}
    for method, (attack, count) in attacks.items():
        few = images[:count]
        result = run(attack, model, few, executor).value
        aligned = alignments(attack, result, model, few, executor, norm=math.inf)
        found |= _quantities(method, result, images, result.success, aligned)
    eps, smallest = fgsm_at_rate(model, images, settings.fooling_rate, executor)
    if smallest is not None:
        # FGSM's one eps fails on a share of the images by definition: its norm counts on all.
        kept = torch.ones_like(smallest.value.success)
        found |= _quantities("fgsm", smallest.value, images, kept, None)
    nothing = torch.full((len(images),), math.nan)
    missing = {f"{what} {method}": nothing for what in QUANTITIES for method in METHODS}
    return missing | found, eps


def _quantities(
    method: str, result: Perturbed, images: Images, kept: Mask, aligned: Tensor | None
) -> dict[str, Tensor]:
    """Name -> (n,) values of one method, NaN where it was not run or does not count."""
    values = {
        "rho": relative(result.perturbations, images[: len(kept)], kept, p=math.inf),
        "fooled": result.success.double(),
    }
    if aligned is not None:
        values["alignment"] = aligned
    return {f"{what} {method}": padded(value, len(images)) for what, value in values.items()}


def _statistics() -> dict[str, Statistic]:
    """The numbers: rho_inf and the share fooled of each method, FGSM against DeepFool."""
    single = {f"rho_inf_{method}": mean(f"rho {method}") for method in METHODS}
    single |= {f"share_fooled_{method}": share(f"fooled {method}") for method in METHODS}
    single |= {f"alignment_{method}": mean(f"alignment {method}") for method in METHODS}
    return single | {
        "rho_inf_df / rho_inf_minimum": ratio_of_means("rho df", "rho minimum"),
        "rho_inf_fgsm / rho_inf_df": ratio_of_means("rho fgsm", "rho df"),
        "rho_inf_fgsm - rho_inf_df": difference("rho fgsm", "rho df"),
    }


def _table(numbers: dict[str, Estimate], samples: dict[str, Tensor]) -> pd.DataFrame:
    """Table 3.2 for one network, one row per method."""
    rows = []
    for method, title in METHODS.items():
        fooled, rho = numbers.get(f"share_fooled_{method}"), numbers.get(f"rho_inf_{method}")
        if fooled is None:
            continue
        row: dict[str, object] = {"method": title, "images": fooled.n, "seeds": fooled.seeds}
        if rho is not None:
            row |= {"rho_inf": rho.value, "low": rho.low, "high": rho.high, "std": rho.std}
        failed = int((samples[f"fooled {method}"] == 0).sum())
        row |= {"share_fooled": fooled.value, "failed": failed}
        rows.append(row | {"alignment": value(numbers, f"alignment_{method}")})
    return pd.DataFrame(rows)


def _by_seed(seeds: list[int], found: list[tuple[dict[str, Tensor], float]]) -> pd.DataFrame:
    """One row per training seed and method, without intervals."""
    return pd.DataFrame(
        [
            {
                "seed": seed,
                "method": title,
                "rho_inf": float(quantities[f"rho {method}"].nanmean()),
                "share_fooled": float(quantities[f"fooled {method}"].nanmean()),
                "eps": eps if method == "fgsm" else math.nan,
            }
            for seed, (quantities, eps) in zip(seeds, found, strict=True)
            for method, title in METHODS.items()
        ]
    )


def _histogram(network: Network, samples: dict[str, Tensor]) -> Figure:
    """The relative norms of DeepFool and FGSM."""
    shown = {
        METHODS[method].replace("l_inf", r"$\ell_\infty$"): samples[f"rho {method}"]
        for method in ("df", "fgsm")
    }
    shown = {name: values for name, values in shown.items() if bool(values.isfinite().any())}
    title = rf"$\ell_\infty$ norms of the perturbations, {network.name}"
    return histogram_figure(
        shown, xlabel=r"relative norm $\|r\|_\infty\,/\,\|x\|_\infty$", title=title
    )


def _notes(settings: Settings, samples: dict[str, Tensor], eps: list[float]) -> list[str]:
    """Notes on the failures, FGSM's eps and the attack under study."""
    cases = samples["rho df"].numel()
    failed = int((samples["fooled df"] == 0).sum())
    reached = ", ".join(f"{value:.4g}" for value in eps if not math.isnan(value))
    notes = [
        f"{samples['rho df'].shape[1]} held-out images, the judge ({titled(settings.judge)}) on "
        f"the first {settings.judge_samples}; perturbations and images are both measured in l_inf.",
        "alignment is <r, g> / (||r||_inf ||g||_1) with the gradient g where r ends, in the mean: "
        "1 for a smallest perturbation, as cos(r, n) in l_2.",
        f"DeepFool failed in {failed} of {cases} cases, which are left out of rho_inf and counted.",
        "FGSM's rho_inf is over all images at the smallest eps that fools "
        f"{settings.fooling_rate:g} of them (one eps a training seed: {reached or 'none'}); its "
        "intervals take that eps as given.",
        f"Attack under study: {titled(settings.attack)}; its rho_inf is over the images that it "
        "fools.",
    ]
    if any(math.isnan(value) for value in eps):
        notes.append(
            f"Where no eps fools {settings.fooling_rate:g} of the images, FGSM is left out."
        )
    return notes
