"""The mean curvature of every class's boundary, by second differences of the outputs.

Section 7.5, Equation 7.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from robustness_geometry.attacks.gradients import Pull, linearise
from robustness_geometry.attacks.protocol import (
    Number,
    as_logits,
    check_input,
    check_precise,
    per_image,
)
from robustness_geometry.checks import GivenLabels, check_choice, check_count, check_positive
from robustness_geometry.geometry.forward import rows_at_once
from robustness_geometry.geometry.normals import OUTPUTS, Directions
from robustness_geometry.norms import norms
from robustness_geometry.outputs import logits_at
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import (
    Classifier,
    Images,
    Labels,
    Logits,
    Mask,
    PerImage,
    class_logits,
)

__all__ = ["ClassCurvatures", "class_curvatures"]

BATCH = 128
"""Images that are measured together."""

BLOCK = 10
"""Gradients per image that are in memory at once, however many classes there are."""

ROUNDING = 32
"""Multiple of the rounding errors below which a difference is not resolved."""

PerClass: TypeAlias = Float[Tensor, "batch classes"]


@dataclass(frozen=True)
class ClassCurvatures:
    """What Algorithm 6 measures for every competing class, not divided by gradient norms.

    Attributes:
        curvatures: (N, L) the mean over the directions of v' P H_i P v, float64; NaN for classes
            that were left out.
        slopes: (N, L) ||grad F_i||_2, float64; NaN for classes that were left out.
        labels: (N,) the labels k of F_i = f_i - f_k.
        resolved: (N,) whether any difference exceeds rounding; where none does, the curvatures'
            signs mean nothing.

    See :func:`class_curvatures`, which returns it, for an example.
    """

    curvatures: PerClass
    slopes: PerClass
    labels: Labels
    resolved: Mask


def class_curvatures(
    model: Classifier,
    images: Images,
    *,
    h: Sequence[Number],
    outputs: Sequence[str] = OUTPUTS,
    directions: int = 10,
    candidates: int | None = None,
    labels: GivenLabels = None,
    rivals: Int[Tensor, "batch chosen"] | None = None,
    generator: Generators = None,
) -> tuple[ClassCurvatures, ...]:
    """Estimate E v' P H_i P v for all F_i = f_i - f_k, for several steps h and outputs f.

    v is uniform on the unit sphere, P = I - n n' with n = grad F_i / ||grad F_i||, and H_i is the
    Hessian of F_i at the scale h, all at the image itself. Divided by ||grad F_i||, the estimate is
    the mean of the boundary's principal curvatures (Equation 7.4, up to (d - 1) / d), positive
    where the region of k is locally inside a ball.

    The outputs at x + hv and x - hv give v' H_i v for all classes at once, those at x + hn and
    x - hn give n' H_i n: 2 T + 2 (L - 1) forward passes and L - 1 gradients per output and step.
    Together they make v' P H P v = v' H v - (n'v)^2 n' H n, which is exact where n is an
    eigenvector of H, and right in the mean over v anywhere.

    Args:
        model: a classifier in evaluation mode; logits f of shape (N, 1) count as (0, f).
        images: (N, C, H, W) of any finite values.
        h: the lengths of the differences, in pixel l2 units.
        outputs: what f is: ``softmax``, ``logits`` or both. Probabilities are taken in float64.
        directions: T >= 1, the number of directions v per image.
        candidates: number of classes that take part, those of the largest logits, the label
            included; None: all.
        labels: (N,) the labels k; None: the predicted ones.
        rivals: (N, K) the classes i that take part, in place of the ``candidates``.
        generator: one for the batch or one per image; None starts from seed 0.

    Returns:
        One entry per pair of ``itertools.product(outputs, h)``.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.

    References:
        Thesis, Section 7.5, Equation 7.4 and Algorithm 6.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, class_curvatures
        >>> image = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> (found,) = class_curvatures(Ball(radius=2.0), image, h=[0.1], outputs=["logits"])
        >>> found.labels, found.slopes
        (tensor([0]), tensor([[nan, 2.]], dtype=torch.float64))
    """
    steps = tuple(check_positive("h", step) for step in h)
    kinds = tuple(check_choice("output", output, OUTPUTS) for output in outputs)
    check_count("directions", directions)
    if candidates is not None:
        check_count("candidates", candidates, minimum=2)
    model, images, labels, _ = check_input(model, images, labels=labels)
    check_precise(model, images)
    measured = []
    for rows in torch.arange(len(images), device=images.device).split(BATCH):
        own = None if labels is None else labels[rows]
        chosen = None if rivals is None else rivals[rows]
        draws = (
            [generator[row] for row in rows.tolist()]
            if isinstance(generator, Sequence)
            else generator
        )
        part = images[rows].detach()
        batch = _batch(model, part, _unit_vectors(part, directions, draws), own, chosen, candidates)
        measured.append(_measured(batch, kinds, steps))
    return tuple(_joined([found[pair] for found in measured]) for pair in product(kinds, steps))


@dataclass(frozen=True)
class _Batch:
    """Images with all that their measurement starts from.

    Attributes:
        model: the classifier.
        points: (n, C, H, W).
        base: (n, L) their logits, float64.
        pull: gradients of weighted logits at the points.
        labels: (n,) k.
        rivals: (n, K) the classes that take part.
        vectors: (n, T, C, H, W) unit directions.
        eps: machine epsilon of the coarser of the points' and the logits' types.
    """

    model: Classifier
    points: Images
    base: Logits
    pull: Pull
    labels: Labels
    rivals: Tensor
    vectors: Directions
    eps: float

    @property
    def rounding(self) -> PerImage:
        """Bounds on the rounding errors of a difference of the image's logits."""
        return ROUNDING * self.eps * self.base.abs().amax(dim=1)

    def around(self, vectors: Directions, h: float) -> Tensor:
        """The logits (2, n, M, L) at x + hv and x - hv for all vectors v (n, M, ...), float64."""
        n, _, *shape = vectors.shape
        size = max(1, rows_at_once(self.points.device) // (2 * max(n, 1)))
        parts = []
        for some in vectors.split(size, dim=1):
            moved = torch.stack([self.points[:, None] + h * some, self.points[:, None] - h * some])
            with torch.no_grad():
                logits = class_logits(logits_at(self.model, moved.view(-1, *shape)))
            parts.append(logits.double().view(2, n, some.shape[1], logits.shape[1]))
        return torch.cat(parts, dim=2)

    def bends(self, logits: Tensor, h: float, output: str) -> Tensor:
        """The second differences (n, M, L) of all F_i from logits (2, n, M, L) on both sides."""
        plus, minus = _values(logits, self.labels, output)
        middle = _values(self.base[:, None], self.labels, output)
        bends = ((plus - middle) + (minus - middle)) / (h * h)
        return bends - bends.gather(2, self.labels[:, None, None].expand(*bends.shape[:2], 1))

    def normals(self, output: str, rivals: Tensor) -> tuple[Directions, Tensor, Tensor]:
        """The normals of F_i for ``rivals`` (n, B).

        Returns:
            Unit normals (n, B, ...), ||grad F_i|| (n, B), and the sums (n, B) of the absolute
            derivatives of F_i with respect to the logits.
        """
        units, slopes, sums = [], [], []
        for rival in rivals.T:
            weights = _weights(self.base, self.labels, rival, output)
            gradient, slope = _pulled(self.pull, weights)
            units.append(gradient)
            slopes.append(slope)
            sums.append(weights.abs().sum(dim=1))
        return torch.stack(units, dim=1), torch.stack(slopes, dim=1), torch.stack(sums, dim=1)


def _batch(
    model: Classifier,
    images: Images,
    vectors: Directions,
    labels: Labels | None,
    rivals: Tensor | None,
    candidates: int | None,
) -> _Batch:
    logits, pull = linearise(model, images)
    as_logits(logits, labels)
    own = logits.argmax(dim=1) if labels is None else labels
    if rivals is None:
        count = min(candidates or logits.shape[1], logits.shape[1]) - 1
        rivals = logits.scatter(1, own[:, None], -torch.inf).topk(count).indices
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (images, logits))
    return _Batch(model, images, logits.double(), pull, own, rivals, vectors, eps)


def _unit_vectors(images: Images, count: int, generator: Generators) -> Directions:
    """Uniform on the unit sphere, (n, count, C, H, W)."""
    drawn = normal(images.new_empty(len(images), count, *images.shape[1:]), generator)
    return drawn / norms(drawn.flatten(0, 1)).view(*drawn.shape[:2], *[1] * (drawn.ndim - 2))


def _measured(
    batch: _Batch, outputs: Sequence[str], h: Sequence[float]
) -> dict[tuple[str, float], ClassCurvatures]:
    """Output and step -> class curvatures.

    The passes along the directions v serve all classes and outputs; those along the normals n are
    made anew for each block of rivals, as every class has its own normal.
    """
    around = {step: batch.around(batch.vectors, step) for step in h}
    found: dict[tuple[str, float], ClassCurvatures] = {}
    for output in outputs:
        across = {step: batch.bends(around[step], step, output) for step in h}
        parts: dict[float, list[tuple[Tensor, Tensor, Tensor]]] = {step: [] for step in h}
        for rivals in batch.rivals.split(BLOCK, dim=1):
            units, slopes, sums = batch.normals(output, rivals)
            # (n'v)^2 for every rival and direction.
            shares = (
                torch.einsum("nbd,ntd->nbt", units.flatten(2), batch.vectors.flatten(2))
                .double()
                .square()
            )
            for step in h:
                # n' H_i n of each rival along its own normal, (n, B, 1).
                along = batch.bends(batch.around(units, step), step, output).gather(
                    2, rivals[..., None]
                )
                # v' H_i v of each rival, (n, B, T), and what rounding may make of it.
                bends = across[step].gather(2, rivals[:, None].expand(-1, shares.shape[2], -1)).mT
                floor = batch.rounding[:, None] * sums / step**2
                resolved = (bends.abs().amax(dim=2) > floor).any(dim=1)
                parts[step].append(((bends - shares * along).mean(dim=2), slopes, resolved))
        found |= {(output, step): _gathered(batch, parts[step]) for step in h}
    return found


def _values(logits: Tensor, labels: Labels, output: str) -> Tensor:
    """Outputs (..., n, M, L) whose differences with the label's entry are F_i, up to a constant.

    For a softmax the label's entry is minus the sum of the others, as 1 minus that sum would lose
    small probabilities to rounding.
    """
    if output == "logits":
        return logits
    own = labels[:, None, None].expand(*logits.shape[:-1], 1)
    others = logits.softmax(dim=-1).scatter(-1, own, 0.0)
    return others.scatter(-1, own, -others.sum(dim=-1, keepdim=True))


def _weights(logits: Logits, labels: Labels, rivals: Labels, output: str) -> Logits:
    """The derivatives (n, L) of F_i = f_i - f_k in the logits, for one class i per image."""
    classes = logits.shape[1]
    chosen, own = one_hot(rivals, classes), one_hot(labels, classes)
    if output == "logits":
        return (chosen - own).to(logits)
    p = logits.softmax(dim=1)
    rest = p.scatter(1, labels[:, None], 0.0).sum(dim=1, keepdim=True)  # 1 - p_k, accurate near 1
    first, last = p.gather(1, rivals[:, None]), p.gather(1, labels[:, None])
    # d p_j / d z_l = p_j ([j = l] - p_l), for j = i minus j = k; the label's entry is written with
    # 1 - p_k to lose no digits.
    weights = (last - first) * p + first * chosen
    return torch.where(own.bool(), -last * (rest + first), weights)


def _pulled(pull: Pull, weights: Logits) -> tuple[Images, PerImage]:
    """The direction (n, C, H, W) of the gradient that ``weights`` give, and its norm in float64.

    The direction has length one, or zero for a gradient of zero. The weights are scaled to 1 on the
    way: those of a confident softmax would vanish in float32.
    """
    scale = weights.abs().amax(dim=1)
    gradient = pull(torch.where(scale > 0, 1 / scale, 0.0)[:, None] * weights)
    size = norms(gradient)
    unit = torch.where(per_image(size, gradient) > 0, gradient / per_image(size, gradient), 0.0)
    return unit, scale * size.double()


def _gathered(batch: _Batch, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> ClassCurvatures:
    """The results of all blocks of rivals, each at the index of its class."""
    empty = torch.full_like(batch.base, torch.nan)
    curvatures, slopes = (torch.cat([part[i] for part in parts], dim=1) for i in (0, 1))
    resolved = torch.stack([part[2] for part in parts]).any(dim=0)
    placed = [empty.scatter(1, batch.rivals, values) for values in (curvatures, slopes)]
    return ClassCurvatures(placed[0], placed[1], batch.labels, resolved)


def _joined(parts: Sequence[ClassCurvatures]) -> ClassCurvatures:
    columns = {
        f.name: torch.cat([getattr(part, f.name) for part in parts])
        for f in fields(ClassCurvatures)
    }
    return ClassCurvatures(**columns)
