"""Attacks that the detector was not built for, and one that knows it (beyond the thesis)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from pipeline.evaluation import valid
from pipeline.statistics import Estimate, Statistic, auc, auc_difference, median, share
from pipeline.studies.detector import DetectorStudy, Option, ScoreSettings, moved
from pipeline.studies.detector_options import Choice
from pipeline.studies.evasion import evade
from robustness_geometry.attacks import deepfool, fgsm, pgd
from robustness_geometry.detection import threshold_at
from robustness_geometry.norms import norms
from robustness_geometry.types import Attack, Perturbed

__all__ = [
    "ATTACKS",
    "EVADED",
    "EVASIONS",
    "Unforeseen",
    "quantities",
    "row_of",
    "statistics",
    "table_of_attacks",
    "table_of_evasions",
]

ATTACKS = {
    "linf_deepfool": "l_inf DeepFool",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "knowing": "attack on the detector",
}
"""Suffix of the numbers -> name of the attack in tables and figures."""

EVASIONS = {
    "as_it_is": "to the closest boundary point",
    "scaled": "the same, scaled to the radius",
    "knowing": "attack on the detector, within the radius",
}
"""Suffix of the numbers -> name of the way to evade the detector in tables."""

EVADED = {
    "zero": "curvature at 0",
    "curvature": "curvature, calibrated",
    "confidence": "confidence, calibrated",
    "both": "either, calibrated",
}
"""Part of the numbers' names -> name of the detector in tables."""


@dataclass(frozen=True)
class Unforeseen:
    """The options of these attacks.

    Attributes:
        eps_factor: eps of FGSM and PGD in units of the median norm of l_inf DeepFool's
            perturbations.
        radius: radius of the attack that knows the detector, in units of the norm of the
            perturbation beyond the closest boundary point.
        steps: number of steps of the attack that knows the detector.
    """

    eps_factor: float
    radius: float
    steps: int


