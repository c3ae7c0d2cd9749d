"""The smallest perturbation and the nearest point of the boundary (Section 5.2, Observation 1).

Observation 1: the smallest perturbation is as long as the distance to the boundary, and it meets
the boundary at a right angle (Figure 5.1).
"""

import math
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, histogram_figure, styled
from pipeline.statistics import Estimate, Statistic, median, scaled_median_of_ratios, share, stack
from pipeline.studies.attacking import run
from pipeline.studies.boundary import (
    BoundarySettings,
    as_perturbed,
    closest_points,
    crossing_points,
    or_infinite,
)
from pipeline.studies.subject import placed
from pipeline.tables import columns
from robustness_geometry.attacks import ddn, nearest, pgd
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.geometry import Boundary, plane_sections, random_directions
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import (
    Classifier,
    Dataset,
    Images,
    Labels,
    Mask,
    Network,
    predict,
)

__all__ = ["SECTION", "Settings", "boundary_normal"]

SECTION = "Section 5.2, Observation 1"

GRID = 64
"""Points along each side of the picture of Figure 5.1."""

SEARCHES = ("PGD", "DDN", "nearest")
"""What searches a label change nearer than r*."""

NEAREST_STEPS = 30
"""Steps of each start of nearest: with 7, its default, it finds less."""


@dataclass(frozen=True)
class Settings(BoundarySettings):
    """What to measure.

    Attributes:
        radius: radius of the ball in which a change of label is searched, as a share > 0 of ||r*||.
        steps: number of steps of the PGD that searches it.
        restarts: number of runs of that PGD per image.
        ddn_steps: number of steps of the DDN that searches a smaller perturbation, at least 2.
        rivals: number of classes towards each of which nearest starts, in 30 steps, to search a
            smaller perturbation.
    """

    radius: float = 0.9
    steps: int = 100
    restarts: int = 10
    ddn_steps: int = 300
    rivals: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("radius", self.radius)
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        check_count("ddn_steps", self.ddn_steps, minimum=2)
        check_count("rivals", self.rivals)


