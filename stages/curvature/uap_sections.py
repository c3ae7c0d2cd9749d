"""Sections of the boundary along universal perturbations (Section 6.4.1, Figures 6.7 and 6.8)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import axes_grid, histogram_figure, styled
from pipeline.statistics import Estimate, Statistic, mean_share, median, ratio_of_medians, stack
from pipeline.studies.curvature import CurvatureStudy
from pipeline.studies.curvature_fooling import fooling_studies
from pipeline.studies.curvature_settings import MeanHessian, UniversalVectors
from pipeline.studies.curvature_tables import (
    at_point,
    curvature_columns,
    measured_at,
    named,
    notes,
)
from pipeline.studies.flatness import flat_share
from pipeline.studies.regions import draw_regions
from pipeline.studies.universal import UniversalStudy, made_of
from pipeline.tables import class_name, columns
from robustness_geometry.checks import check_count
from robustness_geometry.geometry import Boundary, plane_sections, tangent_projection
from robustness_geometry.types import Classifier, Dataset, Network
from stages.curvature.principal_curvatures import profile
from stages.curvature.sc_average_curvature import ENDS

__all__ = ["SECTION", "Settings", "draw_sections", "uap_sections"]

SECTION = "Section 6.4.1, Figures 6.7 and 6.8"

REACH = 3.0
"""Half width of the pictures, in units of ||r||."""


@dataclass(frozen=True)
class Settings(MeanHessian, UniversalVectors):
    """What to measure; the notes alone name the ``fool_samples`` images.

    Attributes:
        directions: number of random directions per image; the median size of its curvatures along
            them stands for the image.
        profile_samples: number of held-out images, at most ``samples``, whose whole spectrum says
            how rare strongly bent directions are.
        full_dimension: largest d for which the whole spectrum is computed.
        pictures: number of images in the figures.
        grid: number of points along each side of a picture, at least 2.
    """

    directions: int = 5
    profile_samples: int = 1000
    full_dimension: int = 4000
    pictures: int = 4
    grid: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("directions", "profile_samples", "full_dimension", "pictures"):
            check_count(name, getattr(self, name))
        check_count("grid", self.grid, minimum=2)


def uap_sections(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure the curvature of normal sections along the universal perturbation.

    It stands beside that along random directions and along both ends of the mean Hessian's
    spectrum.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``kappa_uap``, the median over images, ``kappa_random``, the median size along random
        directions, and the first less three times the second; how many times as large the size of
        the curvature is; the same of the most positive and most negative shared directions; names
        that end in ``(closest)`` belong to the closest points, as ``share_flat`` of an image's
        principal curvatures does.

    References:
        Thesis, Section 6.4.1 and Figures 6.7 and 6.8. S.-M. Moosavi-Dezfooli et al., "Analysis of
        universal adversarial perturbations", arXiv:1705.09554.
    """
    pairs = fooling_studies(
        network,
        data,
        settings,
        executor,
        images=settings.universal_samples,
        orders=settings.universal_orders,
    )
    samples = stack(executor.each(lambda pair: _measure(*pair, settings), pairs))
    numbers = paired_bootstrap(samples, _statistics(samples), resamples=settings.resamples)
    numbers |= measured_at([study for study, _ in pairs])
    first, universal = pairs[0]
    v = universal.vector(2.0).perturbation
    kappas = {name: samples[name][0] for name in ("uap", "random signed")}
    titles = {
        "uap": "along the universal perturbation",
        "random signed": "along a random direction",
    }
    return Findings(
        numbers=named(numbers, settings),
        tables={"curvature": _table(numbers), "sweep": _over_h(first, v, settings)},
        figures={
            "figure_6_7": _pictures(first, v, data, network, settings),
            "curvature": histogram_figure(
                {titles[name]: values for name, values in kappas.items()},
                xlabel=r"curvature $\kappa$ of the section (1 / pixel unit)",
                title=f"Sections of the boundary, {network.name}",
            ),
        },
        notes=[*notes([study for study, _ in pairs]), *_notes(pairs, numbers, settings)],
    )


