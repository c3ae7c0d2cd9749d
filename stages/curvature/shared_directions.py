"""Directions along which the boundary is curved near many images (Section 7.4, Figure 7.6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, difference, mean, mean_share, stack
from pipeline.studies.curvature import CurvatureStudy, curvature_studies
from pipeline.studies.curvature_settings import Curvatures, SharedDirections, dimension_of
from pipeline.studies.curvature_tables import (
    at_point,
    curvature_columns,
    measured_at,
    named,
    notes,
)
from pipeline.tables import columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import Boundary
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "relative_curvatures", "shared_directions"]

SECTION = "Section 7.4, Figure 7.6"

SHOWN = 10
"""Directions of Figure 7.6b."""

GRID = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""Ranks i at which rho_i is of d = 3,072; in proportion where d is smaller."""

ENDS = ("", " (crossing)")
"""What names of numbers end in at the closest points, which claims are judged at, and beside."""

TANGENT = 1e-8
"""Squared length of a unit vector's tangent part below which it is rounding."""


@dataclass(frozen=True)
class Settings(SharedDirections):
    """What to measure, beyond the settings of :class:`SharedDirections`.

    Attributes:
        middle: second of the three ranks that are compared, above 1, of d = 3,072; in proportion
            where d is smaller. The first rank is 1.
        last: third of the ranks, above ``middle``, of d = 3,072; in proportion where d is smaller.
        directions: number of random directions per image, for the mean curvature that rho_i is
            relative to.
    """

    middle: int = 100
    last: int = 1000
    directions: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("middle", "last", "directions"):
            check_count(name, getattr(self, name))
        if not 1 < self.middle < self.last:
            refuse("middle", self.middle, f"a whole number above 1 and below last = {self.last}")


