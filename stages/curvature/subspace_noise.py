"""Noise inside and outside the shared curved directions (Section 7.4, Figure 7.7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap, smallest
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import (
    Estimate,
    Statistic,
    difference,
    mean,
    of_means,
    spearman,
    stack,
)
from pipeline.studies.curvature import (
    CurvatureStudy,
    curvature_studies,
    unseen_split,
)
from pipeline.studies.curvature_settings import SharedDirections, dimension_of
from pipeline.studies.curvature_tables import curvature_columns, made_at, named, notes
from pipeline.tables import columns
from robustness_geometry.attacks.protocol import labels_at
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.geometry import random_subspace
from robustness_geometry.norms import norms
from robustness_geometry.randomness import normal, seeded
from robustness_geometry.types import Classifier, Dataset, Images, Network, predict

__all__ = ["SECTION", "Settings", "changed_by_noise", "subspace_noise"]

SECTION = "Section 7.4, Figure 7.7"

TITLES = {
    "S": "noise in $S$",
    "S_perp": r"noise orthogonal to $S$",
    "isotropic": "noise in all directions",
    "random": "noise in a random subspace of as many dimensions",
}
"""What numbers call a kind of noise -> what the figure calls it."""

SWEEP_IMAGES = 100
"""Held-out images that noise is added to in the table over h."""


@dataclass(frozen=True)
class Settings(SharedDirections):
    """What to measure, beyond the settings of :class:`SharedDirections`.

    The boundary points of the ``samples`` held-out images are described in the notes alone.

    Attributes:
        dimension: m of S, at least 1; None: 200 of d = 3,072, in proportion where d is smaller.
        magnitudes: norms of the noise over the mean norm of an image, ascending, each above 0.
        noise_samples: number of held-out images that noise is added to (all if there are fewer).
        draws: number of draws of the noise for each image and magnitude; the share of them that
            changes the label counts.
    """

    dimension: int | None = None
    magnitudes: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    noise_samples: int = 10_000
    draws: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("noise_samples", "draws"):
            check_count(name, getattr(self, name))
        if self.dimension is not None:
            check_count("dimension", self.dimension)
        for t in self.magnitudes:
            check_positive("magnitudes", t)
        if len(self.magnitudes) < 2 or list(self.magnitudes) != sorted(set(self.magnitudes)):
            refuse("magnitudes", self.magnitudes, "two or more ascending numbers")


def subspace_noise(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure how often noise inside and outside S = span(u_1 ... u_m) changes the label.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``changed_<kind>_<t>``, the share of held-out images whose label changes; over all t, by how
        much noise in S changes more than noise outside, at least; the mean excess of noise outside
        over isotropic noise and over half of what noise in S changes; and the rank correlation of t
        with the share for S.

    References:
        Thesis, Section 7.4 and Figure 7.7. A. Fawzi, S.-M. Moosavi-Dezfooli et al., "Classification
        regions of deep neural networks", arXiv:1705.09552.
    """
    studies = curvature_studies(network, data, settings, executor)
    images = unseen_split(data, settings.noise_samples).images
    m = settings.dimension or dimension_of(200, studies[0].d)
    samples = stack(
        executor.each(lambda study: _measure(study, study.shared(m), images, settings), studies)
    )
    numbers = paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    numbers["changed_S - changed_S_perp, smallest"] = smallest(
        numbers[_gap(t)] for t in settings.magnitudes
    )
    return Findings(
        numbers=named(numbers | made_at(studies), settings),
        tables={
            "figure_7_7": _table(numbers, settings),
            "sweep": _over_h(studies[0], m, images, settings),
        },
        figures={"figure_7_7": _figure(network, numbers, settings, m)},
        notes=[*notes(studies), *_notes(studies[0], settings, m, images)],
    )


def changed_by_noise(
    model: Classifier,
    basis: Tensor,
    other: Tensor,
    sizes: Sequence[float],
    draws: int,
    images: Images,
    *,
    generator: Sequence[torch.Generator],
) -> Tensor:
    """The share of noise vectors that change each image's label.

    All kinds are made of the same draws: the isotropic noise, its part in S and its part outside,
    and the same numbers in a random subspace, each scaled to the same norm.

    Args:
        model: the classifier.
        basis: S, (m, d).
        other: a random subspace of as many dimensions, (m, d).
        sizes: norms of the noise, in pixel units.
        draws: number of vectors for each image and norm.
        images: (n, C, H, W).
        generator: one generator per image.

    Returns:
        (n, kinds, sizes) in float64, the kinds as in TITLES.
    """
    labels, basis, other = predict(model, images), basis.to(images), other.to(images)
    changed = torch.zeros(len(images), len(TITLES), len(sizes), dtype=torch.float64)
    for _ in range(draws):
        drawn = normal(images, generator).flatten(1)
        inside = drawn @ basis.T
        kinds = (inside @ basis, drawn - inside @ basis, drawn, inside @ other)
        for k, noise in enumerate(kinds):
            unit = (noise / noise.norm(dim=1, keepdim=True)).view_as(images)
            for t, size in enumerate(sizes):
                after, finite = labels_at(model, images + size * unit)
                changed[:, k, t] += ((after != labels) & finite).double().cpu()
    return changed / draws