def _measure(
    study: CurvatureStudy[Settings], universal: UniversalStudy, settings: Settings
) -> dict[str, Tensor]:
    """Name -> one value per held-out image, NaN for those without a point."""
    found: dict[str, Tensor] = {}
    for end, one in study.both.items():
        points = one.test_points()
        vectors = torch.cat([universal.vector(2.0).perturbation, *_ends(one, bool(end))])
        along = one.along(points, vectors)
        drawn = one.at_random(points, settings.directions)
        values = {
            "uap": along[:, 0],
            "uap size": along[:, 0].abs(),
            "sc": along[:, 1],
            "negative": along[:, 2],
            "random": drawn.double().abs().quantile(0.5, dim=1),
            "random signed": drawn[:, 0],
            "uap positive": (along[:, 0] > 0).double(),
            "random positive": (drawn > 0).double().mean(dim=1),
        }
        found |= {f"{name}{end}": one.placed(each) for name, each in values.items()}
    if study.d <= settings.full_dimension:
        # The spectra are those of the closest points, which Section 7.4 computes too.
        closest = study.at("closest")
        flat = flat_share(profile(closest, settings.profile_samples))
        found["flat"] = closest.placed(flat)
    return found


def _ends(study: CurvatureStudy[Settings], beside: bool) -> list[Tensor]:
    """The eigenvectors at both ends of the mean Hessian's spectrum, (1, C, H, W) each."""
    ends = study.ends_beside(1) if beside else None
    both = [study.curved(1, negative=negative, ends=ends) for negative in (False, True)]
    return [each.view(1, *study.train.images.shape[1:]) for each in both]


def _statistics(samples: Mapping[str, Tensor]) -> dict[str, Statistic]:
    statistics: dict[str, Statistic] = {}
    for end in ENDS:
        statistics |= {
            f"kappa_uap{end}": median(f"uap{end}"),
            f"kappa_random{end}": median(f"random{end}"),
            f"kappa_random, signed{end}": median(f"random signed{end}"),
            f"kappa_sc{end}": median(f"sc{end}"),
            f"kappa_negative{end}": median(f"negative{end}"),
            f"kappa_uap - 3 kappa_random{end}": Statistic((f"uap{end}", f"random{end}"), _margin),
            f"|kappa_uap| / |kappa_random|{end}": ratio_of_medians(
                f"uap size{end}", f"random{end}"
            ),
            f"share_positive_uap{end}": mean_share(f"uap positive{end}"),
            f"share_positive_random{end}": mean_share(f"random positive{end}"),
        }
    return statistics | ({"share_flat": mean_share("flat")} if "flat" in samples else {})


def _margin(universal: Tensor, random: Tensor) -> Tensor:
    middle = median("random").reduce
    return middle(universal) - 3 * middle(random)


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for name, e in numbers.items():
        if name.startswith("alignment"):
            continue
        end = ENDS[1] if name.endswith(ENDS[1]) or name == "share_flat" else ""
        row: dict[str, object] = {"number": name.removesuffix(ENDS[1])}
        row |= at_point(end, "crossing", numbers) | columns("value", e)
        rows.append(row | {"images": e.n, "seeds": e.seeds})
    return pd.DataFrame(rows)


def _over_h(study: CurvatureStudy[Settings], v: Tensor, settings: Settings) -> pd.DataFrame:
    """Curvatures along the universal perturbation and along random directions, at each h."""
    rows = []
    points = study.test_points(settings.sweep_samples)
    for factor, h in study.h_factors.items():
        sets = {
            "universal": study.along(points, v, h=h),
            "random": study.at_random(points, settings.directions, h=h),
        }
        for name, values in sets.items():
            row: dict[str, object] = {
                "h_factor": factor,
                "h": h,
                "direction": name,
                **curvature_columns(values, h),
            }
            row["median"] = float(values.nanmedian())
            rows.append(row | {"median_size": float(values.abs().nanmedian())})
    return pd.DataFrame(rows)


def _pictures(
    study: CurvatureStudy[Settings],
    v: Tensor,
    data: Dataset,
    network: Network,
    settings: Settings,
) -> Figure:
    """Figures 6.7 and 6.8: sections with the planes of r and the perturbation or random vectors."""
    points = study.near_test
    rows = points.success.nonzero()[: settings.pictures, 0]
    chosen, images = points.select(rows), study.test.images[rows]
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(study.seed))
    return draw_sections(
        study.model,
        data,
        images,
        chosen,
        {"universal perturbation": v.expand_as(images), "random direction": drawn},
        grid=settings.grid,
        title=f"Normal sections, {network.name}",
    )


