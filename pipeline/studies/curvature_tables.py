"""Numbers, columns and notes that the experiments on the boundary's curvature share."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.statistics import Estimate, mean, stack
from pipeline.studies.curvature import CurvatureStudy
from pipeline.studies.curvature_settings import Curvatures, TrainPoints
from pipeline.tables import sign_shares
from robustness_geometry.geometry import Boundary

__all__ = ["at_point", "curvature_columns", "made_at", "measured_at", "named", "notes"]

WHERE = {
    "closest": "the closest point that was found, so that r is the smallest perturbation "
    "(Equations 6.1 and 7.1)",
    "crossing": "where DeepFool's r crosses the boundary, which the thesis takes for the smallest "
    "perturbation",
}
"""A kind of boundary point -> what notes call it."""


def named(numbers: Mapping[str, Estimate], settings: Curvatures) -> dict[str, Estimate]:
    """The numbers that rest on at least one case, with the output in their names if not the logits.

    The claims are about the logits.
    """
    suffix = "" if settings.output == "logits" else f" ({settings.output})"
    return {f"{name}{suffix}": estimate for name, estimate in measured(numbers).items()}


def measured_at(studies: Sequence[CurvatureStudy[Curvatures]]) -> dict[str, Estimate]:
    """``alignment_crossing``, ``alignment_closest``: mean cos(r, n) at the unseen points."""
    return _alignments(
        [{one.point: one.near_test for one in study.both.values()} for study in studies],
        studies[0].settings.resamples,
    )


def made_at(studies: Sequence[CurvatureStudy[TrainPoints]]) -> dict[str, Estimate]:
    """The same at the points of training images, which S_c, S_f and the u_i are made of."""
    return _alignments(
        [{one.point: one.near_train for one in study.both.values()} for study in studies],
        studies[0].settings.resamples,
    )


def _alignments(seeds: Sequence[Mapping[str, Boundary]], resamples: int) -> dict[str, Estimate]:
    samples = stack(
        [{name: points.angles.double().cos() for name, points in each.items()} for each in seeds]
    )
    statistics = {f"alignment_{name}": mean(name) for name in samples}
    return paired_bootstrap(samples, statistics, resamples=resamples)


def at_point(suffix: str, point: str, alignments: Mapping[str, Estimate]) -> dict[str, object]:
    """The columns ``point`` and ``cos(r, n)`` of a table.

    Args:
        suffix: what the names of the row's numbers end in, a key of ``CurvatureStudy.both``.
        point: the study's own point.
        alignments: what :func:`measured_at` or :func:`made_at` found.
    """
    here = suffix.strip(" ()") or point
    return {"point": here, "cos(r, n)": alignments[f"alignment_{here}"].value}


def curvature_columns(values: Tensor, h: float) -> dict[str, float]:
    """Mean and signs of curvatures (n, ...) measured over h, and their scale, as columns.

    ``kappa h`` is the mean times h. ``kink`` is the angle in degrees, 2 atan(h |kappa|) in the
    median, by which the boundary turns from z - h v to z + h v. Where it does not depend on h, the
    boundary has kinks, and a curvature over h is their angle over 2 h.

    Example:
        >>> import torch
        >>> from pipeline.studies.curvature_tables import curvature_columns
        >>> found = curvature_columns(torch.tensor([-1.0, -1.0]), 1.0)
        >>> found["kappa h"], round(found["kink"], 6)
        (-1.0, 90.0)
    """
    sizes = values.double().abs()
    turned = 2 * math.degrees(math.atan(h * float(sizes.nanquantile(0.5))))
    return {**sign_shares(values), "kappa h": h * float(values.nanmean()), "kink": turned}


def notes(studies: Sequence[CurvatureStudy[Curvatures]]) -> list[str]:
    """What was measured at which points, and with which h."""
    first, settings = studies[0], studies[0].settings
    here, other = (one.point for one in first.both.values())
    return [
        f"F is the {'logit' if settings.output == 'logits' else settings.output + ' output'} of "
        "the other class minus "
        "that of the image's own: positive curvature bends the boundary towards the image. "
        "Curvature is measured over "
        f"h = {first.h:.3g} (l2, pixel units); the table 'sweep' has "
        f"{', '.join(f'{factor:g}' for factor in settings.sweep)} times that for training seed "
        f"{first.seed} and "
        f"{settings.sweep_samples} images. There 'kappa h' is the mean curvature times h, and "
        "'kink' the angle in degrees "
        "by which the boundary turns over 2 h, in the median: where these do not change with h, "
        "the boundary has kinks, "
        "and the curvature is their angle over the length it was measured over.",
        f"Plain numbers are measured at z = x + r, {WHERE[here]}; those that end in ({other}), and "
        f"the rows of the point '{other}', at {WHERE[other]}.",
        *(_reached(each) for each in zip(*(study.both.values() for study in studies), strict=True)),
    ]


def _reached(studies: Sequence[CurvatureStudy[Curvatures]]) -> str:
    """How many held-out images have a point of one kind, and how nearly r is along the normal."""
    points = [study.near_test for study in studies]
    angles = torch.cat([each.found().angles for each in points])
    missing = sum(int((~each.success).sum()) for each in points)
    cases = sum(len(each) for each in points)
    shown = [f"{float(angles.quantile(q)):.2g}" for q in (0.5, 0.9)] if len(angles) else ["-", "-"]
    return (
        f"Boundary points of {len(studies[0].test)} held-out images a training seed "
        f"({studies[0].point}): {missing} of {cases} have none and are left out. The angle between "
        f"r and the normal is {shown[0]} rad in the median, below {shown[1]} for 90%."
    )
