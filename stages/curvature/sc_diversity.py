"""Diversity of the vectors of S_c, and retraining on them (Section 6.4.1, Figure 6.11)."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.evaluation import correct
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid
from pipeline.plots import bar_figure
from pipeline.statistics import Estimate, Statistic, difference, exactly, mean, of_means, stack
from pipeline.studies.curvature import CurvatureStudy
from pipeline.studies.curvature_fooling import (
    fooled_shares,
    fooling_studies,
    noise_norm,
    radius_note,
    within,
)
from pipeline.studies.curvature_settings import (
    MeanHessian,
    RandomVectors,
    UniversalSet,
    check_products,
    dimension_of,
)
from pipeline.studies.curvature_tables import at_point, made_at, named, notes
from pipeline.studies.training import fine_tuned
from pipeline.studies.universal import UniversalStudy, cosines, made_of, random_vectors
from pipeline.studies.universal_settings import Retraining
from pipeline.tables import columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.randomness import seeded
from robustness_geometry.training import Recipe, warm_up
from robustness_geometry.types import Dataset, Network, Split
from stages.curvature.sc_fooling import fooling_over_h

__all__ = ["SECTION", "Settings", "largest_cosines", "sc_diversity"]

SECTION = "Section 6.4.1, Figure 6.11"

PRODUCTS = 3
"""Products per dimension that S_c of the original and of the retrained network are found by."""

LARGEST = 500
"""The largest m of Figure 6.9, of d = 3,072: Figure 6.11 names none."""


@dataclass(frozen=True)
class Settings(MeanHessian, UniversalSet, RandomVectors, Retraining):
    """What to measure.

    Attributes:
        draws: number of vectors whose pairs are compared, at least 2.
        repeats: number of times that they are drawn, at least 2.
        small: m of the S_c whose vectors a network is retrained on and judged by.
        noise_share: norm of these vectors over that which random noise needs, in (0, 1], measured
            on the training images that make S_c; the thesis: a fifth.
        pool: number of vectors that the training images may carry.
        share: probability that a training image carries one, in (0, 1].
        epochs: number of extra epochs.
        learning_rate_factor: learning rate over that of the training's end, above 0.
        tune_samples: number of training images to fine-tune on, a stratified choice; None: all.
    """

    draws: int = 4
    repeats: int = 100
    small: int = 10
    noise_share: float = 0.2
    pool: int = 10
    share: float = 0.5
    epochs: int = 5
    learning_rate_factor: float = 0.5
    tune_samples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("draws", "repeats"):
            check_count(name, getattr(self, name), minimum=2)
        check_count("small", self.small)
        if not 0 < self.noise_share <= 1:
            refuse("noise_share", self.noise_share, "a number in (0, 1]")

    def check(self, data: Dataset) -> None:
        """Check that a subspace of this dimension can be had."""
        check_products(self.products, self.small, math.prod(data.shape))


def sc_diversity(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Compare random vectors of S_c, and retrain on some of them.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs trainings and measurements.

    Returns:
        ``largest |cosine|`` of a few draws in as large a subspace as Figure 6.9 goes to, in
        proportion, and of as many dimensions as there; fooling of fresh vectors of S_c before and
        after retraining on others, and clean errors. A network without training images is not
        retrained.

    References:
        Thesis, Section 6.4.1 and Figure 6.11. S.-M. Moosavi-Dezfooli et al., "Analysis of universal
        adversarial perturbations", arXiv:1705.09554.
    """
    pairs = fooling_studies(
        network,
        data,
        settings,
        executor,
        images=settings.universal_samples,
    )
    first, universal = pairs[0]
    numbers = _cosine_numbers(first.d, settings)
    retrained = bool(len(data.train))
    if retrained:
        recipe = settings.recipe(network)
        warm_up()
        samples = stack(executor.each(lambda pair: _measure(*pair, data, recipe, settings), pairs))
        numbers |= paired_bootstrap(samples, _statistics(), resamples=settings.resamples)
    studies = [study for study, _ in pairs]
    numbers |= made_at(studies)
    radius = noise_norm(first, settings.noise_share)
    tables = {
        "cosines": _cosine_table(first.d, settings),
        "sweep": fooling_over_h(first, universal, settings.small, settings.vectors, radius),
    }
    figures = {"figure_6_11": _pictures(network, first, universal, radius, settings)}
    if retrained:
        tables["retraining"] = _table(numbers)
        figures["retraining"] = _bars(network, numbers)
    return Findings(
        numbers=named(numbers, settings),
        tables=tables,
        figures=figures,
        notes=[*notes(studies), *_notes(pairs, numbers, settings, radius)],
    )


