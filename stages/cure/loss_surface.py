"""Figures 8.3 and 8.8: the loss on the plane of a boundary's normal and a random direction.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Sections 8.2 and 8.5.2.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
    S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate method to fool
    deep neural networks", arXiv:1511.04599, 2016.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import axes_grid, styled
from pipeline.statistics import (
    Estimate,
    Statistic,
    median,
    median_difference,
    median_of_ratios,
    stack,
)
from pipeline.studies.cure import TITLES, CureStudy, cure_studies, notes
from pipeline.studies.cure_settings import CureSettings
from pipeline.tables import interval
from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.protocol import per_image
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.geometry import random_directions
from robustness_geometry.norms import norms
from robustness_geometry.randomness import Generators
from robustness_geometry.types import Classifier, Dataset, Images, Labels, Network, class_logits

__all__ = ["SECTION", "Settings", "loss_surface", "surfaces"]

SECTION = "Sections 8.2 and 8.5.2, Figures 8.3 and 8.8"

NETWORKS = ("original", "deepfool", "cure")
BATCH = 2048
"""Points of one forward pass."""


@dataclass(frozen=True)
class Settings(CureSettings):
    """What to measure.

    Attributes:
        reach: half the side of the squares, > 0, as a multiple of the original network's median
            distance to the boundary.
        grid: number of points along a side of the squares, at least 3.
        shown: number of images in the figure, at least 1.
    """

    samples: int = 200
    reach: float = 1.5
    grid: int = 21
    shown: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("reach", self.reach)
        check_count("grid", self.grid, minimum=3)
        check_count("shown", self.shown)


def loss_surface(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure how far the loss is from linear on the plane of r and v around each image.

    r is the direction of the l2 DeepFool perturbation of each network itself, v a random direction
    orthogonal to it. The square has the same size for all networks.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and networks.

    Returns:
        ``residual_*``: the median over the images of the root mean square distance of the loss from
        its best linear fit, for ``original``, ``deepfool`` and ``cure``, and their differences;
        ``curved_*``: the same as a share of the loss's own spread, 0 where it is linear.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    measured_ = executor.each(_measured, studies)
    samples = stack([values for values, _, _ in measured_])
    numbers = paired_bootstrap(samples, _statistics(), resamples=settings.resamples)
    reach = [half for _, half, _ in measured_]
    missing = int(sum(samples[f"residual {name}"].isnan().sum() for name in NETWORKS))
    return Findings(
        numbers=numbers,
        tables={"linearity": _table(numbers)},
        figures={"figure_8_3": _figure(network, measured_[0][2], reach[0], settings)},
        notes=[
            *notes(studies),
            f"The cross-entropy at the true label on {settings.grid} x {settings.grid} points "
            f"around {len(studies[0].test)} held-out images, up to "
            f"{', '.join(f'{half:.3g}' for half in reach)} in pixel l2 to each side (one value a "
            f"training seed); DeepFool found no direction in {missing} cases, which are left out.",
        ],
    )


def surfaces(
    model: Classifier,
    images: Images,
    labels: Labels,
    *,
    reach: float,
    grid: int,
    generator: Generators = None,
) -> dict[str, Tensor]:
    """The cross-entropy on a square around each image, along DeepFool's direction and a random one.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        reach: half the side of the squares, in pixel l2.
        grid: number of points along a side.
        generator: one for the batch or one per image.

    Returns:
        ``losses`` (N, grid, grid): rows along the random direction, columns along DeepFool's;
        ``residual`` (N,): the root mean square distance from the best linear fit; ``curved`` (N,):
        that over the loss's standard deviation; ``success`` (N,): whether DeepFool found a
        direction.
    """
    result = deepfool(model, images, prune=None)
    sizes = norms(result.perturbations)
    success = result.success & torch.isfinite(sizes) & (sizes > 0)
    # Unit vectors: across along r (anything where DeepFool failed), upward orthogonal to it.
    across = torch.where(
        per_image(success, images),
        result.perturbations / per_image(sizes, images),
        images.new_ones(()),
    )
    across = across / per_image(norms(across), across)
    upward = random_directions(images, generator, normals=across)
    places = torch.linspace(-reach, reach, grid, dtype=images.dtype, device=images.device)
    y, x = (each.flatten() for each in torch.meshgrid(places, places, indexing="ij"))
    # All points of all squares in one list: the image of each, and its place in that square.
    image = torch.arange(len(images), device=images.device).repeat_interleave(grid * grid)
    column, row = x.repeat(len(images)), y.repeat(len(images))
    parts = []
    for part in torch.arange(len(image), device=images.device).split(BATCH):
        own = image[part]
        moved = (
            images[own]
            + per_image(column[part], images) * across[own]
            + per_image(row[part], images) * upward[own]
        )
        with torch.no_grad():
            logits = class_logits(model(moved))
        parts.append(torch.nn.functional.cross_entropy(logits, labels[own], reduction="none"))
    losses = torch.cat(parts).view(len(images), grid, grid)
    residual = linear_residual(losses)
    return {
        "losses": losses,
        "residual": residual,
        "curved": residual / losses.flatten(1).std(dim=1, correction=0),
        "success": success,
    }


def linear_residual(losses: Tensor) -> Tensor:
    """The root mean square distance (N,) of values on a square (N, K, K) from a linear fit.

    The grid is symmetric, so a constant, the column's place and the row's place are orthogonal, and
    each coefficient of the best fit is a projection by itself.
    """
    count = losses.shape[1]
    places = torch.linspace(-1, 1, count, dtype=torch.float64, device=losses.device)
    values = losses.double()
    scale = count * places.square().sum()
    columns_ = (values * places).sum(dim=(1, 2)) / scale
    rows = (values * places[:, None]).sum(dim=(1, 2)) / scale
    fit = (
        values.mean(dim=(1, 2))[:, None, None]
        + columns_[:, None, None] * places
        + rows[:, None, None] * places[:, None]
    )
    residual: Tensor = (values - fit).square().mean(dim=(1, 2)).sqrt()
    return residual


def _measured(
    study: CureStudy[Settings],
) -> tuple[dict[str, Tensor], float, dict[str, Tensor]]:
    """Per-image values, half the side of the squares, and the losses of the images to show."""
    settings = study.settings
    half = settings.reach * _distance(study)
    values: dict[str, Tensor] = {}
    shown: dict[str, Tensor] = {}
    for name in NETWORKS:
        work = partial(surfaces, study.tuned(name).model, reach=half, grid=settings.grid)
        squares = study.executor.cached(
            work, study.test.images, study.test.labels, randomness=True
        ).value
        for key in ("residual", "curved"):
            values[f"{key} {name}"] = valid(squares[key], squares["success"])
        shown[name] = squares["losses"][: settings.shown]
    return values, half, shown


def _distance(study: CureStudy[Settings]) -> float:
    """The median l2 norm of DeepFool's perturbations of the original network, in pixel units."""
    attacked = study.executor.cached(
        partial(deepfool, study.model, prune=None), study.test.images
    ).value
    return float(norms(attacked.perturbations)[attacked.success].median())


