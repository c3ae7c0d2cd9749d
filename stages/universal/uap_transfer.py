"""Transfer of universal perturbations between networks (Section 4.3.3, Table 4.2)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product
from statistics import median_low

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import axes_grid, styled
from pipeline.statistics import Estimate, Statistic, of_means
from pipeline.studies.universal import (
    UniversalStudy,
    across_networks,
    check_one_shape,
    made_by_both,
    random_vectors,
    universal_studies,
)
from pipeline.studies.universal_settings import UniversalSettings
from pipeline.tables import columns, norm_name
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.norms import norms
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "uap_transfer"]

SECTION = "Section 4.3.3, Table 4.2"


ALIKE = 2.0
"""Networks are alike if the norms that random noise needs differ by at most this factor."""


@dataclass(frozen=True)
class Settings(UniversalSettings):
    """What to measure, beyond the settings of :class:`UniversalSettings`.

    Attributes:
        ball: exponent p of the vectors' ball, 2 or inf; the diagonal of Table 4.2 is Table 4.1's
            for inf.
        random_vectors: number of random vectors of each kind to compare with.
    """

    ball: float = math.inf
    random_vectors: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ball not in (2, math.inf):
            refuse("ball", self.ball, "2 or inf")
        check_count("random_vectors", self.random_vectors)


def uap_transfer(
    networks: Mapping[str, Network],
    data: Mapping[str, Dataset],
    settings: Settings,
    executor: Executor,
) -> Findings:
    """Fool every network with the universal vector of every other, all of one radius.

    The radius is the median of the networks' xi (of two, the less), as the thesis has one for all.

    Args:
        networks: name -> trained classifiers; with several training seeds, the vector of one meets
            the network of the same.
        data: name -> the data set of that network, all of one shape; its held-out images judge.
        settings: what to measure.
        executor: makes the vectors.

    Returns:
        ``fool[s][t]``, the share of t's held-out images that the vector of s fools on t;
        ``random[s][t]``, the same of Gaussian noise of the vector's l_2 norm; ``signs[s][t]``, of
        random signs of its l_inf norm; what the claims ask of each pair; and comparisons over all
        pairs and over those of like robustness to noise.

    Raises:
        InputError: fewer than two networks, or images of different shapes.

    References:
        Thesis, Section 4.3.3 and Table 4.2. S.-M. Moosavi-Dezfooli et al., "Universal adversarial
        perturbations", arXiv:1610.08401.
    """
    check_one_shape(networks, data)
    studies = {
        name: universal_studies(network, data[name], settings, executor)
        for name, network in networks.items()
    }
    radii = _radii(studies, settings)
    samples = across_networks(
        studies, partial(_measure, radii=radii, settings=settings), ("fool", "random", "signs")
    )
    noise = {name: _noise(each) for name, each in studies.items()}
    numbers = measured(
        paired_bootstrap(samples, _statistics(noise, samples), resamples=settings.resamples)
    )
    return Findings(
        numbers=numbers,
        tables={
            "table_4_2": _matrix(list(networks), numbers),
            "pairs": _pairs(studies, noise, numbers, settings),
        },
        figures={"table_4_2": _figure(list(networks), numbers)},
        notes=_notes(studies, noise, radii, settings),
    )


def _radii(studies: Mapping[str, Sequence[UniversalStudy]], settings: Settings) -> dict[int, float]:
    """Training seed -> the median of its networks' xi; of an even number the lower middle one."""
    every: dict[int, list[float]] = {}
    for study in (study for each in studies.values() for study in each):
        every.setdefault(study.seed, []).append(study.xi(settings.ball))
    return {seed: median_low(values) for seed, values in every.items()}


def _noise(studies: Sequence[UniversalStudy]) -> float:
    """The norm that random noise needs on a network, the mean over its training seeds."""
    return sum(study.noise_norm() for study in studies) / len(studies)


