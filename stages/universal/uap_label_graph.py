"""The graph of labels that a universal perturbation changes (Section 4.3.4, Figures 4.7, 4.8)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import Statistic
from pipeline.studies.universal import UniversalStudy, fooled_by, made_by_both, universal_studies
from pipeline.studies.universal_settings import UniversalSettings
from pipeline.tables import class_name, class_text, norm_name
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "label_graph", "smallest_in_share", "uap_label_graph"]

SECTION = "Section 4.3.4, Figures 4.7 and 4.8"

NAMED = 40
"""Labels of a component up to which its drawing names them."""

COLUMNS = 3
"""Components in a row of Figure 4.7."""


@dataclass(frozen=True)
class Settings(UniversalSettings):
    """What to measure: the vector of the attack's norm that fools most of X."""


def uap_label_graph(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Link each label to the commonest new one that its images get from the perturbation.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: makes the vectors.

    Returns:
        The smallest share, over the weakly connected components, of a component's edges that lead
        to its dominant label; the share of labels that an edge leads to; the number of components;
        and the share of fooled images that get the commonest new label.

    References:
        Thesis, Section 4.3.4 and Figures 4.7 and 4.8. S.-M. Moosavi-Dezfooli et al., "Universal
        adversarial perturbations", arXiv:1610.08401.
    """
    studies = universal_studies(network, data, settings, executor)
    moves = torch.stack(executor.each(lambda study: _moves(study, len(data.classes)), studies))
    statistics = {
        name: Statistic(("move",), _Mean(function, len(data.classes)))
        for name, function in MEASURES.items()
    }
    numbers = measured(paired_bootstrap({"move": moves}, statistics, resamples=settings.resamples))
    graphs = [label_graph(row, len(data.classes)) for row in moves]
    return Findings(
        numbers=numbers,
        tables={
            "edges": _edges(studies, graphs, data),
            "components": _components(studies, graphs, data),
        },
        figures={
            "figure_4_7": _whole(studies, graphs, data, network),
            "figure_4_8": _largest(studies[0], graphs[0], data, network),
        },
        notes=_notes(studies, moves, settings),
    )


def _moves(study: UniversalStudy, classes: int) -> Tensor:
    """(n,) old label * classes + new label of each held-out image; NaN where the label stays."""
    v = study.best(study.settings.norm).perturbation
    labels = study.labels(study.test.images, v)
    moves = (labels[:, 0] * classes + labels[:, 1]).double()
    return moves.masked_fill(fooled_by(labels[:, 0], labels[:, 1]) == 0, math.nan)


def label_graph(moves: Tensor, classes: int) -> nx.DiGraph:
    """The graph with an edge i -> j where j is the commonest new label of the images of label i.

    Labels without a fooled image have no edge out; isolated ones are left out. Of several equally
    common labels, the first counts.

    Args:
        moves: (n,) i * classes + j of each image; NaN where the label stays.
        classes: number of labels.

    Returns:
        Edges with ``images``, the number that go from i to j, and ``share``, that number over the
        fooled images of i.
    """
    counts = _counts(moves, classes)
    graph = nx.DiGraph()
    for i, (total, most, j) in enumerate(zip(counts.sum(1).tolist(), *_ends(counts), strict=True)):
        if total:
            graph.add_edge(i, j, images=most, share=most / total)
    return graph


def _ends(counts: Tensor) -> tuple[list[int], list[int]]:
    """For each old label, the images that get its commonest new label, and that label."""
    most, target = counts.max(dim=1)
    return most.tolist(), target.tolist()


def _counts(moves: Tensor, classes: int) -> Tensor:
    """(classes, classes) the images of each old label (row) that get each new one (column)."""
    codes = moves[~moves.isnan()].long()
    return torch.bincount(codes, minlength=classes * classes).view(classes, classes)


def smallest_in_share(graph: nx.DiGraph) -> float:
    """The smallest, over the weak components, of largest in-degree over number of edges.

    It is NaN without edges.
    """
    shares = []
    for part in nx.weakly_connected_components(graph):
        inside = [degree for _, degree in graph.in_degree(part)]
        shares.append(max(inside) / sum(inside))
    return min(shares, default=math.nan)


def _component_share(moves: Tensor, classes: int) -> float:
    return smallest_in_share(label_graph(moves, classes))


def _target_share(moves: Tensor, classes: int) -> float:
    """The labels that are the commonest new label of another one, over all labels."""
    counts = _counts(moves, classes)
    moved = counts.sum(dim=1) > 0
    return len(counts.argmax(dim=1)[moved].unique()) / classes if bool(moved.any()) else math.nan


def _component_count(moves: Tensor, classes: int) -> float:
    return float(nx.number_weakly_connected_components(label_graph(moves, classes)))


def _dominance(moves: Tensor, classes: int) -> float:
    """The share of fooled images that get the commonest new label of all."""
    counts = _counts(moves, classes)
    return float(counts.sum(dim=0).max() / counts.sum()) if bool(counts.any()) else math.nan


MEASURES = {
    "smallest max_in_degree / edges": _component_share,
    "targets / classes": _target_share,
    "components": _component_count,
    "share_to_commonest_target": _dominance,
}
"""Name of a number -> the function of one training seed's moves that gives it."""


class _Mean:
    """The mean over training seeds of a measure of each seed's moves (..., seeds, n)."""

    def __init__(self, measure, classes: int) -> None:  # type: ignore[no-untyped-def]
        self.measure, self.classes = measure, classes

    def __call__(self, moves: Tensor) -> Tensor:
        rows = moves.flatten(0, -2)
        values = torch.tensor(
            [self.measure(row, self.classes) for row in rows], dtype=torch.float64
        )
        return values.view(moves.shape[:-1]).nanmean(dim=-1)


def _parts(graph: nx.DiGraph) -> list[nx.DiGraph]:
    """The weak components, the largest first."""
    nodes = sorted(nx.weakly_connected_components(graph), key=lambda part: (-len(part), min(part)))
    return [graph.subgraph(sorted(part)) for part in nodes]


def _dominant(graph: nx.DiGraph) -> int:
    """The label with most edges in; of several the first."""
    return max(graph.nodes, key=lambda node: (graph.in_degree(node), -node))


def _edges(
    studies: Sequence[UniversalStudy], graphs: Sequence[nx.DiGraph], data: Dataset
) -> pd.DataFrame:
    """One row per edge and training seed."""
    return pd.DataFrame(
        {
            "seed": study.seed,
            "label": class_text(data, i),
            "becomes": class_text(data, j),
            "images": edge["images"],
            "share_of_fooled": edge["share"],
        }
        for study, graph in zip(studies, graphs, strict=True)
        for i, j, edge in graph.edges(data=True)
    )


def _components(
    studies: Sequence[UniversalStudy], graphs: Sequence[nx.DiGraph], data: Dataset
) -> pd.DataFrame:
    """One row per weak component and training seed."""
    return pd.DataFrame(
        {
            "seed": study.seed,
            "component": number,
            "labels": len(part),
            "edges": part.number_of_edges(),
            "dominant": class_text(data, _dominant(part)),
            "edges_to_dominant": part.in_degree(_dominant(part)),
        }
        for study, graph in zip(studies, graphs, strict=True)
        for number, part in enumerate(_parts(graph))
    )


def _whole(
    studies: Sequence[UniversalStudy], graphs: Sequence[nx.DiGraph], data: Dataset, network: Network
) -> Figure:
    """Figure 4.7: every component, of every training seed."""
    panels = [
        (study.seed, part)
        for study, graph in zip(studies, graphs, strict=True)
        for part in _parts(graph)
    ]
    columns = min(max(len(panels), 1), COLUMNS)
    rows = max(1, math.ceil(len(panels) / columns))
    figure, grid = axes_grid(rows, columns, width=max(4.2 * columns, 5.5), height=4.2 * rows + 0.7)
    with styled():
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, (seed, part) in zip(grid.flat, panels, strict=False):
            _draw(
                axes,
                part,
                data,
                f"seed {seed}: {part.in_degree(_dominant(part))} of {part.number_of_edges()} edges "
                f"to {class_name(data, _dominant(part))}",
            )
        figure.suptitle(
            f"Commonest wrong label of each class,\n{network.name}",
            fontsize=12.5,
            fontweight="bold",
        )
    return figure


def _largest(study: UniversalStudy, graph: nx.DiGraph, data: Dataset, network: Network) -> Figure:
    """Figure 4.8: the two largest components of the first training seed, with shares."""
    parts = _parts(graph)[:2]
    figure, grid = axes_grid(1, max(len(parts), 1), width=6.0 * max(len(parts), 1), height=6.4)
    with styled():
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, part in zip(grid.flat, parts, strict=False):
            _draw(axes, part, data, f"{len(part)} labels", shares=True)
        title = (
            f"Largest component{'s' if len(parts) > 1 else ''}, {network.name}, seed {study.seed}"
        )
        figure.suptitle(title, fontsize=12.5, fontweight="bold")
        figure.supxlabel("percentages: of the class's fooled images", fontsize=9.5)
    return figure


def _draw(
    axes: Axes, graph: nx.DiGraph, data: Dataset, title: str, *, shares: bool = False
) -> None:
    """A component as rings around its dominant label."""
    places, root = _rings(graph), _dominant(graph)
    named = len(graph) <= NAMED
    size = 620 if named else 60
    for i, j, edge in graph.edges(data=True):
        arrow = {
            "arrowstyle": "-|>",
            "color": "#7b8794",
            "linewidth": 1 + 2.5 * edge["share"],
            "mutation_scale": 15,
        }
        bend = 0.3 if graph.has_edge(j, i) else 0.1  # two edges between the same labels bow apart
        arrow |= {
            "shrinkA": size**0.5 / 2,
            "shrinkB": size**0.5 / 2,
            "connectionstyle": f"arc3,rad={bend}",
        }
        axes.annotate("", xy=places[j], xytext=places[i], arrowprops=arrow, zorder=1)
        if shares and named:
            x, y = _on_arc(places[i], places[j], bend, 0.4)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axes.text(
                x,
                y,
                f"{edge['share']:.0%}",
                ha="center",
                va="center",
                fontsize=9.5,
                bbox=box,
                zorder=2,
            )
    colours = [COLOURS[1] if node == root else COLOURS[0] for node in graph]
    across, up = zip(*(places[node] for node in graph), strict=True)
    axes.scatter(across, up, s=size, c=colours, zorder=3)
    for node in graph if named else [root]:
        name = class_name(data, node).strip("“”")
        inside = len(name) <= 2 and named
        x, y = places[node]
        below = 0.0 if inside else 0.16
        axes.text(
            x,
            y - below,
            name,
            ha="center",
            va="center" if inside else "top",
            zorder=4,
            fontsize=12 if inside else 9,
            color="white" if inside else "black",
        )
    axes.set_title(title, loc="center", fontsize=11)
    axes.margins(0.16)
    # Two labels stand above each other: an axis without an extent cannot be drawn.
    for (low, high), widen in ((axes.get_xlim(), axes.set_xlim), (axes.get_ylim(), axes.set_ylim)):
        if high - low < 1:
            widen((low + high - 1) / 2, (low + high + 1) / 2)
    axes.set_aspect("equal")


def _on_arc(
    start: tuple[float, float], stop: tuple[float, float], bend: float, t: float
) -> tuple[float, float]:
    """The point at ``t`` in [0, 1] of matplotlib's arc3.

    The arc is a parabola whose control point lies beside the middle.
    """
    across, up = stop[0] - start[0], stop[1] - start[1]
    control = (start[0] + across / 2 + bend * up, start[1] + up / 2 - bend * across)
    points = zip(start, control, stop, strict=True)
    x, y = ((1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b for a, c, b in points)
    return x, y


def _rings(graph: nx.DiGraph) -> dict[int, tuple[float, float]]:
    """Places: the dominant label in the middle, the others on rings at their distance from it.

    A label gets a part of its parent's arc, in proportion to the leaves below it.
    """
    tree = nx.bfs_tree(graph.to_undirected(), _dominant(graph))
    leaves = dict.fromkeys(tree, 0)
    for node in reversed(list(nx.topological_sort(tree))):
        leaves[node] = max(1, sum(leaves[child] for child in tree.successors(node)))
    places: dict[int, tuple[float, float]] = {}
    arcs = [(_dominant(graph), 0, 0.0, 2 * math.pi)]
    while arcs:
        node, ring, start, stop = arcs.pop()
        angle = (start + stop) / 2 + math.pi / 2
        places[node] = (ring * math.cos(angle), ring * math.sin(angle))
        width = (stop - start) / leaves[node]
        for child in tree.successors(node):
            arcs.append((child, ring + 1, start, start + width * leaves[child]))
            start += width * leaves[child]
    return places


def _notes(studies: Sequence[UniversalStudy], moves: Tensor, settings: Settings) -> list[str]:
    fooled = ", ".join(f"{int((~row.isnan()).sum())}" for row in moves)
    return [
        *made_by_both(studies, settings.norm),
        f"The graph is of the classifier's labels without and with the {norm_name(settings.norm)} "
        "vector, on the "
        f"images that change theirs ({fooled} for the training seeds). An edge leads to the "
        "commonest new label, "
        "whether or not most images of the class get it; the table has its share. The thesis does "
        "not name the norm.",
        "Numbers are means over the training seeds; resampling draws images, so that rare edges "
        "come and go. That the components are disjoint asks for at least two of them; with few "
        "classes and edges out of nearly all of them there is hardly room for two.",
    ]
