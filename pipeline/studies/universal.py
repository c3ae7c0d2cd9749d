"""What the experiments of this stage share: the set X, xi, universal vectors, and whom a vector fools."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pipeline.evaluation import held_out, judged, valid
from pipeline.executor import Executor
from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.protocol import Clip, labels_at
from robustness_geometry.attacks.universal import Universal, universal_perturbation
from robustness_geometry.attacks.universal_group import Wanted, universal_perturbations
from robustness_geometry.checks import check_count, check_positive, number, refuse
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.norms import norms
from robustness_geometry.randomness import normal, seeded
from robustness_geometry.types import Classifier, Dataset, Network, Perturbed, predict

__all__ = [
    "CLIP",
    "Case",
    "Common",
    "Plan",
    "case",
    "cases",
    "cosines",
    "fooled_by",
    "made_of",
    "random_vectors",
    "scaled",
    "xi_of",
]

Maker: TypeAlias = Callable[..., Universal]
"""Algorithm 4 with its options bound."""

NOISE_SHARE = 0.1
"""xi in l_2 over the norm that random noise needs: the thesis' 2,000 of 20,000 (Sections 4.2 and 4.4)."""

LINF_RATIO = 0.515
"""xi in l_2 over xi in l_inf, in units of sqrt(d): 200 at the thesis' d = 3 * 224 * 224."""

CLIP = (0.0, 1.0)
"""The range of a pixel."""


@dataclass(frozen=True)
class Common:
    """The settings that all experiments of this stage share.

    Attributes:
        attack: Algorithm 4. Its norm is that of an experiment for which the thesis names none; its
            radius, where it has one, holds for that norm alone. Without, xi is a tenth of the
            random-noise norm.
        train_samples: images of X, a stratified choice of the training images (all if there are
            fewer).
        orders: shufflings of X for each of which there is a vector of the attack's norm; of other
            norms there is one.
        samples: held-out images on which a vector is judged (all if there are fewer).
        resamples: of the bootstrap.
    """

    attack: Maker = field(default_factory=lambda: partial(universal_perturbation))
    train_samples: int = 10_000
    orders: int = 5
    samples: int = 50_000
    resamples: int = 2000

    def __post_init__(self) -> None:
        check_count("train_samples", self.train_samples, minimum=2)
        for name in ("orders", "samples", "resamples"):
            check_count(name, getattr(self, name))
        if self.radius is not None:
            check_positive("attack.radius", self.radius)

    @property
    def norm(self) -> float:
        """The exponent p of the attack's ball."""
        return number("attack.norm", self._options().get("norm", 2.0))

    @property
    def radius(self) -> float | None:
        """The attack's own radius; None where xi is derived."""
        given = self._options().get("radius")
        return None if given is None else number("attack.radius", given)

    @property
    def algorithm(self) -> Maker:
        """The attack with all its options spelled out, but for norm and radius: equal options give equal keys."""
        parameters = inspect.signature(
            getattr(self.attack, "func", self.attack)
        ).parameters.values()
        known = {
            p.name: p.default for p in parameters if p.default is not p.empty
        } | self._options()
        left_out = ("norm", "radius", "labels", "generator")
        options = {name: value for name, value in known.items() if name not in left_out}
        return partial(getattr(self.attack, "func", self.attack), **options)

    def _options(self) -> dict[str, Any]:
        return dict(getattr(self.attack, "keywords", {}))


@dataclass(frozen=True)
class Case:
    """One training seed of a network, with the images that make its vectors and those that judge them.

    What several experiments (of this stage or of another) ask for alike has the same key and is
    made once.

    Attributes:
        model: the classifier.
        seed: its training seed.
        images: X, (n, C, H, W).
        unseen: the held-out images (m, C, H, W).
        settings: the experiment's.
        executor: of the stage.
        held_out: whether X, too, consists of held-out images, as the data set has no training
            images.
    """

    model: Classifier
    seed: int
    images: Tensor
    unseen: Tensor
    settings: Common
    executor: Executor
    held_out: bool = False

    def deepfool(self) -> Perturbed:
        """The smallest l_2 perturbations of X."""
        return self.executor.cached(
            partial(judged, partial(deepfool, norm=2.0), self.model), self.images
        ).value

    def noise(self) -> Tensor:
        """(n,) sqrt(d) ||r||_2, the norm that random noise needs for each image of X; NaN where DeepFool failed."""
        found = self.deepfool()
        return math.sqrt(self.images[0].numel()) * valid(norms(found.perturbations), found.success)

    def has_xi(self, norm: float) -> bool:
        """Whether the radius of the l_p ball is known."""
        return norm in (2, math.inf) or (
            self.settings.radius is not None and norm == self.settings.norm
        )

    def xi(self, norm: float) -> float:
        """The radius of the l_p ball, in pixel units."""
        if self.settings.radius is not None and norm == self.settings.norm:
            return self.settings.radius
        return xi_of(self.noise(), norm, self.images[0].numel())

    def vector(self, norm: float, order: int = 0) -> Universal:
        """The universal vector of X for one shuffling; all that the stage needs of X are made together."""
        balls = dict.fromkeys([2.0, math.inf, self.settings.norm])
        orders = {
            p: range(self.settings.orders if p == self.settings.norm else 1)
            for p in balls
            if self.has_xi(p)
        }
        plans = [Plan(p, self.xi(p), k) for p, count in orders.items() for k in count]
        at = next(
            (at for at, plan in enumerate(plans) if (plan.norm, plan.order) == (norm, order)), None
        )
        return (
            self.make([Plan(norm, self.xi(norm), order)])[0] if at is None else self.make(plans)[at]
        )

    def make(self, plans: Sequence["Plan"]) -> list[Universal]:
        """Universal vectors of the classifier."""
        work = partial(_made, self.settings.algorithm, self.model, self.images, tuple(plans))
        label = f"{len(plans)} universal vectors of {len(self.images)} images, seed {self.seed}"
        return self.executor.shared_task(work, name=label).value

    def fooled(self, images: Tensor, vectors: Tensor, *, clip: Clip = None) -> Tensor:
        """(n, K) 1 where vector k of (K, C, H, W) changes the label of an image, in float64."""
        found = self.labels(images, vectors, clip=clip)
        return ((found[:, 1:] != found[:, :1]) & (found[:, 1:] >= 0)).double()

    def labels(self, images: Tensor, vectors: Tensor, *, clip: Clip = None) -> Tensor:
        """(n, 1 + K) the labels of the images and of the images with each vector; -1 where logits are not finite."""
        return self.executor.cached(partial(_labels, self.model, vectors, clip), images).value


