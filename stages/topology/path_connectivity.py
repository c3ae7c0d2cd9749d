"""Paths between points of one decision region that stay in it (Section 7.3, Figure 7.2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, bar_figure, styled
from pipeline.statistics import Estimate, Statistic, mean, share, stack
from pipeline.studies.paths import (
    CHUNK,
    SCENARIOS,
    JoinedPairs,
    PathSettings,
    endpoints,
    into_region,
    joined_pairs,
    search,
)
from pipeline.studies.regions import draw_regions
from pipeline.studies.subject import placed
from pipeline.tables import class_name, columns
from robustness_geometry.checks import check_count
from robustness_geometry.geometry import Path, find_path, plane_sections, stitched_section
from robustness_geometry.types import Classifier, Dataset, Network, predict

__all__ = ["SECTION", "Settings", "path_connectivity"]

SECTION = "Section 7.3, Figure 7.2"

COLUMNS, ROWS = 200, 48
"""Points of the pictures along the path and across it."""

SHORT = {1: "two images", 2: "image and\nadversarial image", 3: "image and\nperturbed noise"}
"""Scenario -> its name below the bars."""


@dataclass(frozen=True)
class Settings(PathSettings):
    """What to measure.

    Attributes:
        audited: number of pairs of each scenario, on the first training seed, whose search is
            repeated without skipping samples, to audit ``safety``; 0: none.
    """

    audited: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("audited", self.audited, minimum=0)


def path_connectivity(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Search paths that stay in one decision region, between three kinds of pairs of points.

    The pairs are two images of one predicted label (scenario 1), an image and an image of another
    label moved into its region (2), and an image and a random point moved into its region (3). A
    path is a chain of straight segments, found by Algorithm 5; D(p) is its length over the distance
    of its ends.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the searches.

    Returns:
        For each scenario the share of pairs joined, of all pairs and of those whose second point
        was moved into the region, and over the paths found the mean D(p) and the mean number of
        anchor points; as tensors, D(p) (seeds, pairs), NaN without a path.

    References:
        Section 7.3, Algorithm 5 and Figure 7.2 of the thesis; Fawzi, Moosavi-Dezfooli, Frossard and
        Soatto, "Classification regions of deep neural networks", arXiv:1705.09552.
    """
    found = {
        scenario: [
            joined_pairs(model, data, settings, scenario, seed, executor.for_seed(seed))
            for seed, model in sorted(network.models.items())
        ]
        for scenario in SCENARIOS
    }
    per_seed = [
        {scenario: seeds[i] for scenario, seeds in found.items()}
        for i in range(len(network.models))
    ]
    samples = stack([_quantities(scenarios) for scenarios in per_seed])
    numbers = measured(paired_bootstrap(samples, _statistics(), resamples=settings.resamples))
    every = {"found": torch.cat([samples[f"found {scenario}"] for scenario in SCENARIOS], dim=1)}
    numbers |= measured(
        paired_bootstrap(every, {"share_connected": share("found")}, resamples=settings.resamples)
    )
    disagreements = _audit(network, data, settings, per_seed[0], executor)
    return Findings(
        numbers=numbers,
        tables={"paths": _table(numbers, found)},
        figures={
            "connected": _bars(network, numbers),
            **_paths(network.model, data, settings, found[1][0]),
        },
        tensors={f"deviation_{s}": samples[f"deviation {s}"] for s in SCENARIOS},
        notes=_notes(found, settings, disagreements),
    )


def _quantities(scenarios: Mapping[int, JoinedPairs]) -> dict[str, Tensor]:
    """Name -> (pairs,) values of one seed.

    A pair whose second point was not moved into the region counts as not joined; it is NaN in what
    is about pairs with both ends there.
    """
    quantities = {}
    for scenario, pairs in scenarios.items():
        quantities[f"found {scenario}"] = valid(pairs.found, pairs.paired)
        quantities[f"found of reached {scenario}"] = valid(pairs.found, pairs.reached)
        quantities[f"straight {scenario}"] = valid(pairs.straight, pairs.reached)
        quantities[f"deviation {scenario}"] = valid(pairs.deviation, pairs.found)
        quantities[f"excess {scenario}"] = valid(pairs.deviation - 1, pairs.found)
        quantities[f"anchors {scenario}"] = valid(pairs.anchors, pairs.found)
    return quantities


