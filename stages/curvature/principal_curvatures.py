"""Principal curvatures of the decision boundary (Section 7.4, Figure 7.5b, Equation 7.4)."""

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
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import (
    Estimate,
    Statistic,
    exactly,
    mean,
    mean_share,
    median,
    of_means,
    stack,
)
from pipeline.studies.curvature import CurvatureStudy, curvature_studies
from pipeline.studies.curvature_measures import profiles
from pipeline.studies.curvature_settings import Curvatures, Leading
from pipeline.studies.curvature_tables import (
    at_point,
    curvature_columns,
    measured_at,
    named,
    notes,
)
from pipeline.studies.flatness import (
    FLAT,
    drawn_mean,
    flat_share,
    shuffled_top,
    structureless_flat,
    structureless_top,
)
from pipeline.tables import columns
from robustness_geometry.checks import check_count
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "principal_curvatures", "profile"]

SECTION = "Section 7.4, Figure 7.5b, Equation 7.4"

ERRORS = 3
"""Standard errors within which Equation 7.4 has to hold."""


@dataclass(frozen=True)
class Settings(Leading):
    """What to measure, beyond the settings of :class:`Leading`.

    Attributes:
        profile_samples: number of held-out images whose spectrum is computed, at most ``samples``;
            the thesis: 1,000.
        full_dimension: largest d for which the whole spectrum is computed; beyond, both ends are
            found and the mean is estimated.
        directions: number of random tangent directions per image, at least 2.
        draws: number of random vectors of Equation 7.4 per image, at least 2.
        basis_samples: number of images, at most ``samples``, whose whole spectrum is computed at
            each h, along vectors that move all pixels, and once along the pixels' own axes.
    """

    profile_samples: int = 1000
    full_dimension: int = 4000
    directions: int = 20
    draws: int = 100
    basis_samples: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("profile_samples", "full_dimension", "basis_samples"):
            check_count(name, getattr(self, name))
        for name in ("directions", "draws"):
            check_count(name, getattr(self, name), minimum=2)


