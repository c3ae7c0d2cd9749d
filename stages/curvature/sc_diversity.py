"""How different vectors of the shared curved subspace are, and what retraining changes (Section 6.4.1, Figure 6.11)."""

import math
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
from pipeline.statistics import Estimate, Statistic, exactly, mean, of_means, stack
from pipeline.studies.curvature import (
    Study,
    WithUniversal,
    check_products,
    dimension_of,
    fooled_shares,
    named,
    noise_norm,
    notes,
    studies,
    universal_case,
    within,
)
from pipeline.studies.training import fine_tuned
from pipeline.studies.universal import Case, cosines, made_of
from pipeline.tables import columns
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.datasets.sampling import choose
from robustness_geometry.randomness import seeded
from robustness_geometry.training import Recipe, extra_epochs, warm_up
from robustness_geometry.types import Dataset, Network, Split
from stages.curvature.sc_fooling import sweep

__all__ = ["SECTION", "Settings", "largest_cosines", "sc_diversity"]

SECTION = "Section 6.4.1, Figure 6.11"

LARGEST = 500
"""The largest m of Figure 6.9, of d = 3,072: Figure 6.11 names none."""


@dataclass(frozen=True)
class Settings(WithUniversal):
    """What to measure, beyond what :class:`WithUniversal` says.

    Attributes:
        draws: vectors whose pairs are compared.
        repeats: how often they are drawn.
        small: m of the vectors that a network is retrained on and judged by.
        noise_share: norm of these vectors over that which random noise needs; the thesis: a fifth.
        pool: vectors of the training set.
        share: probability that a training image carries one.
        epochs: extra epochs.
        learning_rate_factor: what the learning rate of the training's end is multiplied with.
        tune_samples: training images to fine-tune on, a stratified choice; None takes all.
        networks: those to measure; None takes all.
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
    networks: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("draws", "repeats"):
            check_count(name, getattr(self, name), minimum=2)
        for name in ("small", "pool", "epochs"):
            check_count(name, getattr(self, name))
        if self.tune_samples is not None:
            check_count("tune_samples", self.tune_samples)
        for name in ("share", "noise_share"):
            if not 0 < getattr(self, name) <= 1:
                refuse(name, getattr(self, name), "a number in (0, 1]")
        check_positive("learning_rate_factor", self.learning_rate_factor)

    def check(self, data: Dataset) -> None:
        """Hold that subspaces as large can be had."""
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
    """
    found = [
        (study, universal_case(study, data, settings))
        for study in studies(network, data, settings, executor)
    ]
    first, case = found[0]
    numbers = _cosine_numbers(first.d, settings)
    retrained = bool(len(data.train))
    if retrained:
        recipe = extra_epochs(
            network.training, epochs=settings.epochs, factor=settings.learning_rate_factor
        )
        warm_up()
        samples = stack(executor.each(lambda pair: _measure(*pair, data, recipe, settings), found))
        numbers |= paired_bootstrap(samples, _statistics(), resamples=settings.resamples)
    tables = {"cosines": _cosine_table(first.d, settings)}
    radius = noise_norm(case, settings.noise_share)
    tables["sweep"] = sweep(first, case, settings.small, settings.vectors, radius)
    figures = {"figure_6_11": _pictures(network, first, case, radius, settings)}
    if retrained:
        tables["retraining"] = _table(numbers)
        figures["retraining"] = _bars(network, numbers)
    return Findings(
        numbers=named(numbers, settings),
        tables=tables,
        figures=figures,
        notes=[*notes([study for study, _ in found]), *_notes(found, numbers, settings, retrained)],
    )


def largest_cosines(m: int, draws: int, repeats: int) -> Tensor:
    """(repeats,) the largest |cosine| among random vectors of an m-dimensional subspace, which is that of any other."""
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
    study: Study, case: Case, data: Dataset, recipe: Recipe, settings: Settings
) -> dict[str, Tensor]:
    """Name -> one value a held-out image."""
    radius, count = noise_norm(case, settings.noise_share), settings.vectors
    products = min(4 * settings.small, settings.products)
    basis = study.curved(settings.small, ends=study.ends(steps=products))
    pool = within(basis, study.known, settings.pool, radius, "pool", study.seed)
    tuned = _tuned(study, data, pool, recipe, settings)
    own = tuned.curved(settings.small, ends=tuned.ends(steps=products))
    fresh = within(basis, study.known, count, radius, "fresh", study.seed)
    later = replace(case, model=tuned.model)
    test = data.test
    errors = {
        f"err {name}": 1
        - each.executor.cached(
            partial(correct, each.model), test.images, test.labels
        ).value.double()
        for name, each in (("original", case), ("retrained", later))
    }
    anew = within(own, study.known, count, radius, "fresh", study.seed)
    found = fooled_shares(later, {"retrained": anew, "old": fresh, "pool": pool})
    return {**fooled_shares(case, {"original": fresh}), **found, **errors}


