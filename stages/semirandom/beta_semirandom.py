"""Semi-random over worst-case robustness (Section 5.6, Table 5.1).

Beside the measured ratios stands their exact law at a flat boundary.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import Estimate, Statistic, mean, stack
from pipeline.studies.attacking import deepfool_of, run
from pipeline.studies.boundary import BoundarySettings, in_own_subspace
from pipeline.tables import columns
from robustness_geometry.checks import refuse
from robustness_geometry.geometry import beta_spread, expected_beta
from robustness_geometry.norms import norms
from robustness_geometry.types import Attack, Classifier, Dataset, Images, Network

__all__ = ["SECTION", "Settings", "beta_semirandom"]

SECTION = "Section 5.6, Table 5.1"


@dataclass(frozen=True)
class Settings(BoundarySettings):
    """What to measure.

    Attributes:
        ratios: d / m of the random subspaces: two or more rising whole numbers >= 1.
    """

    ratios: tuple[int, ...] = (4, 16, 36, 64, 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            len(self.ratios) < 2
            or list(self.ratios) != sorted(set(self.ratios))
            or self.ratios[0] < 1
        ):
            refuse("ratios", self.ratios, "two or more rising whole numbers >= 1")

    def check(self, data: Dataset) -> None:
        """Check that the smallest subspace has at least two dimensions.

        Raises:
            InputError: the images have too few dimensions for that.
        """
        d = math.prod(data.shape)
        if round(d / self.ratios[-1]) < 2:
            refuse(
                "ratios",
                self.ratios[-1],
                f"at most {d // 2}, for subspaces of two of the {d} dimensions",
            )


def beta_semirandom(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure beta(f; m) = sqrt(m / d) mean ||r_S|| / ||r*||, with one random subspace S per image.

    r_S is the smallest perturbation found inside S, which has m of the d dimensions, and r* the
    smallest one found in the whole space. Where the boundary is flat, beta is close to 1.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        beta and its spread over the images for each d / m, their largest distance from 1, and the
        differences of neighbouring spreads; as tensors, the scaled ratios (seeds, images), NaN
        where no perturbation was found.

    References:
        Section 5.6 of the thesis; Fawzi, Moosavi-Dezfooli and Frossard, "Robustness of classifiers:
        from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
    """
    d = math.prod(data.shape)
    dimensions = {ratio: round(d / ratio) for ratio in settings.ratios}
    images = held_out(data, settings.samples).images
    samples = stack(
        [
            _measure(
                model,
                images,
                dimensions,
                settings.boundary_attack,
                executor.for_seed(seed),
                seed,
            )
            for seed, model in sorted(network.models.items())
        ]
    )
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings.ratios), resamples=settings.resamples)
    )
    return Findings(
        numbers=numbers,
        tables={"table_5_1": _table(numbers, samples, dimensions, d)},
        figures={"table_5_1": _figure(network, numbers, dimensions, d)},
        tensors={f"beta_{ratio}": samples[_name(ratio)].float() for ratio in settings.ratios},
        notes=_notes(samples, dimensions, d),
    )


def _name(ratio: int) -> str:
    """The quantity of one d / m."""
    return f"scaled {ratio}"


def _measure(
    model: Classifier,
    images: Images,
    dimensions: dict[int, int],
    attack: Attack,
    executor: Executor,
    seed: int,
) -> dict[str, Tensor]:
    """sqrt(m / d) ||r_S|| / ||r*|| (n,) for each d / m of one training seed."""
    d = images[0].numel()
    worst = run(deepfool_of(attack, norm=2.0, clip=None), model, images, executor).value
    kept = worst.success & (norms(worst.perturbations) > 0)
    ratios = {}
    for ratio, m in dimensions.items():
        attacked = partial(in_own_subspace, attack, m, seed, model)
        inside = executor.map(attacked, images, randomness=True).value
        lengths = (
            math.sqrt(m / d)
            * norms(inside.perturbations).double()
            / norms(worst.perturbations).double()
        )
        ratios[_name(ratio)] = valid(lengths, inside.success & kept)
    return ratios


