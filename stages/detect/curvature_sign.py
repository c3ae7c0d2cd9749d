"""Table 7.2: the sign of the boundary's curvature near clean and near perturbed images.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 7.5.
    A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, S. Soatto, "Classification regions of deep neural
    networks", arXiv:1705.09552, 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import histogram_figure
from pipeline.statistics import Estimate, Statistic, median, share, stack
from pipeline.studies.detector import (
    BoundaryCurvature,
    DetectorSettings,
    DetectorStudy,
    common_notes,
    detector_studies,
    moved,
)
from pipeline.tables import shown
from robustness_geometry.norms import norms
from robustness_geometry.types import Dataset, Images, Network, Perturbed

__all__ = ["SECTION", "Settings", "curvature_sign"]

SECTION = "Section 7.5, Table 7.2"

KINDS = {
    "original": ("clean image x", 0.0),
    "perturbed": ("perturbed image x + r", 1.0),
    "doubled": ("x + 2r", 2.0),
}
"""Suffix of the numbers -> name of the image in tables and figures, and its multiple of r."""

OUTPUT = "logits"
"""F is a difference of logits; that of probabilities has the same boundary and curvature."""


@dataclass(frozen=True)
class Settings(DetectorSettings):
    """The settings that all experiments of the stage share."""


def curvature_sign(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure for which share of images the nearest boundary bends the way that Table 7.2 says.

    The sign is that of the mean curvature of F = f_other - f_own at the nearest boundary point.
    According to the text it is negative near clean images and positive near perturbed ones.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs the attack and the curvatures.

    Returns:
        The shares of images with the expected sign, the median curvatures, and how near the
        boundary points of a clean and of its perturbed image are; the curvatures (seeds, images) as
        tensors.
    """
    studies = detector_studies(network, data, settings, executor)
    trials = _trials(studies[0])
    h = float(trials.loc[trials["chosen"], "h"].iloc[0])
    samples = stack(executor.each(lambda study: _quantities(study, h), studies))
    numbers = measured(paired_bootstrap(samples, _statistics(), resamples=settings.resamples))
    return Findings(
        numbers=numbers,
        tables={"table_7_2": _table(numbers), "steps": trials},
        figures={"curvatures": _histogram(network, samples)},
        tensors={f"kappa_{kind}": samples[f"kappa {kind}"].float() for kind in KINDS},
        notes=_notes(studies, h, numbers, samples),
    )


def _near(
    study: DetectorStudy[DetectorSettings],
    images: Images,
    attacked: Perturbed,
    h: Sequence[float],
    kinds: Sequence[str],
) -> dict[str, BoundaryCurvature]:
    """The boundary near the images of some kinds."""
    return {
        kind: study.boundary(moved(images, attacked, KINDS[kind][1]), OUTPUT, h) for kind in kinds
    }


def _trials(study: DetectorStudy[DetectorSettings]) -> pd.DataFrame:
    """What every step h gives on the calibration images; the best one is chosen."""
    images = study.train.images
    attacked = study.attacked(images)
    near = _near(study, images, attacked, study.steps, ("original", "perturbed"))
    rows = []
    for index, (factor, h) in enumerate(zip(study.settings.h_factors, study.steps, strict=True)):
        row = {"h": h, "h / default": factor, "images": int(attacked.success.sum())}
        for kind, boundary in near.items():
            kappa = valid(boundary.values[:, index], attacked.success)
            row[f"negative near {KINDS[kind][0]}"] = float(
                valid((kappa < 0).double(), ~kappa.isnan()).nanmean()
            )
        rows.append(row)
    table = pd.DataFrame(rows)
    expected = (
        table[f"negative near {KINDS['original'][0]}"]
        + 1
        - table[f"negative near {KINDS['perturbed'][0]}"]
    )
    table["expected sign"] = expected / 2
    table["chosen"] = table.index == expected.fillna(0).idxmax()
    return table


