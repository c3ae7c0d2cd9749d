"""DeepFool against its closed forms on affine classifiers (Sections 3.2.1, 3.2.2 and 3.4).

The closed forms are Equations 3.2, 3.8, 3.12 and 3.16.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.evaluation import recomputed_success
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import Estimate, exactly
from pipeline.studies.synthetic import Affine
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import check_count, check_norm, refuse
from robustness_geometry.geometry import random_subspace
from robustness_geometry.norms import dual, norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Network, Perturbed, predict

__all__ = [
    "SECTION",
    "Settings",
    "attack_closed_forms",
]

SECTION = "Sections 3.2.1, 3.2.2 and 3.4"

OVERSHOOT = 1e-4
"""DeepFool's overshoot, divided out before a perturbation is compared.

It is large enough that no rounding error hides the change of label.
"""

TOLERANCE = 1e-5
"""The largest relative error that the claims allow."""


@dataclass(frozen=True)
class Settings:
    """The size of the comparison.

    Attributes:
        classifiers: number of random affine classifiers of each case.
        points: number of random points for each classifier.
        dimension: dimension d of the input space, at least 2.
        classes: number of classes of the multiclass cases, at least 2.
        subspace_dimension: dimension m of the random subspaces, at most d.
        exponents: exponents p of the l_p case, each in [1, inf].
    """

    classifiers: int = 20
    points: int = 50
    dimension: int = 48
    classes: int = 10
    subspace_dimension: int = 12
    exponents: tuple[float | str, ...] = (1.0, 1.5, 2.0, 3.0, 10.0, "inf")

    def __post_init__(self) -> None:
        for name in ("classifiers", "points", "subspace_dimension"):
            check_count(name, getattr(self, name))
        check_count("dimension", self.dimension, minimum=2)
        check_count("classes", self.classes, minimum=2)
        if self.subspace_dimension > self.dimension:
            refuse(
                "subspace_dimension",
                self.subspace_dimension,
                f"at most dimension = {self.dimension}",
            )
        if not self.exponents:
            refuse("exponents", self.exponents, "at least one exponent p")
        for p in self.exponents:
            check_norm("exponents", p)


def attack_closed_forms(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Compare DeepFool with the smallest perturbations of random affine classifiers, in float64.

    The network and the data take no part: the classifiers are made up, so that the answers are
    known.

    Args:
        network: not used.
        data: not used.
        settings: the size of the comparison.
        executor: not used; the work takes less than a second or two.

    Returns:
        The worst relative error, number of steps and residual of each case over all classifiers and
        points.

    References:
        Sections 3.2.1, 3.2.2 and 3.4 of the thesis; Moosavi-Dezfooli, Fawzi and Frossard,
        "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016,
        arXiv:1511.04599.
    """
    measured = {
        "binary": _cases(_binary, settings),
        "multiclass": _cases(_multiclass, settings),
        "subspace": _cases(_subspace, settings),
    }
    powers = {
        p: _cases(partial(_power, p=check_norm("exponents", p)), settings)
        for p in settings.exponents
    }
    measured["lp"] = {
        name: torch.cat([case[name] for case in powers.values()]) for name in ("error", "flips")
    }
    numbers = {
        f"{case}_{name}": _worst(values, smallest=name == "flips")
        for case, quantities in measured.items()
        for name, values in quantities.items()
    }
    total = settings.classifiers * settings.points
    return Findings(
        numbers=numbers,
        tables={"closed_forms": _table(numbers), "lp": _power_table(powers)},
        figures={"closed_forms": _figure(numbers, powers)},
        notes=[
            f"Worst case over {settings.classifiers} random affine classifiers in "
            f"{settings.dimension} dimensions and {settings.points} points each ({total} cases, "
            "float64); the network plays no part.",
            f"DeepFool ran with overshoot {OVERSHOOT:g}, which was divided out before comparing.",
        ],
    )


def _draws(settings: Settings, outputs: int, purpose: str) -> Iterator[tuple[Affine, Tensor]]:
    """Random affine classifiers with boundaries near the centre of the unit cube, and points."""
    for index in range(settings.classifiers):
        generator = seeded("attack_closed_forms", purpose, index)
        weight = torch.randn(outputs, settings.dimension, generator=generator, dtype=torch.float64)
        shift = 0.3 * torch.randn(outputs, generator=generator, dtype=torch.float64)
        shape = (settings.points, 1, 1, settings.dimension)
        yield (
            Affine(weight, shift - weight.sum(dim=1) / 2),
            torch.rand(shape, generator=generator, dtype=torch.float64),
        )


def _cases(
    case: Callable[[Settings], Iterator[dict[str, Tensor]]], settings: Settings
) -> dict[str, Tensor]:
    """All draws of one case side by side: quantity -> (classifiers * points,)."""
    parts = list(case(settings))
    return {name: torch.cat([part[name].double() for part in parts]) for name in parts[0]}


def _binary(settings: Settings) -> Iterator[dict[str, Tensor]]:
    """Equation 3.2: r = -f(x) / ||w||^2 w."""
    for model, points in _draws(settings, 1, "binary"):
        with torch.no_grad():
            exact = -model(points) / model.weight.square().sum() * model.weight
        result = deepfool(model, points, overshoot=OVERSHOOT, prune=None)
        yield {"error": _error(result, exact), "steps": result.steps}


