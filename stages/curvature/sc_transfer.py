"""The shared curved subspaces S_c of different networks (Section 6.5, Figures 6.12 and 6.13)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import Line, line_figure
from pipeline.statistics import Estimate, Statistic, mean, median, of_means
from pipeline.studies.curvature import CurvatureStudy, curvature_studies, training_split
from pipeline.studies.curvature_angles import IMAGES, angle_numbers, subspace_angles
from pipeline.studies.curvature_fooling import within
from pipeline.studies.curvature_settings import MeanHessian, check_products, dimension_of
from pipeline.studies.curvature_tables import (
    at_point,
    curvature_columns,
    measured_at,
    named,
    notes,
)
from pipeline.studies.universal import across_networks, check_one_shape
from pipeline.tables import columns
from robustness_geometry.checks import check_count
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Network
from stages.curvature.sc_average_curvature import ENDS
from stages.curvature.uap_sections import draw_sections

__all__ = ["SECTION", "Settings", "sc_transfer"]

SECTION = "Section 6.5, Figures 6.12 and 6.13"

PCA_IMAGES = 1000
"""Training images at most whose principal components are the control subspace."""


@dataclass(frozen=True)
class Settings(MeanHessian):
    """What to measure, beyond the settings of :class:`MeanHessian`.

    Attributes:
        dimension: m of the subspaces whose angles are taken, at least 1; None: 200 of d = 3,072, in
            proportion where d is smaller.
        small: m of the subspaces along whose random vectors the other network is cut.
        directions: number of random vectors of each such subspace, and of random directions per
            image.
        pictures: number of images in the figure.
        grid: number of points along each side of a picture, at least 2.
    """

    dimension: int | None = None
    small: int = 10
    directions: int = 5
    pictures: int = 4
    grid: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("small", "directions", "pictures"):
            check_count(name, getattr(self, name))
        check_count("grid", self.grid, minimum=2)
        if self.dimension is not None:
            check_count("dimension", self.dimension)


def sc_transfer(
    networks: Mapping[str, Network],
    data: Mapping[str, Dataset],
    settings: Settings,
    executor: Executor,
) -> Findings:
    """Take the principal angles between the S_c of networks, and cut each along the other's S_c.

    The S_c are made, and the other networks cut, where DeepFool's r cross the boundary; the same of
    the closest points stands beside it for a small m.

    Args:
        networks: name -> trained classifiers.
        data: name -> the data set of that network, all of one shape.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``cos_1[a][b]``, the cosine of the smallest angle, with that of random subspaces, of one
        network's training seeds and of the images' principal components; ``share_positive[s][t]``
        and ``kappa[s][t]``, the curvature of t's boundary along the S_c of s; the differences that
        the claims ask for, for each pair and in the mean over pairs.

    Raises:
        InputError: fewer than two networks, or images of different shapes.

    References:
        Thesis, Section 6.5 and Figures 6.12 and 6.13. S.-M. Moosavi-Dezfooli et al., "Analysis of
        universal adversarial perturbations", arXiv:1705.09554.
    """
    check_one_shape(networks, data)
    studies = {
        name: curvature_studies(network, data[name], settings, executor, point="crossing")
        for name, network in networks.items()
    }
    names = list(studies)
    d = studies[names[0]][0].d
    m = settings.dimension or dimension_of(200, d)
    check_products(settings.products, max(m, settings.small), d)
    first = next(iter(data.values()))
    components = _components(first, studies[names[0]][0], m)
    angles = subspace_angles(
        {name: _subspaces(each, m) for name, each in studies.items()}, components, m
    )
    numbers, small = angle_numbers(angles, settings.resamples), settings.small
    for end in ENDS:
        bases = {name: _subspaces(each, small, end) for name, each in studies.items()}
        few = subspace_angles(bases, components[:small], small)
        found = angle_numbers(few, settings.resamples)
        numbers |= {f"{name}, m = {small}{end}": value for name, value in found.items()}
        at = {name: [study.both[end] for study in each] for name, each in studies.items()}
        cut = partial(_cut, settings=settings, beside=bool(end), components=components[:small])
        cuts = across_networks(at, cut, QUANTITIES)
        found = paired_bootstrap(cuts, _cut_statistics(names), resamples=settings.resamples)
        numbers |= {f"{name}{end}": value for name, value in found.items()}
    numbers |= measured_at([study for each in studies.values() for study in each])
    source, target = names[0], names[-1]
    ends = (studies[source][0], studies[target][0], source, target)
    return Findings(
        numbers=named(numbers, settings),
        tables={
            "angles": _angle_table(angles, numbers, settings),
            "figure_6_12": _cosine_table(angles),
            "curvature": _cut_table(names, numbers),
            "sweep": _over_h(*ends, settings),
        },
        figures={
            "figure_6_12": _figure(angles, m),
            "figure_6_13": _pictures(*ends, first, settings),
        },
        notes=[
            *notes([study for each in studies.values() for study in each]),
            *_notes(len(names), settings, m, d),
        ],
    )


def _subspaces(studies: Sequence[CurvatureStudy[Settings]], m: int, end: str = "") -> list[Tensor]:
    """S_c of each training seed, (m, d), at the points that names ending in ``end`` belong to."""
    chosen = [study.both[end] for study in studies]
    return [one.curved(m, ends=one.ends_beside(m) if end else None) for one in chosen]


def _components(data: Dataset, study: CurvatureStudy[Settings], m: int) -> Tensor:
    """The leading principal components of training images, (m, d) or as many as there are."""
    images = training_split(data, PCA_IMAGES).images
    flat = (images if len(images) else study.train.images).flatten(1).double()
    return torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False).Vh[:m]


QUANTITIES = ("median", "positive", "random", "images", "images positive")
"""What is measured on every network along the S_c of every other one."""


def _cut(
    source: CurvatureStudy[Settings],
    target: CurvatureStudy[Settings],
    *,
    settings: Settings,
    beside: bool,
    components: Tensor,
) -> dict[str, Tensor]:
    """Curvatures of the target's boundary along random vectors of the source's S_c.

    Returns:
        One value per image: ``median`` over the vectors, the share that is ``positive``, the median
        size along ``random`` directions, and the first two along random vectors of the principal
        components of the ``images``.
    """
    points, small = target.test_points(), settings.small
    ends = source.ends_beside(small) if beside else None
    vectors = _vectors(source, source.curved(small, ends=ends), settings.directions)
    like = source.train.images
    control = within(components, like, settings.directions, 1.0, "components", source.seed)
    along, other = target.along(points, vectors), target.along(points, control)
    random = target.at_random(points, settings.directions)
    return {
        "median": target.placed(along.double().quantile(0.5, dim=1)),
        "positive": target.placed((along > 0).double().mean(dim=1)),
        "random": target.placed(random.double().abs().quantile(0.5, dim=1)),
        "images": target.placed(other.double().quantile(0.5, dim=1)),
        "images positive": target.placed((other > 0).double().mean(dim=1)),
    }


def _vectors(source: CurvatureStudy[Settings], basis: Tensor, count: int) -> Tensor:
    """Random unit vectors (count, C, H, W) of the source's S_c."""
    return within(basis, source.train.images, count, 1.0, "transfer", source.seed)


