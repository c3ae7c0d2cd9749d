"""Which vectors lie in the shared curved directions (Section 7.4, Table 7.1)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, mean, of_means, stack
from pipeline.studies.curvature import CurvatureStudy, curvature_studies
from pipeline.studies.curvature_settings import SharedDirections, dimension_of
from pipeline.studies.curvature_tables import (
    at_point,
    curvature_columns,
    measured_at,
    named,
    notes,
)
from pipeline.tables import columns
from robustness_geometry.checks import check_count
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Images, Network

__all__ = ["SECTION", "Settings", "image_gradients", "projection_share"]

SECTION = "Section 7.4, Table 7.1"

TITLES = {
    "random": "random noise",
    "adversarial": "adversarial perturbations",
    "adversarial (crossing)": "adversarial perturbations",
    "difference": "differences of two images",
    "gradient": "image gradients",
}
"""What numbers call a kind of vector -> what the table and the figure call it."""


@dataclass(frozen=True)
class Settings(SharedDirections):
    """What to measure, beyond the settings of :class:`SharedDirections`.

    Attributes:
        dimension: m of S, at least 1; None: 200 of d = 3,072, in proportion where d is smaller.
    """

    dimension: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimension is not None:
            check_count("dimension", self.dimension)


def projection_share(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure ||P_S v|| / ||v|| of several kinds of vectors for S = span(u_1 ... u_m).

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``proj_<kind>``, the mean over held-out images, their differences, and how far that of
        random noise is from sqrt(m / d).

    References:
        Thesis, Section 7.4 and Table 7.1. A. Fawzi, S.-M. Moosavi-Dezfooli et al., "Classification
        regions of deep neural networks", arXiv:1705.09552.
    """
    studies = curvature_studies(network, data, settings, executor)
    d = studies[0].d
    m = settings.dimension or dimension_of(200, d)
    samples = stack(executor.each(lambda study: _measure(study, study.shared(m)), studies))
    numbers = paired_bootstrap(samples, _statistics(math.sqrt(m / d)), resamples=settings.resamples)
    numbers |= measured_at(studies)
    return Findings(
        numbers=named(numbers, settings),
        tables={"table_7_1": _table(numbers), "sweep": _over_h(studies[0], m)},
        figures={"table_7_1": _figure(network, numbers, m)},
        notes=[*notes(studies), *_notes(studies[0], m)],
    )


def image_gradients(images: Images) -> tuple[Images, Images]:
    """Differences of neighbouring pixels, along rows and along columns; zero at the last one."""
    across, down = torch.zeros_like(images), torch.zeros_like(images)
    across[..., :, :-1] = images[..., :, 1:] - images[..., :, :-1]
    down[..., :-1, :] = images[..., 1:, :] - images[..., :-1, :]
    return across, down


def _measure(study: CurvatureStudy[Settings], basis: Tensor) -> dict[str, Tensor]:
    """Name -> one value per held-out image; NaN where a vector is zero or missing."""
    images = study.test.images
    drawn = torch.randn(images.shape, generator=seeded("projected noise", study.seed))
    order = torch.randperm(len(images), generator=seeded("image differences", study.seed))
    others = torch.empty_like(images)
    others[order] = images[order.roll(1)]  # no image is its own partner
    across, down = image_gradients(images)
    return {
        "random": _share(drawn, basis),
        **{
            f"adversarial{end}": _share(one.near_test.perturbations, basis)
            for end, one in study.both.items()
        },
        "difference": _share(others - images, basis),
        "gradient": torch.stack([_share(across, basis), _share(down, basis)]).mean(dim=0),
    }


def _share(vectors: Tensor, basis: Tensor) -> Tensor:
    """(n,) ||P_S v|| / ||v|| in float64."""
    flat = vectors.flatten(1).double()
    return (flat @ basis.double().T).norm(dim=1) / flat.norm(dim=1)


def _statistics(expected: float) -> dict[str, Statistic]:
    return {
        **{f"proj_{kind}": mean(kind) for kind in TITLES},
        "proj_random - sqrt(m / d), absolute": of_means(
            ["random"], partial(_off, expected), (0.0, math.inf)
        ),
        "proj_adversarial - 1.5 proj_random": of_means(
            ["adversarial", "random"], partial(_less, 1.5)
        ),
        "proj_random - proj_difference": difference("random", "difference"),
        "1.2 proj_random - proj_gradient": of_means(["gradient", "random"], _below),
        "proj_adversarial - proj_gradient": difference("adversarial", "gradient"),
        "proj_gradient - proj_difference": difference("gradient", "difference"),
        "proj_adversarial - proj_random": difference("adversarial", "random"),
    }


def _off(expected: float, share: Tensor) -> Tensor:
    return (share - expected).abs()


def _less(factor: float, first: Tensor, second: Tensor) -> Tensor:
    return first - factor * second


def _below(gradient: Tensor, random: Tensor) -> Tensor:
    return 1.2 * random - gradient


def _over_h(study: CurvatureStudy[Settings], m: int) -> pd.DataFrame:
    """S made of a few images at each h: the shares, and the signs of the curvatures in it."""
    rows = []
    for factor, h in study.h_factors.items():
        basis, leading = study.shared_at(h, m)
        shares = _measure(study, basis)
        row: dict[str, object] = {"h_factor": factor, "h": h, "m": len(basis)}
        row["images"] = len(study.test)
        row |= {f"proj_{kind}": float(values.nanmean()) for kind, values in shares.items()}
        rows.append(row | curvature_columns(leading, h))
    return pd.DataFrame(rows)


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for kind, title in TITLES.items():
        estimate = numbers[f"proj_{kind}"]
        row: dict[str, object] = {"perturbation": title, "point": "", "cos(r, n)": math.nan}
        if kind.startswith("adversarial"):
            end = " (crossing)" if kind.endswith("(crossing)") else ""
            row |= at_point(end, "closest", numbers)
        row |= {**columns("share", estimate), "std": estimate.std}
        rows.append(row | {"images": estimate.n, "seeds": estimate.seeds})
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: Mapping[str, Estimate], m: int) -> Figure:
    titles = {kind: title.replace(" ", "\n", 1) for kind, title in TITLES.items()}
    titles["adversarial (crossing)"] = "DeepFool's\nperturbations"
    return bar_figure(
        {titles[kind]: {"share": numbers[f"proj_{kind}"]} for kind in TITLES},
        ylabel=r"mean of $\|P_S v\|_2\,/\,\|v\|_2$",
        title=f"What lies in the first {m} shared directions, {network.name}",
    )


def _notes(study: CurvatureStudy[Settings], m: int) -> list[str]:
    return [
        f"S: the first {m} shared directions u_i of {len(study.train_points())} training images, "
        f"of d = {study.d} "
        "dimensions (the thesis: 200 of 3,072), so that sqrt(m / d) = "
        f"{math.sqrt(m / study.d):.4f}.",
        f"{len(study.test)} held-out images a training seed: the smallest perturbation r of "
        "each, to the closest point of the boundary, and DeepFool's to where it crosses the "
        "boundary, its difference from another one drawn at random, Gaussian noise, "
        "and the differences of neighbouring pixels along rows and along columns, of which the "
        "mean counts.",
        "The share of random noise is sqrt(m / d) for every subspace of m dimensions: arithmetic, "
        "which says nothing about the network.",
    ]
