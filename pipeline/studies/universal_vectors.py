"""Universal vectors as tensors: how they are made, scaled, drawn at random, and judged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.studies.noise import noise_radius
from pipeline.studies.universal_settings import Maker
from robustness_geometry.attacks.protocol import Clip, labels_at
from robustness_geometry.attacks.universal import Universal, universal_perturbation
from robustness_geometry.attacks.universal_group import Wanted, universal_perturbations
from robustness_geometry.checks import refuse
from robustness_geometry.norms import norms
from robustness_geometry.randomness import normal, seeded
from robustness_geometry.types import Classifier, predict

__all__ = [
    "CLIP",
    "Plan",
    "cosines",
    "fooled_by",
    "labels_with",
    "made",
    "random_vectors",
    "scaled",
    "together",
    "xi_of",
]

NOISE_SHARE = 0.1
"""xi in l_2 over the norm that random noise needs: 2,000 of 20,000 (Sections 4.2 and 4.4)."""

LINF_RATIO = 0.515
"""xi in l_2 over xi in l_inf, in units of sqrt(d): 200 at the thesis' d = 3 * 224 * 224."""

CLIP = (0.0, 1.0)
"""The range of a pixel."""


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


def together(maker: Maker) -> bool:
    """Whether all vectors of a maker are made at once: Algorithm 4, one image at a time."""
    options = getattr(maker, "keywords", {})
    return (
        getattr(maker, "func", None) is universal_perturbation and options.get("batch_size", 1) == 1
    )


def made(maker: Maker, model: Classifier, images: Tensor, plans: Sequence[Plan]) -> list[Universal]:
    """The vectors: those of Algorithm 4 all at once, those of another maker one by one.

    Args:
        maker: the maker with its options bound, but for norm, radius and generator.
        model: the classifier.
        images: the images that the plans' members count.
        plans: the vectors that are wanted.
    """
    like = next(model.parameters(), images)
    images = images.to(like.device, like.dtype)
    if together(maker):
        options = dict(getattr(maker, "keywords", {}))
        options.pop("batch_size", None)
        wanted = [
            Wanted(p.radius, p.norm, _indices(p, images), seeded("universal", p.order))
            for p in plans
        ]
        return universal_perturbations(model, images, wanted, **options)
    return [
        maker(
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


def xi_of(noise: Tensor, norm: float, dimension: int) -> float:
    """The largest norm of a universal vector, where none is given.

    xi is a tenth of the median norm that random noise needs for p = 2, and that divided by 0.515
    sqrt(d) for p = inf: the thesis' 2,000 and 10, of pixels up to 255 and a random-noise norm of
    20,000 (Sections 4.2 and 4.4). It is at most the norm of an image of ones.

    Args:
        noise: (n,) smallest l_2 norms at which noise changes the label; infinite where none does.
        norm: p, 2 or inf.
        dimension: d.

    Raises:
        InputError: another norm, or noise changes the label of no image.
    """
    if norm not in (2, math.inf):
        refuse("attack.radius", "null", "a number for a norm other than 2 and inf")
    if bool(noise.isinf().all()):
        refuse("attack.radius", "null", "a number where random noise fools no image of X")
    xi = noise_radius(noise, NOISE_SHARE, dimension)
    return xi if norm == 2 else min(xi / (LINF_RATIO * math.sqrt(dimension)), 1.0)


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


def labels_with(model: Classifier, vectors: Tensor, clip: Clip, images: Tensor) -> Tensor:
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
