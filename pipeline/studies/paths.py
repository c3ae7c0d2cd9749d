"""Pairs of points of one decision region and the paths that join them (Section 7.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.evaluation import held_out
from pipeline.executor import Executor
from pipeline.studies.attacking import deepfool_of
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.geometry import find_paths
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Attack, Classifier, Dataset, Images, Labels, predict

__all__ = [
    "SCENARIOS",
    "JoinedPairs",
    "PathSettings",
    "endpoints",
    "into_region",
    "joined_pairs",
    "own_labels",
    "search",
]

SCENARIOS = {
    1: "two images",
    2: "an image and an adversarial image",
    3: "an image and a perturbed random image",
}
"""The kinds of pairs of Section 7.3."""

CHUNK = 50
"""Pairs that are searched together."""


@dataclass(frozen=True)
class PathSettings:
    """The settings that the experiments on paths inside a region share.

    Attributes:
        boundary_attack: the attack that moves points into a region; it is called with ``targets``,
            so that the default DeepFool takes the place of any attack that is not a DeepFool.
        overshoot: overshoot of that attack where it moves the midpoint of a segment, as a share of
            the perturbation, above 0. Algorithm 5 asks for the smallest way into the region; but
            along a boundary that bends away from the region, a segment between two points on it is
            outside by a quarter of what the segment before was, so that anything below 1/4 never
            gets inside. A larger one lengthens the paths and leaves them fewer anchor points.
        attack_steps: largest number of steps of that attack, whatever number it has elsewhere: with
            50 it gives up on points from which DeepFool only creeps into a region.
        pairs: number of pairs of each scenario.
        spacing: distance between the samples at which a path is checked, as a share of the pair's
            distance, in (0, 1].
        depth: largest number of halvings of a segment, at least 10.
        safety: factor > 0: samples are skipped between which the label could only change if its
            lead changed this many times as fast as anywhere seen on the segment; None: no sample is
            skipped.
        resamples: number of resamples of the bootstrap behind every interval.
    """

    boundary_attack: Attack = field(default_factory=lambda: partial(deepfool))
    overshoot: float = 0.4
    attack_steps: int = 300
    pairs: int = 1000
    spacing: float = 1e-4
    depth: int = 16
    safety: float | None = None
    resamples: int = 2000

    binds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "boundary_attack": {"norm": "", "steps": "topology.attack_steps"}
    }
    """Attack -> its options that the experiments set themselves, whatever is given."""

    def __post_init__(self) -> None:
        check_count("pairs", self.pairs)
        check_positive("overshoot", self.overshoot)
        check_count("attack_steps", self.attack_steps)
        check_count("resamples", self.resamples)
        check_count("depth", self.depth, minimum=10)
        if not 0 < self.spacing <= 1:
            refuse("spacing", self.spacing, "a share in (0, 1]")
        if self.safety is not None:
            check_positive("safety", self.safety)


@dataclass(frozen=True)
class JoinedPairs:
    """Pairs of points and the outcome of the search for a path between them, one row per pair.

    Attributes:
        starts: (N, C, H, W).
        ends: (N, C, H, W), NaN where no point of the region was found.
        paired: (N,) whether there is a second point to start from: an image has no partner where
            no other has its label, or all have.
        reached: (N,) whether both points lie in the region.
        found: (N,) whether a path was found.
        straight: (N,) whether the straight segment stays in the region.
        deviation: (N,) D(p), NaN without a path.
        anchors: (N,) number of anchor points between start and end.
        depth: (N,) number of halvings of the shortest segment.
        samples: (N,) points at which the label was computed.
        stuck: (N,) whether the search ended because no point of the region was found near a
            midpoint.
    """

    starts: Tensor
    ends: Tensor
    paired: Tensor
    reached: Tensor
    found: Tensor
    straight: Tensor
    deviation: Tensor
    anchors: Tensor
    depth: Tensor
    samples: Tensor
    stuck: Tensor


def joined_pairs(
    model: Classifier,
    data: Dataset,
    settings: PathSettings,
    scenario: int,
    seed: int,
    executor: Executor,
) -> JoinedPairs:
    """The pairs of one scenario and their paths, computed once for all experiments."""
    starts, others, labels = endpoints(model, data, scenario, settings.pairs, seed, executor)
    join = search(settings, model, targeted=scenario != 1)
    return executor.cached(join, starts, others, labels, chunk=CHUNK).value


def search(
    settings: PathSettings, model: Classifier, *, targeted: bool, full: bool = False
) -> "partial[JoinedPairs]":
    """:func:`connect` with the options of ``settings``.

    Args:
        settings: the settings of the experiment.
        model: the classifier.
        targeted: whether the second point of each pair is first moved into the region.
        full: whether every sample is looked at, whatever ``safety`` says.
    """
    return partial(
        connect,
        model,
        attack=into_region(settings),
        inward=into_region(settings, overshoot=settings.overshoot),
        targeted=targeted,
        spacing=settings.spacing,
        depth=settings.depth,
        safety=None if full else settings.safety,
    )


def into_region(settings: PathSettings, **options: object) -> Attack:
    """The attack that moves points into a region, with enough steps and further ``options``."""
    return deepfool_of(settings.boundary_attack, norm=2.0, steps=settings.attack_steps, **options)


def connect(
    model: Classifier,
    starts: Images,
    others: Images,
    labels: Labels,
    *,
    attack: Attack,
    inward: Attack,
    targeted: bool,
    spacing: float,
    depth: int,
    safety: float | None,
) -> JoinedPairs:
    """Join each start with another point, which is first moved into its region where ``targeted``.

    Args:
        model: the classifier.
        starts: (N, C, H, W).
        others: (N, C, H, W).
        labels: (N,) the labels of the starts; -1 for a start that has no partner.
        attack: moves the others into the region.
        inward: moves midpoints into it.
        targeted: whether the others lie outside the region.
        spacing: as for :func:`robustness_geometry.geometry.find_paths`.
        depth: as for that function.
        safety: as for that function.
    """
    ends = others.clone()
    reached = labels >= 0
    if targeted and bool(reached.any()):
        moved = attack(model, others[reached], targets=labels[reached])  # type: ignore[call-arg]
        ends[reached] = others[reached] + moved.perturbations
    reached = reached & torch.isfinite(ends).flatten(1).all(dim=1)
    # The attack may have failed: only pairs whose two points now have one label are joined.
    reached[reached.clone()] = predict(model, ends[reached]) == labels[reached]
    rows = reached.nonzero()[:, 0]
    options = {
        "labels": labels[rows],
        "attack": inward,
        "spacing": spacing,
        "depth": depth,
        "safety": safety,
    }
    paths = find_paths(model, starts[rows], ends[rows], **options)  # type: ignore[arg-type]
    nan, zero = starts.new_full((len(starts),), torch.nan), torch.zeros_like(labels)

    def filled(like: Tensor, values: Sequence[float]) -> Tensor:
        """``like`` with the values of the joined pairs in their rows."""
        out = like.clone()
        out[rows] = torch.tensor(list(values), dtype=like.dtype, device=like.device)
        return out

    return JoinedPairs(
        starts=starts,
        ends=ends.masked_fill(~reached.view(-1, *[1] * (ends.ndim - 1)), torch.nan),
        paired=labels >= 0,
        reached=reached,
        found=filled(zero, [path.found for path in paths]).bool(),
        straight=filled(zero, [path.straight for path in paths]).bool(),
        deviation=filled(
            nan.double(), [path.deviation if path.found else float("nan") for path in paths]
        ),
        anchors=filled(zero, [len(path.anchors) - 2 for path in paths]),
        depth=filled(zero, [path.depth for path in paths]),
        samples=filled(zero, [path.samples for path in paths]),
        stuck=filled(zero, [path.failure == "projection" for path in paths]).bool(),
    )


def own_labels(model: Classifier, data: Dataset, executor: Executor) -> tuple[Images, Labels]:
    """All held-out images and the labels that the model gives them.

    The images are in the order of :func:`pipeline.evaluation.held_out`.
    """
    images = held_out(data, len(data.test)).images
    return images, executor.cached(partial(predict, model), images).value


def endpoints(
    model: Classifier, data: Dataset, scenario: int, count: int, seed: int, executor: Executor
) -> tuple[Images, Images, Labels]:
    """The two points of each pair, the second not yet moved into the region, and the labels.

    The first points are held-out images in a fixed order, again and again where there are fewer
    than pairs. In scenario 1 the other is another image of the same predicted label, in scenario 2
    one of a different label, in scenario 3 a uniformly random point of the sphere whose radius is
    the median norm of the images.

    Args:
        model: the classifier.
        data: the data set.
        scenario: 1, 2 or 3.
        count: number of pairs.
        seed: the training seed, so that each network gets its own pairs.
        executor: keeps the labels of all held-out images.

    Returns:
        Starts and others (N, C, H, W), and the labels of the starts (N,), -1 for an image that has
        no partner.
    """
    images, found = own_labels(model, data, executor)
    generator = seeded("pairs", scenario, seed)
    first = torch.arange(count) % len(images)
    labels = found[first].clone()
    if scenario == 3:
        drawn = torch.randn(count, *images.shape[1:], generator=generator, dtype=images.dtype)
        size = norms(images).median()
        return images[first], size * drawn / norms(drawn).view(-1, *[1] * (drawn.ndim - 1)), labels
    partners = first.clone()
    for row, index in enumerate(first.tolist()):
        same = found == found[index]
        same[index] = scenario != 1
        allowed = (same if scenario == 1 else ~same).nonzero()[:, 0]
        if len(allowed):
            partners[row] = allowed[int(torch.randint(len(allowed), (1,), generator=generator))]
        else:
            labels[row] = -1
    return images[first], images[partners], labels
