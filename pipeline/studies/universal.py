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
from pipeline.studies.subject import Subject
from pipeline.studies.universal_settings import Maker, MakingSettings
from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.protocol import Clip, labels_at
from robustness_geometry.attacks.universal import Universal, universal_perturbation
from robustness_geometry.attacks.universal_group import Wanted, universal_perturbations
from robustness_geometry.checks import refuse
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.norms import norms
from robustness_geometry.randomness import normal, seeded
from robustness_geometry.types import Classifier, Dataset, Network, Perturbed, Split, predict

__all__ = [
    "CLIP",
    "Plan",
    "UniversalStudy",
    "across_networks",
    "check_one_shape",
    "cosines",
    "fooled_by",
    "made_of",
    "random_vectors",
    "scaled",
    "universal_studies",
    "universal_study",
    "xi_of",
]

NOISE_SHARE = 0.1
"""xi in l_2 over the norm that random noise needs: 2,000 of 20,000 (Sections 4.2 and 4.4)."""

LINF_RATIO = 0.515
"""xi in l_2 over xi in l_inf, in units of sqrt(d): 200 at the thesis' d = 3 * 224 * 224."""

COMPETING = 10
"""Classes that compete in DeepFool's perturbations of X: of a thousand, the ten likeliest."""

CLIP = (0.0, 1.0)
"""The range of a pixel."""

AnySubject = TypeVar("AnySubject", bound=Subject)


@dataclass(frozen=True)
class Plan:
    """A universal vector to be made.

    Attributes:
        norm: p of its ball.
        radius: radius of its ball, in pixel units.
        order: number of the shuffling of its X.
        members: indices of the images of X that it is made of; None takes all.
    """

    norm: float
    radius: float
    order: int = 0
    members: Tensor | None = None


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

    def deepfool(self) -> Perturbed:
        """The smallest l_2 perturbations of X."""
        boundary = partial(deepfool, norm=2.0, prune=None, candidates=COMPETING)
        attack = partial(judged, boundary, self.model)
        return self.executor.cached(attack, self.train.images).value

    def noise(self) -> Tensor:
        """(n,) sqrt(d) ||r||_2, the norm that random noise needs for each image of X.

        It is NaN where DeepFool failed.
        """
        minimal = self.deepfool()
        sizes = valid(norms(minimal.perturbations), minimal.success)
        return math.sqrt(self.train.images[0].numel()) * sizes

    def has_xi(self, norm: float) -> bool:
        """Whether the radius of the l_p ball is known."""
        return norm in (2, math.inf) or (
            self.settings.radius is not None and norm == self.settings.norm
        )

    def xi(self, norm: float) -> float:
        """The radius of the l_p ball, in pixel units.

        A derived one is at most the norm of an image of ones: no two images differ by more. A
        radius that is given in l_2 gives the one in l_inf as well.
        """
        if self.settings.radius is not None and norm == self.settings.norm:
            return self.settings.radius
        d = self.train.images[0].numel()
        if self.settings.radius is not None and (self.settings.norm, norm) == (2, math.inf):
            return min(self.settings.radius / (LINF_RATIO * math.sqrt(d)), 1.0)
        return min(xi_of(self.noise(), norm, d), d ** (1 / norm))

    def vector(self, norm: float, order: int = 0) -> Universal:
        """The universal vector of X for one shuffling.

        All that Chapter 4 needs of X are made together, so that every experiment shares them.
        """
        balls = dict.fromkeys([2.0, math.inf, self.settings.norm])
        orders = {
            p: range(self.settings.shufflings if p == self.settings.norm else 1)
            for p in balls
            if self.has_xi(p)
        }
        plans = [Plan(p, self.xi(p), k) for p, count in orders.items() for k in count]
        wanted = [(plan.norm, plan.order) for plan in plans]
        if (norm, order) not in wanted:
            return self.make([Plan(norm, self.xi(norm), order)])[0]
        return self.make(plans)[wanted.index((norm, order))]

    def make(self, plans: Sequence[Plan]) -> list[Universal]:
        """Universal vectors of the classifier."""
        images = self.train.images
        work = partial(_made, self.settings.algorithm, self.model, images, tuple(plans))
        label = f"{len(plans)} universal vectors of {len(images)} images, seed {self.seed}"
        return self.executor.shared_task(work, name=label).value

    def fooled(self, images: Tensor, vectors: Tensor, *, clip: Clip = None) -> Tensor:
        """(n, K) 1 where vector k of (K, C, H, W) changes the label of an image, in float64."""
        labels = self.labels(images, vectors, clip=clip)
        return fooled_by(labels[:, :1], labels[:, 1:])

    def labels(self, images: Tensor, vectors: Tensor, *, clip: Clip = None) -> Tensor:
        """(n, 1 + K) the labels of the images, and of the images with each vector.

        A label is -1 where the logits are not finite.
        """
        return self.executor.cached(partial(_labels, self.model, vectors, clip), images).value


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


def xi_of(noise: Tensor, norm: float, dimension: int) -> float:
    """The largest norm of a universal vector, where none is given.

    xi = 1/10 median sqrt(d) ||r||_2 for p = 2, and that divided by 0.515 sqrt(d) for p = inf: the
    thesis' 2,000 and 10, of pixels up to 255 and a random-noise norm of 20,000 (Sections 4.2 and
    4.4).

    Args:
        noise: (n,) sqrt(d) ||r||_2, NaN where it is not known.
        norm: p, 2 or inf.
        dimension: d.

    Raises:
        InputError: another norm, or no image has a known norm.
    """
    if norm not in (2, math.inf):
        refuse("attack.radius", "null", "a number for a norm other than 2 and inf")
    if bool(noise.isnan().all()):
        refuse("attack.radius", "null", "a number where DeepFool fools no image of X")
    xi = NOISE_SHARE * float(noise.nanquantile(0.5))
    return xi if norm == 2 else xi / (LINF_RATIO * math.sqrt(dimension))


