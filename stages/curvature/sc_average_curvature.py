"""Curvature of the boundary along the shared curved directions (Section 6.4.1, Figure 6.9a)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, estimate_line, line_figure, styled
from pipeline.statistics import (
    Estimate,
    Statistic,
    mean,
    mean_share,
    of_means,
    spearman,
    spread_margin,
    stack,
)
from pipeline.studies.curvature import CurvatureStudy, curvature_studies
from pipeline.studies.curvature_fooling import within
from pipeline.studies.curvature_settings import MeanHessian, check_dimensions, check_products
from pipeline.studies.curvature_tables import (
    at_point,
    curvature_columns,
    measured_at,
    named,
    notes,
)
from pipeline.tables import columns
from robustness_geometry.checks import check_count
from robustness_geometry.geometry import RitzPairs
from robustness_geometry.types import Dataset, Network

__all__ = ["ENDS", "KINDS", "SECTION", "Settings", "bases", "beside", "sc_average_curvature"]

SECTION = "Section 6.4.1, Figure 6.9a"

KINDS = {
    "sc": "$S_c$, most positive eigenvectors",
    "negative": "most negative eigenvectors",
    "sf": "$S_f$, normals",
}
"""What numbers call a subspace -> what figures call it."""

ENDS = ("", " (closest)")
"""What the names of numbers end in at the crossings, which claims are judged at, and beside."""


@dataclass(frozen=True)
class Settings(MeanHessian):
    """What to measure, beyond the settings of :class:`MeanHessian`.

    Attributes:
        dimensions: two or more dimensions m of the subspaces, ascending, at most half of
            ``products``.
        small: one of ``dimensions``, which stands for the thesis' small m.
        directions: number of random directions of each subspace, drawn anew for each image.
    """

    dimensions: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200, 500)
    small: int = 10
    directions: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("directions", self.directions)
        check_dimensions(self.dimensions, self.small)

    def check(self, data: Dataset) -> None:
        """Check that subspaces of these dimensions can be had."""
        check_products(self.products, self.dimensions[-1], math.prod(data.shape))


def sc_average_curvature(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure kappa_S(x) = E (Pv)' H (Pv) / ||Pv||^2 over random v of S_c (Equation 6.4).

    It is measured at boundary points near unseen images, where DeepFool's r cross the boundary; S_c
    is made at such points. The same of the closest points stands beside it for small m.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        For each m ``kappa_S_<m>``, the mean over images, and ``kappa_<control>_<m>`` for the
        subspace of the most negative eigenvectors, S_f and random directions; the mean less the
        standard deviation, and the rank correlation with m; names that end in ``(closest)`` belong
        to the closest points.

    References:
        Thesis, Section 6.4.1, Equation 6.4 and Figure 6.9a. S.-M. Moosavi-Dezfooli et al.,
        "Analysis of universal adversarial perturbations", arXiv:1705.09554.
    """
    studies = curvature_studies(network, data, settings, executor, point="crossing")
    samples = stack(executor.each(lambda study: _measure(study, settings), studies))
    numbers = paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    numbers |= measured_at(studies)
    return Findings(
        numbers=named(numbers, settings),
        tables={
            "figure_6_9a": _table(numbers, settings),
            "sweep": _over_h(studies[0], settings.small, settings.directions),
        },
        figures={"figure_6_9a": _figure(network, numbers, settings)},
        notes=[*notes(studies), *_notes(studies[0], numbers, settings)],
    )


def bases(
    study: CurvatureStudy[MeanHessian], m: int, ends: RitzPairs | None = None
) -> dict[str, Tensor]:
    """Name of KINDS -> orthonormal rows (m, d); ``ends`` as in :meth:`CurvatureStudy.curved`."""
    return {
        "sc": study.curved(m, ends=ends),
        "negative": study.curved(m, negative=True, ends=ends),
        "sf": study.normal_basis(m),
    }


def beside(dimensions: Sequence[int], small: int) -> list[int]:
    """The m that are shown at the closest points: the smallest one and ``small``."""
    return sorted({dimensions[0], small})


def _measure(study: CurvatureStudy[Settings], settings: Settings) -> dict[str, Tensor]:
    """Name -> kappa_S(x) of each held-out image.

    ``positive`` is the share of the directions along which curvature is above 0.
    """
    placed = {}
    for end, one in study.both.items():
        points = one.test_points()
        shown = beside(settings.dimensions, settings.small) if end else settings.dimensions
        ends = one.ends_beside(settings.small) if end else None
        for m in shown:
            for kind, basis in bases(one, m, ends).items():
                # All directions of a subspace of one dimension are the same up to their sign.
                count = 1 if len(basis) == 1 else settings.directions
                values = one.inside(points, basis, count, normalised=False).double()
                placed[f"{kind} {m}{end}"] = one.placed(values.nanmean(dim=1))
                placed[f"{kind} {m} positive{end}"] = one.placed((values > 0).double().mean(dim=1))
        values = one.at_random(points, settings.directions, normalised=False).double()
        placed[f"random{end}"] = one.placed(values.mean(dim=1))
        placed[f"random positive{end}"] = one.placed((values > 0).double().mean(dim=1))
    return placed


def _statistics(settings: Settings) -> dict[str, Statistic]:
    statistics: dict[str, Statistic] = {}
    for kind, end, m in _cases(settings):
        statistics[f"{_prefix(kind)}_{m}{end}"] = mean(f"{kind} {m}{end}")
        statistics[f"share_positive_{kind}_{m}{end}"] = mean(f"{kind} {m} positive{end}")
    for kind in KINDS:
        every = [f"{kind} {m}" for m in settings.dimensions]
        statistics[f"spearman_{kind}"] = of_means(every, partial(spearman, settings.dimensions))
    for end in ENDS:
        small = f"sc {settings.small}{end}"
        statistics |= {
            f"kappa_S{end}": mean(small),
            f"kappa_S - std{end}": spread_margin(small),
            f"kappa_random{end}": mean(f"random{end}"),
            f"share_positive_random{end}": mean_share(f"random positive{end}"),
        }
    return statistics


