"""The gain of fine-tuning as DeepFool and as FGSM measures it (Section 3.3, Figure 3.9)."""

import math
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, mean, ratio_of_means, stack
from pipeline.studies.attacking import fooled_at
from pipeline.studies.finetuning import (
    TITLES,
    FineTuningSettings,
    FineTuningStudy,
    fine_tuning_notes,
    fine_tuning_studies,
    mean_alignments,
    tune_all,
)
from pipeline.tables import interval, value
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Dataset, Images, Labels, Network

__all__ = ["SECTION", "Settings", "advft_judged", "fooled_pattern", "smallest_factor"]

SECTION = "Section 3.3, Figure 3.9"

READINGS = {"text": "fgsm", "caption": "deepfool"}
"""Reading of the thesis -> the strategy of fine-tuning.

The text says that Figure 3.9 fine-tunes on FGSM's examples, its caption that it does on DeepFool's.
"""

FACTORS = tuple(2 ** (step / 4) for step in range(-6, 15))
"""FGSM's steps as multiples of its eps for the training images: from a third to eleven times it."""


@dataclass(frozen=True)
class Settings(FineTuningSettings):
    """What to measure.

    Attributes:
        judged_factor: what the learning rate is multiplied with; 0.1 in Figure 3.9.
        samples: number of held-out images on which rho is measured.
    """

    judged_factor: float = 0.1
    samples: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("judged_factor", self.judged_factor)
        check_count("samples", self.samples)


def advft_judged(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure the gain rho(epoch) / rho(original) of fine-tuning by DeepFool and by FGSM.

    FGSM's rho is eps sqrt(d) / ||x|| at the smallest single eps that fools ``fooling_rate`` of the
    images. It is searched anew in every resample of the bootstrap: between two steps of a geometric
    grid, it is interpolated from the shares that they fool.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs attacks and trainings.

    Returns:
        ``<reading>: gain_df_<epoch>``, ``gain_fgsm_<epoch>`` and their differences, for both
        readings.

    References:
        Section 3.3 of the thesis; Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and
        accurate method to fool deep neural networks", CVPR 2016, arXiv:1511.04599.
    """
    test, factor = held_out(data, settings.samples), settings.judged_factor
    studies = fine_tuning_studies(network, data, settings, executor, test=test, factor=factor)
    tune_all(studies, [(strategy, 1.0) for strategy in READINGS.values()], executor)
    samples = stack(executor.each(_quantities, studies))
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
        notes=[*fine_tuning_notes(studies), *_notes(samples, settings)],
    )


def fooled_pattern(model: Classifier, images: Images, *, eps: tuple[float, ...]) -> Labels:
    """Which of the steps ``eps`` of FGSM, unclipped, change the label of each image.

    Args:
        model: the classifier.
        images: (N, C, H, W).
        eps: at most 31 steps.

    Returns:
        (N,) whole numbers whose bit k stands for eps[k].
    """
    fooled = fooled_at(model, images, eps=eps).long()
    return (fooled << torch.arange(len(eps), device=fooled.device)).sum(dim=1)


def smallest_factor(pattern: Tensor, rate: float) -> Tensor:
    """The smallest factor whose share of fooled images reaches ``rate``.

    Between the first grid point that reaches it and the one before, log(factor) is linear in the
    share. Where none reaches it the largest factor stands in: a lower bound.

    Args:
        pattern: (..., n) what ``fooled_pattern`` gave for the steps FACTORS; NaN leaves an image
            out.
        rate: the wanted share, in (0, 1].

    Returns:
        (...) factors.
    """
    # The share of the images that each factor fools, (..., factors), from the bits.
    bits = pattern.nan_to_num().to(torch.int32)
    count = (~pattern.isnan()).sum(dim=-1)
    shares = torch.stack(
        [((bits >> k) & 1).sum(dim=-1) / count for k in range(len(FACTORS))], dim=-1
    ).double()
    # The first factor that reaches the rate, and how far between its neighbour and it the rate is.
    reached = shares >= rate
    first = reached.to(torch.int8).argmax(dim=-1, keepdim=True)
    before = (first - 1).clamp_min(0)
    low, high = shares.gather(-1, before), shares.gather(-1, first)
    part = torch.where(high > low, (rate - low) / (high - low), torch.ones_like(low)).clamp(0, 1)
    logs = torch.tensor(FACTORS, dtype=torch.float64).log()
    factor = (logs[before] + part * (logs[first] - logs[before])).exp().squeeze(-1)
    return torch.where(reached.any(dim=-1), factor, torch.full_like(factor, FACTORS[-1]))


def _quantities(study: FineTuningStudy) -> dict[str, Tensor]:
    """Per-image values of one seed; ``unit`` is FGSM's relative norm at the factor 1."""
    images, eps = study.test.images, study.fgsm_eps().eps
    length = norms(images).double()
    unit = eps * math.sqrt(images[0].numel()) / length.masked_fill(length == 0, math.nan)
    steps = tuple(eps * factor for factor in FACTORS)

    def judged_by(model: Classifier, name: str) -> dict[str, Tensor]:
        pattern = study.executor.cached(partial(fooled_pattern, model, eps=steps), images).value
        return {**study.rho(model, f"df {name}"), f"fgsm {name}": pattern.double()}

    found = {"unit": unit, **judged_by(study.model, "original")}
    for reading, strategy in READINGS.items():
        for epoch, model in enumerate(study.tuned(strategy), 1):
            found |= judged_by(model, f"{reading} {epoch}")
    return found


def _statistics(settings: Settings) -> dict[str, Statistic]:
    """The numbers; the reductions take quantities (..., seeds, n) and give one value each (...)."""
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
    aligned = {"original": "df original"}
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
            aligned[_alignment(reading, epoch).removeprefix("alignment_")] = df[0]
    return found | mean_alignments(aligned)


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


def _alignment(reading: str, epoch: int) -> str:
    """The name of the cos(r, n) of the DeepFool that measured one gain."""
    return f"alignment_{reading}_{epoch}" if epoch else "alignment_original"


def _table(numbers: dict[str, Estimate], settings: Settings) -> pd.DataFrame:
    """One row per reading, judge and epoch: the gain with its interval."""
    rows = [
        {
            "reading": reading,
            "network": TITLES[strategy],
            "measured_by": {"df": "DeepFool", "fgsm": "FGSM"}[judge],
            "epoch": epoch,
            "gain": gain.value,
            **interval(gain),
            "cos(r, n)": value(numbers, _alignment(reading, epoch)) if judge == "df" else math.nan,
        }
        for reading, strategy in READINGS.items()
        for judge in ("df", "fgsm")
        for epoch, gain in _points(numbers, reading, judge, settings).items()
    ]
    return pd.DataFrame(rows)


def _figure(
    network: Network, numbers: dict[str, Estimate], reading: str, settings: Settings
) -> Figure:
    """Figure 3.9 in one reading: the gain over the extra epochs, one line per judge."""
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
    """Notes on how many images both judges rest on, and where FGSM's steps did not suffice."""
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
        "are left out of both.",
        f"FGSM's rho is that of the smallest eps that fools {settings.fooling_rate:g} of these "
        "images, searched anew in every resample; the text's reading fine-tunes on FGSM examples, "
        "the caption's on DeepFool's.",
    ]
    if beyond:
        lines.append(
            f"In {beyond} of {cases} cases (a training seed after an epoch) no step up to "
            f"{FACTORS[-1]:.3g} times the original eps fools so many: that step stands in, so "
            "FGSM's gain is a lower bound there."
        )
    return lines