def _measure(
    study: CurvatureStudy[Settings], basis: Tensor, images: Images, settings: Settings
) -> dict[str, Tensor]:
    """Name -> one value per image."""
    other = random_subspace(study.d, len(basis), seeded("noise subspace", study.seed))
    sizes = tuple(t * float(norms(images).mean()) for t in settings.magnitudes)
    work = partial(changed_by_noise, study.model, basis, other, sizes, settings.draws)
    values = study.executor.cached(work, images, randomness=True).value
    return {
        f"{kind} {t}": values[:, k, i]
        for k, kind in enumerate(TITLES)
        for i, t in enumerate(settings.magnitudes)
    }


def _statistics(settings: Settings) -> dict[str, Statistic]:
    every = {kind: [f"{kind} {t}" for t in settings.magnitudes] for kind in TITLES}
    statistics = {
        f"changed_{kind}_{t:g}": mean(f"{kind} {t}") for kind in TITLES for t in settings.magnitudes
    }
    return statistics | {
        **{_gap(t): difference(f"S {t}", f"S_perp {t}") for t in settings.magnitudes},
        "changed_S - changed_random, mean": of_means([*every["S"], *every["random"]], _mean_gap),
        "changed_S_perp - changed_isotropic, mean": of_means(
            [*every["S_perp"], *every["isotropic"]], _mean_gap
        ),
        "changed_S_perp - 0.5 changed_S, mean": of_means(
            [*every["S_perp"], *every["S"]], _half_gap
        ),
        "spearman": of_means(
            every["S"], partial(spearman, settings.magnitudes), within=(-1.0, 1.0)
        ),
    }


def _gap(t: float) -> str:
    """The number that says how much more labels noise of norm t changes in S than outside."""
    return f"changed_S - changed_S_perp_{t:g}"


def _gaps(shares: Sequence[Tensor]) -> Tensor:
    """The first half of the shares less the second."""
    half = len(shares) // 2
    return torch.stack(list(shares[:half])) - torch.stack(list(shares[half:]))


def _half_gap(*shares: Tensor) -> Tensor:
    half = len(shares) // 2
    first, second = torch.stack(list(shares[:half])), torch.stack(list(shares[half:]))
    return (first - 0.5 * second).mean(dim=0)


def _mean_gap(*shares: Tensor) -> Tensor:
    return _gaps(shares).mean(dim=0)


def _over_h(
    study: CurvatureStudy[Settings], m: int, images: Images, settings: Settings
) -> pd.DataFrame:
    """S made of a few images at each h: label changes, and the signs of the curvatures in it."""
    rows = []
    images, settings = images[:SWEEP_IMAGES], replace(settings, draws=1)
    for factor, h in study.h_factors.items():
        basis, leading = study.shared_at(h, m)
        changed = _measure(study, basis, images, settings)
        row: dict[str, object] = {"h_factor": factor, "h": h, "m": len(basis)}
        row["images"] = len(images)
        for kind in ("S", "S_perp"):
            row |= {
                f"changed_{kind}_{t:g}": float(changed[f"{kind} {t}"].mean())
                for t in settings.magnitudes
            }
        rows.append(row | curvature_columns(leading, h))
    return pd.DataFrame(rows)


def _table(numbers: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "noise": kind,
                "norm_over_image_norm": t,
                **columns("changed", numbers[f"changed_{kind}_{t:g}"]),
                "images": numbers[f"changed_{kind}_{t:g}"].n,
                "seeds": numbers[f"changed_{kind}_{t:g}"].seeds,
            }
            for kind in TITLES
            for t in settings.magnitudes
        ]
    )


def _figure(
    network: Network, numbers: Mapping[str, Estimate], settings: Settings, m: int
) -> Figure:
    t = list(settings.magnitudes)
    styles = {"S": "-", "S_perp": "-", "isotropic": "--", "random": ":"}
    lines = {
        title: estimate_line(
            t, [numbers[f"changed_{kind}_{each:g}"] for each in t], style=styles[kind]
        )
        for kind, title in TITLES.items()
    }
    return line_figure(
        lines,
        xlabel="norm of the noise over the mean norm of an image",
        ylabel="share of held-out images whose label changes",
        title=f"Noise and the shared curved directions (m = {m}), {network.name}",
        limits=(0, 1),
    )


def _notes(
    study: CurvatureStudy[Settings], settings: Settings, m: int, images: Images
) -> list[str]:
    size = float(norms(images).mean())
    return [
        f"S: the first {m} shared directions u_i of {len(study.train_points())} training "
        "images, of "
        f"d = {study.d} dimensions (the thesis: 200 of 3,072). Noise is added to {len(images)} "
        "held-out images, "
        f"{settings.draws} times at each norm, without clipping; the mean norm of an image is "
        f"{size:.3g}.",
        "All kinds of noise are made of the same draws. A random subspace of as many dimensions is "
        "the control: it "
        "says what noise in few dimensions does of itself, and what S would do if each image's "
        "principal directions were turned at random.",
    ]
