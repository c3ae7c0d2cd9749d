"""Plane sections of the decision boundary (Sections 5.6 and 5.7, Figures 5.5 to 5.7).

Along random directions the boundary is nearly flat; along chosen ones it bends.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.statistics import Estimate, Statistic, exactly, median, ratio_of_medians, share, stack
from pipeline.studies.boundary import BoundarySettings, closest_points, crossing_points
from pipeline.studies.flatness import flatness
from pipeline.studies.sections import chosen_planes, flat_drawings, random_planes
from pipeline.tables import columns
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.geometry import Boundary, curvature_limit, default_h
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Dataset, Images, Network

__all__ = ["SECTION", "Settings", "boundary_sections"]

SECTION = "Sections 5.6 and 5.7, Figures 5.5, 5.6 and 5.7"

SHARES, LEAST = (1e-3, 1e-2, 1e-1), 10
"""m / d to which Corollary 1 is applied, and the fewest dimensions for which it can say anything.

Section 5.6 takes a thousandth of the dimensions. Of small images that is hardly one dimension, for
which zeta_2 is above 1,000 and no bent boundary meets the condition: the first share with LEAST
dimensions is taken.
"""

POINTS = {"": "closest", " (crossing)": "crossing"}
"""Suffix of the numbers -> the point of the boundary."""

NULL_DRAWS = 4000
"""Random matrices behind the ratio of a matrix without structure."""


@dataclass(frozen=True)
class Settings(BoundarySettings):
    """What to measure.

    Attributes:
        widths: half widths > 0 of the sections, in units of ||r*||, all different; the first is the
            one that the condition of Corollary 1 is compared with.
        h: step of the differences of gradients behind the curvatures, in pixel units; None: the
            default for the size of the images, 0.0195 sqrt(d).
        steps: number of products with each Hessian in the search for the most curved direction; one
            product takes two gradients.
        delta: delta of the condition of Corollary 1, in (0, 1).
        pictures: number of images drawn in Figure 5.5.
        grid: number of points along each side of a picture.
    """

    widths: tuple[float, ...] = (1.0, 0.3, 3.0)
    h: float | None = None
    steps: int = 15
    delta: float = 0.05
    pictures: int = 3
    grid: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pictures", "grid", "steps"):
            check_count(name, getattr(self, name))
        if not self.widths or len(set(self.widths)) < len(self.widths):
            refuse("widths", self.widths, "one or more different numbers > 0")
        for width in self.widths:
            check_positive("widths", width)
        if self.h is not None:
            check_positive("h", self.h)
        if not 0 < self.delta < 1:
            refuse("delta", self.delta, "a number in (0, 1)")


def boundary_sections(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure how much the boundary bends along random directions and along the most curved one.

    Two measures: the parabola through the boundary's curve in the plane of the normal and a random
    direction, over several widths; and curvatures by differences of gradients over a length h,
    along the same random directions and along the principal direction of largest |curvature|. Both
    look at the boundary between the image's class and the nearest one alone, so that junctions with
    a third class are left out.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        The medians of |kappa| ||r|| and of |kappa|, their ratios, the ratio of a symmetric matrix
        without structure, and the distance from the condition of Corollary 1; at the closest point,
        and again at the point where DeepFool's perturbation crosses the boundary.

    References:
        Sections 5.6 and 5.7, Corollary 1, of the thesis; Fawzi, Moosavi-Dezfooli and Frossard,
        "Robustness of classifiers: from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
    """
    d = math.prod(data.shape)
    images = held_out(data, settings.samples).images
    seeds = [
        _measure(model, images, settings, executor.for_seed(seed))
        for seed, model in sorted(network.models.items())
    ]
    limits = {share: _limit(d, share, settings.delta) for share in SHARES}
    null = structureless(d - 1, settings.steps)
    samples = stack([_quantities(points, settings.widths, limits, d) for points in seeds])
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings.widths, null), resamples=settings.resamples)
    )
    numbers["kappa_top / kappa_random, structureless"] = exactly(null, NULL_DRAWS)
    return Findings(
        numbers=numbers,
        tables={
            "curvature": _table(numbers, samples),
            "corollary_1": _conditions(numbers, limits, d),
        },
        figures=_figures(network, data, images, seeds[0][""], settings),
        tensors={
            f"bend_{width:g}": samples[f"bend {width:g}"].float() for width in settings.widths
        },
        notes=_notes(samples, settings, d, null),
    )