def _measure(
    source: UniversalStudy,
    target: UniversalStudy,
    *,
    radii: Mapping[int, float],
    settings: Settings,
) -> dict[str, Tensor]:
    """Whether the source's vector, and which share of random ones, fools each of t's images."""
    v, count = source.within(settings.ball, radii[source.seed]), settings.random_vectors
    kinds = [random_vectors(v.shape[1:], p, float(norms(v, p)), count) for p in (2.0, math.inf)]
    fooled = target.fooled(target.test.images, torch.cat([v, *kinds]))
    shares = [part.mean(dim=1) for part in fooled.split([1, count, count], dim=1)]
    return dict(zip(("fool", "random", "signs"), shares, strict=True))


def _statistics(noise: Mapping[str, float], samples: Mapping[str, Tensor]) -> dict[str, Statistic]:
    fool, random = (
        [f"{kind}[{s}][{t}]" for s, t in product(noise, repeat=2)] for kind in ("fool", "random")
    )
    images = next(iter(samples.values())).shape[-1]
    statistics = {name: of_means([name], _same) for name in samples}
    for s, t in permutations(noise, 2):
        own, other = f"fool[{s}][{s}]", f"fool[{s}][{t}]"
        statistics[f"{own} - {other}"] = of_means([own, other], torch.sub)
        statistics[f"{other} - random[{s}][{t}]"] = of_means(
            [other, f"random[{s}][{t}]"], torch.sub
        )
    for s in noise:
        others = [f"fool[{s}][{t}]" for t in noise if t != s]
        statistics[f"fool[{s}][{s}] - fool[{s}][t], smallest"] = of_means(
            [f"fool[{s}][{s}]", *others], _lead
        )
    apart = torch.tensor([[s != t for t in noise] for s in noise])
    like = torch.tensor([[_alike(noise[s], noise[t]) for t in noise] for s in noise]) & apart
    for ending, pairs in (("", like), (", all pairs", apart)):
        for name, function in COMPARISONS.items() if bool(pairs.any()) else ():
            # The functions see means alone; a share of none counts as half an image below.
            statistics[name + ending] = of_means(
                [*fool, *random], partial(_compared, function, pairs, 0.5 / images)
            )
    return statistics


def _alike(first: float, second: float) -> bool:
    """Whether noise of like norms changes the labels of two networks."""
    return max(first, second) <= ALIKE * min(first, second)


def _same(value: Tensor) -> Tensor:
    return value


def _lead(own: Tensor, *others: Tensor) -> Tensor:
    """By how much a vector fools its own network more often than any other one."""
    return own - torch.stack(others).amax(dim=0)


def _compared(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    pairs: Tensor,
    floor: float,
    *means: Tensor,
) -> Tensor:
    """``function`` of the matrices (..., networks, networks) of fooling and of random fooling."""
    shape = (2, *pairs.shape)
    fool, random = torch.stack(means, dim=-1).unflatten(-1, shape).unbind(dim=-3)
    return function(fool, random.clamp_min(floor), pairs)


def _random_margin(fool: Tensor, random: Tensor, pairs: Tensor) -> Tensor:
    """By how much a vector fools another network more often than random vectors do."""
    return (fool - random)[..., pairs].amin(dim=-1)


def _best_source(fool: Tensor, random: Tensor, pairs: Tensor) -> Tensor:
    """The share that the vector of the best source fools on the other network it fools least."""
    sources = pairs.any(dim=1)
    return fool.masked_fill(~pairs, math.inf).amin(dim=-1)[..., sources].amax(dim=-1)


def _over_random(fool: Tensor, random: Tensor, pairs: Tensor) -> Tensor:
    """The smallest share fooled on another network over the largest share of random vectors."""
    return fool[..., pairs].amin(dim=-1) / random[..., pairs].amax(dim=-1)


COMPARISONS = {
    "fool[s][t] - random[s][t], smallest": _random_margin,
    "fool[s][t], best source's smallest": _best_source,
    "smallest fool[s][t] / largest random": _over_random,
}
"""Name of a number -> the function of fooling, random fooling and the pairs that count."""