def quantities(
    study: DetectorStudy[ScoreSettings], choice: Choice, options: Unforeseen
) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed; NaN where an attack failed."""
    images = study.test.images
    attacked = study.perturbed(images, "closest")
    knowing = _knowing(study, attacked, choice.option, options)
    results = {**_plain(study, options), "knowing": knowing}
    seen = {name: _seen(study, choice, result, 1.0) for name, result in results.items()}
    seen["as_it_is"] = _seen(study, choice, attacked, 1.0)
    seen["scaled"] = _seen(study, choice, attacked, options.radius)
    values = {
        f"{what} {name}": each for name, parts in seen.items() for what, each in parts.items()
    }
    values["curvature clean"] = study.scores(images, choice.options)[choice.judged].scores
    values["confidence clean"] = study.confidence(images).scores
    for name, result in results.items():
        counts = attacked.success if name == "knowing" else torch.ones_like(result.success)
        values[f"fooled {name}"] = valid(result.success.double(), counts)
    sizes = norms(results["knowing"].perturbations) / norms(attacked.perturbations)
    return values | {"size knowing": valid(sizes, results["knowing"].success)}


def _seen(
    study: DetectorStudy[ScoreSettings], choice: Choice, result: Perturbed, scale: float
) -> dict[str, Tensor]:
    """What both detectors say of ``images + scale * r``, and whether a wrong label passes them.

    NaN where the attack failed.
    """
    images, rate = study.train.images, study.settings.false_positive_rate
    points = moved(study.test.images, result, scale)
    scored = study.score(points, choice.option)
    trusted, calibration = study.confidence(points), study.scores(images, choice.options)
    wrong = scored.labels != result.labels
    passes = scored.scores < threshold_at(calibration[choice.judged].scores, rate)
    believed = trusted.scores < threshold_at(study.confidence(images).scores, rate)
    values = {
        "curvature": scored.scores,
        "confidence": trusted.scores,
        "flagged": (~passes).double(),
        "wrong": wrong.double(),
        "evades curvature": (wrong & passes).double(),
        "evades zero": (wrong & (scored.scores < 0)).double(),
        "evades confidence": (wrong & believed).double(),
        "evades both": (wrong & passes & believed).double(),
    }
    return {name: valid(value, result.success) for name, value in values.items()}


def _plain(study: DetectorStudy[ScoreSettings], options: Unforeseen) -> dict[str, Perturbed]:
    """The attacks of other norms and lengths, on the images to report on."""
    images = study.test.images
    smallest = study.attacked(images, partial(deepfool, norm=math.inf, prune=None))
    lengths = norms(smallest.perturbations, math.inf)[smallest.success]
    if not len(lengths):
        return {"linf_deepfool": smallest}
    eps = options.eps_factor * float(lengths.median())
    others: dict[str, Attack] = {"fgsm": partial(fgsm, eps=eps), "pgd": partial(pgd, eps=eps)}
    return {"linf_deepfool": smallest} | {
        name: study.attacked(images, each) for name, each in others.items()
    }


def _knowing(
    study: DetectorStudy[ScoreSettings], attacked: Perturbed, option: Option, options: Unforeseen
) -> Perturbed:
    """The perturbation beyond the closest boundary point, changed until the detector is silent.

    Where there is none, this attack fails.
    """
    images = study.test.images
    starts = moved(images, attacked) - images
    work = partial(
        evade,
        study.model,
        option=option,
        candidates=study.settings.candidates,
        directions=study.settings.directions,
        scale=options.radius,
        steps=options.steps,
    )
    # Small chunks: each image has all points of its second differences in memory at once.
    return study.executor.map(work, images, starts, chunk=50, randomness="detect").value


def statistics() -> dict[str, Statistic]:
    """The numbers of both parts."""
    numbers: dict[str, Statistic] = {}
    for name in ATTACKS:
        pairs = [
            (f"{detector} clean", f"{detector} {name}") for detector in ("curvature", "confidence")
        ]
        numbers |= {
            f"auc_{name}": auc(*pairs[0]),
            f"auc_confidence_{name}": auc(*pairs[1]),
            f"auc_{name} - auc_confidence_{name}": auc_difference(pairs[0], pairs[1]),
            f"share_fooled_{name}": share(f"fooled {name}"),
            f"share_flagged_{name}": share(f"flagged {name}"),
        }
    for name in EVASIONS:
        numbers[f"share_wrong_{name}"] = share(f"wrong {name}")
        for detector in EVADED:
            numbers[f"share_evading_{detector}_{name}"] = share(f"evades {detector} {name}")
    return numbers | {"norm_knowing / norm_attack": median("size knowing")}


def row_of(
    numbers: Mapping[str, Estimate], names: Mapping[str, str], gap: str = " "
) -> dict[str, object]:
    """The columns of a table's row: each number with its interval, and the images and seeds.

    Args:
        numbers: name -> estimate; a number that was not measured has no column.
        names: column -> name of the number.
        gap: what stands between a column's name and ``low`` or ``high``.
    """
    row: dict[str, object] = {}
    for column, name in names.items():
        if (estimate := numbers.get(name)) is not None:
            row |= {
                column: estimate.value,
                f"{column}{gap}low": estimate.low,
                f"{column}{gap}high": estimate.high,
                "images": estimate.n,
                "seeds": estimate.seeds,
            }
    return row


def table_of_attacks(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """One row per attack."""
    rows = []
    for name, title in ATTACKS.items():
        names = {
            "share fooled": f"share_fooled_{name}",
            "auc curvature": f"auc_{name}",
            "auc confidence": f"auc_confidence_{name}",
            "share flagged": f"share_flagged_{name}",
        }
        rows.append({"attack": title, **row_of(numbers, names)})
    return pd.DataFrame(rows)


def table_of_evasions(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """One row per way to evade the detectors at the calibrated thresholds."""
    rows = []
    for name, title in EVASIONS.items():
        names = {"wrong label": f"share_wrong_{name}"}
        for detector, words in EVADED.items():
            names[f"wrong, not flagged by {words}"] = f"share_evading_{detector}_{name}"
        rows.append({"perturbation": title, **row_of(numbers, names, gap=", ")})
    return pd.DataFrame(rows)
