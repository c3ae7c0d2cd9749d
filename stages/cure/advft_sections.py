"""Figure 8.1: distance and curvature of the boundary before and after fine-tuning.

The fine-tuning is on DeepFool examples (Section 8.2).

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.2.
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
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import axes_grid, styled
from pipeline.statistics import Estimate, Statistic, median, median_difference, stack
from pipeline.studies.cure import TITLES, CureStudy, cure_studies, notes
from pipeline.studies.cure_settings import CureSettings
from pipeline.tables import interval
from robustness_geometry.attacks import deepfool, nearest
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.geometry import (
    boundary_points,
    default_h,
    normal_curvatures,
    plane_sections,
    random_directions,
)
from robustness_geometry.norms import norms
from robustness_geometry.randomness import Generators, normal, seeded
from robustness_geometry.types import Classifier, Dataset, Images, Network

__all__ = ["SECTION", "Settings", "advft_sections", "bends"]

SECTION = "Section 8.2, Figure 8.1"

NETWORKS = ("original", "deepfool")
OWN, OTHER = "#7fbf7b", "#d9705f"
ALL = partial(deepfool, prune=None)
"""DeepFool with the gradients of all classes."""
GRID = 81
"""Points along a side of a drawn section."""
QUANTITIES = {
    "distance": "pixel l2",
    "curvature": "1 / pixel l2",
    "gradient": "logits / pixel l2",
    "bend": "logits / pixel l2 squared",
    "alignment": "",
}
"""Name of a quantity of :func:`bends` -> its unit."""
POINTS = {"closest": "", "crossing": " (crossing)"}
"""Where the boundary is looked at -> the end of the numbers' names."""


@dataclass(frozen=True)
class Settings(CureSettings):
    """What to measure.

    Attributes:
        directions: number of random tangent directions v at each point of the boundary, over which
            |kappa| is averaged, at least 1.
        curvature_h: step of the differences, in pixel l2, > 0; None:
            :func:`robustness_geometry.geometry.default_h`.
        shown: number of images in the figure, at least 1.
        reach: half the side of the drawn sections, > 0, as a multiple of the image's distance to
            the original network's boundary.
    """

    samples: int = 200
    directions: int = 5
    curvature_h: float | None = None
    shown: int = 2
    reach: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("directions", self.directions)
        check_count("shown", self.shown)
        check_positive("reach", self.reach)
        if self.curvature_h is not None:
            check_positive("curvature_h", self.curvature_h)


