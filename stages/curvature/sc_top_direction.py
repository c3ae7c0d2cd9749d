"""The most curved shared direction as a universal perturbation (Section 6.4.1, Figure 6.10)."""

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
from pipeline.statistics import Estimate, difference, mean, share, stack
from pipeline.studies.curvature import CurvatureStudy, named, notes
from pipeline.studies.curvature_fooling import fooled_shares, fooling_studies, within
from pipeline.studies.curvature_settings import MeanHessian, RandomVectors, UniversalVectors
from pipeline.studies.universal import CLIP, UniversalStudy, made_of, random_vectors
from pipeline.tables import class_name, columns
from robustness_geometry.checks import check_count
from robustness_geometry.types import Dataset, Network
from stages.curvature.sc_fooling import fooling_over_h

__all__ = ["SECTION", "Settings", "sc_top_direction"]

SECTION = "Section 6.4.1, Figure 6.10"

TITLES = {
    "top": "most positive eigenvector, both signs",
    "top_best": "most positive eigenvector, better sign",
    "negative": "most negative eigenvector, both signs",
    "negative_best": "most negative eigenvector, better sign",
    "sf": "random vectors of $S_f$",
    "random": "random vectors",
    "uap": "Algorithm 4",
}
"""What numbers call a direction -> what the table and the figure call it."""

SHOWN = 5
"""Images of Figure 6.10."""


@dataclass(frozen=True)
class Settings(MeanHessian, UniversalVectors, RandomVectors):
    """What to measure.

    Attributes:
        dimension: m of the S_f to compare with, at least 1; the thesis: 100. All of the normals'
            span is taken where it has fewer dimensions.
    """

    dimension: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("dimension", self.dimension)


def sc_top_direction(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Scale the leading eigenvector of the mean Hessian to xi and measure the share it fools.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``fool_top``, the mean of both signs, ``fool_top_best``, the better one of them on the
        images that judge, the same of the most negative eigenvector, ``fool_sf``, ``fool_random``
        and ``fool_uap``; xi is a tenth of the norm that random noise needs.

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
    samples = stack(executor.each(lambda pair: _measure(*pair, settings), pairs))
    statistics = {
        f"fool_{name}": share(name) if name.endswith("best") else mean(name) for name in TITLES
    }
    statistics |= {
        "fool_top - fool_sf": difference("top", "sf"),
        "fool_uap - fool_top": difference("uap", "top"),
        "fool_top - fool_negative": difference("top", "negative"),
        "fool_top - fool_random": difference("top", "random"),
    }
    numbers = paired_bootstrap(samples, statistics, resamples=settings.resamples)
    first, universal = pairs[0]
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
        tensors={"top": torch.cat([_signs(study, 1.0)[:1] for study, _ in pairs])},
        notes=[*notes([study for study, _ in pairs]), *_notes(pairs, numbers)],
    )


def _signs(study: CurvatureStudy[Settings], radius: float, *, negative: bool = False) -> Tensor:
    """The eigenvector at one end of the spectrum and its opposite, (2, C, H, W)."""
    vector = study.curved(1, negative=negative).view(1, *study.train.images.shape[1:])
    return radius * torch.cat([vector, -vector])


def _measure(
    study: CurvatureStudy[Settings], universal: UniversalStudy, settings: Settings
) -> dict[str, Tensor]:
    """Name -> the share of a kind's vectors that fool each held-out image."""
    xi, like, count = universal.xi(2.0), study.train.images, settings.vectors
    basis = study.normal_basis(settings.dimension)
    shares = fooled_shares(
        universal,
        {
            "sf": within(basis, like, count, xi, "top", study.seed),
            "random": random_vectors(like.shape[1:], 2.0, xi, count),
            "uap": universal.vector(2.0).perturbation,
        },
    )
    for kind in ("top", "negative"):
        signs = _signs(study, xi, negative=kind == "negative")
        both = universal.fooled(universal.test.images, signs)
        # The better sign is the one that fools more of the very images that judge.
        best = int(both.mean(dim=0).argmax())
        shares |= {kind: both.mean(dim=1), f"{kind}_best": both[:, best]}
    return shares


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for name, title in TITLES.items():
        estimate = numbers[f"fool_{name}"]
        row: dict[str, object] = {"vector": title.replace("$", ""), **columns("fooled", estimate)}
        rows.append(row | {"images": estimate.n, "seeds": estimate.seeds})
    return pd.DataFrame(rows)


def _bars(network: Network, numbers: Mapping[str, Estimate]) -> Figure:
    names = ("top", "negative", "sf", "random", "uap")
    titles = {name: TITLES[name].replace(", ", ",\n").replace(" of ", "\nof ") for name in names}
    titles = {name: title.replace("eigenvector", "\neigenvector") for name, title in titles.items()}
    return bar_figure(
        {titles[name]: {"fooled": numbers[f"fool_{name}"]} for name in names},
        ylabel="share of held-out images fooled",
        title=rf"One direction of norm $\xi$, {network.name}",
        width=9.0,
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
) -> list[str]:
    values = {name: numbers[f"fool_{name}"].value for name in TITLES}
    return [
        *made_of([universal for _, universal in pairs]),
        f"S_c is made of {len(pairs[0][0].train)} training images (the thesis: 200), m = 1. An "
        "eigenvector has no "
        "sign: the mean of both counts, and the better one, chosen on the images that judge, is "
        "shown beside it.",
        f"The most positive eigenvector fools {values['top']:.2f} (better sign "
        f"{values['top_best']:.2f}), the most "
        f"negative one, the control, {values['negative']:.2f} ({values['negative_best']:.2f}), "
        "random vectors of S_f "
        f"{values['sf']:.2f}, random ones {values['random']:.2f}, Algorithm 4 {values['uap']:.2f}.",
        "The pictures are of images that the vector fools, as far as there are any; they are "
        "clipped to [0, 1], their "
        "labels are those without clipping.",
    ]