def boundary_normal(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Search label changes nearer than ||r*||, and measure the angle between r* and the normal.

    r* leads to the closest point of the boundary. Three other searches look for a label change
    within ``radius`` ||r*||: PGD in that ball, and DDN and nearest from several starts, whose norms
    say whether they found one. The normal is that of the boundary at x + r*. The point where
    DeepFool's perturbation crosses the boundary stands beside it.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        The share of images without a label change within ``radius`` ||r*|| by any search and by
        each, the median |cos(r, n)|, both at the crossing too, and the median of ||r*|| / ||r||.

    References:
        Section 5.2, Observation 1, of the thesis; Fawzi, Moosavi-Dezfooli and Frossard, "Robustness
        of classifiers: from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
    """
    images = held_out(data, settings.samples).images
    found = [
        _measure(model, images, settings, executor.for_seed(seed))
        for seed, model in sorted(network.models.items())
    ]
    samples = stack([quantities for quantities, _ in found])
    numbers = measured(paired_bootstrap(samples, _statistics(), resamples=settings.resamples))
    return Findings(
        numbers=numbers,
        tables={"observation_1": _table(numbers)},
        figures={
            "figure_5_1": _picture(network.model, images, found[0][1]),
            "cosines": _histogram(network, samples),
        },
        tensors={
            "cosine": samples["cosine"].float(),
            "cosine_crossing": samples["cosine crossing"].float(),
        },
        notes=_notes(samples, settings),
    )


def _measure(
    model: Classifier, images: Images, settings: Settings, executor: Executor
) -> tuple[dict[str, Tensor], Boundary]:
    """Name -> (n,) values of one training seed, and the closest points that they rest on."""
    near = closest_points(model, images, executor)
    crossing = crossing_points(settings.boundary_attack, model, images, executor)
    lengths, farther = norms(near.perturbations), norms(crossing.perturbations)
    kept = near.success & (lengths > 0)
    crossed = crossing.success & (farther > 0)
    # An image without a closest point gets an arbitrary ball; what is found there does not count.
    radii = torch.where(kept, settings.radius * lengths, 1.0)
    search = partial(fooled_within, model, settings.steps, settings.restarts)
    by_pgd = executor.map(search, images, radii, near.labels, randomness=True).value
    several = partial(nearest, start="ddn", steps=NEAREST_STEPS, rivals=settings.rivals)
    by_ddn, by_nearest = (
        or_infinite(run(attack, model, images, executor).value)
        for attack in (partial(ddn, steps=settings.ddn_steps), several)
    )
    smallest = torch.minimum(torch.minimum(by_ddn, by_nearest), or_infinite(as_perturbed(near)))
    found = {"PGD": by_pgd, "DDN": by_ddn <= radii, "nearest": by_nearest <= radii}
    anyone = torch.stack(list(found.values())).any(dim=0)
    return {
        "unfooled": valid(~anyone, kept),
        **{f"unfooled {name}": valid(~fooled, kept) for name, fooled in found.items()},
        "unfooled crossing": valid(smallest > settings.radius * farther, crossed),
        "cosine": valid(near.angles.cos().abs(), kept),
        "cosine crossing": valid(crossing.angles.cos().abs(), crossed),
        "norm": valid(lengths, kept),
        "norm crossing": valid(farther, crossed),
    }, near


def fooled_within(
    model: Classifier,
    steps: int,
    restarts: int,
    images: Images,
    radii: Tensor,
    labels: Labels,
    *,
    generator: list[torch.Generator],
) -> Mask:
    """Whether PGD finds another label within an l_2 ball around each image, (N,).

    Args:
        model: the classifier.
        steps: number of steps of PGD.
        restarts: number of runs of PGD per image.
        images: (N, C, H, W) the centres of the balls.
        radii: (N,) their radii, in pixel units.
        labels: (N,) the labels to leave.
        generator: one generator per image.
    """
    result = pgd(
        model,
        images,
        eps=radii,
        norm=2,
        steps=steps,
        restarts=restarts,
        clip=None,
        labels=labels,
        generator=generator,
    )
    inside = norms(result.perturbations) <= radii * (1 + 1e-4)
    return (predict(model, result.adversarial(images)) != labels) & inside


def _statistics() -> dict[str, Statistic]:
    return {
        "share_unfooled": share("unfooled"),
        **{f"share_unfooled, {name}": share(f"unfooled {name}") for name in SEARCHES},
        "share_unfooled (crossing)": share("unfooled crossing"),
        "median_cosine": median("cosine"),
        "median_cosine (crossing)": median("cosine crossing"),
        "r* / r": scaled_median_of_ratios("norm", "norm crossing", 1.0),
    }


def _table(numbers: dict[str, Estimate]) -> pd.DataFrame:
    """One row per number, with the point that it is about and its interval."""
    return pd.DataFrame(
        [
            {
                "quantity": name.removesuffix(" (crossing)"),
                "point": "crossing" if name.endswith("(crossing)") else "closest",
                **columns("value", estimate),
                "images": estimate.n,
                "seeds": estimate.seeds,
            }
            for name, estimate in numbers.items()
        ]
    )


def _picture(model: Classifier, images: Images, nearest: Boundary) -> Figure:
    """Figure 5.1 measured: the plane of r* and a random direction, and a ball of radius ||r*||."""
    index = _typical(nearest)
    r = nearest.perturbations[index : index + 1]
    image = images[index : index + 1].to(r)
    length = float(norms(r))
    across = random_directions(image, seeded("boundary_normal", "picture"), normals=r)
    grid = torch.linspace(-2, 2, GRID)
    plane = (image, length * across, r, grid, grid)
    section = plane_sections(model, *(placed(part, model) for part in plane))
    figure, axes = axes_grid(width=5.6, height=5.2)
    plot = axes[0, 0]
    with styled():
        inside = (section.labels[0] == int(nearest.labels[index])).cpu().numpy()
        plot.contourf(grid, grid, inside, levels=[-0.5, 0.5, 1.5], colors=["#f3dfd0", "#dcebf3"])
        plot.contour(grid, grid, section.leads[0].cpu().numpy(), levels=[0.0], colors=["#22282f"])
        angle = torch.linspace(0, 2 * math.pi, 200)
        plot.plot(angle.cos(), angle.sin(), color=COLOURS[0], label=r"ball of radius $\|r^*\|_2$")
        plot.annotate(
            "",
            xy=(0, 1),
            xytext=(0, 0),
            arrowprops={"arrowstyle": "->", "color": COLOURS[1], "lw": 2},
        )
        plot.plot([0], [0], "o", color="#22282f")
        plot.text(0.08, 0.45, r"$r^*$", color=COLOURS[1])
        plot.text(0.08, -0.16, "x")
        plot.set(
            xlabel=r"a random direction, in units of $\|r^*\|_2$",
            ylabel=r"$r^*$, in units of its norm",
            title="The nearest point of the boundary",
            aspect="equal",
        )
        plot.grid(visible=False)
        plot.legend(loc="lower left")
    return figure


def _typical(nearest: Boundary) -> int:
    """The image of median norm among those with a perturbation, or among all if none has one."""
    success = nearest.success
    rows = (success if bool(success.any()) else torch.ones_like(success)).nonzero().flatten()
    order = norms(nearest.perturbations[rows]).argsort()
    return int(rows[order[len(order) // 2]])


def _histogram(network: Network, samples: dict[str, Tensor]) -> Figure:
    """The angles at the boundary, at the closest point and at DeepFool's crossing."""
    shown = {
        "closest point": samples["cosine"],
        "DeepFool's crossing": samples["cosine crossing"],
    }
    title = f"Perturbation and normal of the boundary, {network.name}"
    return histogram_figure(shown, xlabel=r"$|\cos(r, \nabla F(x + r))|$", title=title)


def _notes(samples: dict[str, Tensor], settings: Settings) -> list[str]:
    """Notes on the failures, the label changes nearer than ||r*||, and what r* is."""
    count, cases = samples["norm"].shape[1], samples["norm"].numel()
    lost, failed = int(samples["norm"].isnan().sum()), int(samples["norm crossing"].isnan().sum())
    fooled = {name: int((samples[f"unfooled {name}"] == 0).sum()) for name in SEARCHES}
    together = int((samples["unfooled"] == 0).sum())
    return [
        f"{count} held-out images; DeepFool's perturbation crosses no boundary in {failed} of "
        f"{cases} cases, and no closest point was found in {lost}: they are left out.",
        f"Within {settings.radius:g} ||r*|| another label was found in {together} cases, where r* "
        "is longer than the distance to the boundary: by PGD of "
        f"{settings.steps} steps and {settings.restarts} run(s), not clipped, in {fooled['PGD']}; "
        f"by DDN of {settings.ddn_steps} steps in {fooled['DDN']}; by nearest towards "
        f"{settings.rivals} class(es) in {fooled['nearest']}. All three judge together.",
        "r* leads to the closest point: nearest, then projections until it is within 0.01 of the "
        "normal. (crossing) is the point where DeepFool's perturbation crosses the boundary; "
        "whether a label change lies within that share of its length is told by the smallest "
        "perturbation that any search found.",
    ]