def advft_sections(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure distance and curvature of the boundary of the original and the fine-tuned network.

    They are ||r|| for the smallest r and |kappa(x + r, v)| for random tangent directions v.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and boundary points.

    Returns:
        ``distance_*`` and ``curvature_*``, medians over the images of ``original`` and
        ``deepfool``, and their differences; ``gradient_*`` (||grad F||), ``bend_*`` (|v.Hv| of F,
        the curvature before the division by ||grad F||) and ``alignment_*`` (cos(r, n)), medians
        as well. All are those of the closest points; names that end in ``(crossing)`` are those of
        the points at which DeepFool's perturbation crosses the boundary.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    samples = stack(executor.each(_measured, studies))
    numbers = paired_bootstrap(samples, _statistics(), resamples=settings.resamples)
    missing = {name: int(samples[f"distance {name}"].isnan().sum()) for name in NETWORKS}
    h = settings.curvature_h or default_h(studies[0].test.images[0].numel())
    return Findings(
        numbers=numbers,
        tables={"figure_8_1": _table(numbers)},
        figures=_figures(
            network, studies[0], [samples[f"distance {name}"][0] for name in NETWORKS]
        ),
        notes=[
            *notes(studies),
            f"{len(studies[0].test)} held-out images, {settings.directions} random directions v at "
            "each one's closest point of the boundary, by `nearest` and further projections, and "
            "where DeepFool's perturbation crosses it; curvatures by central differences over h = "
            f"{h:.4g} in pixel l2. No closest point was found in {missing['original']} cases "
            f"before and {missing['deepfool']} after fine-tuning; they are left out.",
            "The curvature is |v.Hv| / ||grad F||: where fine-tuning shortens the gradient more "
            "than it shrinks the Hessian, the boundary bends more although F itself bends less. "
            f"Here the median of ||grad F|| goes from {numbers['gradient_original'].value:.3g} to "
            f"{numbers['gradient_deepfool'].value:.3g}, and that of |v.Hv| from "
            f"{numbers['bend_original'].value:.3g} to {numbers['bend_deepfool'].value:.3g}.",
            "A boundary that has moved away is seen at another place: the curvatures are not those "
            "of the same points.",
        ],
    )


def _statistics() -> dict[str, Statistic]:
    numbers: dict[str, Statistic] = {}
    for end in POINTS.values():
        for key in QUANTITIES:
            numbers |= {f"{key}_{name}{end}": median(f"{key} {name}{end}") for name in NETWORKS}
        numbers[f"distance_deepfool - distance_original{end}"] = median_difference(
            f"distance deepfool{end}", f"distance original{end}"
        )
        numbers[f"curvature_original - curvature_deepfool{end}"] = median_difference(
            f"curvature original{end}", f"curvature deepfool{end}"
        )
    return numbers


def bends(
    model: Classifier,
    images: Images,
    *,
    directions: int,
    h: float | None,
    closest: bool = True,
    generator: Generators = None,
) -> dict[str, Tensor]:
    """The distance to the boundary and the mean |curvature| along random tangent directions there.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        directions: number of random tangent directions per image.
        h: step of the differences, in pixel l2; None: the default of ``normal_curvatures``.
        closest: whether to look at the closest points, or where DeepFool's perturbations cross.
        generator: one for the batch or one per image.

    Returns:
        ``distance`` and ``curvature`` (N,), ``gradient`` (N,): ||grad F||, ``bend`` (N,): their
        product, and ``alignment`` (N,): cos(r, n); NaN where no point of the boundary was found.
    """
    drawn = normal(images.new_empty(len(images), directions, *images.shape[1:]), generator)
    if closest:
        boundary = boundary_points(model, images, attack=partial(nearest, start="both"))
    else:
        boundary = boundary_points(model, images, attack=ALL, refinements=0)
    reached = boundary.success.nonzero()[:, 0]
    there = boundary.select(reached)
    curvature = images.new_full((len(images),), torch.nan)
    if len(reached):
        kappa = normal_curvatures(
            model, there.points, drawn[reached], labels=there.labels, targets=there.targets, h=h
        )
        curvature[reached] = kappa.abs().nanmean(dim=1).to(curvature)
    return {
        "distance": norms(boundary.perturbations),
        "curvature": curvature,
        "gradient": boundary.gradient_norms,
        "bend": curvature * boundary.gradient_norms,
        "alignment": boundary.angles.cos(),
    }


def _measured(study: CureStudy[Settings]) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    settings = study.settings
    for name in NETWORKS:
        model = study.tuned(name).model
        for point, end in POINTS.items():
            work = partial(
                bends,
                model,
                directions=settings.directions,
                h=settings.curvature_h,
                closest=point == "closest",
            )
            found = study.executor.cached(work, study.test.images, randomness=True).value
            values |= {f"{key} {name}{end}": each.double() for key, each in found.items()}
    return values


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    rows: Sequence[dict[str, object]] = [
        {
            "network": TITLES[name],
            "point": point,
            "quantity": {"alignment": "cos(r, n)", "bend": "|v.Hv|"}.get(key, key),
            "unit": unit,
            "median": estimate.value,
            **interval(estimate),
        }
        for key, unit in QUANTITIES.items()
        for point, end in POINTS.items()
        for name in NETWORKS
        for estimate in [numbers[f"{key}_{name}{end}"]]
    ]
    return pd.DataFrame(rows)


def _figures(
    network: Network, study: CureStudy[Settings], distances: Sequence[Tensor]
) -> dict[str, Figure]:
    """Figure 8.1: the region of the true label in the plane of r and a random v, of a few images.

    They are images that both networks label right and that have a point of the boundary in both;
    without any there is nothing to draw.
    """
    settings = study.settings
    chosen = torch.stack(list(distances)).isfinite().all(dim=0)
    for name in NETWORKS:
        chosen = chosen & study.right(study.tuned(name).model).bool()
    rows = chosen.nonzero()[: settings.shown, 0]
    if not len(rows):
        return {}
    reach = settings.reach * distances[0][rows]
    figure, grid = axes_grid(len(rows), 2, width=7.4, height=0.8 + 3.2 * len(rows))
    with styled():
        for column, name in enumerate(NETWORKS):
            sections = _sections(study, name, rows, reach)
            for row, (inside, half) in enumerate(zip(sections, reach, strict=True)):
                axes, end = grid[row, column], float(half)
                extent = (-end, end, -end, end)
                axes.imshow(
                    inside.numpy(),
                    origin="lower",
                    extent=extent,
                    cmap=ListedColormap([OTHER, OWN]),
                    vmin=0,
                    vmax=1,
                )
                axes.plot([0], [0], "o", color="black", markersize=4)
                axes.grid(visible=False)
                axes.set(
                    xlabel="along r, in pixel l2", ylabel="along a random v" if column == 0 else ""
                )
                if row == 0:
                    axes.set_title(TITLES[name], fontsize=10.5)
        figure.suptitle(
            f"Sections of the decision regions, {network.name}", fontsize=12.5, fontweight="bold"
        )
    return {"figure_8_1": figure}


def _sections(study: CureStudy[Settings], name: str, rows: Tensor, reach: Tensor) -> list[Tensor]:
    """Whether the points of each image's plane have the true label, (GRID, GRID) per image.

    Args:
        study: the training seed.
        name: name of the network.
        rows: indices of the held-out images.
        reach: half the side of each image's section, in pixel l2.
    """
    model = study.tuned(name).model
    weight = next(model.parameters())
    placed, own = study.test.images[rows].to(weight), study.test.labels[rows].to(weight.device)
    r = boundary_points(model, placed, attack=ALL).perturbations
    across = r / norms(r).view(-1, *[1] * (r.ndim - 1))
    upward = random_directions(placed, seeded("sections"), normals=across)
    sections = []
    for index, half in enumerate(reach):
        row = slice(index, index + 1)
        places = torch.from_numpy(np.linspace(-float(half), float(half), GRID)).to(placed)
        section = plane_sections(
            model, placed[row], across[row], upward[row], places, places, labels=own[row]
        )
        sections.append((section.labels[0] == own[index]).float().cpu())
    return sections
