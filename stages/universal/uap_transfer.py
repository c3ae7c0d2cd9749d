"""Universal perturbations from network to network (Section 4.3.3, Table 4.2)."""

import math
from collections.abc import Mapping, Sequence
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
from pipeline.studies.universal import Case, Common, cases, made_of, random_vectors
from pipeline.tables import columns, norm_name
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "uap_transfer"]

SECTION = "Section 4.3.3, Table 4.2"


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        ball: p of the vectors, 2 or inf; the diagonal of Table 4.2 is Table 4.1's for inf.
        random_vectors: random vectors of each vector's norm to compare with.
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
    """
    shapes = {name: each.shape for name, each in data.items()}
    if len(networks) < 2 or len(set(shapes.values())) != 1:
        refuse("network", str(shapes), "two or more networks that take images of one shape")
    found = {
        name: cases(network, data[name], settings, executor) for name, network in networks.items()
    }
    samples = _samples(found, settings)
    numbers = measured(
        paired_bootstrap(
            samples, _statistics(list(networks), samples), resamples=settings.resamples
        )
    )
    return Findings(
        numbers=numbers,
        tables={
            "table_4_2": _matrix(list(networks), numbers),
            "pairs": _pairs(found, numbers, settings),
        },
        figures={"table_4_2": _figure(list(networks), numbers)},
        notes=_notes(found, settings),
    )


def _samples(found: Mapping[str, Sequence[Case]], settings: Settings) -> dict[str, Tensor]:
    """``fool[s][t]`` and ``random[s][t]`` -> (seeds, n) of each image of t; NaN for a seed that one of them lacks."""
    norm = settings.ball
    seeds = sorted({case.seed for each in found.values() for case in each})
    rows: dict[str, list[Tensor]] = {}
    longest = max(len(case.unseen) for each in found.values() for case in each)
    for (s, sources), (t, targets) in product(found.items(), repeat=2):
        pairs = {a.seed: (a, b) for a in sources for b in targets if a.seed == b.seed}
        for seed in seeds:
            fooled = torch.full(
                (longest, 1 + settings.random_vectors), math.nan, dtype=torch.float64
            )
            if seed in pairs:
                source, target = pairs[seed]
                v = source.vector(norm).perturbation
                noise = random_vectors(v.shape[1:], norm, source.xi(norm), settings.random_vectors)
                fooled[: len(target.unseen)] = target.fooled(target.unseen, torch.cat([v, noise]))
            rows.setdefault(f"fool[{s}][{t}]", []).append(fooled[:, 0])
            rows.setdefault(f"random[{s}][{t}]", []).append(fooled[:, 1:].mean(dim=1))
    return {name: torch.stack(values) for name, values in rows.items()}


def _statistics(names: Sequence[str], samples: Mapping[str, Tensor]) -> dict[str, Statistic]:
    fool = [f"fool[{s}][{t}]" for s, t in product(names, repeat=2)]
    random = [f"random[{s}][{t}]" for s, t in product(names, repeat=2)]
    images = next(iter(samples.values())).shape[-1]
    found = {name: of_means([name], _same) for name in (*fool, *random)}
    for name, function in COMPARISONS.items():
        found[name] = of_means(
            [*fool, *random], partial(_compared, function, len(names), 0.5 / images)
        )
    return found


def _same(value: Tensor) -> Tensor:
    return value


def _compared(function, networks: int, floor: float, *means: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """``function`` of the matrices (..., networks, networks) of fooling and of random fooling."""
    fool, random = torch.stack(means, dim=-1).unflatten(-1, (2, networks, networks)).unbind(dim=-3)
    return function(fool, random.clamp_min(floor))


def _off(matrix: Tensor) -> Tensor:
    """The entries (..., n, n - 1) off the diagonal, row by row."""
    n = matrix.shape[-1]
    return matrix[..., ~torch.eye(n, dtype=torch.bool)].unflatten(-1, (n, n - 1))


def _own_margin(fool: Tensor, random: Tensor) -> Tensor:
    return (fool.diagonal(dim1=-2, dim2=-1)[..., None] - _off(fool)).flatten(-2).amin(dim=-1)


def _random_margin(fool: Tensor, random: Tensor) -> Tensor:
    return (_off(fool) - _off(random)).flatten(-2).amin(dim=-1)


def _best_source(fool: Tensor, random: Tensor) -> Tensor:
    return _off(fool).amin(dim=-1).amax(dim=-1)


def _over_random(fool: Tensor, random: Tensor) -> Tensor:
    return _off(fool).flatten(-2).amin(dim=-1) / random.flatten(-2).amax(dim=-1)


COMPARISONS = {
    "fool[s][s] - fool[s][t], smallest": _own_margin,
    "fool[s][t] - random[s][t], smallest": _random_margin,
    "fool[s][t], best source's smallest": _best_source,
    "smallest fool[s][t] / largest random": _over_random,
}
"""Number -> what it is of the two matrices; s and t are different networks."""


def _matrix(names: Sequence[str], numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """Table 4.2: a row for the network that the vector comes from, a column for the one it meets."""
    return pd.DataFrame(
        [{"from": s} | {t: numbers[f"fool[{s}][{t}]"].value for t in names} for s in names]
    )


def _pairs(
    found: Mapping[str, Sequence[Case]], numbers: Mapping[str, Estimate], settings: Settings
) -> pd.DataFrame:
    norm = settings.ball
    rows = []
    for s, t in product(found, repeat=2):
        fooled = numbers[f"fool[{s}][{t}]"]
        row: dict[str, object] = {"from": s, "to": t, "norm": norm_name(norm)}
        row["xi"] = sum(case.xi(norm) for case in found[s]) / len(found[s])
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


def _notes(found: Mapping[str, Sequence[Case]], settings: Settings) -> list[str]:
    norm = settings.ball
    radii = [
        f"{name} {sum(case.xi(norm) for case in each) / len(each):.3g}"
        for name, each in found.items()
    ]
    count = len(list(permutations(found, 2)))
    return [
        *made_of([case for each in found.values() for case in each]),
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
