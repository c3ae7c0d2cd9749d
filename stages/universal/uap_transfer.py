"""Transfer of universal perturbations between networks (Section 4.3.3, Table 4.2)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product

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
    made_of,
    random_vectors,
    universal_studies,
)
from pipeline.studies.universal_settings import UniversalSettings
from pipeline.tables import columns, norm_name
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "uap_transfer"]

SECTION = "Section 4.3.3, Table 4.2"


@dataclass(frozen=True)
class Settings(UniversalSettings):
    """What to measure, beyond the settings of :class:`UniversalSettings`.

    Attributes:
        ball: exponent p of the vectors' ball, 2 or inf; the diagonal of Table 4.2 is Table 4.1's
            for inf.
        random_vectors: number of random vectors of each vector's norm to compare with.
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
    """Fool every network with the universal vector of every other.

    Args:
        networks: name -> trained classifiers; with several training seeds, the vector of one meets
            the network of the same.
        data: name -> the data set of that network, all of one shape; its held-out images judge.
        settings: what to measure.
        executor: runs Algorithm 4.

    Returns:
        ``fool[s][t]``, the share of t's held-out images that the vector of s fools on t;
        ``random[s][t]``, the same of random vectors of that norm; and what the claims compare.

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
    samples = across_networks(studies, partial(_measure, settings=settings), ("fool", "random"))
    numbers = measured(
        paired_bootstrap(
            samples, _statistics(list(networks), samples), resamples=settings.resamples
        )
    )
    return Findings(
        numbers=numbers,
        tables={
            "table_4_2": _matrix(list(networks), numbers),
            "pairs": _pairs(studies, numbers, settings),
        },
        figures={"table_4_2": _figure(list(networks), numbers)},
        notes=_notes(studies, settings),
    )


def _measure(
    source: UniversalStudy, target: UniversalStudy, *, settings: Settings
) -> dict[str, Tensor]:
    """Whether the source's vector, and which share of random ones, fools each of t's images."""
    v = source.vector(settings.ball).perturbation
    xi = source.xi(settings.ball)
    noise = random_vectors(v.shape[1:], settings.ball, xi, settings.random_vectors)
    fooled = target.fooled(target.test.images, torch.cat([v, noise]))
    return {"fool": fooled[:, 0], "random": fooled[:, 1:].mean(dim=1)}


def _statistics(names: Sequence[str], samples: Mapping[str, Tensor]) -> dict[str, Statistic]:
    fool = [f"fool[{s}][{t}]" for s, t in product(names, repeat=2)]
    random = [f"random[{s}][{t}]" for s, t in product(names, repeat=2)]
    images = next(iter(samples.values())).shape[-1]
    statistics = {name: of_means([name], _same) for name in (*fool, *random)}
    for name, function in COMPARISONS.items():
        # The functions see means alone; a share of none counts as half an image in denominators.
        statistics[name] = of_means(
            [*fool, *random], partial(_compared, function, len(names), 0.5 / images)
        )
    return statistics


def _same(value: Tensor) -> Tensor:
    return value


def _compared(
    function: Callable[[Tensor, Tensor], Tensor], networks: int, floor: float, *means: Tensor
) -> Tensor:
    """``function`` of the matrices (..., networks, networks) of fooling and of random fooling."""
    fool, random = torch.stack(means, dim=-1).unflatten(-1, (2, networks, networks)).unbind(dim=-3)
    return function(fool, random.clamp_min(floor))


def _off(matrix: Tensor) -> Tensor:
    """The entries (..., n, n - 1) off the diagonal, row by row."""
    n = matrix.shape[-1]
    return matrix[..., ~torch.eye(n, dtype=torch.bool)].unflatten(-1, (n, n - 1))


def _own_margin(fool: Tensor, random: Tensor) -> Tensor:
    """By how much a vector fools the network that it was made for more often than another one."""
    return (fool.diagonal(dim1=-2, dim2=-1)[..., None] - _off(fool)).flatten(-2).amin(dim=-1)


def _random_margin(fool: Tensor, random: Tensor) -> Tensor:
    """By how much a vector fools another network more often than random vectors do."""
    return (_off(fool) - _off(random)).flatten(-2).amin(dim=-1)


def _best_source(fool: Tensor, random: Tensor) -> Tensor:
    """The share that the vector of the best source fools on the other network it fools least."""
    return _off(fool).amin(dim=-1).amax(dim=-1)


def _over_random(fool: Tensor, random: Tensor) -> Tensor:
    """The smallest share fooled on another network over the largest share of random vectors."""
    return _off(fool).flatten(-2).amin(dim=-1) / random.flatten(-2).amax(dim=-1)


COMPARISONS = {
    "fool[s][s] - fool[s][t], smallest": _own_margin,
    "fool[s][t] - random[s][t], smallest": _random_margin,
    "fool[s][t], best source's smallest": _best_source,
    "smallest fool[s][t] / largest random": _over_random,
}
"""Name of a number -> the function of the fooling and random matrices; s and t differ."""


def _matrix(names: Sequence[str], numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """Table 4.2: a row for the network that makes the vector, a column for the one it meets."""
    return pd.DataFrame(
        [{"from": s} | {t: numbers[f"fool[{s}][{t}]"].value for t in names} for s in names]
    )


def _pairs(
    studies: Mapping[str, Sequence[UniversalStudy]],
    numbers: Mapping[str, Estimate],
    settings: Settings,
) -> pd.DataFrame:
    norm = settings.ball
    rows = []
    for s, t in product(studies, repeat=2):
        fooled = numbers[f"fool[{s}][{t}]"]
        row: dict[str, object] = {"from": s, "to": t, "norm": norm_name(norm)}
        row["xi"] = sum(study.xi(norm) for study in studies[s]) / len(studies[s])
        row |= columns("fool_val", fooled) | columns("fool_random", numbers[f"random[{s}][{t}]"])
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


def _notes(studies: Mapping[str, Sequence[UniversalStudy]], settings: Settings) -> list[str]:
    norm = settings.ball
    radii = [
        f"{name} {sum(study.xi(norm) for study in each) / len(each):.3g}"
        for name, each in studies.items()
    ]
    count = len(list(permutations(studies, 2)))
    return [
        *made_of([study for each in studies.values() for study in each]),
        f"{norm_name(norm)} vectors, each with the radius of the network that it was made for "
        "(mean over training "
        f"seeds: {', '.join(radii)}; in the thesis all have the same). Random vectors have the "
        "norm of the vector that "
        "they stand beside.",
        f"'smallest' and 'best' are over the {count} ordered pairs of different networks: the "
        "relations of Table 4.2 "
        "are asked of all of them at once. A share of none in a denominator counts as half an "
        "image.",
        "The networks of one training seed meet; a vector made for one seed is not tried on "
        "another.",
    ]