def _measure(
    model: Classifier, images: Images, settings: Settings, executor: Executor
) -> dict[str, dict[str, Tensor]]:
    """Suffix of a point -> what :func:`flatness` finds there, r and cos(r, n)."""
    points = {
        "": closest_points(model, images, executor),
        " (crossing)": crossing_points(settings.boundary_attack, model, images, executor),
    }
    return {
        suffix: {
            "r": point.perturbations,
            "alignment": point.angles.cos(),
            **_flatness(model, point, settings, executor),
        }
        for suffix, point in points.items()
    }


def _flatness(
    model: Classifier, point: Boundary, settings: Settings, executor: Executor
) -> dict[str, Tensor]:
    names = ("points", "perturbations", "normals", "labels", "targets", "success")
    rows = [getattr(point, name) for name in names]
    measure = partial(flatness, settings.widths, settings.h, settings.steps, model)
    return executor.map(measure, *rows, randomness=True).value


def structureless(size: int, steps: int) -> float:
    """median(largest |eigenvalue|) / median(|v' H v|) of a symmetric Gaussian matrix H.

    The largest eigenvalue is that of a Krylov space of ``steps`` dimensions, as the most curved
    direction is searched. With a random start it is that of a tridiagonal matrix with independent
    entries: N(0, 2) on the diagonal, chi of size - 1, size - 2, ... degrees of freedom beside it.

    Args:
        size: number of rows, at least 1.
        steps: number of products with H, at least 1.

    References:
        I. Dumitriu and A. Edelman, "Matrix models for beta ensembles", Journal of Mathematical
        Physics, 2002.

    Example:
        >>> from stages.semirandom.boundary_sections import structureless
        >>> 55 < structureless(783, 15) < 65
        True
    """
    numbers = np.random.default_rng(seeded("structureless").initial_seed())
    count = min(steps, size)
    matrices = np.zeros((NULL_DRAWS, count, count))
    places = np.arange(count)
    matrices[:, places, places] = math.sqrt(2) * numbers.standard_normal((NULL_DRAWS, count))
    beside = np.sqrt(numbers.chisquare(size - 1.0 - places[:-1], (NULL_DRAWS, count - 1)))
    matrices[:, places[:-1], places[1:]] = matrices[:, places[1:], places[:-1]] = beside
    top = np.abs(np.linalg.eigvalsh(matrices)).max(axis=1)
    along = math.sqrt(2) * np.abs(numbers.standard_normal(NULL_DRAWS))
    return float(np.median(top) / np.median(along))


def _quantities(
    points: Mapping[str, Mapping[str, Tensor]],
    widths: Sequence[float],
    limits: Mapping[float, float],
    d: int,
) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed, at both points."""
    found: dict[str, Tensor] = {}
    for suffix, rows in points.items():
        lengths, success = norms(rows["r"]).double(), rows["success"]
        own = {
            f"bend {width:g}": valid(rows["planar"][:, i].double().abs() * lengths, success)
            for i, width in enumerate(widths)
        }
        own |= {name: valid(rows[name].double().abs(), success) for name in ("along", "top")}
        first = own[f"bend {widths[0]:g}"]
        own |= {
            "alignment": valid(rows["alignment"].abs(), success),
            "bend along": own["along"] * lengths,
            "bend top": own["top"] * lengths,
            "bend - limit": first - limits[_share(d)],
            **{
                f"met {share:g}": valid(first <= limit, ~first.isnan())
                for share, limit in limits.items()
            },
        }
        found |= {f"{name}{suffix}": values for name, values in own.items()}
    return found


def _share(d: int) -> float:
    """M / d at which the condition of Corollary 1 is judged."""
    return next((share for share in SHARES if round(share * d) >= LEAST), SHARES[-1])


def _dimensions(d: int, share: float) -> int:
    return max(1, round(share * d))


def _limit(d: int, share: float, delta: float) -> float:
    """(0.2 / zeta_2) m / d of Corollary 1 at m = share d; m is at least one dimension."""
    return curvature_limit(d, _dimensions(d, share), delta)


def _statistics(widths: Sequence[float], null: float) -> dict[str, Statistic]:
    """The numbers: medians over images and training seeds, at both points."""
    found: dict[str, Statistic] = {}
    for suffix in POINTS:
        first = f"bend {widths[0]:g}{suffix}"
        top, along = f"top{suffix}", f"along{suffix}"
        own = {
            "kappa_r": median(first),
            **{f"kappa_r_{width:g}": median(f"bend {width:g}{suffix}") for width in widths},
            "kappa_r_gradients": median(f"bend along{suffix}"),
            "kappa_r_top": median(f"bend top{suffix}"),
            "kappa_r - limit": median(f"bend - limit{suffix}"),
            "kappa_random": median(along),
            "kappa_top": median(top),
            "kappa_top / kappa_random": ratio_of_medians(top, along),
            "kappa_top / kappa_random - structureless": _beyond(top, along, null),
            **{f"share_met_{share_:g}": share(f"met {share_:g}{suffix}") for share_ in SHARES},
            "alignment": median(f"alignment{suffix}"),
        }
        found |= {f"{name}{suffix}": statistic for name, statistic in own.items()}
    return found


def _beyond(top: str, along: str, null: float) -> Statistic:
    """The ratio of medians less that of a matrix without structure."""
    ratio = ratio_of_medians(top, along)
    return replace(ratio, reduce=lambda a, b: ratio.reduce(a, b) - null)


def _table(numbers: Mapping[str, Estimate], samples: Mapping[str, Tensor]) -> pd.DataFrame:
    """One row per number and point, with its interval and cos(r, n)."""
    rows = []
    for name, estimate in numbers.items():
        suffix = next((s for s in POINTS if s and name.endswith(s)), "")
        rows.append(
            {
                "number": name.removesuffix(suffix),
                "point": POINTS[suffix],
                **columns("median", estimate),
                "cos(r, n)": float(samples[f"alignment{suffix}"].nanmedian()),
                "images": estimate.n,
                "seeds": estimate.seeds,
            }
        )
    return pd.DataFrame(rows)


def _conditions(
    numbers: Mapping[str, Estimate], limits: Mapping[float, float], d: int
) -> pd.DataFrame:
    """One row per m / d and point: Corollary 1's limit, and the share of images that keep it."""
    return pd.DataFrame(
        [
            {
                "m_over_d": share,
                "m": _dimensions(d, share),
                "point": point,
                "limit": limit,
                **columns("share_met", numbers[name]),
            }
            for share, limit in limits.items()
            for suffix, point in POINTS.items()
            if (name := f"share_met_{share:g}{suffix}") in numbers
        ]
    )