def draw_sections(
    model: Classifier,
    data: Dataset,
    images: Tensor,
    points: Boundary,
    directions: Mapping[str, Tensor],
    *,
    grid: int,
    title: str,
) -> Figure:
    """Decision regions in the planes of r and a direction, through each image.

    There is one row per kind of direction.

    Args:
        model: the classifier.
        data: its data set, for the names of classes.
        images: (k, C, H, W).
        points: their boundary points, none missing.
        directions: name of a kind -> (k, C, H, W); only the part orthogonal to r counts.
        grid: number of points along each side.
        title: title of the figure.
    """
    like = next(model.parameters(), images)
    span = torch.linspace(-REACH, REACH, grid)
    names = partial(class_name, data)
    wide, high = max(6.5, 2.9 * len(images) + 0.6), 3.2 * len(directions) + 0.4
    figure, axes = axes_grid(len(directions), len(images), width=wide, height=high)
    for row, (name, vectors) in zip(axes, directions.items(), strict=True):
        # Both axes are in units of ||r||: the image is at 0, its boundary point at 1 upwards.
        # The plane is that of r and the direction, whose part across r is drawn.
        r = points.perturbations
        lengths = r.flatten(1).norm(dim=1).view(-1, *[1] * (r.ndim - 1))
        tangent = tangent_projection(vectors[:, None].to(r), r / lengths)[:, 0]
        across = (
            lengths * tangent / tangent.flatten(1).norm(dim=1).view(-1, *[1] * (tangent.ndim - 1))
        )
        origins, first, second = (part.to(like) for part in (images, across, points.perturbations))
        own = points.labels.to(like.device)
        section = plane_sections(
            model, origins, first, second, span.to(like), span.to(like), labels=own
        )
        for index, (panel, label) in enumerate(zip(row, points.labels.tolist(), strict=True)):
            draw_regions(
                panel,
                section.labels[index],
                section.leads[index],
                span,
                span,
                own=label,
                name=names,
            )
            with styled():
                panel.plot([0], [0], "o", color="#22282f", markersize=4)
                panel.annotate("x", (0, 0), xytext=(4, -12), textcoords="offset points")
                panel.set(xlabel=rf"{name} / $\|r\|_2$", aspect="equal")
                panel.set_ylabel(r"$r$ / $\|r\|_2$" if index == 0 else "")
                panel.legend(loc="lower right", fontsize=7.5, frameon=True, framealpha=0.8)
    with styled():
        figure.suptitle(title, fontsize=12.5, fontweight="bold")
    return figure


def _notes(
    pairs: Sequence[tuple[CurvatureStudy[Settings], UniversalStudy]],
    numbers: Mapping[str, Estimate],
    settings: Settings,
) -> list[str]:
    universal, random = numbers["kappa_uap"].value, numbers["kappa_random"].value
    size = numbers["|kappa_uap| / |kappa_random|"].value
    lines = [
        *made_of([universal for _, universal in pairs]),
        "The section along v is that with the plane of the boundary's normal and v; kappa is "
        "divided by the "
        f"gradient's norm. Along the universal perturbation its median is {universal:.3g} "
        "(positive for "
        f"{numbers['share_positive_uap'].value:.0%} of the images), its size along "
        f"{settings.directions} random "
        f"directions {random:.3g} (positive for {numbers['share_positive_random'].value:.0%}), "
        "along the most positive "
        f"shared direction {numbers['kappa_sc'].value:.3g}, along the most negative one "
        f"{numbers['kappa_negative'].value:.3g}.",
        f"Whatever its sign, the curvature along the universal perturbation is {size:.2g} times as "
        "large as along random directions, in the medians.",
        "In the figure the black line bounds the region of the image's class against all others.",
    ]
    if "share_flat" in numbers:
        lines.append(
            f"share_flat: of the principal curvatures of {settings.profile_samples} images a "
            "training seed, those of "
            "at most 5% of the image's largest size, as mean over images, over the same h and "
            "along vectors that move all pixels; the table 'sweep' of principal_curvatures has "
            "other h and the pixels' own axes, on which it depends."
        )
    return lines