def shared_directions(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure rho_i(z) = |u_i' PHP u_i| / E |v' PHP v| at unseen boundary points (Equation 7.3).

    The u_i are made and measured at closest points; at the points where DeepFool's r cross the
    boundary they are measured too.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``rho_<i>`` over a range of ranks; ``rho_first``, ``rho_middle`` and ``rho_last`` and their
        differences; the directions as tensors.

    References:
        Thesis, Section 7.4, Equation 7.3 and Figure 7.6. A. Fawzi, S.-M. Moosavi-Dezfooli et al.,
        "Classification regions of deep neural networks", arXiv:1705.09552.
    """
    studies = curvature_studies(network, data, settings, executor)
    first = studies[0]
    d = first.d
    ranks = ranks_of(settings, d, len(first.train))
    middle, last = (_nearest(ranks, dimension_of(i, d)) for i in (settings.middle, settings.last))
    samples = stack(executor.each(lambda study: _measure(study, ranks, settings), studies))
    statistics: dict[str, Statistic] = {
        f"rho_{i}{end}": mean(f"rho {i}{end}") for end in ENDS for i in ranks
    }
    statistics |= {
        "rho_first": mean("rho 1"),
        "rho_middle": mean(f"rho {middle}"),
        "rho_last": mean(f"rho {last}"),
        "rho_first - rho_middle": difference("rho 1", f"rho {middle}"),
        "rho_middle - rho_last": difference(f"rho {middle}", f"rho {last}"),
        "share_negative_1": mean_share("negative 1"),
        "share_negative_1 (crossing)": mean_share("negative 1 (crossing)"),
    }
    numbers = paired_bootstrap(samples, statistics, resamples=settings.resamples)
    numbers |= measured_at(studies)
    return Findings(
        numbers=named(numbers, settings),
        tables={
            "figure_7_6a": _table(numbers, ranks),
            "sweep": _over_h(first, settings, min(SHOWN, max(ranks))),
        },
        figures={
            "figure_7_6a": _figure(network, numbers, ranks),
            "figure_7_6b": _pictures(network, first, min(SHOWN, max(ranks)), numbers),
        },
        tensors={
            "directions": first.shared(min(2 * SHOWN, max(ranks))).view(
                -1, *first.train.images.shape[1:]
            )
        },
        notes=[*notes(studies), *_notes(first, numbers, settings, (middle, last))],
    )


def ranks_of(settings: Settings, d: int, images: int) -> list[int]:
    """The ranks i at which rho_i is measured, ascending, as far as there are so many directions."""
    most = min(images * min(settings.leading, d - 1), d)
    wanted = {dimension_of(i, d) for i in (*GRID, settings.middle, settings.last)} | {1, 2}
    return sorted(i for i in wanted if i <= most)


def _nearest(ranks: Sequence[int], wanted: int) -> int:
    return min(ranks, key=lambda rank: abs(rank - wanted))


def relative_curvatures(
    study: CurvatureStudy[Curvatures],
    points: Boundary,
    directions: Tensor,
    count: int,
    *,
    h: float | None = None,
) -> tuple[Tensor, Tensor]:
    """rho_i(z) for directions u_i, and the signed curvatures along them.

    Both numerator and denominator keep the length of the tangent part, as in Equation 7.3; for v
    uniform on the whole sphere it is nearly 1, and the curvatures along random tangent directions
    are taken, times (d - 1) / d.

    Args:
        study: the classifier.
        points: n boundary points z.
        directions: unit vectors u_i, (K, d).
        count: number of random directions per point.
        h: length over which curvature is measured; None: that of the study.

    Returns:
        rho_i(z), (n, K), and u_i' PHP u_i / ||grad F||, (n, K).
    """
    vectors = directions.view(-1, *study.train.images.shape[1:])
    along = study.along(points, vectors, h=h).double()
    # ||P u||^2 = ||u||^2 - (n'u)^2 of each direction at each point.
    flat, normals = directions.double(), points.normals.flatten(1).double()
    tangent = (flat.square().sum(dim=1) - (normals @ flat.T).square()).clamp_min(0)
    # Along the normal itself no curvature is found, and none counts: its tangent part is zero.
    values = torch.where(tangent > TANGENT, along * tangent, 0.0)
    random = (
        study.at_random(points, count, h=h).double().abs().mean(dim=1) * (study.d - 1) / study.d
    )
    return values.abs() / random[:, None], values


def _measure(
    study: CurvatureStudy[Settings], ranks: Sequence[int], settings: Settings
) -> dict[str, Tensor]:
    """Name -> one value per held-out image."""
    chosen = study.shared(max(ranks))[[rank - 1 for rank in ranks]]
    placed: dict[str, Tensor] = {}
    for end, one in study.both.items():
        rho, values = relative_curvatures(one, one.test_points(), chosen, settings.directions)
        placed |= {f"rho {rank}{end}": one.placed(rho[:, k]) for k, rank in enumerate(ranks)}
        placed[f"negative 1{end}"] = one.placed((values[:, 0] < 0).double())
    return placed


def _over_h(study: CurvatureStudy[Settings], settings: Settings, most: int) -> pd.DataFrame:
    """The foremost shared directions made of a few images and measured at others, at each h."""
    rows = []
    points = study.test_points(settings.sweep_samples)
    for factor, h in study.h_factors.items():
        directions, _ = study.shared_at(h, most)
        rho, values = relative_curvatures(study, points, directions, settings.directions, h=h)
        sets = {"u_1": (rho[:, :1], values[:, :1]), f"u_1 to u_{len(directions)}": (rho, values)}
        for name, (relative, signed) in sets.items():
            row: dict[str, object] = {
                "h_factor": factor,
                "h": h,
                "direction": name,
                "rho": float(relative.mean()),
            }
            rows.append(row | curvature_columns(signed, h))
        values = study.at_random(points, settings.directions, h=h)
        row = {"h_factor": factor, "h": h, "direction": "random", "rho": 1.0}
        rows.append(row | curvature_columns(values, h))
    return pd.DataFrame(rows)


def _table(numbers: Mapping[str, Estimate], ranks: Sequence[int]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "i": rank,
                **at_point(end, "closest", numbers),
                **columns("rho", numbers[f"rho_{rank}{end}"]),
                "std": numbers[f"rho_{rank}{end}"].std,
                "images": numbers[f"rho_{rank}{end}"].n,
                "seeds": numbers[f"rho_{rank}{end}"].seeds,
            }
            for end in ENDS
            for rank in ranks
        ]
    )


def _figure(network: Network, numbers: Mapping[str, Estimate], ranks: Sequence[int]) -> Figure:
    return line_figure(
        {
            "closest points": estimate_line(ranks, [numbers[f"rho_{rank}"] for rank in ranks]),
            "crossings": estimate_line(
                ranks, [numbers[f"rho_{rank} (crossing)"] for rank in ranks], style=":"
            ),
        },
        xlabel="index i of the shared direction",
        ylabel=r"mean of $\rho_i$ at unseen boundary points",
        title=f"Curvature along shared directions, {network.name}",
        references={"random directions": 1.0},
        log_x=True,
        log_y=True,
    )


def _pictures(
    network: Network, study: CurvatureStudy[Settings], count: int, numbers: Mapping[str, Estimate]
) -> Figure:
    """Figure 7.6b: the foremost directions, scaled to the same largest value."""
    directions = study.shared(count).view(-1, *study.train.images.shape[1:])
    known = {1: "rho_1", 2: "rho_2"} | {
        i: f"rho_{i}" for i in range(3, count + 1) if f"rho_{i}" in numbers
    }
    panels: list[Panel | None] = []
    for i, u in enumerate(directions, 1):
        caption = f"$u_{{{i}}}$" + (f", rho {numbers[known[i]].value:.1f}" if i in known else "")
        panels.append(Panel(u, caption, perturbation=True))
    half = (len(panels) + 1) // 2
    title = f"Shared curved directions, {network.name}, first training seed"
    return image_grid(
        [panels[:half], panels[half:]] if len(panels) > 1 else [panels], title=title, side=1.8
    )


def _notes(
    study: CurvatureStudy[Settings],
    numbers: Mapping[str, Estimate],
    settings: Settings,
    ranks: tuple[int, int],
) -> list[str]:
    d, known = study.d, study.train_points()
    return [
        f"The u_i are the leading singular vectors of the {settings.leading} principal directions "
        "of largest size of "
        f"each of {len(known)} training images, found by {study.products_each} "
        "products with each "
        "Hessian. The thesis does not say how many an image gives.",
        f"The thesis' ranks 100 and 1,000 of d = 3,072 are {ranks[0]} and {ranks[1]} of d = {d} "
        "here.",
        "Along u_1 the boundary bends away from the image at "
        f"{numbers['share_negative_1'].value:.0%} of the unseen "
        "points; rho_i itself has no sign.",
        f"E |v' PHP v| is the mean over {settings.directions} random directions an image. Were the "
        "principal directions of each image turned at random, the u_i would be random directions, "
        "and rho_i 1. The size of rho_i depends on h, as the sweep shows.",
    ]