def _statistics() -> dict[str, Statistic]:
    """The numbers of each scenario."""
    found: dict[str, Statistic] = {}
    for scenario in SCENARIOS:
        found |= {
            f"share_connected_{scenario}": share(f"found {scenario}"),
            f"share_connected_of_reached_{scenario}": share(f"found of reached {scenario}"),
            f"share_straight_{scenario}": share(f"straight {scenario}"),
            f"deviation_{scenario}": mean(f"deviation {scenario}"),
            f"deviation_{scenario} - 1": mean(f"excess {scenario}"),
            f"anchors_{scenario}": mean(f"anchors {scenario}"),
        }
    return found


def _audit(
    network: Network,
    data: Dataset,
    settings: Settings,
    found: Mapping[int, JoinedPairs],
    executor: Executor,
) -> tuple[int, int]:
    """Repeat the search for some pairs of the first seed with every sample looked at.

    Returns:
        For how many pairs the outcome differs, and how many were searched again.
    """
    if settings.safety is None or not settings.audited:
        return 0, 0
    seed, wrong, total = min(network.models), 0, 0
    for scenario, quick in found.items():
        starts, others, labels = endpoints(
            network.model, data, scenario, settings.audited, seed, executor
        )
        join = search(settings, network.model, targeted=scenario != 1, full=True)
        full = executor.for_seed(seed).map(join, starts, others, labels, chunk=CHUNK).value
        same = (full.found == quick.found[: len(starts)]) & (
            full.straight == quick.straight[: len(starts)]
        )
        wrong, total = wrong + int((~same).sum()), total + len(starts)
    return wrong, total


def _table(numbers: Mapping[str, Estimate], found: Mapping[int, list[JoinedPairs]]) -> pd.DataFrame:
    """One row per scenario: the shares of pairs joined, the paths, and the failures."""
    rows = []
    for scenario, title in SCENARIOS.items():
        connected = numbers.get(f"share_connected_{scenario}")
        if connected is None:
            continue
        row: dict[str, object] = {
            "scenario": scenario,
            "pair": title,
            **columns("share_connected", connected),
        }
        for name in ("share_connected_of_reached", "share_straight", "deviation", "anchors"):
            if f"{name}_{scenario}" in numbers:
                row |= columns(name, numbers[f"{name}_{scenario}"])
        outside = sum(int((seed.paired & ~seed.reached).sum()) for seed in found[scenario])
        failed = sum(int((seed.reached & ~seed.found).sum()) for seed in found[scenario])
        deepest = max(int(seed.depth.max()) for seed in found[scenario])
        looked = sum(float(seed.samples.double().mean()) for seed in found[scenario]) / len(
            found[scenario]
        )
        row |= {
            "endpoint_outside": outside,
            "no_path": failed,
            "deepest": deepest,
            "mean_samples": looked,
        }
        rows.append(row | {"pairs": connected.n, "seeds": connected.seeds})
    return pd.DataFrame(rows)


def _bars(network: Network, numbers: Mapping[str, Estimate]) -> Figure:
    """The shares of pairs joined by a straight segment and by some path."""
    groups = {}
    for scenario, title in SHORT.items():
        names = {
            "straight segment": f"share_straight_{scenario}",
            "some path": f"share_connected_{scenario}",
        }
        groups[title] = {k: numbers[v] for k, v in names.items() if v in numbers}
    figure = bar_figure(
        groups,
        ylabel="share of pairs joined in their region",
        title=f"Pairs joined, {network.name}",
    )
    with styled():
        figure.axes[0].set(ylim=(0, 1.22), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0])
        figure.axes[0].legend(loc="upper right", ncols=2)
    return figure


def _paths(
    model: Classifier, data: Dataset, settings: Settings, pairs: JoinedPairs
) -> dict[str, Figure]:
    """Figure 7.2 for the pair of images with the longest path.

    It is chosen among those whose straight segment leaves the region; without any, among all.
    """
    chosen = (pairs.found & ~pairs.straight).nonzero()[:, 0]
    if not len(chosen):
        chosen = pairs.found.nonzero()[:, 0]
    if not len(chosen):
        return {}
    index = int(chosen[pairs.deviation[chosen].argmax()])
    start, end = placed(pairs.starts[index], model), placed(pairs.ends[index], model)
    inward = into_region(settings, overshoot=settings.overshoot)
    options = {"spacing": settings.spacing, "depth": settings.depth, "safety": settings.safety}
    path = find_path(model, start, end, attack=inward, **options)
    upward = into_region(settings)(model, start[None]).perturbations[0]
    if not bool((upward.norm() > 0) & torch.isfinite(upward).all()):
        return {}
    return {"figure_7_2": _sections(model, data, path, upward)}


