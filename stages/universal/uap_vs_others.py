"""Universal perturbations beside other fixed directions (Section 4.4, Figure 4.9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import judged
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure, styled
from pipeline.statistics import (
    Estimate,
    Statistic,
    mean,
    mean_share,
    median,
    of_means,
    share_ratio,
    stack,
)
from pipeline.studies.universal import (
    GRADIENT,
    Plan,
    UniversalStudy,
    made_by_both,
    random_vectors,
    scaled,
    universal_studies,
)
from pipeline.studies.universal_settings import UniversalSettings
from pipeline.tables import columns
from robustness_geometry.attacks import fgsm
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "crossing", "uap_vs_others"]

SECTION = "Section 4.4, Figure 4.9"

TITLES = {
    "uap": "universal",
    "random": "random",
    "adversarial_df": "DeepFool of one image",
    "adversarial_fgs": "FGSM of one image",
    "sum_adversarial": "sum of DeepFool's over X",
    "mean_image": "mean image",
}
"""What numbers call a direction -> what the table and the figure call it."""

MOST = 0.8
"""The share of images that a universal vector has to fool: the rate at which Algorithm 4 stops."""


@dataclass(frozen=True)
class Settings(UniversalSettings):
    """What to measure, in l_2 as in the thesis, beyond :class:`UniversalSettings`.

    Attributes:
        factors: norms of the scaled directions as multiples of xi, ascending, 0.5 and 1 among them.
        made: further radii as multiples of xi, ascending and above 1, for which a vector is made,
            up to the first one that fools 80% of X.
        directions: number of random vectors, and of images of X whose own perturbations are taken;
            their fooling is averaged.
    """

    factors: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
    made: tuple[float, ...] = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
    directions: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("directions", self.directions)
        for name in ("factors", "made"):  # configurations give whole numbers as well
            values = tuple(check_positive(name, value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
        if not {0.5, 1.0} <= set(self.factors) or list(self.factors) != sorted(set(self.factors)):
            refuse("factors", list(self.factors), "ascending numbers, 0.5 and 1 among them")
        if list(self.made) != sorted({*self.made} - {1.0}) or min(self.made, default=2) < 1:
            refuse("made", list(self.made), "ascending numbers above 1")


def uap_vs_others(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Scale each direction to a range of l_2 norms and measure the share of images it fools.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        ``fool_<direction>`` at xi, their ratios to the universal vector's, what that one fools at
        half of xi; the norm that random noise needs by sqrt(d) ||r|| (``random_norm``) and measured
        (``noise_norm``), and their ratios to xi and to the radius of the smallest ball in which a
        vector is made to fool 80%.

    References:
        Thesis, Section 4.4 and Figure 4.9. S.-M. Moosavi-Dezfooli et al., "Universal adversarial
        perturbations", arXiv:1610.08401.
    """
    studies = universal_studies(network, data, settings, executor)
    samples = stack(executor.each(lambda study: _measure(study, settings), studies))
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings, samples), resamples=settings.resamples)
    )
    shares = {name: mean_share(name) for name in samples if name.count(" at ")}
    curves = paired_bootstrap(samples, shares, resamples=settings.resamples)
    return Findings(
        numbers=numbers,
        tables={"figure_4_9": _table(curves, settings, numbers)},
        figures={"figure_4_9": _figure(network, curves, settings, numbers)},
        notes=_notes(studies, numbers, settings),
    )


def _measure(study: UniversalStudy, settings: Settings) -> dict[str, Tensor]:
    """Name -> one value per held-out image, the share of a kind's directions that fool it.

    ``noise`` and ``noise 255`` have one value per image of X.
    """
    xi, flat, needed = study.xi(2.0), study.flat_noise(), study.noise()
    images = torch.ones(len(study.test), dtype=torch.float64)
    values = {
        "noise": flat,
        "noise 255": 255 * flat,
        "measured": needed,
        "xi": xi * images,
        "over xi": float(flat.nanquantile(0.5)) / xi * images,
        "measured over xi": study.noise_norm() / xi * images,
        **_made(study, settings),
    }
    for name, directions in _directions(study, settings).items():
        vectors = [
            scaled(v[None], 2.0, factor * xi) for factor in settings.factors for v in directions
        ]
        fooled = study.fooled(study.test.images, torch.cat(vectors)).unflatten(
            1, (len(settings.factors), len(directions))
        )
        values |= {
            f"{name} at {factor}": fooled[:, k].mean(dim=1)
            for k, factor in enumerate(settings.factors)
        }
    return values


def _made(study: UniversalStudy, settings: Settings) -> dict[str, Tensor]:
    """``made at <factor>`` -> (n,) whether the vector of that radius fools each held-out image.

    The gradient maker makes them, but for that of xi. Once one fools 80% of X no larger ball is
    tried: its vector stands for theirs, which fool as many at least.
    """
    values, best = {}, study.best(2.0)
    vector, rate = best.perturbation, best.made.fooling_rate
    for factor in (1.0, *settings.made):
        if factor != 1 and rate < MOST:
            anew = study.make([Plan(2.0, factor * study.xi(2.0))], GRADIENT)[0]
            vector, rate = anew.perturbation, anew.fooling_rate
        values[f"made at {factor}"] = study.fooled(study.test.images, vector)[:, 0]
    return values