def largest_cosines(m: int, draws: int, repeats: int) -> Tensor:
    """(repeats,) the largest |cosine| among random vectors of a subspace.

    It depends on the subspace by its dimension m alone.
    """
    drawn = torch.randn(
        repeats, draws, m, generator=seeded("cosines", m, draws), dtype=torch.float64
    )
    rows, others = torch.triu_indices(draws, draws, offset=1)
    unit = drawn / drawn.norm(dim=2, keepdim=True)
    return (unit[:, rows] * unit[:, others]).sum(dim=2).abs().amax(dim=1)


def _cosine_numbers(d: int, settings: Settings) -> dict[str, Estimate]:
    sizes = {
        "largest |cosine|": dimension_of(LARGEST, d),
        f"largest |cosine|, m = {LARGEST}": min(LARGEST, d),
    }
    samples = {
        name: largest_cosines(m, settings.draws, settings.repeats) for name, m in sizes.items()
    }
    numbers = paired_bootstrap(
        samples, {name: mean(name) for name in samples}, resamples=settings.resamples
    )
    return numbers | {"m": exactly(float(dimension_of(LARGEST, d)))}


def _cosine_table(d: int, settings: Settings) -> pd.DataFrame:
    rows = []
    for m in sorted(
        {m for m in (1, 5, 10, 20, 50, 100, 200, LARGEST, dimension_of(LARGEST, d), d) if m <= d}
    ):
        values = largest_cosines(m, settings.draws, settings.repeats)
        row = {"m": m, "largest_cosine": float(values.mean()), "std": float(values.std())}
        rows.append(
            row | {"one_over_sqrt_m": m**-0.5, "draws": settings.draws, "repeats": settings.repeats}
        )
    return pd.DataFrame(rows)


def _measure(
    study: CurvatureStudy[Settings],
    universal: UniversalStudy,
    data: Dataset,
    recipe: Recipe,
    settings: Settings,
) -> dict[str, Tensor]:
    """Name -> one value per held-out image."""
    radius, count = noise_norm(study, settings.noise_share), settings.vectors
    like, small, seed = study.train.images, settings.small, study.seed
    # S_c of both networks is made of the same few products, as that of the retrained one is new.
    products = min(PRODUCTS * small, settings.products)
    basis = study.curved(small, ends=study.ends(products=products))
    pool = within(basis, like, settings.pool, radius, "pool", seed)
    tuned = _tuned(study, data, pool, recipe, settings)
    later = replace(universal, model=tuned.model)
    after = tuned.curved(small, ends=tuned.ends(products=products))
    errors = {
        f"err {name}": 1
        - each.executor.cached(
            partial(correct, each.model), data.test.images, data.test.labels
        ).value.double()
        for name, each in (("original", universal), ("retrained", later))
    }
    # The same coordinates ("fresh") in the old subspace and in the new one.
    fresh = within(basis, like, count, radius, "fresh", seed)
    anew = within(after, like, count, radius, "fresh", seed)
    shares = fooled_shares(later, {"retrained": anew, "old": fresh, "pool": pool})
    sets = {"original": fresh, "random": random_vectors(like.shape[1:], 2.0, radius, count)}
    (beside,) = (one for end, one in study.both.items() if end)
    other = beside.curved(small, ends=beside.ends_beside(small))
    sets["original (closest)"] = within(other, like, count, radius, "fresh", seed)
    return {**fooled_shares(universal, sets), **shares, **errors}


def _tuned(
    study: CurvatureStudy[Settings],
    data: Dataset,
    pool: Tensor,
    recipe: Recipe,
    settings: Settings,
) -> CurvatureStudy[Settings]:
    """The network after extra epochs on training images of which some carry a vector."""
    tune = settings.images(data)
    generator = seeded("S_c retraining", study.seed)
    carries, which = settings.draw(len(tune), len(pool), generator)
    perturbed = (
        tune.images + carries.to(tune.images).view(-1, *[1] * (tune.images.ndim - 1)) * pool[which]
    )
    carrying = Split(perturbed, tune.labels)
    model = fine_tuned(study.model, carrying, recipe, study.seed, study.executor)[-1]
    return replace(study, model=model)


