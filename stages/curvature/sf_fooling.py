"""Random vectors in the span of the normals as universal perturbations (Section 6.3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, difference, mean, share_ratio, stack
from pipeline.studies.curvature import CurvatureStudy
from pipeline.studies.curvature_fooling import (
    fooled_shares,
    fooling_studies,
    fooling_vectors,
    radius_note,
)
from pipeline.studies.curvature_settings import RandomVectors, TrainPoints, UniversalVectors
from pipeline.studies.universal import UniversalStudy, made_of, random_vectors
from pipeline.tables import columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import orthonormalise
from robustness_geometry.types import Dataset, Network
from stages.curvature.normals_svd import normal_images, unit_normals

__all__ = ["SECTION", "Settings", "sf_fooling"]

SECTION = "Section 6.3.1"

THESIS_M, THESIS_D = 100, 150_528
"""The dimensions of S_f and of the images of CaffeNet in the thesis."""

LEAST = 10
"""The smallest m that S_f is compared at, where the images are small."""


@dataclass(frozen=True)
class Settings(TrainPoints, UniversalVectors, RandomVectors):
    """What to measure.

    Where a data set has no training images, ``train_samples`` held-out ones span S_f.

    Attributes:
        normal_samples: number of training images, at least 2, whose normals span S_f.
        dimension: m of S_f, at most ``normal_samples``; None: the thesis' 100 of d = 150,528, in
            proportion where d is smaller, but at least 10.
        dimensions: other m, for the curve of fooling over the dimension.
    """

    normal_samples: int = 1000
    dimension: int | None = None
    dimensions: tuple[int, ...] = (1, 5, 10, 20, 50, 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("normal_samples", self.normal_samples, minimum=2)
        for m in self.dimensions:
            check_count("dimensions", m)
        if self.dimension is not None:
            check_count("dimension", self.dimension)
            if self.dimension > self.normal_samples:
                most = f"at most normal_samples = {self.normal_samples}"
                refuse("dimension", self.dimension, most)

    def judged(self, d: int) -> int:
        """The m at which S_f is compared, of d dimensions."""
        if self.dimension is not None:
            return self.dimension
        return max(LEAST, round(THESIS_M * min(1.0, d / THESIS_D)))

    def every(self, d: int) -> list[int]:
        """All m in ascending order, each once."""
        return sorted({self.judged(d), *self.dimensions})


def sf_fooling(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Draw random vectors of norm xi in the span of the normals and measure the share they fool.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        ``fool_sf``, ``fool_random`` and ``fool_uap`` on held-out images, their ratios and
        differences, and the fooling of S_f against its dimension; xi is a tenth of the random-noise
        norm, as for Algorithm 4.

    References:
        Thesis, Section 6.3.1. S.-M. Moosavi-Dezfooli et al., "Universal adversarial perturbations",
        arXiv:1610.08401. S.-M. Moosavi-Dezfooli et al., "Analysis of universal adversarial
        perturbations", arXiv:1705.09554.
    """
    pairs = fooling_studies(
        network,
        data,
        settings,
        executor,
        images=settings.universal_samples,
        orders=settings.universal_orders,
    )
    m, every = settings.judged(pairs[0][0].d), settings.every(pairs[0][0].d)
    samples = stack(executor.each(lambda pair: _measure(*pair, data, settings), pairs))
    images = next(iter(samples.values())).shape[-1]
    statistics = {
        "fool_sf": mean(f"S_f {m}"),
        "fool_random": mean("random"),
        "fool_uap": mean("universal"),
        "fool_sf / fool_random": share_ratio(f"S_f {m}", "random", images),
        "fool_sf - fool_random": difference(f"S_f {m}", "random"),
        "fool_uap - fool_sf": difference("universal", f"S_f {m}"),
        **{f"fool_sf_{m}": mean(f"S_f {m}") for m in every},
    }
    numbers = paired_bootstrap(samples, statistics, resamples=settings.resamples)
    return Findings(
        numbers=measured(numbers),
        tables={"fooling": _table(numbers, every)},
        figures={"fooling": _figure(network, numbers, every)},
        notes=_notes(pairs, numbers, settings),
    )


def _measure(
    study: CurvatureStudy[Settings], universal: UniversalStudy, data: Dataset, settings: Settings
) -> dict[str, Tensor]:
    """Name -> the share of a kind's vectors that fool each held-out image."""
    normals = unit_normals(study, normal_images(study, data, settings.normal_samples))
    basis = orthonormalise(normals[~normals.isnan().any(dim=1)])
    xi, count, like = universal.xi(2.0), settings.vectors, study.train.images
    sets = {
        "universal": universal.vector(2.0).perturbation,
        "random": random_vectors(like.shape[1:], 2.0, xi, count),
        **{
            f"S_f {m}": fooling_vectors(basis[:m], like, count, xi, "S_f", m, study.seed)
            for m in settings.every(study.d)
        },
    }
    return fooled_shares(universal, sets)


def _table(numbers: Mapping[str, Estimate], every: Sequence[int]) -> pd.DataFrame:
    rows: list[dict[str, object]] = [{"vector": f"random, S_f of {m} dimensions"} for m in every]
    names = [f"fool_sf_{m}" for m in every]
    rows += [{"vector": "random"}, {"vector": "Algorithm 4"}]
    for row, name in zip(rows, [*names, "fool_random", "fool_uap"], strict=True):
        estimate = numbers[name]
        row |= columns("fooled", estimate) | {"images": estimate.n, "seeds": estimate.seeds}
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: Mapping[str, Estimate], every: Sequence[int]) -> Figure:
    shown = [numbers[f"fool_sf_{m}"] for m in every]
    return line_figure(
        {"random vectors of $S_f$": estimate_line(every, shown)},
        xlabel="dimension m of $S_f$",
        ylabel="share of held-out images fooled",
        title=f"Random vectors among the normals, {network.name}",
        references={
            "Algorithm 4": numbers["fool_uap"].value,
            "random vectors": numbers["fool_random"].value,
        },
        log_x=True,
        limits=(0, 1),
    )


def _notes(
    pairs: Sequence[tuple[CurvatureStudy[Settings], UniversalStudy]],
    numbers: Mapping[str, Estimate],
    settings: Settings,
) -> list[str]:
    first, universal = pairs[0]
    m, d = settings.judged(first.d), first.d
    return [
        *made_of([universal for _, universal in pairs]),
        radius_note(first, universal, universal.xi(2.0), numbers["fool_random"]),
        f"S_f: the leading singular vectors of the unit r that DeepFool finds for "
        f"{settings.normal_samples} training images, none of which judges. {settings.vectors} "
        "random vectors of norm xi for each kind and training seed, or both signs of the only "
        "direction of one dimension; their mean counts.",
        f"The thesis takes 100 of 150,528 dimensions, 0.07% of them; here S_f is compared at {m} "
        f"of {d}, {m / d:.1%}, and the curve shows other m, 100 among them by default. Where the "
        "normals span less, all of their span is taken.",
    ]