def _multiclass(settings: Settings) -> Iterator[dict[str, Tensor]]:
    """Equations 3.7 and 3.8: the nearest of the hyperplanes f_k = f_khat."""
    for model, points in _draws(settings, settings.classes, "multiclass"):
        exact = _nearest(model, points, torch.eye(settings.dimension, dtype=torch.float64))
        result = deepfool(model, points, overshoot=OVERSHOOT, prune=None)
        yield {"error": _error(result, exact), "steps": result.steps}


def _subspace(settings: Settings) -> Iterator[dict[str, Tensor]]:
    """Equations 3.16 and 3.17: the same with the normals projected onto a random subspace."""
    generator = seeded("attack_closed_forms", "subspaces")
    for model, points in _draws(settings, settings.classes, "subspace"):
        basis = random_subspace(
            settings.dimension, settings.subspace_dimension, generator, dtype=torch.float64
        )
        result = deepfool(model, points, overshoot=OVERSHOOT, prune=None, subspace=basis)
        found = result.perturbations.flatten(1)
        outside = (found - found @ basis.T @ basis).norm(dim=1) / found.norm(dim=1)
        yield {
            "error": _error(result, _nearest(model, points, basis.T @ basis)),
            "residual": outside,
        }


def _power(settings: Settings, p: float) -> Iterator[dict[str, Tensor]]:
    """Equations 3.11 to 3.14: the l_p norm is min_k |F_k| / ||w_k||_q.

    ``flips`` says whether the label changes just beyond it.
    """
    for model, points in _draws(settings, settings.classes, f"lp {p:g}"):
        gaps, normals, own = _competitors(model, points)
        exact = _without_own(
            gaps.abs() / torch.linalg.vector_norm(normals, ord=dual(p), dim=2), own
        ).amin(dim=1)
        result = deepfool(model, points, norm=p, overshoot=OVERSHOOT, prune=None)
        reached = norms(result.perturbations, p) / (1 + OVERSHOOT)
        yield {
            "error": (reached - exact).abs() / exact,
            "flips": recomputed_success(model, points, result),
        }


def _competitors(model: Affine, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F_k = f_k - f_khat (N, L), its gradients (N, L, d), and the label khat (N,)."""
    own = predict(model, points)
    with torch.no_grad():
        logits = model(points)
    gaps = logits - logits.gather(1, own[:, None])
    weight = model.weight.detach()
    return gaps, weight[None] - weight[own][:, None], own


def _without_own(distances: Tensor, own: Tensor) -> Tensor:
    """``distances`` (N, L) with infinity at each point's own class, which has no boundary."""
    return distances.scatter(1, own[:, None], math.inf)


def _nearest(model: Affine, points: Tensor, projector: Tensor) -> Tensor:
    """The l_2-smallest perturbation onto any of the hyperplanes, (N, d).

    ``projector`` (d, d) projects onto the space in which the perturbation lies.
    """
    gaps, normals, own = _competitors(model, points)
    projected = normals @ projector
    nearest = _without_own(gaps.abs() / projected.norm(dim=2), own).argmin(dim=1)
    rows = torch.arange(len(points))
    gap, normal = gaps[rows, nearest].abs(), projected[rows, nearest]
    return (gap / normal.square().sum(dim=1))[:, None] * normal


def _error(result: Perturbed, exact: Tensor) -> Tensor:
    """||r / (1 + overshoot) - r*|| / ||r*|| of each point."""
    found = result.perturbations.flatten(1) / (1 + OVERSHOOT)
    return (found - exact).norm(dim=1) / exact.norm(dim=1)


def _worst(values: Tensor, *, smallest: bool) -> Estimate:
    """The largest value, or the smallest, of exactly these cases."""
    return exactly(float(values.min() if smallest else values.max()), len(values))


def _table(numbers: dict[str, Estimate]) -> pd.DataFrame:
    """One row per number: its worst case."""
    return pd.DataFrame(
        [{"quantity": name, "worst": e.value, "cases": e.n} for name, e in numbers.items()]
    )


def _power_table(powers: dict[float | str, dict[str, Tensor]]) -> pd.DataFrame:
    """One row per exponent p: the worst error and the share of labels flipped."""
    return pd.DataFrame(
        [
            {
                "p": float(p),
                "worst_error": float(case["error"].max()),
                "share_flipped": float(case["flips"].mean()),
                "cases": len(case["error"]),
            }
            for p, case in powers.items()
        ]
    )


def _figure(numbers: dict[str, Estimate], powers: dict[float | str, dict[str, Tensor]]) -> Figure:
    """The worst relative errors on a logarithmic axis, with the tolerance of the claims."""
    bars = {
        "binary": numbers["binary_error"].value,
        "multiclass": numbers["multiclass_error"].value,
        "subspace": numbers["subspace_error"].value,
        **{f"p = {float(p):g}": float(case["error"].max()) for p, case in powers.items()},
    }
    figure, grid = axes_grid(height=3.8)
    axes = grid[0, 0]
    # An error of exactly zero is drawn at the smallest relative step of float64.
    shown = [max(value, torch.finfo(torch.float64).eps) for value in bars.values()]
    with styled():
        axes.barh(list(bars), shown, color=COLOURS[0])
        axes.axvline(TOLERANCE, color=COLOURS[1], linestyle="--", label=f"tolerance {TOLERANCE:g}")
        axes.set(
            xscale="log",
            xlabel="worst relative error",
            title="DeepFool against closed forms, affine classifiers",
        )
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.legend()
    return figure
