"""What lies in the shared curved directions: noise, perturbations, images (Section 7.4, Table 7.1)."""

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
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, mean, of_means, stack
from pipeline.studies.curvature import Common, Study, dimension_of, named, notes, studies
from pipeline.tables import columns, sign_shares
from robustness_geometry.checks import check_count
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Images, Network

__all__ = ["SECTION", "Settings", "image_gradients", "projection_share"]

SECTION = "Section 7.4, Table 7.1"

TITLES = {
    "random": "random noise",
    "adversarial": "adversarial perturbations",
    "difference": "differences of two images",
    "gradient": "image gradients",
}
"""What numbers call a kind of vector -> what the table and the figure call it."""


@dataclass(frozen=True)
class Settings(Common):
    """What to measure, beyond what :class:`Common` says.

    Attributes:
        dimension: m of S; None: 200 of d = 3,072, in proportion where d is smaller.
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
    """
    found = studies(network, data, settings, executor)
    d = found[0].d
    m = settings.dimension or dimension_of(200, d)
    samples = stack(executor.each(lambda study: _measure(study, study.shared(m)), found))
    numbers = paired_bootstrap(samples, _statistics(math.sqrt(m / d)), resamples=settings.resamples)
    return Findings(
        numbers=named(numbers, settings),
        tables={"table_7_1": _table(numbers), "sweep": _sweep(found[0], m, settings)},
        figures={"table_7_1": _figure(network, numbers, m)},
        notes=[*notes(found), *_notes(found, m)],
    )


def image_gradients(images: Images) -> tuple[Images, Images]:
    """The differences of neighbouring pixels, along rows and along columns; zero at the last one."""
    across, down = torch.zeros_like(images), torch.zeros_like(images)
    across[..., :, :-1] = images[..., :, 1:] - images[..., :, :-1]
    down[..., :-1, :] = images[..., 1:, :] - images[..., :-1, :]
    return across, down


def _measure(study: Study, basis: Tensor) -> dict[str, Tensor]:
    """Name -> one value a held-out image; NaN where a vector is zero or missing."""
    images = study.unseen
    drawn = torch.randn(images.shape, generator=seeded("projected noise", study.seed))
    order = torch.randperm(len(images), generator=seeded("image differences", study.seed))
    others = torch.empty_like(images)
    others[order] = images[order.roll(1)]  # no image is its own partner
    across, down = image_gradients(images)
    return {
        "random": _share(drawn, basis),
        "adversarial": _share(study.near_unseen.perturbations, basis),
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
        "proj_random - sqrt(m / d), absolute": of_means(["random"], partial(_off, expected)),
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


def _sweep(study: Study, m: int, settings: Settings) -> pd.DataFrame:
    """S made of a few images at each h: the shares, and the signs of the curvatures that it is made of."""
    rows = []
    known = study.known_points(settings.sweep_samples)
    count = min(m, len(known) * min(settings.leading, study.d - 1))
    for factor, h in study.heights.items():
        shares = _measure(study, study.shared(count, points=known, h=h))
        row: dict[str, object] = {
            "h_factor": factor,
            "h": h,
            "m": count,
            "images": len(study.unseen),
        }
        row |= {f"proj_{kind}": float(values.nanmean()) for kind, values in shares.items()}
        leading = study.extremes(known, h=h).by_size(min(settings.leading, study.d - 1)).values
        rows.append(row | sign_shares(leading))
    return pd.DataFrame(rows)


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for kind, title in TITLES.items():
        estimate = numbers[f"proj_{kind}"]
        row: dict[str, object] = {
            "perturbation": title,
            **columns("share", estimate),
            "std": estimate.std,
        }
        rows.append(row | {"images": estimate.n, "seeds": estimate.seeds})
    return pd.DataFrame(rows)


def _figure(network: Network, numbers: Mapping[str, Estimate], m: int) -> Figure:
    titles = {kind: title.replace(" ", "\n", 1) for kind, title in TITLES.items()}
    return bar_figure(
        {titles[kind]: {"share": numbers[f"proj_{kind}"]} for kind in TITLES},
        ylabel=r"mean of $\|P_S v\|_2\,/\,\|v\|_2$",
        title=f"What lies in the first {m} shared directions, {network.name}",
    )


def _notes(found: Sequence[Study], m: int) -> list[str]:
    study = found[0]
    return [
        f"S: the first {m} shared directions u_i of {len(study.known_points())} training images, "
        f"of d = {study.d} "
        "dimensions (the thesis: 200 of 3,072), so that sqrt(m / d) = "
        f"{math.sqrt(m / study.d):.4f}.",
        f"{len(study.unseen)} held-out images a training seed: the smallest perturbation r of "
        "each, to the point of "
        "the boundary that DeepFool leads to, its difference from another one drawn at random, "
        "Gaussian "
        "noise, and the differences of neighbouring pixels along rows and along "
        "columns, of which the mean counts.",
    ]
