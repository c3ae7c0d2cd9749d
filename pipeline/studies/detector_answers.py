"""What the curvature, the confidence, and both together say of clean and of perturbed images."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pipeline.evaluation import valid
from pipeline.studies.detector import POINTS, DetectorStudy, Option, ScoreSettings, moved
from pipeline.studies.detector_options import Choice
from robustness_geometry.types import Images

__all__ = ["Answers", "at_both_ends", "look", "together"]


Answers: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""Detector -> the scores (n,) of clean and of perturbed images, NaN without a perturbation."""


def look(
    study: DetectorStudy[ScoreSettings], images: Images, choice: Choice, point: str
) -> Answers:
    """What the detectors say of ``images`` and of their versions perturbed at one of POINTS."""
    attacked = study.perturbed(images, point)
    perturbed = moved(images, attacked)
    seen = study.scores(images, choice.options), study.scores(perturbed, choice.options)
    pairs = {name: (seen[0][name].scores, seen[1][name].scores) for name in choice.options}
    pairs["confidence"] = study.confidence(images).scores, study.confidence(perturbed).scores
    return {
        name: (clean, valid(scores, attacked.success)) for name, (clean, scores) in pairs.items()
    }


def together(calibration: Answers, seen: Answers, judged: str) -> tuple[Tensor, Tensor]:
    """A logistic regression on the ranks of the two scores among those of the calibration images.

    Returns:
        (n,) its scores of the clean and of the perturbed images; NaN without a calibration image of
        each kind.
    """
    names = (judged, "confidence")
    kinds = [_ranks(calibration, calibration, names, kind) for kind in (0, 1)]
    kinds = [ranks[~ranks.isnan().any(dim=1)] for ranks in kinds]
    if not all(map(len, kinds)):
        clean, perturbed = (torch.full_like(scores, math.nan) for scores in seen[judged])
        return clean, perturbed
    labels = torch.cat([torch.full((len(ranks),), kind) for kind, ranks in enumerate(kinds)])
    model = LogisticRegression().fit(torch.cat(kinds).numpy(), labels.numpy())
    weights, bias = torch.from_numpy(model.coef_[0]), float(model.intercept_[0])
    clean, perturbed = (_ranks(calibration, seen, names, kind) @ weights + bias for kind in (0, 1))
    return clean, perturbed


def _ranks(calibration: Answers, seen: Answers, names: Sequence[str], kind: int) -> Tensor:
    """The ranks of the scores among those of all calibration images, clean and perturbed.

    Args:
        calibration: the scores of the calibration images.
        seen: the scores of the images to rank.
        names: the detectors.
        kind: 0 for the clean images, 1 for the perturbed ones.

    Returns:
        (n, detectors) ranks in [0, 1]; NaN stays NaN.
    """
    ranks = []
    for name in names:
        every, new = torch.cat(calibration[name]), seen[name][kind]
        ordered = every[~every.isnan()].sort().values
        place = torch.searchsorted(ordered, new).double() / len(ordered)
        ranks.append(valid(place, ~new.isnan()))
    return torch.stack(ranks, dim=1)


def at_both_ends(study: DetectorStudy[ScoreSettings], choice: Choice) -> dict[str, Tensor]:
    """Curvatures, divided by the gradient's norm, at the image x and at its boundary points z."""
    images, option, values = study.test.images, choice.option, dict[str, Tensor]()
    # The curvature is divided after the measurement, so that this costs no new one.
    options = {**choice.options, "at x": Option(option.output, option.h, True)}
    at_image = study.scores(images, options)["at x"].scores
    for point, suffix in POINTS.items():
        boundary = study.boundary(images, point)
        values[f"kappa x{suffix}"] = at_image
        values[f"kappa z{suffix}"] = study.curvature_of(boundary, option.output, (option.h,))[:, 0]
        values |= {
            f"rank {end}{suffix}": _order(
                values[f"kappa {end}{suffix}"], values[f"kappa z{suffix}"]
            )
            for end in "xz"
        }
    return values


def _order(values: Tensor, other: Tensor) -> Tensor:
    """The ranks (n,) of ``values`` among the images that have ``other`` too."""
    kept = ~(values.isnan() | other.isnan())
    ranks = torch.full_like(values, math.nan)
    ranks[kept] = values[kept].argsort().argsort().double()
    return ranks
