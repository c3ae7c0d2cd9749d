"""Remark 3 of Section 8.3: the loss's gradient and the top eigenvector of its Hessian.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.3.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import histogram_figure
from pipeline.statistics import Estimate, Statistic, difference, mean, of_means
from pipeline.studies.cure import TITLES, cure_studies, notes
from pipeline.studies.loss_hessian import HessianSettings, powers_of_seeds, profiles_of_seeds
from pipeline.tables import interval
from robustness_geometry.checks import check_count
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "gradient_alignment"]

SECTION = "Section 8.3, Remark 3"

NETWORKS = ("original", "deepfool", "cure")


@dataclass(frozen=True)
class Settings(HessianSettings):
    """What to measure, beyond the settings of the Hessians.

    Attributes:
        pairs: number of pairs of random unit vectors, at least 2.
    """

    pairs: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("pairs", self.pairs, minimum=2)


def gradient_alignment(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure the mean of |g.u| / ||g|| for the gradient g and the Hessian's top eigenvector u.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and Hessians.

    Returns:
        ``alignment_*`` for ``original``, ``deepfool``, ``cure`` and ``random`` (pairs of random
        unit vectors), and their differences from the original's and from multiples of 1 / sqrt(d),
        the size of random vectors' alignment. u is found by power iteration; names that end in
        ``(matrix)`` are those of the top eigenvector of whole Hessians.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    samples = {name: powers_of_seeds(studies, name)["alignment"] for name in NETWORKS}
    whole = {f"{name} (matrix)": profiles_of_seeds(studies, name)["alignment"] for name in NETWORKS}
    d = studies[0].test.images[0].numel()
    random = {"random": _random(d, settings.pairs)}
    numbers: dict[str, Estimate] = {}
    for part, measured_ in (("", samples), (" (matrix)", whole), ("", random)):
        statistics = _statistics(d, [name.removesuffix(part) for name in measured_], part)
        found = paired_bootstrap(measured_, statistics, resamples=settings.resamples)
        numbers |= measured(found)
    missing = int(sum(values.isnan().sum() for values in samples.values()))
    seeds, count = whole["cure (matrix)"].shape
    return Findings(
        numbers=numbers,
        tables={"remark_3": _table(numbers)},
        figures={
            "remark_3": histogram_figure(
                {TITLES[name]: values for name, values in samples.items()}
                | {"random vectors": random["random"]},
                xlabel=r"$|g\cdot u|\,/\,\|g\|$",
                title=f"Gradient and top eigenvector, {network.name}",
            )
        },
        notes=[
            *notes(studies),
            f"u by power iteration on {samples['cure'].shape[1]} held-out images of "
            f"{len(studies)} training seed(s), and as the top eigenvector of the whole matrix of "
            f"differences on {count} of {seeds}. Gradient or Hessian vanished in {missing} cases, "
            f"which are left out. Random vectors: {settings.pairs} pairs in {d} dimensions.",
        ],
    )


def _statistics(d: int, names: Sequence[str], end: str) -> dict[str, Statistic]:
    """The numbers of some networks; ``end`` is the end of their names and the quantities'."""
    numbers = {f"alignment_{name}{end}": mean(f"{name}{end}") for name in names}
    for name in (name for name in names if name in NETWORKS[1:]):
        numbers[f"alignment_{name} - alignment_original{end}"] = difference(
            f"{name}{end}", f"original{end}"
        )
    usual = 1 / math.sqrt(d)
    if "original" in names:
        numbers[f"alignment_original - 5 / sqrt(d){end}"] = _less(f"original{end}", 5 * usual, 1.0)
    if "random" in names:
        numbers["2 / sqrt(d) - alignment_random"] = _less("random", 2 * usual, -1.0)
    return numbers


def _less(name: str, level: float, sign: float) -> Statistic:
    """The mean minus a level, or with ``sign`` = -1 the level minus the mean."""
    return replace(of_means((name,), partial(_shifted, level, sign)), joint=True)


def _shifted(level: float, sign: float, value: Tensor) -> Tensor:
    return sign * (value - level)


def _random(d: int, pairs: int) -> Tensor:
    """(pairs,) |a.b| of random unit vectors."""
    vectors = torch.randn(2, pairs, d, generator=seeded("random alignment", d), dtype=torch.float64)
    one, other = vectors / vectors.norm(dim=2, keepdim=True)
    return (one * other).sum(dim=1).abs()


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows = []
    ways = (("", "power iteration"), (" (matrix)", "whole matrix"))
    names = [(name, end, u) for end, u in ways for name in NETWORKS]
    for name, end, u in (*names, ("random", "", "")):
        estimate = numbers.get(f"alignment_{name}{end}")
        if estimate is not None:
            title = TITLES.get(name, "random vectors")
            rows.append({"network": title, "u": u, "alignment": estimate.value})
            rows[-1] |= interval(estimate)
    return pd.DataFrame(rows)