def scaled(vector: Tensor, norm: float, size: float) -> Tensor:
    """A vector (1, C, H, W) scaled to an l_p norm; zero stays zero."""
    present = float(norms(vector, norm))
    return vector * (size / present) if present > 0 else vector


def random_vectors(shape: Sequence[int], norm: float, radius: float, count: int) -> Tensor:
    """Random vectors (count, C, H, W) of l_p norm ``radius``: random signs for p = inf.

    For other p their directions are uniform on the Euclidean sphere.
    """
    drawn = normal(torch.empty(count, *shape), seeded("random vectors", norm, count))
    if math.isinf(norm):
        return torch.where(drawn >= 0, radius, -radius)
    return drawn * (radius / norms(drawn, norm)).view(-1, *[1] * (drawn.ndim - 1))


def fooled_by(labels: Tensor, other: Tensor) -> Tensor:
    """1 where a label changed to a valid one, in float64; the shapes of both broadcast."""
    return ((labels != other) & (other >= 0)).double()


def made_of(studies: Sequence[UniversalStudy]) -> list[str]:
    """Notes on what the vectors are made of and judged on."""
    first, options = studies[0], getattr(studies[0].settings.algorithm, "keywords", {})
    failed, size = sum(int(one.noise().isnan().sum()) for one in studies), options.get("batch_size")
    exact = "Algorithm 4 exactly" if size == 1 else "a mini-batch variant of Algorithm 4"
    few = options.get("candidates")
    among = f", among the {few} likeliest classes" if few else ""
    return [
        f"X: {len(first.train)} {'held-out' if first.held_out else 'training'} images, a "
        "stratified choice (the "
        "thesis: 10,000), none of them among those that judge; at most "
        f"{options.get('passes')} passes, DeepFool on {size} image(s) at a time ({exact}){among}.",
        f"Judged on {len(first.test)} unseen images; to fool is to change the classifier's "
        "label, right or wrong.",
        "xi is a tenth of the norm that random noise needs, sqrt(d) times the median l2 DeepFool "
        "norm on X, and in "
        f"l_inf that over 0.515 sqrt(d), as in the thesis; DeepFool failed in {failed} cases, left "
        "out of the median.",
        *_given(first.settings),
        *_cut(studies),
    ]


def _given(settings: MakingSettings) -> list[str]:
    """A note on a radius that the configuration gives."""
    if settings.radius is None:
        return []
    also = ", and over 0.515 sqrt(d) for l_inf" if settings.norm == 2 else ""
    return [f"But for p = {settings.norm:g} xi is given: {settings.radius:.4g}{also}."]


def _cut(studies: Sequence[UniversalStudy]) -> list[str]:
    """A note on networks so hard to fool that xi would be larger than any image."""
    d = studies[0].train.images[0].numel()
    given = studies[0].settings.norm if studies[0].settings.radius is not None else None
    derived = [p for p in (2.0, math.inf) if p != given]
    known = [one for one in studies if not bool(one.noise().isnan().all())]
    if not any(one.xi(p) == d ** (1 / p) for p in derived for one in known):
        return []
    return [
        "xi is cut to the norm of an image of ones: DeepFool's perturbations of this network are "
        "so large that the formula gives more than any two images differ by."
    ]


def _made(
    algorithm: Maker, model: Classifier, images: Tensor, plans: Sequence[Plan]
) -> list[Universal]:
    """The vectors: Algorithm 4 for all of them at once; a variant of it one after another."""
    like = next(model.parameters(), images)
    images = images.to(like.device, like.dtype)
    options = dict(getattr(algorithm, "keywords", {}))
    if (
        getattr(algorithm, "func", None) is universal_perturbation
        and options.pop("batch_size") == 1
    ):
        wanted = [
            Wanted(p.radius, p.norm, _indices(p, images), seeded("universal", p.order))
            for p in plans
        ]
        return universal_perturbations(model, images, wanted, **options)
    return [
        algorithm(
            model,
            images[_indices(p, images)],
            norm=p.norm,
            radius=p.radius,
            generator=seeded("universal", p.order),
        )
        for p in plans
    ]


def _indices(plan: Plan, images: Tensor) -> list[int]:
    """The images of X that the vector is made of."""
    return list(range(len(images))) if plan.members is None else plan.members.tolist()


def _labels(model: Classifier, vectors: Tensor, clip: Clip, images: Tensor) -> Tensor:
    """(n, 1 + K) the labels without a vector and with each one; -1 where logits are not finite."""
    columns = [predict(model, images)]
    for vector in vectors:
        points = images + vector
        labels, finite = labels_at(model, points if clip is None else points.clamp(*clip))
        columns.append(labels.masked_fill(~finite, -1))
    return torch.stack(columns, dim=1)


def cosines(vectors: Tensor) -> Tensor:
    """(K, K) normalised inner products of vectors (K, C, H, W), in float64.

    They are zero for a vector that is zero.
    """
    flat = torch.nn.functional.normalize(vectors.double().flatten(1), dim=1)
    return flat @ flat.T