def _sections(model: Classifier, data: Dataset, path: Path, upward: Tensor) -> Figure:
    """The plane of the straight segment and r(x_1), above the sections along the path."""
    start, end = path.anchors[0], path.anchors[-1]
    length, height = float((end - start).norm()), 1.5 * float(upward.norm())
    own = int(predict(model, start[None]))
    # An orthonormal basis of the plane through the segment and the perturbation r(x_1).
    across = (end - start) / length
    vertical = upward - (upward * across).sum() * across
    vertical = vertical / vertical.norm()
    x = torch.linspace(-0.1 * length, 1.1 * length, COLUMNS).to(start)
    y = torch.linspace(-height, height, ROWS).to(start)
    straight = plane_sections(model, start[None], across[None], vertical[None], x, y)
    stitched = stitched_section(model, path.anchors, upward, y, columns=COLUMNS)
    figure, panels = axes_grid(2, 1, width=8.5, height=6.4)
    name = partial(class_name, data)
    draw_regions(panels[0, 0], straight.labels[0], straight.leads[0], x, y, own=own, name=name)
    draw_regions(panels[1, 0], stitched.labels, stitched.leads, stitched.x, y, own=own, name=name)
    marks = stitched.breaks.cpu()
    titles = (
        f"straight segment: {'inside' if path.straight else 'leaves the region'}",
        f"along the path: {len(path.anchors) - 2} anchor points, D(p) = {path.deviation:.5f}",
    )
    with styled():
        for axes, places, title in zip(
            panels[:, 0], (torch.tensor([0.0, length]), marks), titles, strict=True
        ):
            axes.plot(
                places,
                torch.zeros(len(places)),
                "o-",
                color=COLOURS[0],
                markersize=4,
                linewidth=1.4,
            )
            axes.set(ylabel=r"along $r(x_1)$ (pixel units)", title=title)
            for place, text in ((places[0], "$x_1$"), (places[-1], "$x_2$")):
                axes.annotate(
                    text,
                    (float(place), 0.0),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha="center",
                )
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
        for place in marks[1:-1].tolist():
            panels[1, 0].axvline(place, color="#6b7580", linestyle=":", linewidth=1.0)
        panels[1, 0].set_xlabel(
            "length along the path (pixel units); the horizontal axis turns at each anchor point"
        )
    return figure


def _notes(
    found: Mapping[int, list[JoinedPairs]], settings: Settings, audit: tuple[int, int]
) -> list[str]:
    """Notes on the failures, the samples, the audit, and differences from Algorithm 5."""
    everyone = [seed for seeds in found.values() for seed in seeds]
    outside = sum(int((seed.paired & ~seed.reached).sum()) for seed in everyone)
    single = sum(int((~seed.paired).sum()) for seed in everyone)
    failed = sum(int((seed.reached & ~seed.found).sum()) for seed in everyone)
    stuck = sum(int(seed.stuck.sum()) for seed in everyone)
    pairs, total = settings.pairs, sum(len(seed.found) for seed in everyone)
    sampled = "every sample was looked at"
    if settings.safety is not None:
        sampled = (
            "samples were left out where the label could only change if its lead changed "
            f"{settings.safety:g} times as fast as anywhere seen on the segment "
            f"({sum(float(s.samples.sum()) for s in everyone) / total:.0f} were looked at for a "
            f"pair); on {audit[1]} pairs every sample was looked at as well, and {audit[0]} of "
            "them ended otherwise"
        )
    return [
        f"{pairs} pairs of each scenario and training seed, on held-out images; the labels are the "
        "network's own.",
        f"In {outside} of {total} cases the second point could not be moved into the region: they "
        "count as not joined in share_connected, and are left out of share_connected_of_reached "
        f"and of everything else. {single} images without a partner are left out.",
        f"A path counts as inside if the label is right at samples {settings.spacing:g} of the "
        f"pair's distance apart; {sampled}.",
        f"{failed} pairs were not joined within {settings.depth} halvings, {stuck} of them because "
        "no point of the region was found near a midpoint.",
        f"Midpoints outside the region are moved into it by DeepFool of {settings.attack_steps} "
        f"steps at most, with an overshoot of {settings.overshoot:g}; with the usual 0.02 the "
        "halves of a segment along a boundary that bends away from the region stay outside. A "
        "larger overshoot makes D(p) larger and takes fewer anchor points: both depend on it.",
        "Segments that stay inside are not halved, where the thesis' pseudocode halves them: its "
        "paths have more anchor points on the same lines. Points of scenarios 2 and 3 may lie "
        "outside [0, 1].",
    ]
