"""Random vectors of S_c as universal perturbations (Section 6.4.1, Figure 6.9b)."""

import math
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
from pipeline.plots import estimate_line, line_figure, styled
from pipeline.statistics import Estimate, Statistic, difference, mean, of_means, stack
from pipeline.studies.curvature import CurvatureStudy, named, notes
from pipeline.studies.curvature_fooling import fooled_shares, fooling_studies, noise_norm, within
from pipeline.studies.curvature_settings import (
    Fooling,
    MeanHessian,
    RandomVectors,
    check_dimensions,
    check_products,
)
from pipeline.studies.universal import Plan, UniversalStudy, made_of, random_vectors
from pipeline.tables import columns, sign_shares
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.types import Dataset, Network
from stages.curvature.sc_average_curvature import KINDS, bases

__all__ = ["SECTION", "Settings", "fooling_over_h", "sc_fooling"]

SECTION = "Section 6.4.1, Figure 6.9b"


@dataclass(frozen=True)
class Settings(MeanHessian, Fooling, RandomVectors):
    """What to measure.

    Attributes:
        dimensions: two or more dimensions m of the subspaces, ascending, at most half of
            ``products``.
        small: one of ``dimensions``, which stands for the thesis' small m.
        noise_share: norm of the vectors over that which random noise needs, in (0, 1]; the thesis:
            a fifth.
        algorithm_samples: number of training images, at least 2, that Algorithm 4's vector is made
            of; S_c has ``train_samples``.
    """

    dimensions: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200, 500)
    small: int = 10
    noise_share: float = 0.2
    algorithm_samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dimensions(self.dimensions, self.small)
        check_count("algorithm_samples", self.algorithm_samples, minimum=2)
        if not 0 < self.noise_share <= 1:
            refuse("noise_share", self.noise_share, "a share in (0, 1]")

    def check(self, data: Dataset) -> None:
        """Check that subspaces of these dimensions can be had."""
        check_products(self.products, self.dimensions[-1], math.prod(data.shape))


