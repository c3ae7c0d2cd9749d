"""How the gain in robustness looks when DeepFool and when FGSM measures it (Figure 3.9)."""

import math
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, mean, ratio_of_means, stack
from pipeline.studies.finetuning import TITLES, Common, Study, notes, recipe_of, studies, tune_all
from pipeline.tables import interval
from robustness_geometry.attacks import fgsm
from robustness_geometry.checks import check_positive
from robustness_geometry.norms import norms
from robustness_geometry.training import Recipe
from robustness_geometry.types import Classifier, Dataset, Images, Labels, Network, predict

__all__ = ["SECTION", "Settings", "advft_judged", "fooled_pattern", "smallest_factor"]

SECTION = "Section 3.3, Figure 3.9"

READINGS = {"text": "fgsm", "caption": "deepfool"}
"""What the network is fine-tuned on: the thesis' text says FGSM examples, the figure's caption DeepFool's."""

FACTORS = tuple(2 ** (step / 4) for step in range(-6, 15))
"""FGSM's steps, as multiples of the original network's smallest eps: from a third of it to eleven times it."""


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        judged_factor: what the learning rate is multiplied with: Figure 3.9 lowers it by 90%.
    """

    judged_factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("judged_factor", self.judged_factor)


def advft_judged(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure the gain rho(epoch) / rho(original) of fine-tuning by DeepFool and by FGSM.

    FGSM's rho is eps sqrt(d) / ||x|| at the smallest single eps that fools ``fooling_rate`` of the
    images, found anew in every resample of the bootstrap, between two steps of a geometric grid by
    their shares.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs attacks and trainings.

    Returns:
        ``<reading>: gain_df_<epoch>``, ``gain_fgsm_<epoch>`` and their differences, for both
        readings.
    """
    found = studies(network, data, settings, executor)
    recipe = recipe_of(network, settings, settings.judged_factor)
    tune_all(found, [(strategy, 1.0) for strategy in READINGS.values()], recipe, executor)
    samples = stack(executor.each(lambda study: _quantities(study, recipe), found))
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    return Findings(
        numbers=numbers,
        curves={
            f"{reading}: gain_{judge}": [
                e.value for e in _points(numbers, reading, judge, settings).values()
            ]
            for reading in READINGS
            for judge in ("df", "fgsm")
        },
        tables={"figure_3_9": _table(numbers, settings)},
        figures={
            f"figure_3_9_{reading}": _figure(network, numbers, reading, settings)
            for reading in READINGS
        },
        notes=[*notes(found, recipe), *_notes(samples, settings)],
    )


def fooled_pattern(model: Classifier, images: Images, *, eps: tuple[float, ...]) -> Labels:
    """Which of the steps ``eps`` of FGSM, unclipped, change the label: bit k of the result stands for eps[k].

    One gradient serves all steps: the perturbation is linear in eps.

    Args:
        model: the classifier.
        images: (N, C, H, W).
        eps: at most 31 steps.

    Returns:
        (N,) whole numbers.
    """
    labels = predict(model, images)
    signs = fgsm(model, images, eps=1.0).perturbations
    fooled = [
        (predict(model, images + step * signs) != labels).long() << k for k, step in enumerate(eps)
    ]
    return torch.stack(fooled).sum(dim=0)


def smallest_factor(pattern: Tensor, rate: float) -> Tensor:
    """The smallest factor whose share of fooled images reaches ``rate``.

    Between the first grid point that reaches it and the one before, log(factor) is linear in the
    share. Where
    none reaches it the largest factor stands in: a lower bound.

    Args:
        pattern: (..., n) what ``fooled_pattern`` gave for the steps FACTORS; NaN leaves an image
            out.
        rate: the wanted share, in (0, 1].

    Returns:
        (...) factors.
    """
    bits = pattern.nan_to_num().to(torch.int32)
    count = (~pattern.isnan()).sum(dim=-1)
    shares = torch.stack(
        [((bits >> k) & 1).sum(dim=-1) / count for k in range(len(FACTORS))], dim=-1
    ).double()
    reached = shares >= rate
    first = reached.to(torch.int8).argmax(dim=-1, keepdim=True)
    before = (first - 1).clamp_min(0)
    low, high = shares.gather(-1, before), shares.gather(-1, first)
    part = torch.where(high > low, (rate - low) / (high - low), torch.ones_like(low)).clamp(0, 1)
    logs = torch.tensor(FACTORS, dtype=torch.float64).log()
    found = (logs[before] + part * (logs[first] - logs[before])).exp().squeeze(-1)
    return torch.where(reached.any(dim=-1), found, torch.full_like(found, FACTORS[-1]))


