"""The most curved shared direction as a universal perturbation (Section 6.4.1, Figure 6.10)."""

import math
import textwrap
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
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, difference, exactly, mean, share, stack
from pipeline.studies.curvature import CurvatureStudy
from pipeline.studies.curvature_fooling import (
    fooled_shares,
    fooling_studies,
    fooling_vectors,
    radius_note,
    share_inside,
    within,
    without,
)
from pipeline.studies.curvature_settings import MeanHessian, RandomVectors, UniversalVectors
from pipeline.studies.curvature_tables import at_point, made_at, named, notes
from pipeline.studies.universal import CLIP, UniversalStudy, made_of, random_vectors
from pipeline.tables import class_name, columns
from robustness_geometry.checks import check_count
from robustness_geometry.geometry import RitzPairs
from robustness_geometry.types import Dataset, Network
from stages.curvature.sc_average_curvature import ENDS
from stages.curvature.sc_fooling import fooling_over_h

__all__ = ["SECTION", "Settings", "sc_top_direction"]

SECTION = "Section 6.4.1, Figure 6.10"

TITLES = {
    "top": "most positive eigenvector, both signs",
    "top_best": "most positive eigenvector, better sign",
    "top_less_sf": "most positive eigenvector less the normals",
    "negative": "most negative eigenvector, both signs",
    "negative_best": "most negative eigenvector, better sign",
    "negative_less_sf": "most negative eigenvector less the normals",
    "sf_1": "leading direction of $S_f$, both signs",
    "sf": "random vectors of $S_f$",
    "random": "random vectors",
    "uap": "Algorithm 4",
}
"""What numbers call a direction -> what the table and the figure call it."""

AT_A_POINT = ("top", "top_less_sf", "negative", "negative_less_sf", "sf_1")
"""Those that are also made at the closest points."""

SHOWN = 5
"""Images of Figure 6.10."""


@dataclass(frozen=True)
class Settings(MeanHessian, UniversalVectors, RandomVectors):
    """What to measure.

    Attributes:
        dimension: m of a larger S_f that is shown beside its leading direction, at least 1; the
            thesis: 100. All of the normals' span is taken where it has fewer dimensions.
        normals: number of leading directions of S_f, at least 1, that are projected out of the
            eigenvectors to see what they fool without them.
    """

    dimension: int = 100
    normals: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("dimension", self.dimension)
        check_count("normals", self.normals)