def _quantities(study: DetectorStudy[DetectorSettings], h: float) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed.

    NaN where the attack failed or no boundary point was found.
    """
    images = study.test.images
    attacked = study.attacked(images)
    near = _near(study, images, attacked, (h,), tuple(KINDS))
    values: dict[str, Tensor] = {}
    for kind in KINDS:
        kappa = valid(near[kind].values[:, 0], attacked.success)
        expected = kappa < 0 if kind == "original" else kappa > 0
        values |= {f"kappa {kind}": kappa, f"sign {kind}": valid(expected.double(), ~kappa.isnan())}
    clean, perturbed = near["original"], near["perturbed"]
    both = ~(values["kappa original"].isnan() | values["kappa perturbed"].isnan())
    apart = norms(clean.points - perturbed.points) / norms(attacked.perturbations)
    return values | {
        "apart": valid(apart, both),
        "back": valid((perturbed.targets == attacked.labels).double(), both),
    }


def _statistics() -> dict[str, Statistic]:
    return {
        "share_negative_original": share("sign original"),
        "share_positive_perturbed": share("sign perturbed"),
        "share_positive_doubled": share("sign doubled"),
        **{f"median_kappa_{kind}": median(f"kappa {kind}") for kind in KINDS},
        "share_back_to_original_label": share("back"),
        "distance_of_boundary_points / norm_of_r": median("apart"),
    }


def _table(numbers: dict[str, Estimate]) -> pd.DataFrame:
    """Table 7.2 for one network, with the control at twice the perturbation."""
    rows = []
    for (kind, (title, _)), sign in zip(
        KINDS.items(), ("negative", "positive", "positive"), strict=True
    ):
        share_, size = numbers.get(f"share_{sign}_{kind}"), numbers.get(f"median_kappa_{kind}")
        if share_ is None or size is None:
            continue
        row = {
            "boundary near": title,
            "sign": sign,
            "share": share_.value,
            "low": share_.low,
            "high": share_.high,
        }
        rows.append(row | {"median kappa": size.value, "images": share_.n, "seeds": share_.seeds})
    return pd.DataFrame(rows)


def _histogram(network: Network, samples: dict[str, Tensor]) -> Figure:
    """The curvatures on an asinh scale, as they differ in sign and by orders of magnitude."""
    size = samples["kappa original"].abs().nanmedian()
    values = {
        title: (samples[f"kappa {kind}"] / size).asinh() for kind, (title, _) in KINDS.items()
    }
    xlabel = r"asinh$(\bar\kappa\,/\,$median $|\bar\kappa|$ near clean images$)$"
    return histogram_figure(
        values, xlabel=xlabel, title=f"Mean curvature of the nearest boundary, {network.name}"
    )


def _notes(
    studies: Sequence[DetectorStudy[DetectorSettings]],
    h: float,
    numbers: dict[str, Estimate],
    samples: dict[str, Tensor],
) -> list[str]:
    failed = int(samples["apart"].isnan().sum())
    notes = common_notes(studies, failed)
    notes += [
        "kappa is the mean curvature of F = f_other - f_own (logits) where DeepFool's way out of "
        f"the image's region crosses the boundary, over T = {studies[0].settings.directions} "
        f"random directions, at h = {h:.3g}: the step with most expected signs on the calibration "
        "images (table steps). With this F the text of Section 7.5 expects negative near clean and "
        "positive near perturbed images; Table 7.2's rows mean F with the opposite sign.",
    ]
    if (
        "share_back_to_original_label" in numbers
        and "distance_of_boundary_points / norm_of_r" in numbers
    ):
        notes.append(
            "Near x + r it is mostly the same boundary seen from its other side, which turns the "
            "sign by definition: the way out leads back to the original label for "
            f"{shown(numbers['share_back_to_original_label'])} of the images, to a point "
            f"{shown(numbers['distance_of_boundary_points / norm_of_r'])} ||r|| (median) away from "
            "that of the clean image. x + 2r, as far beyond the boundary as x is before it, is the "
            "control.",
        )
    return notes