def _quantities(study: Study, recipe: Recipe) -> dict[str, Tensor]:
    """Per-image values of one seed; ``unit`` is FGSM's relative norm at the factor 1."""
    images, eps = study.test.images, study.fgsm_eps()["eps"]
    length = norms(images).double()
    unit = eps * math.sqrt(images[0].numel()) / length.masked_fill(length == 0, math.nan)
    steps = tuple(eps * factor for factor in FACTORS)

    def judged_by(model: Classifier, name: str) -> dict[str, Tensor]:
        pattern = study.executor.cached(partial(fooled_pattern, model, eps=steps), images).value
        return {f"df {name}": study.rho(model), f"fgsm {name}": pattern.double()}

    found = {"unit": unit, **judged_by(study.model, "original")}
    for reading, strategy in READINGS.items():
        for epoch, model in enumerate(study.tuned(study.perturbed(strategy), recipe), 1):
            found |= judged_by(model, f"{reading} {epoch}")
    return found


def _statistics(settings: Settings) -> dict[str, Statistic]:
    rate = settings.fooling_rate

    def rho(pattern: Tensor, unit: Tensor) -> Tensor:
        return (smallest_factor(pattern, rate) * unit.nanmean(dim=-1)).nanmean(dim=-1)

    def gain(pattern: Tensor, original: Tensor, unit: Tensor) -> Tensor:
        return rho(pattern, unit) / rho(original, unit)

    def excess(
        pattern: Tensor, original: Tensor, unit: Tensor, tuned: Tensor, before: Tensor
    ) -> Tensor:
        return gain(pattern, original, unit) - tuned.nanmean(dim=(-2, -1)) / before.nanmean(
            dim=(-2, -1)
        )

    def loss(tuned: Tensor, before: Tensor) -> Tensor:
        return 1 - tuned.nanmean(dim=(-2, -1)) / before.nanmean(dim=(-2, -1))

    found = {
        "rho_df_original": mean("df original"),
        "rho_fgsm_original": Statistic(("fgsm original", "unit"), rho),
    }
    for reading in READINGS:
        for epoch in range(1, settings.epochs + 1):
            df = (f"df {reading} {epoch}", "df original")
            judged = (f"fgsm {reading} {epoch}", "fgsm original", "unit")
            found[f"{reading}: gain_df_{epoch}"] = ratio_of_means(*df)
            found[f"{reading}: gain_fgsm_{epoch}"] = Statistic(judged, gain)
            found[f"{reading}: gain_fgsm_{epoch} - gain_df_{epoch}"] = Statistic(
                (*judged, *df), excess
            )
            found[f"{reading}: 1 - gain_df_{epoch}"] = Statistic(df, loss)
    return found


def _points(
    numbers: dict[str, Estimate], reading: str, judge: str, settings: Settings
) -> dict[int, Estimate]:
    """Extra epoch -> gain, from the original network (epoch 0, by definition 1) on."""
    original = numbers.get(f"rho_{judge}_original")
    if original is None:
        return {}
    start = Estimate(1.0, 1.0, 1.0, original.n, seeds=original.seeds)
    names = {epoch: f"{reading}: gain_{judge}_{epoch}" for epoch in range(1, settings.epochs + 1)}
    return {0: start} | {epoch: numbers[name] for epoch, name in names.items() if name in numbers}


def _table(numbers: dict[str, Estimate], settings: Settings) -> pd.DataFrame:
    rows = [
        {
            "reading": reading,
            "network": TITLES[strategy],
            "measured_by": {"df": "DeepFool", "fgsm": "FGSM"}[judge],
            "epoch": epoch,
            "gain": gain.value,
            **interval(gain),
        }
        for reading, strategy in READINGS.items()
        for judge in ("df", "fgsm")
        for epoch, gain in _points(numbers, reading, judge, settings).items()
    ]
    return pd.DataFrame(rows)


def _figure(
    network: Network, numbers: dict[str, Estimate], reading: str, settings: Settings
) -> Figure:
    lines = {}
    for judge, title in (("df", "measured by DeepFool"), ("fgsm", "measured by FGSM")):
        points = _points(numbers, reading, judge, settings)
        lines[title] = estimate_line(list(points), list(points.values()))
    return line_figure(
        lines,
        xlabel="extra epochs",
        ylabel="rho / rho of the original network",
        title=f"{network.name}, {TITLES[READINGS[reading]]}",
    )


def _notes(samples: dict[str, Tensor], settings: Settings) -> list[str]:
    tuned = {name: values for name, values in samples.items() if name.startswith("fgsm ")}
    beyond = sum(
        int((smallest_factor(v, settings.fooling_rate) == FACTORS[-1]).sum())
        for v in tuned.values()
    )
    cases = sum(len(values) for values in tuned.values())
    failed = int(sum(v.isnan().sum() for name, v in samples.items() if name.startswith("df ")))
    n = samples["unit"].shape[1]
    lines = [
        f"Both measures are taken on {n} held-out images; DeepFool failed in {failed} cases, which "
        "are left out "
        "of both.",
        f"FGSM's rho is that of the smallest eps that fools {settings.fooling_rate:g} of these "
        "images, searched "
        "anew in every resample; the text's reading fine-tunes on FGSM examples, the caption's on "
        "DeepFool's.",
    ]
    if beyond:
        lines.append(
            f"In {beyond} of {cases} cases (a training seed after an epoch) no step up to "
            f"{FACTORS[-1]:.3g} "
            "times the original eps fools so many: that step stands in, so FGSM's gain is a lower "
            "bound there."
        )
    return lines