def sc_fooling(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Compare the fooling of random vectors of S_c, of S_f, of controls and of Algorithm 4.

    All have one norm.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``fool_sc_<m>``, ``fool_sf_<m>``, ``fool_negative_<m>`` (random vectors of the most negative
        eigenvectors), ``fool_random``, ``fool_uap``, and what the claims compare; ``fool_sc`` is
        that of the small m.

    References:
        Thesis, Section 6.4.1 and Figure 6.9b. S.-M. Moosavi-Dezfooli et al., "Analysis of universal
        adversarial perturbations", arXiv:1705.09554.
    """
    pairs = fooling_studies(
        network,
        data,
        settings,
        executor,
        images=settings.algorithm_samples,
    )
    samples = stack(executor.each(lambda pair: _measure(*pair, settings), pairs))
    numbers = paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    first, universal = pairs[0]
    radius = noise_norm(universal, settings.noise_share)
    return Findings(
        numbers=named(numbers, settings),
        tables={
            "figure_6_9b": _table(numbers, settings),
            "sweep": fooling_over_h(first, universal, settings.small, settings.vectors, radius),
        },
        figures={"figure_6_9b": _figure(network, numbers, settings)},
        notes=[*notes([study for study, _ in pairs]), *_notes(pairs, numbers, settings)],
    )


def _measure(
    study: CurvatureStudy[Settings], universal: UniversalStudy, settings: Settings
) -> dict[str, Tensor]:
    """Name -> the share of a kind's vectors that fool each held-out image."""
    radius, count = noise_norm(universal, settings.noise_share), settings.vectors
    like = study.train.images
    sets = {
        "uap": universal.make([Plan(2.0, radius)])[0].perturbation,
        "random": random_vectors(like.shape[1:], 2.0, radius, count),
    }
    for m in settings.dimensions:
        for kind, basis in bases(study, m).items():
            sets[f"{kind} {m}"] = within(basis, like, count, radius, kind, m, study.seed)
    return fooled_shares(universal, sets)


def _statistics(settings: Settings) -> dict[str, Statistic]:
    small, large = f"sc {settings.small}", f"sc {settings.dimensions[-1]}"
    sc, sf = ([f"{kind} {m}" for m in settings.dimensions] for kind in ("sc", "sf"))
    statistics = {
        f"fool_{kind}_{m}": mean(f"{kind} {m}") for kind in KINDS for m in settings.dimensions
    }
    return statistics | {
        "fool_sc": mean(small),
        "fool_uap": mean("uap"),
        "fool_random": mean("random"),
        "fool_negative": mean(f"negative {settings.small}"),
        "fool_sc - 0.9 fool_uap": of_means([small, "uap"], _nearly),
        "fool_sc - fool_uap, absolute": of_means([small, "uap"], _distance),
        "fool_sc - fool_uap": difference(small, "uap"),
        "fool_sc - fool_random": difference(small, "random"),
        "fool_sc - fool_negative": difference(small, f"negative {settings.small}"),
        "fool_sf, largest": of_means(sf, _largest),
        "fool_sc - fool_sf, largest": of_means([*sc, *sf], partial(_between, len(sc))),
        "fool_sc_small - fool_sc_large": difference(small, large),
    }


def _nearly(vectors: Tensor, universal: Tensor) -> Tensor:
    return vectors - 0.9 * universal


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs()


def _largest(*shares: Tensor) -> Tensor:
    return torch.stack(shares).amax(dim=0)


def _between(count: int, *shares: Tensor) -> Tensor:
    return _largest(*shares[:count]) - _largest(*shares[count:])


def fooling_over_h(
    study: CurvatureStudy[MeanHessian],
    universal: UniversalStudy,
    m: int,
    count: int,
    radius: float,
) -> pd.DataFrame:
    """S_c and its negative control made at other h: fooling, and the signs of curvature along them.

    Args:
        study: the classifier.
        universal: its held-out images on which fooling is judged.
        m: dimension of the subspaces; of one dimension, both signs of its only direction are taken.
        count: number of random vectors of each.
        radius: norm of the vectors, in pixel units.
    """
    rows, unseen = [], universal.test.images
    points = study.test_points(study.settings.sweep_samples)
    for factor, h in study.h_factors.items():
        for kind, basis in study.curved_at(factor, m).items():
            taken = len(basis)
            vectors = within(basis, study.train.images, count, radius, kind, taken, study.seed)
            vectors = torch.cat([vectors[:1], -vectors[:1]]) if taken == 1 else vectors
            fooled = float(universal.fooled(unseen, vectors).mean())
            row: dict[str, object] = {"h_factor": factor, "h": h, "direction": kind, "m": taken}
            row |= {"fooled": fooled, "images": len(unseen)}
            rows.append(row | sign_shares(study.along(points, vectors, h=h)))
    return pd.DataFrame(rows)


def _table(numbers: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    cases = [(kind, str(m), f"fool_{kind}_{m}") for kind in KINDS for m in settings.dimensions]
    cases += [("random", "", "fool_random"), ("Algorithm 4", "", "fool_uap")]
    return pd.DataFrame(
        [
            {
                "vectors": kind,
                "m": m,
                **columns("fooled", numbers[name]),
                "images": numbers[name].n,
                "seeds": numbers[name].seeds,
            }
            for kind, m, name in cases
        ]
    )


def _figure(network: Network, numbers: Mapping[str, Estimate], settings: Settings) -> Figure:
    m = list(settings.dimensions)
    lines = {
        title: estimate_line(
            m, [numbers[f"fool_{kind}_{each}"] for each in m], style="-" if kind == "sc" else "--"
        )
        for kind, title in KINDS.items()
    }
    figure = line_figure(
        lines,
        xlabel="dimension m of the subspace",
        ylabel="share of held-out images fooled",
        title=f"Random vectors of each subspace, {network.name}",
        references={
            "Algorithm 4": numbers["fool_uap"].value,
            "random vectors": numbers["fool_random"].value,
        },
        log_x=True,
        limits=(0, 1),
        width=9.0,
    )
    with styled():
        figure.axes[0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _notes(
    pairs: Sequence[tuple[CurvatureStudy[Settings], UniversalStudy]],
    numbers: Mapping[str, Estimate],
    settings: Settings,
) -> list[str]:
    first, universal = pairs[0]
    radius = noise_norm(universal, settings.noise_share)
    size = float(universal.test.images.flatten(1).norm(dim=1).mean())
    gap = numbers["fool_sc - fool_negative"]
    verdict = (
        "does make a difference here" if gap.low > 0 else "cannot be credited with the fooling here"
    )
    return [
        *made_of([universal for _, universal in pairs]),
        f"Here, other than there, all vectors have {settings.noise_share:g} of the norm that "
        "random noise needs (the "
        f"thesis: a fifth): {radius:.3g} for the first training seed, {radius / size:.2g} of an "
        "image's mean norm.",
        f"Control: at m = {settings.small} random vectors of S_c fool "
        f"{numbers['fool_sc'].value:.2f}, those of the "
        f"most negative eigenvectors {numbers['fool_negative'].value:.2f}, random ones "
        f"{numbers['fool_random'].value:.2f}: the sign of the curvature {verdict}.",
        f"{settings.vectors} random vectors of each subspace and training seed; their mean counts. "
        "S_c and S_f are "
        f"made of {len(first.train)} training images, so that S_f has no more dimensions than "
        "that; beyond, all of it "
        f"is taken. In the sweep S_c is made of {settings.sweep_samples} of them.",
    ]