def principal_curvatures(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Compute the sorted principal curvatures of the boundary near held-out images.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``share_flat`` of the mean profile, ``mean_curvature``, shares of negative curvatures, how
        far Equation 7.4 is from its standard errors; and curvatures along random directions over a
        range of h. The same of a Hessian without structure; names that end in ``(crossing)`` belong
        to the points where DeepFool's r cross the boundary. The profiles as tensors.

    References:
        Thesis, Section 7.4, Figure 7.5b and Equation 7.4. A. Fawzi, S.-M. Moosavi-Dezfooli et al.,
        "Classification regions of deep neural networks", arXiv:1705.09552.
    """
    studies = curvature_studies(network, data, settings, executor)
    full = studies[0].d <= settings.full_dimension
    every = (
        executor.each(lambda study: profile(study, settings.profile_samples), studies)
        if full
        else []
    )
    parts = [
        _quantities(study, settings, every[i] if full else None) for i, study in enumerate(studies)
    ]
    samples = stack(parts)
    numbers = paired_bootstrap(samples, _statistics(samples, full), resamples=settings.resamples)
    numbers |= measured_at(studies) | _structureless(studies[0].d)
    tables = {"summary": _table(numbers), "sweep": _over_h(studies[0], settings, full)}
    figures = {"extremes": _extremes_figure(network, parts[0])}
    if full:
        tables["figure_7_5b"] = _profile_table(every)
        figures["figure_7_5b"] = _figure(network, every)
    return Findings(
        numbers=named(numbers, settings),
        tables=tables,
        figures=figures,
        tensors={"principal_curvatures": _joined(every)} if full else {},
        notes=[*notes(studies), *_notes(studies[0], numbers, settings, full)],
    )


def profile(
    study: CurvatureStudy[Curvatures],
    count: int,
    *,
    h: float | None = None,
    basis: str = "spread",
) -> Tensor:
    """(n, d - 1) the principal curvatures at ``count`` held-out points, the largest first.

    ``basis`` as in :func:`robustness_geometry.geometry.principal_curvatures`.
    """
    points = study.test_points(count)
    work = partial(profiles, study.model, h or study.h, study.settings.output, basis)
    return study.executor.cached(work, points.points, points.labels, points.targets, chunk=10).value


def _structureless(d: int) -> dict[str, Estimate]:
    """What a Hessian without structure would have in d dimensions."""
    return {
        "share_flat, no structure": exactly(structureless_flat(FLAT)),
        "kappa_top / kappa_random, no structure": exactly(structureless_top(d - 1)),
    }


def _quantities(
    study: CurvatureStudy[Settings], settings: Settings, full: Tensor | None
) -> dict[str, Tensor]:
    """Name -> one value per held-out image, NaN for those that are not measured."""
    points = study.test_points(settings.profile_samples)
    direct = study.at_random(points, settings.directions).double()
    ends = study.extremes(points).values
    values = {
        "direct": direct.mean(dim=1),
        "direct negative": (direct < 0).double().mean(dim=1),
        "largest": ends[:, 0],
        "smallest": ends[:, -1],
        "largest + smallest": ends[:, 0] + ends[:, -1],
        "top / random": ends.abs().amax(dim=1) / direct.abs().quantile(0.5, dim=1),
    }
    (crossing,) = (one for end, one in study.both.items() if end)
    other = crossing.at_random(
        crossing.test_points(settings.profile_samples), settings.directions
    ).double()
    beside = {
        "direct (crossing)": crossing.placed(other.mean(dim=1)),
        "direct negative (crossing)": crossing.placed((other < 0).double().mean(dim=1)),
    }
    if full is None:
        return beside | {name: study.placed(each) for name, each in values.items()}
    mean_, error = drawn_mean(full, settings.draws, study.seed)
    bent = full.abs() > FLAT * full.abs().amax(dim=1, keepdim=True)
    values |= {
        "mean": full.mean(dim=1),
        "flat": flat_share(full),
        "negative": (full < 0).double().mean(dim=1),
        "bent negative": ((full < 0) & bent).sum(dim=1) / bent.sum(dim=1),
        "excess": (mean_ - full.sum(dim=1) / study.d).abs() - ERRORS * error,
        "top / random, shuffled": shuffled_top(full, settings.draws, study.seed),
        "largest full": full[:, 0],
        "smallest full": full[:, -1],
    }
    ranks = study.placed(full).T
    return (
        beside
        | {name: study.placed(each) for name, each in values.items()}
        | {f"rank {rank}": each for rank, each in enumerate(ranks)}
    )


def _statistics(samples: Mapping[str, Tensor], full: bool) -> dict[str, Statistic]:
    statistics = {
        "mean_curvature": mean("mean" if full else "direct"),
        "mean_curvature_direct": mean("direct"),
        "share_negative_direct": mean_share("direct negative"),
        "mean_curvature_direct (crossing)": mean("direct (crossing)"),
        "share_negative_direct (crossing)": mean("direct negative (crossing)"),
        "kappa_top / kappa_random": median("top / random"),
        "largest": mean("largest"),
        "smallest": mean("smallest"),
        "largest + smallest": mean("largest + smallest"),
    }
    if not full:
        return statistics
    ranks = [name for name in samples if name.startswith("rank ")]
    return statistics | {
        "share_flat": of_means(ranks, _flat_of_means),
        "share_flat, mean over images": mean("flat"),
        "share_negative": mean("negative"),
        "share_negative_bent": mean("bent negative"),
        "equation 7.4, difference - 3 standard errors": mean("excess"),
        "kappa_top / kappa_random, shuffled eigenvectors": median("top / random, shuffled"),
        "largest, full profile": mean("largest full"),
        "smallest, full profile": mean("smallest full"),
    }


def _flat_of_means(*means: Tensor) -> Tensor:
    return flat_share(torch.stack(means, dim=-1))


def _over_h(study: CurvatureStudy[Settings], settings: Settings, full: bool) -> pd.DataFrame:
    """Curvature along random tangent directions, and both ends of the spectrum, over h.

    ``share_flat`` is the mean over images of the share of each one's spectrum, found along vectors
    that move all pixels (spread) and, at the h nearest to the default, along the pixels' own axes
    (pixels).
    """
    nearest = min(study.h_factors, key=lambda factor: abs(math.log(factor)), default=None)
    rows = []
    points = study.test_points(settings.sweep_samples)
    for factor, h in study.h_factors.items():
        values = study.at_random(points, settings.directions, h=h)
        ends = study.extremes(points, h=h).values
        row: dict[str, float] = {"h_factor": factor, "h": h, **curvature_columns(values, h)}
        row["share_of_points_with_negative_mean"] = float((values.mean(dim=1) < 0).double().mean())
        row |= {"largest": float(ends[:, 0].mean()), "smallest": float(ends[:, -1].mean())}
        bases = ("spread", "pixels") if factor == nearest else ("spread",)
        for basis in bases if full else ():
            few, most = settings.basis_samples, settings.profile_samples
            known = factor == 1 and basis == "spread" and few <= most
            spectra = profile(study, most if known else few, h=h, basis=basis)
            flat = flat_share(spectra[:few])
            row |= {f"share_flat ({basis})": float(flat.mean()), "spectra": len(flat)}
        rows.append(row)
    return pd.DataFrame(rows)


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for name, e in numbers.items():
        if name.startswith("alignment"):
            continue
        end = " (crossing)" if name.endswith("(crossing)") else ""
        row: dict[str, object] = {"number": name.removesuffix(end), **columns("value", e)}
        where = at_point(end, "closest", numbers)
        row |= {"point": "", "cos(r, n)": math.nan} if "no structure" in name else where
        rows.append(row | {"std": e.std, "points": e.n, "seeds": e.seeds})
    return pd.DataFrame(rows)


def _profile_table(every: Sequence[Tensor]) -> pd.DataFrame:
    """Figure 7.5b: mean and standard deviation of each rank over points and training seeds."""
    values = torch.cat(list(every))
    table = {
        "rank": range(1, values.shape[1] + 1),
        "mean": values.mean(dim=0).tolist(),
        "points": len(values),
    }
    return pd.DataFrame(table | {"std": values.std(dim=0).tolist()})


def _joined(every: Sequence[Tensor]) -> Tensor:
    """(seeds, n, d - 1) in float32, NaN for what a seed lacks."""
    longest = max(len(values) for values in every)
    pad = torch.nn.functional.pad
    return torch.stack([pad(v.float(), (0, 0, 0, longest - len(v)), value=math.nan) for v in every])


def _figure(network: Network, every: Sequence[Tensor]) -> Figure:
    values = torch.cat(list(every))
    mean_, spread = values.mean(dim=0), values.std(dim=0)
    index = torch.arange(1, len(mean_) + 1)
    figure, grid = axes_grid(1, 2, width=11.0, height=4.2)
    shown = min(25, len(mean_) // 2)
    with styled():
        for axes, part, title in (
            (grid[0, 0], slice(None), "all principal curvatures"),
            (grid[0, 1], None, f"the {shown} at either end"),
        ):
            if part is None:
                ends = (
                    (mean_[:shown], spread[:shown], "most positive"),
                    (mean_.flip(0)[:shown], spread.flip(0)[:shown], "most negative"),
                )
                for colour, (y, s, label) in zip(COLOURS, ends, strict=False):
                    axes.plot(index[:shown], y, "-o", color=colour, label=label, markersize=3.5)
                    axes.fill_between(
                        index[:shown], y - s, y + s, color=colour, alpha=0.18, linewidth=0
                    )
                axes.legend()
            else:
                axes.plot(index, mean_, color=COLOURS[0])
                axes.fill_between(
                    index, mean_ - spread, mean_ + spread, color=COLOURS[0], alpha=0.18, linewidth=0
                )
            axes.axhline(0, color="#6b7580", linewidth=1)
            axes.set(xlabel="rank", ylabel=r"$\kappa_i$ (1 / pixel unit)", title=title)
        figure.suptitle(
            f"Principal curvatures near {len(values)} images, mean and standard deviation, "
            f"{network.name}",
            fontsize=12.5,
            fontweight="bold",
        )
    return figure


def _extremes_figure(network: Network, quantities: Mapping[str, Tensor]) -> Figure:
    """Largest against smallest curvature, one dot per boundary point."""
    figure, grid = axes_grid(width=5.2, height=4.6)
    axes = grid[0, 0]
    with styled():
        axes.plot(-quantities["smallest"], quantities["largest"], "o", color=COLOURS[0], alpha=0.7)
        top = 1.05 * float(
            torch.cat([-quantities["smallest"], quantities["largest"]]).nan_to_num(0.0).max()
        )
        axes.plot(
            [0, top], [0, top], "--", color="#6b7580", linewidth=1.2, label="as much to either side"
        )
        axes.set(
            xlabel=r"$-\kappa$ of the most negative direction",
            ylabel=r"$\kappa$ of the most positive one",
        )
        axes.set_title(f"Both ends of each spectrum,\n{network.name}, first training seed")
        axes.legend()
    return figure


def _notes(
    study: CurvatureStudy[Settings],
    numbers: Mapping[str, Estimate],
    settings: Settings,
    full: bool,
) -> list[str]:
    lines = [
        f"Random directions: {settings.directions} an image, each a difference of gradients of its "
        "own; "
        f"{numbers['share_negative_direct'].value:.0%} of these curvatures are negative. 'largest' "
        "and 'smallest' come "
        f"from {study.products_each} products with each Hessian. Where DeepFool's r cross the "
        f"boundary, {numbers['share_negative_direct (crossing)'].value:.0%} are negative.",
        "'no structure' is a symmetric matrix of independent Gaussian entries: "
        f"{structureless_flat(FLAT):.1%} of its curvatures are at most 5% of the largest, which is "
        f"{structureless_top(study.d - 1):.0f} times the median size along random directions. A "
        "ratio below that does not say that few directions are bent. 'shuffled eigenvectors': the "
        "ratio that a matrix of each measured spectrum has.",
    ]
    if not full:
        return [
            *lines,
            f"With d = {study.d} the whole spectrum is not computed; mean_curvature is that of the "
            "draws.",
        ]
    matrix, direct = numbers["mean_curvature"].value, numbers["mean_curvature_direct"].value
    return [
        *lines,
        f"Whole spectra of {settings.profile_samples} images a training seed (the thesis: 1,000), "
        "by differences along "
        "an orthonormal basis whose vectors move all pixels. Over a finite h the Hessian of a "
        "network of ReLUs "
        f"depends on the directions that it is measured along: the mean curvature is {matrix:.3g} "
        "from that basis and "
        f"{direct:.3g} from random directions, the largest curvature "
        f"{numbers['largest, full profile'].value:.3g} and {numbers['largest'].value:.3g}, the "
        "smallest "
        f"{numbers['smallest, full profile'].value:.3g} and {numbers['smallest'].value:.3g}.",
        f"share_flat depends on h and on the vectors that the Hessian is multiplied with: here "
        f"h = {study.h:.3g} and vectors that move all pixels; the sweep has others, with "
        f"{settings.basis_samples} images each.",
        f"Equation 7.4 is tested on the measured spectra with {settings.draws} random v an image; "
        "its constant is 1/d, where 1/(d - 1) is printed, which is too close to tell apart here. "
        "This is arithmetic on known spectra, whatever the network.",
    ]