def _statistics(ratios: tuple[int, ...]) -> dict[str, Statistic]:
    names = tuple(map(_name, ratios))
    growth = {
        f"std_{small} - std_{large}": Statistic(
            (_name(small), _name(large)), lambda a, b: _std(a) - _std(b)
        )
        for large, small in pairwise(ratios)
    }
    return {
        **{f"beta_{ratio}": mean(_name(ratio)) for ratio in ratios},
        **{f"std_{ratio}": Statistic((_name(ratio),), _std) for ratio in ratios},
        **growth,
        "largest |beta - 1|": Statistic(
            names, lambda *every: (_means(*every) - 1).abs().amax(dim=0), joint=False
        ),
        "smallest beta": Statistic(names, lambda *every: _means(*every).amin(dim=0), joint=False),
        "largest beta": Statistic(names, lambda *every: _means(*every).amax(dim=0), joint=False),
    }


def _means(*every: Tensor) -> Tensor:
    """The mean of each quantity, (quantities, ...)."""
    return torch.stack([values.nanmean(dim=(-2, -1)) for values in every])


def _std(values: Tensor) -> Tensor:
    """The standard deviation over the images, in the mean over the training seeds."""
    spread = values - values.nanmean(dim=-1, keepdim=True)
    count = (~values.isnan()).sum(dim=-1)
    return (spread.square().nansum(dim=-1) / (count - 1)).sqrt().nanmean(dim=-1)


def _table(
    numbers: dict[str, Estimate], samples: dict[str, Tensor], dimensions: dict[int, int], d: int
) -> pd.DataFrame:
    """Table 5.1 for one network, one row per d / m."""
    rows = []
    for ratio, m in dimensions.items():
        beta, std = numbers.get(f"beta_{ratio}"), numbers.get(f"std_{ratio}")
        if beta is None or std is None:
            continue
        row = {"m_over_d": f"1/{ratio}", "m": m, **columns("beta", beta), **columns("std", std)}
        exact = {"beta_flat": expected_beta(d, m), "std_flat": beta_spread(d, m)}
        failed = int(samples[_name(ratio)].isnan().sum())
        rows.append({**row, **exact, "failed": failed, "images": beta.n, "seeds": beta.seeds})
    return pd.DataFrame(rows)


def _figure(
    network: Network, numbers: dict[str, Estimate], dimensions: dict[int, int], d: int
) -> Figure:
    """Measured beta with its spread over the images, beside the law of a flat boundary."""
    shown = [ratio for ratio in dimensions if f"beta_{ratio}" in numbers]
    places = list(range(len(shown)))
    laws = {
        "this network": [(numbers[f"beta_{r}"].value, numbers[f"std_{r}"].value) for r in shown],
        "flat boundary, exact law": [
            (expected_beta(d, dimensions[r]), beta_spread(d, dimensions[r])) for r in shown
        ],
    }
    figure, grid = axes_grid()
    axes = grid[0, 0]
    with styled():
        for index, (name, values) in enumerate(laws.items()):
            x = [place + 0.16 * (index - 0.5) for place in places]
            means, spread = zip(*values, strict=True) if values else ((), ())
            axes.errorbar(
                x, means, yerr=spread, fmt="os"[index], color=COLOURS[index], capsize=4, label=name
            )
        axes.axhline(1.0, color="#6b7580", linestyle="--", linewidth=1.2)
        axes.set_xticks(places, [f"1/{ratio}\n(m = {dimensions[ratio]})" for ratio in shown])
        axes.set(xlabel="m / d", ylabel=r"$\sqrt{m/d}\;\|r_S\|_2\,/\,\|r^*\|_2$")
        axes.set_title(f"Random subspaces, {network.name}: mean ± standard deviation")
        axes.legend(loc="upper left")
    return figure


def _notes(samples: dict[str, Tensor], dimensions: dict[int, int], d: int) -> list[str]:
    """Notes on the sizes of the subspaces, the failures and what beta is."""
    images = next(iter(samples.values())).shape[1]
    failed = sum(int(values.isnan().sum()) for values in samples.values())
    total = sum(values.numel() for values in samples.values())
    sizes = ", ".join(f"{m} (1/{ratio})" for ratio, m in dimensions.items())
    return [
        f"{images} held-out images, a random subspace of its own for each; m of d = {d}: {sizes}.",
        f"In {failed} of {total} cases no perturbation was found: they are left out and counted.",
        "beta is a mean of ratios; its spread is the standard deviation over the images, in the "
        "mean over the seeds. What stands for a flat boundary is exact: ||P_S n||^2 follows "
        "Beta(m/2, (d - m)/2).",
    ]