def _statistics() -> dict[str, Statistic]:
    return {
        "fool_original": mean("original"),
        "fool_original (closest)": mean("original (closest)"),
        "fool_random": mean("random"),
        "fool_original - fool_random": difference("original", "random"),
        "fool_retrained": mean("retrained"),
        "fool_retrained_old_subspace": mean("old"),
        "fool_retrained_pool": mean("pool"),
        "fool_retrained - 0.5 fool_original": of_means(["retrained", "original"], _half),
        "err_original": mean("err original"),
        "err_retrained": mean("err retrained"),
    }


def _half(retrained: Tensor, original: Tensor) -> Tensor:
    return retrained - 0.5 * original


TITLES = {
    "fool_original": "original network, its S_c",
    "fool_original (closest)": "original network, S_c at the closest points",
    "fool_random": "original network, random vectors",
    "fool_retrained": "retrained, S_c made anew",
    "fool_retrained_old_subspace": "retrained, fresh vectors of the old S_c",
    "fool_retrained_pool": "retrained, the vectors trained on",
    "err_original": "clean error, original",
    "err_retrained": "clean error, retrained",
}
"""Name of a number -> what the table and the figure call it."""


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    for name, title in TITLES.items():
        row: dict[str, object] = {"what": title, "point": "", "cos(r, n)": math.nan}
        if "S_c" in title and not title.startswith("retrained"):
            end = " (closest)" if name.endswith("(closest)") else ""
            row |= at_point(end, "crossing", numbers)
        row |= columns("share", numbers[name])
        rows.append(row | {"images": numbers[name].n, "seeds": numbers[name].seeds})
    return pd.DataFrame(rows)


def _bars(network: Network, numbers: Mapping[str, Estimate]) -> Figure:
    shown = {
        name: textwrap.fill(title.replace("S_c", "$S_c$"), 18) for name, title in TITLES.items()
    }
    return bar_figure(
        {shown[name]: {"share": numbers[name]} for name in TITLES if name.startswith("fool")},
        ylabel="share of held-out images fooled",
        title=f"Retraining on vectors of $S_c$, {network.name}",
        width=10.0,
    )


def _pictures(
    network: Network,
    study: CurvatureStudy[Settings],
    universal: UniversalStudy,
    radius: float,
    settings: Settings,
) -> Figure:
    """Figure 6.11: random vectors of S_c."""
    basis, like = study.curved(settings.small), study.train.images
    vectors = within(basis, like, settings.draws, radius, "fresh", study.seed)
    fooled = universal.fooled(universal.test.images, vectors).mean(dim=0)
    inner = cosines(vectors)
    panels: list[Panel | None] = []
    for index, v in enumerate(vectors):
        caption = f"fools {float(fooled[index]):.0%}"
        if index:
            caption += f"\ncosine with the first {float(inner[0, index]):.2f}"
        panels.append(Panel(v, caption, perturbation=True))
    return image_grid(
        [panels], title=f"Random vectors of $S_c$ (m = {settings.small}), {network.name}", side=2.3
    )


def _notes(
    pairs: Sequence[tuple[CurvatureStudy[Settings], UniversalStudy]],
    numbers: Mapping[str, Estimate],
    settings: Settings,
    radius: float,
) -> list[str]:
    study, universal = pairs[0]
    m = dimension_of(LARGEST, study.d)
    expected = math.sqrt(2 / (math.pi * m))
    lines = [
        *made_of([universal for _, universal in pairs]),
        "The cosine of random vectors of a subspace depends on its dimension alone; its mean size "
        "is about sqrt(2 / "
        f"(pi m)), {expected:.3f} for m = {m}, which is to d = {study.d} what the thesis' largest "
        f"m = {LARGEST} is to "
        f"3,072. That the largest of {settings.draws} draws stays below 0.1 takes some 400 "
        "dimensions, whatever the "
        "network: the claim says more about m than about S_c.",
    ]
    if "fool_random" not in numbers:
        return [*lines, "The data set has no training images, so that nothing is retrained."]
    return [
        *lines,
        radius_note(study, universal, radius, numbers["fool_random"]),
        f"Retrained for {settings.epochs} epochs on training images of which {settings.share:.0%} "
        "carry one of "
        f"{settings.pool} random vectors of S_c (m = {settings.small}, {settings.noise_share:g} of "
        "the norm that "
        f"random noise needs); {settings.vectors} fresh vectors of that norm judge, of each "
        "network's S_c, found by "
        f"{min(PRODUCTS * settings.small, settings.products, study.d)} products each. Where S_c "
        "of the original network fools no more than random vectors, there is nothing to retrain "
        "against.",
    ]