def _tuned(study: Study, data: Dataset, pool: Tensor, recipe: Recipe, settings: Settings) -> Study:
    """The network after extra epochs on training images of which some carry a vector of the pool."""
    chosen = choose(data.train.labels, settings.tune_samples, "fine-tuning")
    images, labels = data.train.images[chosen], data.train.labels[chosen]
    generator = seeded("S_c retraining", study.seed)
    carries = torch.rand(len(images), generator=generator) < settings.share
    which = torch.randint(len(pool), (len(images),), generator=generator)
    perturbed = images + carries.to(images).view(-1, 1, 1, 1) * pool[which]
    carrying = Split(perturbed, labels)
    model = fine_tuned(study.model, carrying, recipe, study.seed, study.executor)[-1]
    return replace(study, model=model)


def _statistics() -> dict[str, Statistic]:
    return {
        "fool_original": mean("original"),
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
    "fool_retrained": "retrained, S_c made anew",
    "fool_retrained_old_subspace": "retrained, fresh vectors of the old S_c",
    "fool_retrained_pool": "retrained, the vectors trained on",
    "err_original": "clean error, original",
    "err_retrained": "clean error, retrained",
}
"""Number -> what the table and the figure call it."""


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "what": title,
                **columns("share", numbers[name]),
                "images": numbers[name].n,
                "seeds": numbers[name].seeds,
            }
            for name, title in TITLES.items()
        ]
    )


def _bars(network: Network, numbers: Mapping[str, Estimate]) -> Figure:
    shown = {
        name: title.replace("S_c", "$S_c$").replace(", ", ",\n") for name, title in TITLES.items()
    }
    shown = {name: title.replace("vectors of", "vectors\nof") for name, title in shown.items()}
    return bar_figure(
        {shown[name]: {"share": numbers[name]} for name in TITLES if name.startswith("fool")},
        ylabel="share of held-out images fooled",
        title=f"Retraining on vectors of $S_c$, {network.name}",
        width=8.5,
    )


def _pictures(
    network: Network, study: Study, case: Case, radius: float, settings: Settings
) -> Figure:
    """Figure 6.11: random vectors of S_c."""
    vectors = within(
        study.curved(settings.small), study.known, settings.draws, radius, "fresh", study.seed
    )
    fooled = case.fooled(case.unseen, vectors).mean(dim=0)
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
    found: Sequence[tuple[Study, Case]],
    numbers: Mapping[str, Estimate],
    settings: Settings,
    retrained: bool,
) -> list[str]:
    study, m = found[0][0], dimension_of(LARGEST, found[0][0].d)
    expected = math.sqrt(2 / (math.pi * m))
    lines = [
        *made_of([case for _, case in found]),
        "The cosine of random vectors of a subspace depends on its dimension alone; its mean size "
        "is about sqrt(2 / "
        f"(pi m)), {expected:.3f} for m = {m}, which is to d = {study.d} what the thesis' largest "
        f"m = {LARGEST} is to "
        f"3,072. That the largest of {settings.draws} draws stays below 0.1 takes some 400 "
        "dimensions, whatever the "
        "network: the claim says more about m than about S_c.",
    ]
    if not retrained:
        return [*lines, "The data set has no training images, so that nothing is retrained."]
    return [
        *lines,
        f"Retrained for {settings.epochs} epochs on training images of which {settings.share:.0%} "
        "carry one of "
        f"{settings.pool} random vectors of S_c (m = {settings.small}, {settings.noise_share:g} of "
        "the norm that "
        f"random noise needs); {settings.vectors} fresh vectors of that norm judge, of each "
        "network's S_c, found by "
        f"{min(4 * settings.small, settings.products, study.d)} products each.",
    ]
