"""Random vectors of S_c as universal perturbations (Section 6.4.1, Figure 6.9b)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import largest, paired_bootstrap, smallest
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure, styled
from pipeline.statistics import (
    Estimate,
    Statistic,
    difference,
    exactly,
    mean,
    mean_share,
    of_means,
    stack,
)
from pipeline.studies.curvature import CurvatureStudy
from pipeline.studies.curvature_fooling import (
    fooled_shares,
    fooling_studies,
    fooling_vectors,
    noise_norm,
    radius_note,
    share_inside,
    within,
    without,
)
from pipeline.studies.curvature_settings import (
    Fooling,
    MeanHessian,
    RandomVectors,
    check_dimensions,
    check_products,
)
from pipeline.studies.curvature_tables import (
    at_point,
    curvature_columns,
    made_at,
    named,
    notes,
)
from pipeline.studies.universal import Plan, UniversalStudy, made_of, random_vectors
from pipeline.tables import columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.types import Dataset, Network
from stages.curvature.sc_average_curvature import ENDS, KINDS, bases, beside

__all__ = ["SECTION", "Settings", "fooling_over_h", "sc_fooling"]

SECTION = "Section 6.4.1, Figure 6.9b"

LESS = " less sf"
"""What names of the vectors end in from which the leading normals were projected out."""

CONTROLLED = ("sc", "negative")
"""The kinds of subspaces that are also shown without the leading normals."""


@dataclass(frozen=True)
class Settings(MeanHessian, Fooling, RandomVectors):
    """What to measure.

    Attributes:
        dimensions: two or more dimensions m of the subspaces, ascending, at most half of
            ``products``.
        small: one of ``dimensions``, which stands for the thesis' small m.
        noise_share: norm of the vectors over that which random noise needs, in (0, 1], measured on
            the training images that make S_c; the thesis: a fifth.
        normals: number of leading directions of S_f, at least 1, that are projected out of the
            vectors of S_c to see what they fool without them.
        algorithm_samples: number of training images, at least 2, that Algorithm 4's vector is made
            of; S_c has ``train_samples``.
    """

    dimensions: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200, 500)
    small: int = 10
    noise_share: float = 0.2
    normals: int = 50
    algorithm_samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dimensions(self.dimensions, self.small)
        check_count("normals", self.normals)
        check_count("algorithm_samples", self.algorithm_samples, minimum=2)
        if not 0 < self.noise_share <= 1:
            refuse("noise_share", self.noise_share, "a share in (0, 1]")

    def check(self, data: Dataset) -> None:
        """Check that subspaces of these dimensions can be had."""
        check_products(self.products, self.dimensions[-1], math.prod(data.shape))


def sc_fooling(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Compare the fooling of random vectors of S_c, of S_f, of controls and of Algorithm 4.

    All have one norm. The subspaces are made where DeepFool's r cross the boundary; the same of the
    closest points stand beside them for small m.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the measurements.

    Returns:
        ``fool_sc_<m>``, ``fool_sf_<m>``, ``fool_negative_<m>`` (random vectors of the most negative
        eigenvectors), ``fool_random``, ``fool_uap``, and what the claims compare; ``fool_sc`` is
        that of the small m. ``... less sf`` are the same vectors without their parts along the
        leading normals, ``overlap_<kind>_<m>`` the mean share of the vectors' norms that these
        parts have.

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
    found = executor.each(lambda pair: _measure(*pair, settings), pairs)
    numbers = paired_bootstrap(
        stack([fooled for fooled, _ in found]), _statistics(settings), resamples=settings.resamples
    )
    numbers["fool_sf, largest"] = largest(numbers[f"fool_sf_{m}"] for m in settings.dimensions)
    ahead = (numbers.pop(_ahead(m)) for m in settings.dimensions)
    numbers["fool_sc - fool_sf_m, smallest"] = smallest(ahead)
    overlaps = stack([inside for _, inside in found])
    numbers |= paired_bootstrap(
        overlaps,
        {f"overlap_{_joined(name)}": mean(name) for name in overlaps},
        resamples=settings.resamples,
    )
    first, universal = pairs[0]
    studies, d = [study for study, _ in pairs], first.d
    numbers |= made_at(studies)
    numbers["overlap_random"] = exactly(math.sqrt(min(settings.normals, d) / d))
    radius = noise_norm(first, settings.noise_share)
    return Findings(
        numbers=named(numbers, settings),
        tables={
            "figure_6_9b": _table(numbers, settings),
            "sweep": fooling_over_h(first, universal, settings.small, settings.vectors, radius),
        },
        figures={"figure_6_9b": _figure(network, numbers, settings)},
        notes=[*notes(studies), *_notes(pairs, numbers, settings)],
    )


def _measure(
    study: CurvatureStudy[Settings], universal: UniversalStudy, settings: Settings
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The share of each kind's vectors that fool each held-out image, and their overlap with S_f.

    The second one has one value per vector, the same number for all kinds.
    """
    radius, count = noise_norm(study, settings.noise_share), settings.vectors
    like = study.train.images
    sets = {
        "uap": universal.make([Plan(2.0, radius)])[0].perturbation,
        "random": random_vectors(like.shape[1:], 2.0, radius, count),
    }
    overlaps = {}
    for end, one in study.both.items():
        normals = one.normal_basis(settings.normals)
        ends = one.ends_beside(settings.small) if end else None
        for m in beside(settings.dimensions, settings.small) if end else settings.dimensions:
            for kind, basis in bases(one, m, ends).items():
                vectors = fooling_vectors(basis, like, count, radius, kind, m, study.seed)
                sets[f"{kind} {m}{end}"] = vectors
                if _controlled(kind, m, settings):
                    sets[f"{kind}{LESS} {m}{end}"] = without(vectors, normals)
                    # The overlap of a subspace of one dimension is that of its only direction.
                    several = within(basis, like, count, 1.0, kind, m, study.seed)
                    overlaps[f"{kind} {m}{end}"] = share_inside(several, normals)
    return fooled_shares(universal, sets), overlaps


