"""Universal perturbations of a classifier: the set X, xi, Algorithm 4, and which images they fool.

The instruments of Chapter 4, which Chapter 6 compares its shared directions with.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.evaluation import held_out, judged, valid
from pipeline.executor import Executor
from pipeline.statistics import padded
from pipeline.studies.noise import noise_needed, noise_radius
from pipeline.studies.subject import Subject
from pipeline.studies.universal_settings import MakingSettings, maker_name
from pipeline.studies.universal_vectors import (
    CLIP,
    Plan,
    cosines,
    fooled_by,
    in_linf,
    labels_with,
    made,
    random_vectors,
    scaled,
    together,
    xi_of,
)
from pipeline.tables import norm_name
from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.protocol import Clip
from robustness_geometry.attacks.universal import Universal
from robustness_geometry.checks import refuse
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Dataset, Images, Network, Perturbed, Split

__all__ = [
    "ALGORITHM",
    "CLIP",
    "GRADIENT",
    "MAKERS",
    "Best",
    "Plan",
    "UniversalStudy",
    "across_networks",
    "check_one_shape",
    "cosines",
    "fooled_by",
    "made_by_both",
    "made_of",
    "makers_of",
    "random_vectors",
    "scaled",
    "universal_studies",
    "universal_study",
    "xi_of",
]

ALGORITHM, GRADIENT = MAKERS = ("Algorithm 4", "gradient")
"""What numbers and tables call the two makers of universal vectors."""

COMPETING = 10
"""Classes that compete in DeepFool's perturbations of X: of a thousand, the ten likeliest."""

AnySubject = TypeVar("AnySubject", bound=Subject)


@dataclass(frozen=True)
class Best:
    """The one of several universal vectors that fools most of X.

    Attributes:
        made: the vector and how it was made.
        maker: one of MAKERS.
        order: number of the shuffling of X.
        images: number of images of X that it was made of, the first ones.
    """

    made: Universal
    maker: str
    order: int
    images: int

    @property
    def perturbation(self) -> Tensor:
        """(1, C, H, W) the vector."""
        return self.made.perturbation