def _directions(study: UniversalStudy, settings: Settings) -> dict[str, Tensor]:
    """Kind -> vectors (K, C, H, W) of any norm."""
    minimal = study.deepfool()
    usable = minimal.success.nonzero()[:, 0]
    order = torch.randperm(len(usable), generator=seeded("single images", study.seed))
    picked = usable[order[: settings.directions]]
    step = study.executor.cached(
        partial(judged, partial(fgsm, eps=1.0), study.model), study.train.images[picked]
    ).value
    return {
        "uap": study.best(2.0).perturbation,
        "random": random_vectors(study.train.images.shape[1:], 2.0, 1.0, settings.directions),
        "adversarial_df": minimal.perturbations[picked],
        "adversarial_fgs": step.perturbations,
        "sum_adversarial": minimal.perturbations[usable].sum(dim=0, keepdim=True),
        "mean_image": study.train.images.mean(dim=0, keepdim=True),
    }


def _statistics(settings: Settings, samples: Mapping[str, Tensor]) -> dict[str, Statistic]:
    images = samples["uap at 1.0"].shape[-1]
    statistics = {f"fool_{name}": mean_share(f"{name} at 1.0") for name in TITLES}
    for name in list(TITLES)[1:]:
        statistics[f"fool_{name} / fool_uap"] = share_ratio(f"{name} at 1.0", "uap at 1.0", images)
    path = [f"made at {factor}" for factor in (1.0, *settings.made)]
    over = partial(_over_crossing, (1.0, *settings.made))
    return statistics | {
        "fool_uap / fool_random": share_ratio("uap at 1.0", "random at 1.0", images),
        "fool_uap / 5 - fool_random": of_means(("uap at 1.0", "random at 1.0"), _excess),
        "fool_uap(xi / 2) / fool_uap(xi)": share_ratio("uap at 0.5", "uap at 1.0", images),
        "random_norm": median("noise"),
        "random_norm_255": median("noise 255"),
        "noise_norm": median("measured"),
        "random_norm / xi": mean("over xi"),
        "noise_norm / xi": mean("measured over xi"),
        "random_norm / norm_80": of_means(("over xi", *path), over),
        "noise_norm / norm_80": of_means(("measured over xi", *path), over),
        "xi": mean("xi"),
        "made_most": of_means([path[-1]], _same),
    }


def _same(value: Tensor) -> Tensor:
    return value


def _excess(universal: Tensor, random: Tensor) -> Tensor:
    return universal / 5 - random


def _over_crossing(factors: Sequence[float], ratio: Tensor, *shares: Tensor) -> Tensor:
    return ratio / crossing(factors, torch.stack(shares, dim=-1))


def crossing(factors: Sequence[float], shares: Tensor) -> Tensor:
    """The smallest multiple of xi at which 80% are fooled, linear between grid points.

    Args:
        factors: (F,) ascending.
        shares: (..., F) share fooled at each.

    Returns:
        (...); the largest multiple where none fools so many.
    """
    x = torch.tensor([0.0, *factors], dtype=shares.dtype)
    y = torch.nn.functional.pad(shares, (1, 0))
    reached = y >= MOST
    at = reached.long().argmax(dim=-1).clamp_min(1)  # the first; nothing is fooled at norm 0
    low, high = y.gather(-1, at[..., None] - 1)[..., 0], y.gather(-1, at[..., None])[..., 0]
    inside = x[at - 1] + (x[at] - x[at - 1]) * (MOST - low) / (high - low)
    return torch.where(reached.any(dim=-1), inside, x[-1])


def _table(
    curves: Mapping[str, Estimate], settings: Settings, numbers: Mapping[str, Estimate]
) -> pd.DataFrame:
    xi = numbers["xi"].value
    rows = []
    for name, title in TITLES.items():
        for factor in settings.factors:
            fooled = curves[f"{name} at {factor}"]
            row = {
                "direction": title,
                "norm_over_xi": factor,
                "l2_norm": factor * xi,
                **columns("fool_val", fooled),
            }
            rows.append(row | {"images": fooled.n, "seeds": fooled.seeds})
    return pd.DataFrame(rows)


def _figure(
    network: Network,
    curves: Mapping[str, Estimate],
    settings: Settings,
    numbers: Mapping[str, Estimate],
) -> Figure:
    styles = {"random": ":", "mean_image": "--", "sum_adversarial": "-."}
    lines = {}
    for name, title in TITLES.items():
        estimates = [curves[f"{name} at {factor}"] for factor in settings.factors]
        lines[title] = estimate_line(settings.factors, estimates, style=styles.get(name, "-"))
    xi = numbers["xi"].value
    figure = line_figure(
        lines,
        xlabel=rf"$\ell_2$ norm over $\xi$ ($\xi$ = {xi:.3g} in pixel units)",
        ylabel="share of held-out images fooled",
        title=f"One direction for all images, {network.name}",
        limits=(0, 1),
        width=9.5,
        height=5.0,
    )
    with styled():
        figure.axes[0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _notes(
    studies: Sequence[UniversalStudy], numbers: Mapping[str, Estimate], settings: Settings
) -> list[str]:
    failed = sum(int((~study.deepfool().success).sum()) for study in studies)
    return [
        *made_by_both(studies, 2.0),
        f"Directions: {settings.directions} random ones, DeepFool's and FGSM's of "
        f"{settings.directions} images of X "
        "(the thesis: one), the sum of DeepFool's over Algorithm 4's images, the mean of X, and "
        "the vector made for xi; each is scaled.",
        f"DeepFool failed in {failed} cases, which are left out of its sum.",
        "random_norm is sqrt(d) ||r|| with DeepFool's r, noise_norm is measured; noise_norm / xi "
        "is 10 by definition unless a radius is given. norm_80 is the radius of the smallest ball "
        "in which a vector is made to fool 80% of unseen images, linear between the radii "
        f"{', '.join(f'{factor:g}' for factor in (1.0, *settings.made))} xi; where none fools so "
        "many, it is the largest of them, and the ratio is even less. The largest ball's vector "
        f"fools {numbers['made_most'].value:.1%}.",
        "A share of none in a denominator counts as half an image.",
    ]
