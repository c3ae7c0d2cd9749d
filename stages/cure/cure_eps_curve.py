"""Figure 8.6: accuracy under PGD(20) against the size of the perturbation (Section 8.5).

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.5.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards deep learning models resistant
    to adversarial attacks", arXiv:1706.06083, 2018 (PGD).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, of_means, share, stack
from pipeline.studies.cure import TITLES, CureStudy, cure_studies, notes
from pipeline.studies.cure_settings import AdversarySettings
from pipeline.tables import interval
from robustness_geometry.checks import check_positive, refuse
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "cure_eps_curve"]

SECTION = "Section 8.5, Figure 8.6"

NETWORKS = ("original", "cure", "advtrain")


@dataclass(frozen=True)
class Settings(AdversarySettings):
    """What to measure.

    Attributes:
        factors: radii of the attack as multiples of eps, two or more, each > 0, in ascending order.
    """

    samples: int = 2000
    factors: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for factor in self.factors:
            check_positive("factors", factor)
        if len(self.factors) < 2 or list(self.factors) != sorted(set(self.factors)):
            refuse("factors", self.factors, "two or more numbers in ascending order")


def cure_eps_curve(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure accuracy under the attack that judges, at several radii.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and attacks.

    Returns:
        ``adv_<network>_<k>`` at the k-th radius (k = 0: no attack), and ``largest_rise_<network>``:
        the largest change from one radius to the next, at most 0 where accuracy never rises.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    samples = stack(executor.each(_judged, studies))
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    radii = [factor * studies[0].eps for factor in (0.0, *settings.factors)]
    lines = {
        TITLES[name]: estimate_line(radii, _curve(numbers, name, len(radii))) for name in NETWORKS
    }
    return Findings(
        numbers=numbers,
        curves={
            f"adv_{name}": [e.value for e in _curve(numbers, name, len(radii))] for name in NETWORKS
        },
        tables={"figure_8_6": _table(numbers, radii)},
        figures={
            "figure_8_6": line_figure(
                lines,
                xlabel="eps, in pixel units of [0, 1]",
                ylabel="accuracy under attack",
                title=f"Accuracy against the size of the perturbation, {network.name}",
                limits=(0.0, 1.0),
            )
        },
        notes=[
            *notes(studies),
            f"Accuracies on {len(studies[0].test)} held-out images; the same random starts at "
            "every eps.",
        ],
    )


def _judged(study: CureStudy[Settings]) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for name in NETWORKS:
        model = study.tuned(name).model
        values[f"{name} 0"] = study.right(model)
        for index, factor in enumerate(study.settings.factors, 1):
            values[f"{name} {index}"] = study.right(model, study.judge(eps=factor * study.eps))
    return values


def _statistics(settings: Settings) -> dict[str, Statistic]:
    count = len(settings.factors) + 1
    numbers = {
        f"adv_{name}_{index}": share(f"{name} {index}")
        for name in NETWORKS
        for index in range(count)
    }
    for name in NETWORKS:
        names = tuple(f"{name} {index}" for index in range(count))
        numbers[f"largest_rise_{name}"] = replace(of_means(names, _rise), joint=True)
    return numbers


def _rise(*means: Tensor) -> Tensor:
    """The largest of the differences from one value to the next."""
    return torch.stack(means, dim=-1).diff(dim=-1).amax(dim=-1)


def _curve(numbers: Mapping[str, Estimate], name: str, count: int) -> Sequence[Estimate]:
    return [numbers[f"adv_{name}_{index}"] for index in range(count)]


def _table(numbers: Mapping[str, Estimate], radii: Sequence[float]) -> pd.DataFrame:
    rows = [
        {"training": TITLES[name], "eps": radius, "accuracy": estimate.value, **interval(estimate)}
        for name in NETWORKS
        for radius, estimate in zip(radii, _curve(numbers, name, len(radii)), strict=True)
    ]
    return pd.DataFrame(rows)