def _cut_statistics(names: Sequence[str]) -> dict[str, Statistic]:
    statistics: dict[str, Statistic] = {}
    for s, t in product(names, repeat=2):
        pair = f"[{s}][{t}]"
        statistics[f"kappa{pair}"] = median(f"median{pair}")
        statistics[f"share_positive{pair}"] = mean(f"positive{pair}")
        statistics[f"kappa - kappa_random{pair}"] = _of_pairs([pair])
        if s == t:
            statistics[f"kappa_random[{t}]"] = median(f"random{pair}")
            statistics[f"kappa_images[{t}]"] = median(f"images{pair}")
            statistics[f"share_positive_images[{t}]"] = mean(f"images positive{pair}")
    others = [f"[{s}][{t}]" for s, t in permutations(names, 2)]
    shares = [f"positive{pair}" for pair in others]
    return statistics | {
        "share_positive, mean of pairs": of_means(shares, _mean_of),
        "kappa - kappa_random, mean of pairs": _of_pairs(others),
    }


def _mean_of(*shares: Tensor) -> Tensor:
    return torch.stack(shares).mean(dim=0)


def _of_pairs(pairs: Sequence[str]) -> Statistic:
    """The mean, over ordered pairs of networks, of kappa less the size along random directions."""
    sizes = [f"{what}{pair}" for pair in pairs for what in ("median", "random")]
    return Statistic(tuple(sizes), _mean_excess, joint=False)


def _mean_excess(*values: Tensor) -> Tensor:
    """Of values that stand side by side: along S_c, then along random directions."""
    middle = median("kappa").reduce
    return torch.stack(
        [middle(a) - middle(b) for a, b in zip(values[::2], values[1::2], strict=True)]
    ).mean(dim=0)


def _over_h(
    source: CurvatureStudy[Settings],
    target: CurvatureStudy[Settings],
    s: str,
    t: str,
    settings: Settings,
) -> pd.DataFrame:
    """The target t cut along the S_c of the source s, made of few images, at each h."""
    rows = []
    points = target.test_points(settings.sweep_samples)
    for factor, h in target.h_factors.items():
        basis = source.curved_at(factor, settings.small)["sc"]
        vectors = _vectors(source, basis, settings.directions)
        sets = {f"S_c of {s}": target.along(points, vectors, h=h)}
        sets["random"] = target.at_random(points, settings.directions, h=h)
        rows += [
            {
                "h_factor": factor,
                "h": h,
                "boundary_of": t,
                "direction": name,
                **curvature_columns(values, h),
            }
            for name, values in sets.items()
        ]
    return pd.DataFrame(rows)