@dataclass(frozen=True)
class UniversalStudy(Subject):
    """One training seed of a network with X (``train``) and the images that judge (``test``).

    Attributes:
        settings: how vectors are made and judged.
        held_out: whether X, too, consists of held-out images, as the data set has no training
            images.
    """

    settings: MakingSettings
    held_out: bool = False

    @property
    def few(self) -> Images:
        """The images of X that Algorithm 4 is given."""
        return self.train.images[: self.settings.algorithm_samples]

    def deepfool(self) -> Perturbed:
        """The smallest l_2 perturbations of Algorithm 4's images."""
        attack = partial(
            judged, partial(deepfool, norm=2.0, prune=None, candidates=COMPETING), self.model
        )
        return self.executor.cached(attack, self.few).value

    def flat_noise(self) -> Tensor:
        """(n,) sqrt(d) ||r||_2, the norm that random noise would need if boundaries were flat.

        It is NaN where DeepFool failed.
        """
        minimal = self.deepfool()
        sizes = valid(norms(minimal.perturbations), minimal.success)
        return math.sqrt(self.train.images[0].numel()) * sizes

    def noise(self) -> Tensor:
        """(n,) the norm that random noise needs, measured; infinite where none is enough."""
        images = self.few[: self.settings.noise_samples]
        return noise_needed(self.model, images, self.executor)

    def noise_norm(self) -> float:
        """The median of :meth:`noise`, at most the norm of an image of ones."""
        return noise_radius(self.noise(), 1.0, self.train.images[0].numel())

    def has_xi(self, norm: float) -> bool:
        """Whether the radius of the l_p ball is known."""
        return norm in (2, math.inf) or (
            self.settings.radius is not None and norm == self.settings.norm
        )

    def xi(self, norm: float) -> float:
        """The radius of the l_p ball, in pixel units.

        A radius that is given in l_2 gives the one in l_inf as well.
        """
        if self.settings.radius is not None and norm == self.settings.norm:
            return self.settings.radius
        d = self.train.images[0].numel()
        if self.settings.radius is not None and (self.settings.norm, norm) == (2, math.inf):
            return in_linf(self.settings.radius, d)
        return xi_of(self.noise(), norm, d)

    def vector(self, norm: float, order: int = 0) -> Universal:
        """Algorithm 4's vector for one shuffling of its images."""
        return self.vectors(norm, ALGORITHM, order + 1)[order]

    def vectors(self, norm: float, maker: str, count: int | None = None) -> list[Universal]:
        """One maker's vectors, one for each of the first shufflings of X.

        Args:
            norm: p of their ball, of radius xi.
            maker: one of MAKERS.
            count: number of shufflings; None: that of the settings.
        """
        least = self.settings.shufflings(norm if maker == ALGORITHM else self.settings.norm)
        count = least if count is None else count
        if maker == GRADIENT or count > least or not together(self.settings.algorithm):
            return self.make([Plan(norm, self.xi(norm), k) for k in range(count)], maker)
        # All that Chapter 4 needs of Algorithm 4 is made together, and shared by all experiments.
        known = [p for p in (2.0, math.inf, self.settings.norm) if self.has_xi(p)]
        balls = list(dict.fromkeys([*known, norm]))
        orders = {p: range(self.settings.shufflings(p)) for p in balls}
        plans = [Plan(p, self.xi(p), k) for p in balls for k in orders[p]]
        wanted = [(plan.norm, plan.order) for plan in plans]
        found = self.make(plans)
        return [found[wanted.index((norm, k))] for k in range(count)]

    def best(self, norm: float, *makers: str) -> Best:
        """The vector of radius xi that fools most of X; unseen images have no part in the choice.

        Of each maker's vectors it is the one that fools most of the images it is made of; of the
        two makers' the one that fools more of X.

        Args:
            norm: p of the ball.
            makers: some of MAKERS; none names all that have this norm.
        """
        taken = [maker for maker in makers_of(norm) if maker in (makers or MAKERS)]
        return self._better([self._first(norm, maker) for maker in taken])

    def within(self, norm: float, radius: float) -> Tensor:
        """(1, C, H, W) the vector of a radius that fools most of X, as :meth:`best` is for xi.

        For another radius than xi it is the better of the scaled :meth:`best` and of the gradient
        maker's vector, made anew.
        """
        best = self.best(norm)
        if radius == self.xi(norm):
            return best.perturbation
        anew = self.make([Plan(norm, radius)], GRADIENT)[0].perturbation
        both = torch.cat([scaled(best.perturbation, norm, radius), anew])
        at = int(self.fooled(self.train.images, both).mean(dim=0).argmax())
        return both[at : at + 1]

    def _first(self, norm: float, maker: str) -> Best:
        """The vector of a maker that fools most of the images it is made of."""
        made = self.vectors(norm, maker)
        order = max(range(len(made)), key=lambda k: (made[k].fooling_rate, -k))
        images = self.few if maker == ALGORITHM else self.train.images
        return Best(made[order], maker, order, len(images))

    def _better(self, found: Sequence[Best]) -> Best:
        if len(found) == 1:
            return found[0]
        vectors = torch.cat([one.perturbation for one in found])
        return found[int(self.fooled(self.train.images, vectors).mean(dim=0).argmax())]

    def make(self, plans: Sequence[Plan], maker: str = ALGORITHM) -> list[Universal]:
        """Universal vectors by one of MAKERS; their members count that maker's images."""
        by = self.settings.algorithm if maker == ALGORITHM else self.settings.ascent
        images = self.few if maker == ALGORITHM else self.train.images
        groups = [tuple(plans)] if together(by) else [(plan,) for plan in plans]
        found = list[Universal]()
        for group in groups:
            work = partial(made, by, self.model, images, group)
            label = f"{len(group)} universal vector(s) of {len(images)} images, seed {self.seed}"
            found += self.executor.shared_task(work, name=label).value
        return found

    def fooled(self, images: Tensor, vectors: Tensor, *, clip: Clip = None) -> Tensor:
        """(n, K) 1 where vector k of (K, C, H, W) changes the label of an image, in float64."""
        labels = self.labels(images, vectors, clip=clip)
        return fooled_by(labels[:, :1], labels[:, 1:])

    def labels(self, images: Tensor, vectors: Tensor, *, clip: Clip = None) -> Tensor:
        """(n, 1 + K) the labels of the images, and of the images with each vector.

        A label is -1 where the logits are not finite.
        """
        return self.executor.cached(partial(labels_with, self.model, vectors, clip), images).value