def sc_top_direction(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Scale the leading eigenvector of the mean Hessian to xi and measure the share it fools.

    The mean is over points where DeepFool's r cross the boundary; that of the closest points stands
    beside it.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``fool_top``, the mean of both signs, ``fool_top_best``, the better one of them on the
        images that judge, the same of the most negative eigenvector, and ``fool_sf_1``, the same of
        the leading direction of S_f; ``fool_sf`` of a larger one, ``fool_random`` and ``fool_uap``.
        ``... less_sf`` are the eigenvectors without their parts along the leading normals,
        ``overlap_...`` the share of their norm that these have. xi is that of Algorithm 4 in the
        stage ``universal``.

    References:
        Thesis, Section 6.4.1 and Figure 6.10. S.-M. Moosavi-Dezfooli et al., "Analysis of universal
        adversarial perturbations", arXiv:1705.09554.
    """
    pairs = fooling_studies(
        network,
        data,
        settings,
        executor,
        images=settings.universal_samples,
        orders=settings.universal_orders,
    )
    found = executor.each(lambda pair: _measure(*pair, settings), pairs)
    samples = stack([shares for shares, _ in found])
    statistics = {
        f"fool_{name}": share(name) if name.endswith("best") else mean(name) for name in samples
    }
    for end in ENDS:
        statistics |= {
            f"fool_top - fool_sf{end}": difference(f"top{end}", f"sf_1{end}"),
            f"fool_top - fool_negative{end}": difference(f"top{end}", f"negative{end}"),
            f"fool_top - fool_random{end}": difference(f"top{end}", "random"),
            f"fool_top_less_sf - fool_random{end}": difference(f"top_less_sf{end}", "random"),
        }
    statistics |= {
        f"fool_top - fool_sf, {settings.dimension} dimensions": difference("top", "sf"),
        "fool_uap - fool_top": difference("uap", "top"),
    }
    numbers = paired_bootstrap(samples, statistics, resamples=settings.resamples)
    first, universal = pairs[0]
    studies, d = [study for study, _ in pairs], first.d
    overlaps = {name: sum(each[name] for _, each in found) / len(found) for name in found[0][1]}
    numbers |= {f"overlap_{name}": exactly(value, len(found)) for name, value in overlaps.items()}
    numbers["overlap_random"] = exactly(math.sqrt(min(settings.normals, d) / d))
    numbers |= made_at(studies)
    return Findings(
        numbers=named(numbers, settings),
        tables={
            "fooling": _table(numbers),
            "sweep": fooling_over_h(first, universal, 1, 2, universal.xi(2.0)),
        },
        figures={
            "fooling": _bars(network, numbers),
            "figure_6_10": _examples(first, universal, data, network),
        },
        tensors={"top": torch.cat([_signs(study, 1.0)[:1] for study in studies])},
        notes=[*notes(studies), *_notes(pairs, numbers, settings)],
    )


def _signs(
    study: CurvatureStudy[Settings],
    radius: float,
    *,
    negative: bool = False,
    ends: RitzPairs | None = None,
) -> Tensor:
    """The eigenvector at one end of the spectrum and its opposite, (2, C, H, W)."""
    basis = study.curved(1, negative=negative, ends=ends)
    vector = basis.view(1, *study.train.images.shape[1:])
    return radius * torch.cat([vector, -vector])


def _measure(
    study: CurvatureStudy[Settings], universal: UniversalStudy, settings: Settings
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The share of a kind's vectors that fool each held-out image; and the overlaps with S_f."""
    xi, like, count = universal.xi(2.0), study.train.images, settings.vectors
    sets = {
        "sf": within(study.normal_basis(settings.dimension), like, count, xi, "top", study.seed),
        "random": random_vectors(like.shape[1:], 2.0, xi, count),
        "uap": universal.vector(2.0).perturbation,
    }
    overlaps = {}
    for end, one in study.both.items():
        normals = one.normal_basis(settings.normals)
        sets[f"sf_1{end}"] = fooling_vectors(normals[:1], like, 2, xi, "normal", study.seed)
        ends = one.ends_beside(1) if end else None
        for kind in ("top", "negative"):
            signs = _signs(one, xi, negative=kind == "negative", ends=ends)
            sets |= {f"{kind}{end}": signs, f"{kind}_less_sf{end}": without(signs, normals)}
            overlaps[f"{kind}{end}"] = float(share_inside(signs, normals)[0])
    shares = fooled_shares(universal, sets)
    for kind in ("top", "negative"):
        both = universal.fooled(universal.test.images, sets[kind])
        # The better sign is the one that fools more of the very images that judge.
        shares[f"{kind}_best"] = both[:, int(both.mean(dim=0).argmax())]
    return shares, overlaps


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for end in ENDS:
        for name in AT_A_POINT if end else TITLES:
            estimate = numbers[f"fool_{name}{end}"]
            row: dict[str, object] = {"vector": TITLES[name].replace("$", "")}
            fixed = name in ("random", "uap")
            nowhere: dict[str, object] = {"point": "", "cos(r, n)": math.nan}
            row |= nowhere if fixed else at_point(end, "crossing", numbers)
            row |= columns("fooled", estimate)
            overlap = numbers.get(f"overlap_{name}{end}")
            row["overlap with S_f"] = overlap.value if overlap else math.nan
            rows.append(row | {"images": estimate.n, "seeds": estimate.seeds})
    return pd.DataFrame(rows)


def _bars(network: Network, numbers: Mapping[str, Estimate]) -> Figure:
    names = ("top", "top_less_sf", "negative", "sf_1", "sf", "random", "uap")
    titles = {name: textwrap.fill(TITLES[name], 12) for name in names}
    bars: dict[str, dict[str, Estimate]] = {}
    for name in names:
        shown = {"at the crossing": numbers[f"fool_{name}"]}
        if (beside := f"fool_{name} (closest)") in numbers:
            shown["at the closest point"] = numbers[beside]
        bars[titles[name]] = shown
    return bar_figure(
        bars,
        ylabel="share of held-out images fooled",
        title=rf"One direction of norm $\xi$, {network.name}",
        width=11.0,
    )


def _examples(
    study: CurvatureStudy[Settings], universal: UniversalStudy, data: Dataset, network: Network
) -> Figure:
    """Figure 6.10: the better sign of the most curved direction, and images that it fools."""
    both = _signs(study, universal.xi(2.0))
    fooled = universal.fooled(universal.test.images, both)
    sign = int(fooled.mean(dim=0).argmax())
    chosen = fooled[:, sign].argsort(descending=True, stable=True)[:SHOWN]
    images, v = universal.test.images[chosen], both[sign : sign + 1]
    labels = universal.labels(images, v)
    top: list[Panel | None] = [Panel(v[0], "the vector", perturbation=True)]
    bottom: list[Panel | None] = [None]
    for image, (before, after) in zip(images, labels.tolist(), strict=True):
        top.append(Panel((image + v[0]).clamp(*CLIP), class_name(data, after)))
        bottom.append(Panel(image, class_name(data, before)))
    title = f"The most curved shared direction, {network.name}"
    return image_grid([top, bottom], title=title, row_titles=["perturbed", "original"], side=1.7)


def _notes(
    pairs: Sequence[tuple[CurvatureStudy[Settings], UniversalStudy]],
    numbers: Mapping[str, Estimate],
    settings: Settings,
) -> list[str]:
    values = {name: numbers[f"fool_{name}"].value for name in TITLES}
    first, universal = pairs[0]
    return [
        *made_of([universal for _, universal in pairs]),
        radius_note(first, universal, universal.xi(2.0), numbers["fool_random"]),
        f"S_c is made of {len(first.train)} training images (the thesis: 200), m = 1. An "
        "eigenvector has no sign: the mean of both counts, and the better one, chosen on the "
        "images that judge, is shown beside it. S_f is compared at the same m = 1, by its leading "
        f"direction; the random vectors are of {settings.dimension} dimensions of {first.d}, where "
        "the thesis has 100 of 150,528.",
        f"The most positive eigenvector fools {values['top']:.3f} (better sign "
        f"{values['top_best']:.3f}), the most negative one, the control, "
        f"{values['negative']:.3f} ({values['negative_best']:.3f}), the leading direction of S_f "
        f"{values['sf_1']:.3f}, random vectors of S_f {values['sf']:.3f}, random ones "
        f"{values['random']:.3f}, Algorithm 4 {values['uap']:.3f}.",
        f"The most positive eigenvector has {numbers['overlap_top'].value:.2f} of its norm in the "
        f"{settings.normals} leading directions of S_f (a random vector: "
        f"{numbers['overlap_random'].value:.2f}) and fools {values['top_less_sf']:.3f} without "
        f"that part, at the same norm. Made at the closest points it has "
        f"{numbers['overlap_top (closest)'].value:.2f} there and fools "
        f"{numbers['fool_top (closest)'].value:.3f}.",
        "The pictures are of images that the vector fools, as far as there are any; they are "
        "clipped to [0, 1], their labels are those without clipping.",
    ]