def _figures(
    network: Network, data: Dataset, images: Images, rows: Mapping[str, Tensor], settings: Settings
) -> dict[str, Figure]:
    """Figure 5.6, and Figures 5.5 and 5.7 of the first training seed where it has a boundary."""
    figures = {"figure_5_6": flat_drawings()}
    found = rows["success"].nonzero()[:, 0]
    if len(found):
        chosen = found[: settings.pictures]
        figures["figure_5_5"] = random_planes(
            network.model, data, images, rows, chosen.tolist(), settings.grid
        )
        bent = rows["top"].abs().nan_to_num(nan=-1.0)[found].argsort(descending=True)[:3]
        figures["figure_5_7"] = chosen_planes(
            network.model, data, images, rows, found[bent].tolist(), settings.grid
        )
    return figures


def _notes(samples: Mapping[str, Tensor], settings: Settings, d: int, null: float) -> list[str]:
    """Notes on the failures, the points, both measures, and the condition of Corollary 1."""
    along = samples["along"]
    lost = int(along.isnan().sum())
    open_ = int(samples[f"bend {settings.widths[0]:g}"].isnan().sum()) - lost
    h = default_h(d) if settings.h is None else settings.h
    others = ", ".join(f"{width:g}" for width in settings.widths[1:])
    share = _share(d)
    return [
        f"{along.shape[1]} held-out images, one random direction each; no boundary point was found "
        f"in {lost} of {along.numel()} cases, and no crossing somewhere on the section in {open_}: "
        "they are left out.",
        "Without a suffix the numbers are of the closest point; (crossing) is the point where "
        "DeepFool's perturbation crosses the boundary, at which the thesis may have measured. "
        "Figures 5.5 and 5.7 show the closest point.",
        f"The most curved direction is looked for in a Krylov space of {settings.steps} "
        "dimensions: the largest curvature is at least what stands here.",
        f"A symmetric Gaussian matrix of {d - 1} dimensions, searched in the same way, has "
        f"{null:.3g} for the largest |curvature| over that of a random direction: only above that "
        "are few directions curved, as random signs cancel along random directions in any matrix.",
        f"Sections are {settings.widths[0]:g} ||r|| wide on either side (and "
        f"({others}) for comparison); curvatures by gradients are over h = {h:.3g} "
        "pixel units, so that the two measures differ where the boundary bends at smaller scales.",
        f"Corollary 1 asks for kappa ||r*|| <= {_limit(d, share, settings.delta):.3g} at m = "
        f"{_dimensions(d, share)} = {share:g} d and delta = {settings.delta:g} (the thesis names "
        f"none). The thesis has m = d / 1,000, which is {d / 1000:.3g} here; the share taken is "
        f"the smallest of {', '.join(f'{s:g}' for s in SHARES)} with at least {LEAST} dimensions.",
        "Figure 5.6 shows two functions of our own: the thesis does not give its own.",
    ]
