"""The shared curved subspaces S_c of different networks (Section 6.5, Figures 6.12 and 6.13)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations, product

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import Line, line_figure
from pipeline.statistics import Estimate, Statistic, mean, median, of_means
from pipeline.studies.curvature import CurvatureStudy, curvature_studies, named, notes
from pipeline.studies.curvature_fooling import within
from pipeline.studies.curvature_settings import MeanHessian, check_products, dimension_of
from pipeline.studies.universal import across_networks, check_one_shape
from pipeline.tables import columns, sign_shares
from robustness_geometry.checks import check_count
from robustness_geometry.geometry import principal_angles, random_subspace
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Network
from stages.curvature.uap_sections import draw_sections

__all__ = ["SECTION", "Settings", "sc_transfer"]

SECTION = "Section 6.5, Figures 6.12 and 6.13"


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

    Args:
        networks: name -> trained classifiers.
        data: name -> the data set of that network, all of one shape.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``cos_1[a][b]``, the cosine of the smallest angle, with that of random subspaces and of one
        network's training seeds; ``share_positive[s][t]`` and ``kappa[s][t]``, the curvature of t's
        boundary along the S_c of s; and what the claims ask of all pairs at once.

    Raises:
        InputError: fewer than two networks, or images of different shapes.

    References:
        Thesis, Section 6.5 and Figures 6.12 and 6.13. S.-M. Moosavi-Dezfooli et al., "Analysis of
        universal adversarial perturbations", arXiv:1705.09554.
    """
    check_one_shape(networks, data)
    studies = {
        name: curvature_studies(network, data[name], settings, executor)
        for name, network in networks.items()
    }
    names = list(studies)
    d = studies[names[0]][0].d
    m = settings.dimension or dimension_of(200, d)
    check_products(settings.products, max(m, settings.small), d)
    angles = _angles(studies, m)
    numbers = paired_bootstrap(
        _firsts(angles), _angle_statistics(angles), resamples=settings.resamples
    )
    cuts = across_networks(studies, partial(_cut, settings=settings), QUANTITIES)
    numbers |= paired_bootstrap(cuts, _cut_statistics(names), resamples=settings.resamples)
    source, target = names[0], names[-1]
    first = next(iter(data.values()))
    ends = (studies[source][0], studies[target][0], source, target)
    return Findings(
        numbers=named(numbers, settings),
        tables={
            "angles": _angle_table(angles, numbers),
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


def _angles(studies: Mapping[str, Sequence[CurvatureStudy[Settings]]], m: int) -> dict[str, Tensor]:
    """Cosines of the principal angles between the S_c of every two networks.

    Returns:
        ``[a][b]`` -> (s, s, m) for each training seed of a (first) and of b (second), the smallest
        angle first; ``[a][a]`` for the training seeds of one network; ``[random]``. s is the
        largest number of training seeds; NaN where there are fewer, and for a subspace and itself.
    """
    bases = {name: [study.curved(m) for study in each] for name, each in studies.items()}
    most, d = max(map(len, bases.values())), next(iter(bases.values()))[0].shape[1]
    # Two sets of random subspaces, which meet as the training seeds of two networks do.
    drawn = [random_subspace(d, m, seeded("random subspaces of S_c", k)) for k in range(2 * most)]
    pairs = {f"[{a}][{b}]": (bases[a], bases[b]) for a, b in combinations(bases, 2)}
    pairs |= {f"[{a}][{a}]": (same, same) for a, same in bases.items() if len(same) > 1}
    pairs["[random]"] = (drawn[:most], drawn[most:])
    cosines = {}
    for name, (first, second) in pairs.items():
        cosines[name] = torch.full((most, most, m), math.nan, dtype=torch.float64)
        for (i, u), (j, v) in product(enumerate(first), enumerate(second)):
            if u is not v:
                cosines[name][i, j] = principal_angles(u, v).angles.cos()
    return cosines


def _firsts(angles: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> the cosines of the smallest angles, (s, s).

    Rows and columns are the training seeds of two networks: the bootstrap draws those of both.
    """
    return {name: values[..., 0] for name, values in angles.items()}


def _angle_statistics(angles: Mapping[str, Tensor]) -> dict[str, Statistic]:
    # ``[a][b]`` of two different networks: neither ``[a][a]`` nor ``[random]``.
    between = [name for name in angles if len(set(name.strip("[]").split("]["))) == 2]
    statistics = {f"cos_1{name}": mean(name) for name in angles}
    return statistics | {
        "cos_1 - cos_1[random], smallest": of_means([*between, "[random]"], _margin)
    }


def _margin(*cosines: Tensor) -> Tensor:
    """The smallest cosine of all pairs less that of random subspaces, which comes last."""
    return torch.stack(cosines[:-1]).amin(dim=0) - cosines[-1]


QUANTITIES = ("median", "positive", "random")
"""What is measured on every network along the S_c of every other one."""


def _cut(
    source: CurvatureStudy[Settings], target: CurvatureStudy[Settings], *, settings: Settings
) -> dict[str, Tensor]:
    """Curvatures of the target's boundary along random vectors of the source's S_c.

    Returns:
        One value per image: ``median`` over the vectors, the share that is ``positive``, and the
        median size along ``random`` directions.
    """
    points = target.test_points()
    vectors = _vectors(source, source.curved(settings.small), settings.directions)
    along = target.along(points, vectors)
    random = target.at_random(points, settings.directions)
    return {
        "median": target.placed(along.double().quantile(0.5, dim=1)),
        "positive": target.placed((along > 0).double().mean(dim=1)),
        "random": target.placed(random.double().abs().quantile(0.5, dim=1)),
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
        if s == t:
            statistics[f"kappa_random[{t}]"] = median(f"random{pair}")
    others = [f"[{s}][{t}]" for s, t in permutations(names, 2)]
    shares = [f"positive{pair}" for pair in others]
    sizes = [f"{what}{pair}" for pair in others for what in ("median", "random")]
    return statistics | {
        "share_positive, smallest": of_means(shares, _smallest),
        "kappa - kappa_random, smallest": Statistic(tuple(sizes), _smallest_excess, joint=False),
    }


def _smallest(*shares: Tensor) -> Tensor:
    return torch.stack(shares).amin(dim=0)


def _smallest_excess(*values: Tensor) -> Tensor:
    """The smallest, over pairs of networks, of kappa less that of random directions.

    The values of a pair stand side by side: first along S_c, then along random directions.
    """
    middle = median("kappa").reduce
    return torch.stack(
        [middle(a) - middle(b) for a, b in zip(values[::2], values[1::2], strict=True)]
    ).amin(dim=0)


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
            {"h_factor": factor, "h": h, "boundary_of": t, "direction": name, **sign_shares(values)}
            for name, values in sets.items()
        ]
    return pd.DataFrame(rows)


def _angle_table(angles: Mapping[str, Tensor], numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for name, values in angles.items():
        estimate = numbers[f"cos_1{name}"]
        row: dict[str, object] = {"subspaces": name, **columns("cos_1", estimate)}
        pairs = int((~values[..., 0].isnan()).sum())
        rows.append(row | {"mean_of_all": float(values.nanmean()), "pairs_of_seeds": pairs})
    return pd.DataFrame(rows)


def _cosine_table(angles: Mapping[str, Tensor]) -> pd.DataFrame:
    count = next(iter(angles.values())).shape[-1]
    means = {name: values.nanmean(dim=(0, 1)).tolist() for name, values in angles.items()}
    return pd.DataFrame({"index": range(1, count + 1)} | means)


def _cut_table(names: Sequence[str], numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for s, t in product(names, repeat=2):
        kappa, positive = numbers[f"kappa[{s}][{t}]"], numbers[f"share_positive[{s}][{t}]"]
        row: dict[str, object] = {"S_c_of": s, "boundary_of": t, **columns("kappa", kappa)}
        row |= columns("share_positive", positive) | columns(
            "kappa_random_size", numbers[f"kappa_random[{t}]"]
        )
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
        style = ":" if pair == ["random"] else "-" if len(set(pair)) == 2 else "--"
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
        f"'smallest' is over all pairs of the {networks} networks: the thesis' relations are "
        "asked of all of them at "
        "once. Curvature is divided by the gradient's norm; networks of the same training seed "
        "meet.",
    ]