def _statistics() -> dict[str, Statistic]:
    numbers = {
        f"{key}_{name}": median(f"{key} {name}")
        for key in ("residual", "curved")
        for name in NETWORKS
    }
    for name in NETWORKS[1:]:
        for key in ("residual", "curved"):
            numbers[f"{key}_original - {key}_{name}"] = median_difference(
                f"{key} original", f"{key} {name}"
            )
        numbers[f"residual_{name} / residual_original"] = median_of_ratios(
            f"residual {name}", "residual original"
        )
    return numbers


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows: Sequence[dict[str, object]] = [
        {"network": TITLES[name], "quantity": key, "median": estimate.value, **interval(estimate)}
        for name in NETWORKS
        for key in ("residual", "curved")
        for estimate in [numbers[f"{key}_{name}"]]
    ]
    return pd.DataFrame(rows)


def _figure(
    network: Network, shown: Mapping[str, Tensor], half: float, settings: Settings
) -> Figure:
    """Figure 8.3: minus the loss on the squares, one row per image, all on one scale of colours."""
    count = len(shown["original"])
    figure, grid = axes_grid(count, len(NETWORKS), width=10.0, height=0.6 + 3.0 * count)
    highest = max(float(losses.max()) for losses in shown.values())
    places = np.linspace(-half, half, settings.grid)
    with styled():
        for column, name in enumerate(NETWORKS):
            for row, losses in enumerate(shown[name]):
                axes = grid[row, column]
                drawn = axes.contourf(
                    places,
                    places,
                    -losses.numpy(),
                    levels=np.linspace(-highest, 0, 13),
                    cmap="RdBu",
                )
                axes.plot([0], [0], "o", color="black", markersize=4)
                axes.set_aspect("equal")
                axes.set(xlabel="along r, in pixel l2", ylabel="along v" if column == 0 else "")
                if row == 0:
                    axes.set_title(TITLES[name].replace(" on ", "\non "), fontsize=10.5)
        figure.colorbar(drawn, ax=grid, label="minus the cross-entropy", shrink=0.8)
        figure.suptitle(
            f"The loss around {count} images, {network.name}", fontsize=12.5, fontweight="bold"
        )
    return figure