def _controlled(kind: str, m: int, settings: Settings) -> bool:
    """Whether vectors are also judged without the leading normals."""
    return kind in CONTROLLED and m in beside(settings.dimensions, settings.small)


def _cases(settings: Settings) -> list[tuple[str, str, int]]:
    """The kind of the vectors, what names end in, and m, as far as they are measured."""
    cases = []
    for end in ENDS:
        for kind in KINDS:
            few = beside(settings.dimensions, settings.small)
            cases += [(kind, end, m) for m in (few if end else settings.dimensions)]
            cases += [(f"{kind}{LESS}", end, m) for m in few if kind in CONTROLLED]
    return cases


def _joined(name: str) -> str:
    """``sc less sf 10 (closest)`` -> ``sc_less_sf_10 (closest)``."""
    stem, end = (name.removesuffix(ENDS[1]), ENDS[1]) if name.endswith(ENDS[1]) else (name, "")
    return stem.replace(" ", "_") + end


def _statistics(settings: Settings) -> dict[str, Statistic]:
    names = [f"{kind} {m}{end}" for kind, end, m in _cases(settings)]
    statistics = {f"fool_{_joined(name)}": mean_share(name) for name in names}
    statistics |= {"fool_uap": mean_share("uap"), "fool_random": mean_share("random")}
    for end in ENDS:
        small, less, negative = (
            f"{kind} {settings.small}{end}" for kind in ("sc", f"sc{LESS}", "negative")
        )
        statistics |= {
            f"fool_sc{end}": mean_share(small),
            f"fool_sc_less_sf{end}": mean_share(less),
            f"fool_negative{end}": mean_share(negative),
            f"fool_sc - 0.9 fool_uap{end}": of_means([small, "uap"], _nearly),
            f"fool_sc - fool_uap, absolute{end}": of_means(
                [small, "uap"], _distance, (0.0, math.inf)
            ),
            f"fool_sc - fool_uap{end}": difference(small, "uap"),
            f"fool_sc - fool_random{end}": difference(small, "random"),
            f"fool_sc_less_sf - fool_random{end}": difference(less, "random"),
            f"fool_sc - fool_sc_less_sf{end}": difference(small, less),
            f"fool_sc - fool_negative{end}": difference(small, negative),
        }
    large = f"sc {settings.dimensions[-1]}"
    return statistics | {
        **{_ahead(m): difference(f"sc {settings.small}", f"sf {m}") for m in settings.dimensions},
        "fool_sc_small - fool_sc_large": difference(f"sc {settings.small}", large),
    }


def _nearly(vectors: Tensor, universal: Tensor) -> Tensor:
    return vectors - 0.9 * universal


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs()