def makers_of(norm: float) -> tuple[str, ...]:
    """Those of MAKERS that have the norm: the gradient maker has p = 2 and inf alone."""
    return MAKERS if norm in (2, math.inf) else (ALGORITHM,)


def universal_studies(
    network: Network, data: Dataset, settings: MakingSettings, executor: Executor
) -> list[UniversalStudy]:
    """One study for each training seed, in ascending order."""
    return [
        universal_study(model, seed, data, settings, executor)
        for seed, model in sorted(network.models.items())
    ]


def universal_study(
    model: Classifier, seed: int, data: Dataset, settings: MakingSettings, executor: Executor
) -> UniversalStudy:
    """One classifier with X and the held-out images that judge.

    X is a stratified choice of the training images. Where a data set has none, half of the held-out
    images make X and the others judge.
    """
    executor = executor.for_seed(seed)
    if len(data.train):
        order = stratified_order(data.train.labels, "universal")[: settings.train_samples]
        x = Split(data.train.images[order], data.train.labels[order])
        return UniversalStudy(
            model, seed, x, held_out(data, settings.samples), executor, settings, held_out=False
        )
    every = held_out(data, len(data.test))
    middle = len(every) // 2
    x = Split(every.images[middle:], every.labels[middle:]).first(settings.train_samples)
    test = every.first(middle).first(settings.samples)
    return UniversalStudy(model, seed, x, test, executor, settings, held_out=True)


def check_one_shape(networks: Mapping[str, Network], data: Mapping[str, Dataset]) -> None:
    """Check that there are two or more networks, and that their images have one shape.

    Raises:
        InputError: fewer than two networks, or images of different shapes.
    """
    shapes = {name: each.shape for name, each in data.items()}
    if len(networks) < 2 or len(set(shapes.values())) != 1:
        refuse("network", shapes, "two or more networks that take images of one shape")


def across_networks(
    studies: Mapping[str, Sequence[AnySubject]],
    measure: Callable[[AnySubject, AnySubject], Mapping[str, Tensor]],
    quantities: Sequence[str],
) -> dict[str, Tensor]:
    """What is measured on every target with something made for every source.

    Networks of the same training seed meet.

    Args:
        studies: name of a network -> one study for each training seed.
        measure: source, target -> each of the quantities, (k,) for the first k images that judge
            the target.
        quantities: their names.

    Returns:
        ``<quantity>[s][t]`` -> (seeds, n) for source s and target t; NaN for a seed that one of
        them lacks, and for images that it lacks.
    """
    seeds = sorted({study.seed for each in studies.values() for study in each})
    longest = max(len(study.test) for each in studies.values() for study in each)
    rows: dict[str, list[Tensor]] = {}
    for (s, sources), (t, targets) in product(studies.items(), repeat=2):
        pairs = {a.seed: (a, b) for a in sources for b in targets if a.seed == b.seed}
        for seed in seeds:
            values = measure(*pairs[seed]) if seed in pairs else {}
            for name in quantities:
                row = padded(values.get(name, torch.empty(0)), longest)
                rows.setdefault(f"{name}[{s}][{t}]", []).append(row)
    return {name: torch.stack(values) for name, values in rows.items()}