def _angle_table(
    angles: Mapping[str, Tensor], numbers: Mapping[str, Estimate], settings: Settings
) -> pd.DataFrame:
    small = settings.small
    m = next(iter(angles.values())).shape[-1]
    cases = [(m, "", "")] + [(small, end, f", m = {small}{end}") for end in ENDS]
    rows = []
    for dimension, end, suffix in cases:
        for name, values in angles.items():
            row: dict[str, object] = {"subspaces": name, "m": dimension}
            row |= at_point(end, "crossing", numbers)
            row |= columns("cos_1", numbers[f"cos_1{name}{suffix}"])
            if not suffix:
                row["mean_of_all"] = float(values.nanmean())
            row["pairs_of_seeds"] = int((~values[..., 0].isnan()).sum())
            rows.append(row)
    return pd.DataFrame(rows)


def _cosine_table(angles: Mapping[str, Tensor]) -> pd.DataFrame:
    count = next(iter(angles.values())).shape[-1]
    means = {name: values.nanmean(dim=(0, 1)).tolist() for name, values in angles.items()}
    return pd.DataFrame({"index": range(1, count + 1)} | means)


def _cut_table(names: Sequence[str], numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for end, s, t in product(ENDS, [*names, "images"], names):
        pair = f"_images[{t}]{end}" if s == "images" else f"[{s}][{t}]{end}"
        kappa, positive = numbers[f"kappa{pair}"], numbers[f"share_positive{pair}"]
        row: dict[str, object] = {"S_c_of": s, "boundary_of": t}
        row |= at_point(end, "crossing", numbers)
        row |= columns("kappa", kappa) | columns("share_positive", positive)
        row |= columns("kappa_random_size", numbers[f"kappa_random[{t}]{end}"])
        if s != "images":
            row |= columns("difference", numbers[f"kappa - kappa_random{pair}"])
        rows.append(row | {"images": kappa.n, "seeds": kappa.seeds})
    return pd.DataFrame(rows)


def _figure(angles: Mapping[str, Tensor], m: int) -> Figure:
    index = list(range(1, m + 1))
    lines = {}
    for name, values in angles.items():
        pair = name.strip("[]").split("][")
        title = "random subspaces" if pair == ["random"] else " and ".join(pair)
        title = (
            f"{pair[0]}, two training seeds" if len(set(pair)) == 1 and len(pair) == 2 else title
        )
        title = f"{pair[0]} and the images" if name.endswith(IMAGES) else title
        plain = pair != ["random"] and not name.endswith(IMAGES)
        style = ":" if not plain else "-" if len(set(pair)) == 2 else "--"
        lines[title] = Line(index, values.nanmean(dim=(0, 1)).tolist(), style=style, marker="")
    return line_figure(
        lines,
        xlabel="index of the principal angle",
        ylabel="cosine of the angle",
        title=f"Angles between the $S_c$ of different networks (m = {m})",
        limits=(0, 1.02),
        width=8.5,
    )


def _pictures(
    source: CurvatureStudy[Settings],
    target: CurvatureStudy[Settings],
    s: str,
    t: str,
    data: Dataset,
    settings: Settings,
) -> Figure:
    """Figure 6.13: sections of t along one direction of the S_c of s, and along random ones."""
    points = target.near_test
    rows = points.success.nonzero()[: settings.pictures, 0]
    images = target.test.images[rows]
    v = _vectors(source, source.curved(settings.small), 1)
    drawn = torch.randn(images.shape, generator=seeded("transfer", target.seed))
    directions = {f"$S_c$ of {s}": v.expand_as(images), "random direction": drawn}
    title = f"Normal sections of {t}"
    return draw_sections(
        target.model, data, images, points.select(rows), directions, grid=settings.grid, title=title
    )


def _notes(networks: int, settings: Settings, m: int, d: int) -> list[str]:
    return [
        f"S_c of {m} of d = {d} dimensions for the angles (the thesis does not give its m), of "
        f"{settings.small} for "
        f"the sections, of which {settings.directions} random vectors cut every other network.",
        "cos_1 is the cosine of the smallest principal angle, its mean over pairs of training "
        "seeds, whose intervals "
        "draw the seeds of both networks; '[a][a]' are two training seeds of one network, "
        "'[random]' random subspaces "
        "of as many dimensions.",
        "'[a][images]': the angles of S_c with the leading principal components of the images, as "
        "many; what S_c has in common with these, any subspace of smooth images has. In the table "
        "of curvatures 'images' stands for random vectors of these components.",
        f"'mean of pairs' is over all pairs of the {networks} networks, ordered ones for "
        "curvatures; the tables have each pair. 'cos(r, n)' is the mean over all networks. "
        "Curvature is divided by the gradient's norm; networks of the same training seed "
        "meet.",
    ]
