"""Random convex combinations of images of one decision region (Section 7.3, Figure 7.3).

Decision regions are connected but not convex.
"""

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
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, Statistic, difference, of_means, share, spearman, stack
from pipeline.studies.paths import JoinedPairs, PathSettings, joined_pairs, own_labels
from pipeline.tables import columns
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import stays_in_region
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Dataset, Images, Labels, Mask, Network

__all__ = ["SECTION", "Settings", "convex_mixing"]

SECTION = "Section 7.3, Figure 7.3"

LARGEST = 50_000_000
"""Limit on memory: how many pixels the groups of one chunk may hold together."""


@dataclass(frozen=True)
class Settings(PathSettings):
    """What to measure.

    Attributes:
        sizes: numbers k of images that are mixed: three or more, rising, each at least 2.
        mixtures: number of random mixtures of each size.
    """

    sizes: tuple[int, ...] = (2, 3, 5, 10, 20, 50)
    mixtures: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("mixtures", self.mixtures)
        if len(self.sizes) < 3 or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 2:
            refuse("sizes", self.sizes, "three or more rising whole numbers >= 2")


def convex_mixing(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure how often a random convex combination of k images of one predicted label keeps it.

    Beside it, the pairs of images of :mod:`stages.topology.path_connectivity`: on how many of them
    the straight segment stays in the region, and on how many some path does. If regions were
    convex, every mixture and every straight segment would stay.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the mixtures and the searches.

    Returns:
        P_in(k), its rank correlation with k, and the shares of pairs joined straight and by a path.

    Raises:
        InputError: no label is given to as many held-out images as are to be mixed.

    References:
        Section 7.3, Figure 7.3 of the thesis; Fawzi, Moosavi-Dezfooli, Frossard and Soatto,
        "Classification regions of deep neural networks", arXiv:1705.09552.
    """
    quantities = []
    for seed, model in sorted(network.models.items()):
        scope = executor.for_seed(seed)
        mixed = {f"in {k}": _mixed(model, data, settings, k, seed, scope) for k in settings.sizes}
        quantities.append({**mixed, **_pairs(joined_pairs(model, data, settings, 1, seed, scope))})
    samples = stack(quantities)
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings.sizes), resamples=settings.resamples)
    )
    return Findings(
        numbers=numbers,
        tables={"mixing": _table(numbers, settings.sizes)},
        figures={"figure_7_3": _figure(network, numbers, settings.sizes)},
        tensors={f"in_{k}": samples[f"in {k}"].float() for k in settings.sizes},
        notes=_notes(samples, settings),
    )


def keeps_label(
    pool: Images,
    model: Classifier,
    groups: Tensor,
    labels: Labels,
    *,
    generator: list[torch.Generator],
) -> Mask:
    """Whether a random convex combination of each group of images has the group's label, (N,).

    Args:
        pool: (M, C, H, W) the images.
        model: the classifier.
        groups: (N, k) indices into ``pool``.
        labels: (N,) the labels of the groups.
        generator: one generator per group; draws the weights.
    """
    return stays_in_region(model, pool[groups], labels, generator)


def _mixed(
    model: Classifier, data: Dataset, settings: Settings, size: int, seed: int, executor: Executor
) -> Tensor:
    """Whether each mixture of ``size`` images stays in its region, (mixtures,)."""
    images, predicted = own_labels(model, data, executor)
    counts = torch.bincount(predicted)
    usable = (counts[predicted] >= size).nonzero()[:, 0]
    if not len(usable):
        refuse(
            "sizes",
            size,
            f"at most {int(counts.max())}, the most held-out images that share a predicted label",
        )
    generator = seeded("mixing", size, seed)
    # The label of an image drawn at random, then a group of that label: a label counts as often as
    # it occurs.
    labels = predicted[
        usable[torch.randint(len(usable), (settings.mixtures,), generator=generator)]
    ]
    members = {label: (predicted == label).nonzero()[:, 0] for label in labels.unique().tolist()}
    groups = torch.stack([_some(members[label], size, generator) for label in labels.tolist()])
    chunk = max(1, min(250, LARGEST // (size * images[0].numel())))
    mix = partial(keeps_label, images, model)
    return executor.map(mix, groups, labels, chunk=chunk, randomness=True).value.double()


def _some(members: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """``size`` of the indices ``members``, drawn without replacement."""
    return members[torch.randperm(len(members), generator=generator)[:size]]


def _pairs(pairs: JoinedPairs) -> dict[str, Tensor]:
    """Whether a path and whether the straight segment joins each pair, NaN without an end point."""
    return {
        "found": valid(pairs.found, pairs.reached),
        "straight": valid(pairs.straight, pairs.reached),
    }


def _statistics(sizes: tuple[int, ...]) -> dict[str, Statistic]:
    """The numbers: shares of mixtures and of pairs, and how P_in changes with k."""
    names = [f"in {k}" for k in sizes]
    return {
        **{f"P_in_{k}": share(f"in {k}") for k in sizes},
        "P_in_first - P_in_last": of_means((names[0], names[-1]), torch.sub),
        "spearman": of_means(names, partial(_correlation, sizes), within=(-1.0, 1.0)),
        "share_found": share("found"),
        "share_straight": share("straight"),
        "share_found - share_straight": difference("found", "straight"),
    }


def _correlation(sizes: tuple[int, ...], *shares: Tensor) -> Tensor:
    """Spearman's rank correlation of P_in(k) with k; 0 where P_in is the same for all k."""
    return spearman(sizes, *shares).nan_to_num(nan=0.0)


def _table(numbers: Mapping[str, Estimate], sizes: tuple[int, ...]) -> pd.DataFrame:
    """One row per k: P_in with its interval."""
    return pd.DataFrame(
        [
            {
                "images_mixed": k,
                **columns("P_in", numbers[f"P_in_{k}"]),
                "mixtures": numbers[f"P_in_{k}"].n,
                "seeds": numbers[f"P_in_{k}"].seeds,
            }
            for k in sizes
        ]
    )


def _figure(network: Network, numbers: Mapping[str, Estimate], sizes: tuple[int, ...]) -> Figure:
    """Figure 7.3: P_in over k."""
    lowest = min(numbers[f"P_in_{k}"].low for k in sizes)
    return line_figure(
        {"mixtures": estimate_line(sizes, [numbers[f"P_in_{k}"] for k in sizes])},
        xlabel="images mixed, k",
        ylabel="share of mixtures that stay in the region",
        title=f"Random convex combinations, {network.name}",
        log_x=True,
        limits=(min(0.9, lowest - 0.02), 1.005),
    )


def _notes(samples: Mapping[str, Tensor], settings: Settings) -> list[str]:
    """Notes on the mixtures, the pairs and why P_in may grow with k."""
    pairs = int((~samples["found"].isnan()).sum())
    straight = int((samples["straight"] == 0).sum())
    return [
        f"{settings.mixtures} mixtures of each size and training seed, of held-out images with one "
        "predicted label; the weights are uniform on the simplex, Dirichlet(1), as the thesis does "
        "not say how it draws them.",
        f"Straight segments and paths: {pairs} pairs of images of one predicted label, those of "
        f"scenario 1 of path_connectivity; straight segments leave the region in {straight} cases.",
        "A mixture of many images is close to the mean of their class: where that is itself "
        "clearly of the class, as it is with centred digits, P_in grows with k.",
    ]