def _cases(settings: Settings) -> list[tuple[str, str, int]]:
    """The kind of the subspace, what names end in, and m of every row of Figure 6.9a."""
    return [
        (kind, end, m)
        for end in ENDS
        for kind in KINDS
        for m in (beside(settings.dimensions, settings.small) if end else settings.dimensions)
    ]


def _prefix(kind: str) -> str:
    return "kappa_S" if kind == "sc" else f"kappa_{kind}"


def _over_h(study: CurvatureStudy[Settings], m: int, directions: int) -> pd.DataFrame:
    """S_c and its negative control made and measured at other h, at unseen points."""
    rows = []
    points = study.test_points(study.settings.sweep_samples)
    for factor, h in study.h_factors.items():
        row: dict[str, object] = {"h_factor": factor, "h": h}
        for kind, basis in study.curved_at(factor, m).items():
            taken = len(basis)
            vectors = within(basis, study.train.images, directions, 1.0, kind, taken, study.seed)
            signs = curvature_columns(study.along(points, vectors, h=h), h)
            rows.append({**row, "direction": kind, "m": taken, **signs})
        signs = curvature_columns(study.at_random(points, directions, h=h), h)
        rows.append({**row, "direction": "random", "m": study.d, **signs})
    return pd.DataFrame(rows)


def _table(numbers: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    cases = [
        (kind, end, str(m), f"{_prefix(kind)}_{m}{end}", f"share_positive_{kind}_{m}{end}")
        for kind, end, m in _cases(settings)
    ]
    cases += [
        ("random", end, "", f"kappa_random{end}", f"share_positive_random{end}") for end in ENDS
    ]
    rows: list[dict[str, object]] = []
    for kind, end, m, name, positive in cases:
        value = numbers[name]
        row: dict[str, object] = {"subspace": kind, "m": m, **at_point(end, "crossing", numbers)}
        row |= {**columns("kappa", value), "std": value.std}
        row["share_positive"] = numbers[positive].value
        rows.append(row | {"images": value.n, "seeds": value.seeds})
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: Mapping[str, Estimate], settings: Settings) -> Figure:
    """Figure 6.9a: mean and standard deviation over the images, and the controls."""
    m = list(settings.dimensions)
    lines = {}
    for kind, title in KINDS.items():
        shown = [numbers[f"{'kappa_S' if kind == 'sc' else f'kappa_{kind}'}_{each}"] for each in m]
        lines[title] = estimate_line(m, shown, style="-" if kind == "sc" else "--")
    few = beside(settings.dimensions, settings.small)
    lines["$S_c$, closest points"] = estimate_line(
        few, [numbers[f"kappa_S_{each} (closest)"] for each in few], style=":"
    )
    figure = line_figure(
        lines,
        xlabel="dimension m of the subspace",
        ylabel=r"mean curvature $\kappa_S$ (not divided by $\|\nabla F\|$)",
        title=f"Curvature at unseen boundary points, {network.name}",
        references={"random directions": numbers["kappa_random"].value, "0": 0.0},
        log_x=True,
        width=8.0,
    )
    shown = [numbers[f"kappa_S_{each}"] for each in m]
    with styled():
        figure.axes[0].errorbar(
            m,
            [e.value for e in shown],
            yerr=[e.std for e in shown],
            fmt="none",
            capsize=4,
            ecolor=COLOURS[0],
            label="$S_c$, standard deviation of images",
        )
        figure.axes[0].autoscale(axis="y")
        figure.axes[0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _notes(
    study: CurvatureStudy[Settings], numbers: Mapping[str, Estimate], settings: Settings
) -> list[str]:
    small, ends = settings.small, study.ends()
    negative = numbers[f"kappa_negative_{small}"].value
    return [
        "S_c is spanned by the eigenvectors with the largest eigenvalues of the mean "
        "tangent-projected Hessian at "
        f"{len(study.train_points())} training images, found by {ends.values.shape[1]} products "
        "with it; the "
        f"largest and smallest eigenvalues are {float(ends.values[0, 0]):.3g} and "
        f"{float(ends.values[0, -1]):.3g} "
        f"(first training seed), up to {float(ends.residuals[0, 0]):.2g} and "
        f"{float(ends.residuals[0, -1]):.2g}: over "
        "a finite h the Hessian of a network of ReLUs is not quite linear.",
        f"At m = {small} the mean curvature along S_c on unseen images is "
        f"{numbers['kappa_S'].value:.3g} (standard "
        f"deviation {numbers['kappa_S'].std:.3g}), along the most negative eigenvectors "
        f"{negative:.3g}, along random "
        f"directions {numbers['kappa_random'].value:.3g}; the thesis has it well above 0 for S_c. "
        "At the closest points it is "
        f"{numbers['kappa_S (closest)'].value:.3g} along S_c and "
        f"{numbers['kappa_random (closest)'].value:.3g} along random directions: a boundary made "
        "of flat pieces cannot have a kink towards the image at its closest point.",
        f"{settings.directions} random directions of each subspace, drawn anew for each image; "
        "curvatures as in "
        "Equation 6.4, not divided by the gradient's norm. The sweep makes S_c anew from fewer "
        "images at each h and "
        f"divides by it. S_f has at most {len(study.train)} dimensions; beyond, all of it is "
        "taken.",
    ]