def _ahead(m: int) -> str:
    """How far vectors of the small S_c are ahead of those of m dimensions of S_f."""
    return f"fool_sc - fool_sf_{m}"


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
            like = study.train.images
            vectors = fooling_vectors(basis, like, count, radius, kind, taken, study.seed)
            fooled = float(universal.fooled(unseen, vectors).mean())
            row: dict[str, object] = {"h_factor": factor, "h": h, "direction": kind, "m": taken}
            row |= {"fooled": fooled, "images": len(unseen)}
            rows.append(row | curvature_columns(study.along(points, vectors, h=h), h))
    return pd.DataFrame(rows)


def _table(numbers: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for kind, end, m in _cases(settings):
        row: dict[str, object] = {
            "vectors": kind,
            "m": str(m),
            **at_point(end, "crossing", numbers),
        }
        row |= columns("fooled", numbers[f"fool_{_joined(f'{kind} {m}{end}')}"])
        inside = numbers.get(f"overlap_{_joined(f'{kind} {m}{end}')}")
        rows.append(row | {"overlap with sf": inside.value if inside else math.nan})
    for kind, name in (("random", "fool_random"), ("Algorithm 4", "fool_uap")):
        row = {"vectors": kind, "m": "", "point": "", "cos(r, n)": math.nan}
        row |= columns("fooled", numbers[name])
        inside = numbers.get(name.replace("fool_", "overlap_"))
        rows.append(row | {"overlap with sf": inside.value if inside else math.nan})
    counts = numbers["fool_random"]
    return pd.DataFrame(rows).assign(images=counts.n, seeds=counts.seeds)


def _figure(network: Network, numbers: Mapping[str, Estimate], settings: Settings) -> Figure:
    m = list(settings.dimensions)
    lines = {
        title: estimate_line(
            m, [numbers[f"fool_{kind}_{each}"] for each in m], style="-" if kind == "sc" else "--"
        )
        for kind, title in KINDS.items()
    }
    few = beside(settings.dimensions, settings.small)
    for title, name in (
        ("$S_c$ less the leading normals", "sc_less_sf_{}"),
        ("$S_c$, closest points", "sc_{} (closest)"),
    ):
        shown = [numbers[f"fool_{name.format(each)}"] for each in few]
        lines[title] = estimate_line(few, shown, style=":")
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
    radius = noise_norm(first, settings.noise_share)
    size = float(universal.test.images.flatten(1).norm(dim=1).mean())
    gap, small = numbers["fool_sc - fool_negative"], settings.small
    verdict = (
        "does make a difference here" if gap.low > 0 else "cannot be credited with the fooling here"
    )
    return [
        *made_of([universal for _, universal in pairs]),
        f"Here, other than there, all vectors have {settings.noise_share:g} of the norm that "
        f"random noise needs (the thesis: a fifth): {radius:.3g} for the first training seed, "
        f"{radius / size:.2g} of an image's mean norm. "
        + radius_note(first, universal, radius, numbers["fool_random"]),
        f"Control: at m = {small} random vectors of S_c fool {numbers['fool_sc'].value:.3f}, those "
        f"of the most negative eigenvectors {numbers['fool_negative'].value:.3f}, random ones "
        f"{numbers['fool_random'].value:.3f}: the sign of the curvature {verdict}. At the closest "
        f"points S_c fools {numbers['fool_sc (closest)'].value:.3f} and the negative ones "
        f"{numbers['fool_negative (closest)'].value:.3f}.",
        f"'less sf': the same vectors without their parts in the {settings.normals} leading "
        "directions of S_f, at the same norm; 'overlap with sf' is the mean share of a vector's "
        f"norm in these directions, for random vectors {numbers['overlap_random'].value:.2f}. At m "
        f"= {small} the vectors of S_c have {numbers[f'overlap_sc_{small}'].value:.2f} of their "
        f"norm there and fool {numbers['fool_sc_less_sf'].value:.3f} without it: what is lost, S_c "
        "owed to the normals.",
        f"{settings.vectors} random vectors of each subspace and training seed, or both signs of "
        "the only direction of one dimension; their mean counts. S_c and S_f are "
        f"made of {len(first.train)} training images, so that S_f has no more dimensions than "
        "that; beyond, all of it is taken. At the closest points S_c is found by fewer products, "
        f"for small m alone. In the sweep S_c is made of {settings.sweep_samples} images.",
    ]