@dataclass(frozen=True)
class Plan:
    """A universal vector to be made.

    Attributes:
        norm: p of its ball.
        radius: of its ball, in pixel units.
        order: which shuffling.
        members: indices of the images that make up its X; None takes all.
    """

    norm: float
    radius: float
    order: int = 0
    members: Tensor | None = None


def cases(network: Network, data: Dataset, settings: Common, executor: Executor) -> list[Case]:
    """One case for each training seed."""
    return [
        case(model, seed, data, settings, executor)
        for seed, model in sorted(network.models.items())
    ]


def case(model: Classifier, seed: int, data: Dataset, settings: Common, executor: Executor) -> Case:
    """One classifier with X and the held-out images; also for the stages that need its universal vectors.

    X is a stratified choice of the training images. Where a data set has none, half of the held-out
    images make X and the others judge.
    """
    if len(data.train):
        order = stratified_order(data.train.labels, "universal")[: settings.train_samples]
        return Case(
            model,
            seed,
            data.train.images[order],
            held_out(data, settings.samples).images,
            settings,
            executor,
        )
    images = held_out(data, len(data.test)).images
    middle = len(images) // 2
    x, unseen = images[middle:][: settings.train_samples], images[:middle][: settings.samples]
    return Case(model, seed, x, unseen, settings, executor, held_out=True)


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
    own = float(norms(vector, norm))
    return vector * (size / own) if own > 0 else vector


def random_vectors(shape: Sequence[int], norm: float, radius: float, count: int) -> Tensor:
    """Random vectors (count, C, H, W) of l_p norm ``radius``: uniform directions; random signs for p = inf."""
    drawn = normal(torch.empty(count, *shape), seeded("random vectors", norm, count))
    if math.isinf(norm):
        return torch.where(drawn >= 0, radius, -radius)
    return drawn * (radius / norms(drawn, norm)).view(-1, 1, 1, 1)


def fooled_by(labels: Tensor, other: Tensor) -> Tensor:
    """(n,) 1 where a label changed to a valid one, in float64."""
    return ((labels != other) & (other >= 0)).double()


def made_of(found: Sequence[Case]) -> list[str]:
    """Notes on what the vectors are made of and judged on."""
    first, options = found[0], getattr(found[0].settings.algorithm, "keywords", {})
    failed, size = sum(int(one.noise().isnan().sum()) for one in found), options.get("batch_size")
    exact = "Algorithm 4 exactly" if size == 1 else "a mini-batch variant of Algorithm 4"
    few = options.get("candidates")
    among = f", among the {few} likeliest classes" if few else ""
    return [
        f"X: {len(first.images)} {'held-out' if first.held_out else 'training'} images, a "
        "stratified choice (the "
        "thesis: 10,000), none of them among those that judge; at most "
        f"{options.get('passes')} passes, DeepFool on {size} image(s) at a time ({exact}){among}.",
        f"Judged on {len(first.unseen)} unseen images; to fool is to change the classifier's "
        "label, right or wrong.",
        "xi is a tenth of the norm that random noise needs, sqrt(d) times the median l2 DeepFool "
        "norm on X, and in "
        f"l_inf that over 0.515 sqrt(d), as in the thesis; DeepFool failed in {failed} cases, left "
        "out of the median.",
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
    return (
        list(range(len(images))) if plan.members is None else [int(index) for index in plan.members]
    )


def _labels(model: Classifier, vectors: Tensor, clip: Clip, images: Tensor) -> Tensor:
    found = [predict(model, images)]
    for vector in vectors:
        points = images + vector
        labels, finite = labels_at(model, points if clip is None else points.clamp(*clip))
        found.append(labels.masked_fill(~finite, -1))
    return torch.stack(found, dim=1)


def cosines(vectors: Tensor) -> Tensor:
    """(K, K) normalised inner products of vectors (K, C, H, W), in float64; zero for a vector that is zero."""
    flat = torch.nn.functional.normalize(vectors.double().flatten(1), dim=1)
    return flat @ flat.T