def made_of(studies: Sequence[UniversalStudy]) -> list[str]:
    """Notes on what the vectors of Algorithm 4 are made of, how long xi is, and what judges."""
    first = studies[0]
    return [
        f"X: {len(first.train)} {'held-out' if first.held_out else 'training'} images, a "
        "stratified choice (the thesis: 10,000), none of them among those that judge. "
        f"{_algorithm(first)}",
        f"Judged on {len(first.test)} unseen images; to fool is to change the classifier's "
        "label, right or wrong.",
        *_radius(studies),
    ]


def made_by_both(studies: Sequence[UniversalStudy], *balls: float) -> list[str]:
    """Notes on the two makers of vectors of these balls, and on how Algorithm 4 ended."""
    first, options = studies[0], getattr(studies[0].settings.ascent, "keywords", {})
    vectors = [v for one in studies for p in balls for v in one.vectors(p, ALGORITHM)]
    ends = [v.stopped for v in vectors]
    shown = ", ".join(f"{end} {ends.count(end)}" for end in dict.fromkeys(ends))
    rate = getattr(first.settings.algorithm, "keywords", {}).get("fooling_rate", math.nan)
    steps, batch = options.get("iterations"), options.get("batch_size")
    orders = first.settings.shufflings(first.settings.norm)
    return [
        *made_of(studies),
        f"How Algorithm 4's {len(vectors)} vectors ended, of {rate:.0%} to be fooled: {shown}. "
        "Beside it stands a stronger judge of "
        f"what one vector can do, {maker_name(first.settings.ascent)} ({steps} steps on {batch} "
        "images of all of X at a time), in the same balls. Each is made for "
        f"{orders} order(s) of X (Algorithm 4, in norms but "
        f"{norm_name(first.settings.norm)}, for one); the one that fools most of the images it is "
        "made of counts, and of the two makers' the one that fools more of X: what is said of 'the "
        "vector' is said of that one. Unseen images have no part in the choice.",
    ]


def _algorithm(study: UniversalStudy) -> str:
    options = getattr(study.settings.algorithm, "keywords", {})
    size, few = options.get("batch_size"), options.get("candidates")
    if "passes" not in options:
        return f"In place of Algorithm 4: {maker_name(study.settings.algorithm)}."
    variant = "one image at a time" if size == 1 else f"a variant with {size} images at a time"
    among = "" if few is None else f", among the {few} likeliest classes"
    return (
        f"Algorithm 4 is given {len(study.few)} of them ({variant}{among}, at most "
        f"{options['passes']} passes)."
    )


def _radius(studies: Sequence[UniversalStudy]) -> list[str]:
    """Notes on xi: where it is derived, and where a network is so hard to fool that it is cut."""
    first, d = studies[0], studies[0].train.images[0].numel()
    given = first.settings.norm if first.settings.radius is not None else None
    derived = [p for p in (2.0, math.inf) if p != given]
    known = [one for one in studies if not bool(one.noise().isinf().all())]
    if not known:
        return []
    needed = _span([one.noise_norm() for one in known])
    flat = _span([float(one.flat_noise().nanquantile(0.5)) for one in known])
    elsewhere = ""
    if given is not None:
        elsewhere = (
            f"The radius in {norm_name(given)} is given, {first.settings.radius:.4g}"
            f"{', and over 0.515 sqrt(d) that in l_inf' if given == 2 else ''}. Elsewhere "
        )
    notes = [
        f"{elsewhere}xi is a tenth of the norm that random noise needs, {needed}: the median "
        f"over {len(first.noise())} images of X of the smallest norm that changes the label along "
        "one random line each; in l_inf that over 0.515 sqrt(d), as in the thesis. sqrt(d) times "
        f"the median l2 DeepFool norm, as if boundaries were flat, is {flat}."
    ]
    if any(one.xi(p) == d ** (1 / p) for p in derived for one in known):
        notes.append(
            "xi is cut to the norm of an image of ones: random noise changes so few labels that "
            "the rule gives more than any two images differ by."
        )
    return notes


def _span(values: Sequence[float]) -> str:
    """Values of several training seeds or networks, from the least to the largest."""
    shown = dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values)))
    return " to ".join(shown)