def _matrix(names: Sequence[str], numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """Table 4.2: a row for the network that makes the vector, a column for the one it meets."""
    return pd.DataFrame(
        [{"from": s} | {t: numbers[f"fool[{s}][{t}]"].value for t in names} for s in names]
    )


def _pairs(
    studies: Mapping[str, Sequence[UniversalStudy]],
    noise: Mapping[str, float],
    numbers: Mapping[str, Estimate],
    settings: Settings,
) -> pd.DataFrame:
    rows = []
    for s, t in product(studies, repeat=2):
        fooled = numbers[f"fool[{s}][{t}]"]
        row: dict[str, object] = {"from": s, "to": t, "norm": norm_name(settings.ball)}
        row["own_xi"] = sum(study.xi(settings.ball) for study in studies[s]) / len(studies[s])
        row |= columns("fool_val", fooled)
        row |= columns("fool_gaussian", numbers[f"random[{s}][{t}]"])
        row["fool_signs"] = numbers[f"signs[{s}][{t}]"].value
        row |= {"noise_norm_to": noise[t], "like_noise": _alike(noise[s], noise[t])}
        rows.append(row | {"images": fooled.n, "seeds": fooled.seeds})
    return pd.DataFrame(rows)


def _figure(names: Sequence[str], numbers: Mapping[str, Estimate]) -> Figure:
    """The matrix as a map."""
    values = [[numbers[f"fool[{s}][{t}]"].value for t in names] for s in names]
    figure, grid = axes_grid(width=2.6 + 1.3 * len(names), height=1.8 + 0.8 * len(names))
    axes = grid[0, 0]
    with styled():
        axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for i, j in product(range(len(names)), repeat=2):
            colour = "white" if values[i][j] > 0.6 else "black"
            axes.text(j, i, f"{values[i][j]:.0%}", ha="center", va="center", color=colour)
        labels = [name.replace("_", "\n", 1) for name in names]
        axes.set_xticks(range(len(names)), labels)
        axes.set_yticks(range(len(names)), labels)
        axes.set(xlabel="network that is fooled", ylabel="network that made the vector")
        axes.set_title("Share of held-out images fooled")
        axes.grid(visible=False)
    return figure


def _notes(
    studies: Mapping[str, Sequence[UniversalStudy]],
    noise: Mapping[str, float],
    radii: Mapping[int, float],
    settings: Settings,
) -> list[str]:
    pairs = list(permutations(studies, 2))
    like = [f"{s} to {t}" for s, t in pairs if _alike(noise[s], noise[t])]
    least = min(noise, key=lambda name: noise[name])
    needed = ", ".join(f"{name} {value:.3g}" for name, value in noise.items())
    shown = ", ".join(f"{radius:.3g}" for radius in radii.values())
    notes = [
        *made_by_both([study for each in studies.values() for study in each], settings.ball),
        f"All vectors are of one {norm_name(settings.ball)} radius, the median of the networks' xi "
        f"({shown} for the training seeds); where that is not a network's own xi, its vector is "
        "the better on X of the scaled one and of one that the gradient maker made anew. 'random' "
        "is Gaussian noise of the vector's own l2 norm, 'signs' random signs of its l_inf norm.",
        f"Random noise needs these norms: {needed}. Pairs of like robustness to noise, within a "
        f"factor {ALIKE:g}: {', '.join(like) or 'none'}. 'smallest' and 'best' are over these, "
        f"with 'all pairs' at the end over the {len(pairs)} ordered pairs. A share of none in a "
        "denominator counts as half an image.",
        "The networks of one training seed meet; a vector made for one seed is not tried on "
        "another.",
    ]
    if len(like) < len(pairs):
        notes.append(
            f"{least} is the one most sensitive to noise: noise of the common radius itself fools "
            "much of it, so that little can be said of what passes to it."
        )
    return notes
