"""The penalised attack of Szegedy et al. (2014): box-constrained L-BFGS and a line search on the constant."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.attacks.gradients import difference_gradients, linearise
from pipeline.attacks.protocol import as_logits, check_clip, check_input, clean_labels, judge, labels_at, nothing
from pipeline.checks import check_count, check_positive, refuse
from pipeline.types import Classifier, Images, Labels, Perturbed

__all__ = ["lbfgs"]

Objective: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps rows (n,) and points (n, d) to values (n,) and gradients (n, d)."""

MEMORY = 8
"""Pairs of steps and gradient changes that approximate the Hessian."""

ARMIJO = 1e-4
HALVINGS = 12
BRACKET = 10.0
RIVALS = 9
"""Classes of the largest logits among which the nearest are sought."""


def lbfgs(
    model: Classifier,
    images: Images,
    *,
    candidates: int = 1,
    constant: float = 0.01,
    searches: int = 12,
    iterations: int = 30,
    tolerance: float = 1e-4,
    clip: Sequence[float] = (0.0, 1.0),
    labels: Labels | None = None,
    targets: Labels | None = None,
) -> Perturbed:
    """min_r c ||r||_2^2 + J(x + r, t) subject to x + r in the box, for the largest c whose minimiser is classified as t.

    The minimiser is found by L-BFGS with projections onto the box; c rises or falls tenfold until it brackets the
    change from success to failure, then its logarithm is bisected. The smallest successful r of all of these is kept.
    The penalty is the squared norm, which is smooth at r = 0; the search over c makes up for the difference.

    Szegedy et al. name a target t. For the smallest untargeted perturbation (Section 3.2.3) t is the class whose
    linearised boundary is nearest at x; ``candidates`` tries the nearest few.

    Args:
        model: a classifier in evaluation mode.
        images: x, (N, C, H, W), inside ``clip``.
        candidates: number of target classes tried for each image.
        constant: first c.
        searches: values of c that are tried.
        iterations: largest number of L-BFGS steps for each c.
        tolerance: L-BFGS stops where no pixel's projected gradient is above it.
        clip: lowest and highest pixel value.
        labels: (N,) the labels to leave; None: the classifier's own.
        targets: (N,) the classes to reach; None chooses them as above.

    Returns:
        Perturbed; ``steps`` counts gradient evaluations. An image for which no c succeeded has r = 0 and failed.

    Raises:
        InputError: an option, a label, an image or a logit that cannot be used, or a model in training mode.
    """
    for key, count in (("candidates", candidates), ("searches", searches), ("iterations", iterations)):
        check_count(key, count)
    first, tight = check_positive("constant", constant), check_positive("tolerance", tolerance)
    bounds = check_clip(clip)
    if bounds is None:
        refuse("clip", "none", "two finite numbers: the attack is box-constrained")
    if targets is not None and candidates != 1:
        refuse("candidates", candidates, "1 with targets")
    check_input(model, images, clip=bounds, labels=labels, targets=targets)
    images = images.detach()
    if not len(images):
        return nothing(images)
    own = clean_labels(model, images, labels, targets)
    goals = _nearest_classes(model, images, own, candidates) if targets is None else targets[:, None]
    search = _Search(model, images, own, bounds, iterations, tight)
    for goal in goals.T:
        search.over_constants(goal, first, searches)
    return judge(model, images, search.best - images, own, search.steps, targets)


def _nearest_classes(model: Classifier, images: Images, labels: Labels, count: int) -> Tensor:
    """(N, count) the classes whose boundaries, linearised at the images, are nearest: smallest |F_k| / ||grad F_k||_2."""
    logits, pull = linearise(model, images)
    own = labels[:, None]
    classes = logits.shape[1]
    rivals = logits.scatter(1, own, -torch.inf).topk(min(RIVALS, classes - 1)).indices
    normals = difference_gradients(pull, classes, rivals, own.expand_as(rivals))
    sizes = normals.flatten(2).norm(dim=2)
    gaps = (logits.gather(1, rivals) - logits.gather(1, own)).abs()
    distances = torch.where(sizes > 0, gaps / sizes, torch.inf)
    return rivals.gather(1, distances.argsort(dim=1, stable=True)[:, :count])


@dataclass
class _Search:
    """The best adversarial image so far of every image, and the work spent on it."""

    model: Classifier
    images: Images
    labels: Labels
    bounds: tuple[float, float]
    iterations: int
    tolerance: float

    def __post_init__(self) -> None:
        self.best = self.images.clone()
        self.smallest = self.images.new_full((len(self.images),), math.inf)
        self.steps = torch.zeros_like(self.labels)

    def over_constants(self, goals: Labels, first: float, searches: int) -> None:
        """Bracket and bisect c for one target class an image."""
        low = self.images.new_zeros(len(self.images))  # the largest c that succeeded
        high = torch.full_like(low, math.inf)  # the smallest c that failed
        constant = torch.full_like(low, first)
        for _ in range(searches):
            found = self._minimise(goals, constant)
            success = self._keep(found, goals)
            low = torch.where(success, constant, low)
            high = torch.where(success, high, constant)
            middle = (low * high).sqrt()
            constant = torch.where(low == 0, high / BRACKET, torch.where(high.isinf(), low * BRACKET, middle))

    def _keep(self, found: Images, goals: Labels) -> Tensor:
        """Which of the points ``found`` reach their goal; the smallest perturbations are kept."""
        labels, finite = labels_at(self.model, found)
        success = (labels == goals) & finite & (labels != self.labels)
        size = (found - self.images).flatten(1).norm(dim=1)
        better = success & (size < self.smallest)
        self.smallest = torch.where(better, size, self.smallest)
        self.best[better] = found[better]
        return success

    def _minimise(self, goals: Labels, constant: Tensor) -> Images:
        value = partial(_penalised, self.model, self.images, goals, constant)
        points, evaluations = _projected_lbfgs(
            value, self.images.flatten(1), self.bounds, self.iterations, self.tolerance
        )
        self.steps += evaluations
        return points.view_as(self.images)


def _penalised(
    model: Classifier, images: Images, goals: Labels, constant: Tensor, rows: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """c ||r||^2 + J(x + r, t) and its gradient, for the images of indices ``rows``."""
    offsets = points - images[rows].flatten(1)
    raw, pull = linearise(model, points.view_as(images[rows]))
    logits = as_logits(raw)
    target = torch.nn.functional.one_hot(goals[rows], logits.shape[1]).to(logits)
    gradient = pull(logits.softmax(dim=1) - target).flatten(1)
    loss = torch.nn.functional.cross_entropy(logits, goals[rows], reduction="none")
    weight = constant[rows]
    return loss + weight * offsets.square().sum(dim=1), gradient + 2 * weight[:, None] * offsets


def _projected_lbfgs(
    objective: Objective, start: Tensor, bounds: tuple[float, float], iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Minimise one function a row over a box, all rows at once.

    Pixels at a bound whose gradient points outwards are held there; the others take an L-BFGS step, cut back by an
    Armijo search along the projected path. Rows that are done leave the batch.

    Returns:
        The points (N, d) and the number of gradient evaluations (N,).
    """
    points = start.clone()
    rows = torch.arange(len(start), device=start.device)
    counts = torch.ones_like(rows)
    value, slope = objective(rows, points)
    memory = _Memory(start)
    for _ in range(iterations):
        here = points[rows]
        held = ((here <= bounds[0]) & (slope > 0)) | ((here >= bounds[1]) & (slope < 0))
        free = slope.masked_fill(held, 0.0)
        going = free.abs().amax(dim=1) > tolerance
        rows, here, value, slope, free = (t[going] for t in (rows, here, value, slope, free))
        memory.select(going)
        if not len(rows):
            break
        direction = memory.direction(free).masked_fill(held[going], 0.0)
        fresh, fresh_value, fresh_slope, tried = _line_search(
            objective, rows, here, value, slope, direction, bounds
        )
        memory.add(fresh - here, fresh_slope - slope)
        points[rows], value, slope = fresh, fresh_value, fresh_slope
        counts[rows] += tried
    return points, counts


def _line_search(
    objective: Objective,
    rows: Tensor,
    here: Tensor,
    value: Tensor,
    slope: Tensor,
    direction: Tensor,
    bounds: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first of the points here + 2^-k direction, projected, that lowers the value enough; else stay.

    Returns:
        Points, values, gradients and evaluations, one row each.
    """
    fresh, fresh_value, fresh_slope = here.clone(), value.clone(), slope.clone()
    tried = torch.zeros_like(rows)
    open_ = torch.arange(len(rows), device=rows.device)
    length = 1.0
    for _ in range(HALVINGS):
        trial = (here[open_] + length * direction[open_]).clamp(*bounds)
        trial_value, trial_slope = objective(rows[open_], trial)
        tried[open_] += 1
        expected = ARMIJO * (slope[open_] * (trial - here[open_])).sum(dim=1)
        good = trial_value <= value[open_] + expected
        taken = open_[good]
        fresh[taken], fresh_value[taken], fresh_slope[taken] = trial[good], trial_value[good], trial_slope[good]
        open_ = open_[~good]
        if not len(open_):
            break
        length /= 2
    return fresh, fresh_value, fresh_slope, tried


class _Memory:
    """The last steps s and gradient changes y of each row, and the product of the inverse Hessian they imply."""

    def __init__(self, like: Tensor) -> None:
        self.steps: list[Tensor] = []
        self.changes: list[Tensor] = []
        self.like = like

    def select(self, rows: Tensor) -> None:
        """Keep only the rows where ``rows`` is True."""
        self.steps = [s[rows] for s in self.steps]
        self.changes = [y[rows] for y in self.changes]

    def add(self, step: Tensor, change: Tensor) -> None:
        """Take in a step; one without positive curvature is forgotten (its row is zero)."""
        curved = (step * change).sum(dim=1, keepdim=True) > 1e-10
        self.steps = [*self.steps, step * curved][-MEMORY:]
        self.changes = [*self.changes, change * curved][-MEMORY:]

    def direction(self, gradient: Tensor) -> Tensor:
        """-H gradient by the two-loop recursion; the plain gradient, at most of length 1, where nothing is known."""
        tiny = torch.finfo(gradient.dtype).tiny
        vector, weights = gradient.clone(), []
        inner = [(s * y).sum(dim=1, keepdim=True) for s, y in zip(self.steps, self.changes, strict=True)]
        for s, y, product in zip(reversed(self.steps), reversed(self.changes), reversed(inner), strict=True):
            weight = torch.where(product > 0, (s * vector).sum(dim=1, keepdim=True) / product.clamp_min(tiny), 0.0)
            vector = vector - weight * y
            weights.append(weight)
        vector = vector * self._scale(gradient, inner)
        for s, y, product, weight in zip(self.steps, self.changes, inner, reversed(weights), strict=True):
            share = torch.where(product > 0, (y * vector).sum(dim=1, keepdim=True) / product.clamp_min(tiny), 0.0)
            vector = vector + (weight - share) * s
        uphill = (vector * gradient).sum(dim=1, keepdim=True) <= 0
        return -torch.where(uphill, gradient, vector)

    def _scale(self, gradient: Tensor, inner: list[Tensor]) -> Tensor:
        """The first guess of the inverse Hessian: s'y / y'y of the last useful step, else a step of at most length 1."""
        scale = 1 / gradient.norm(dim=1, keepdim=True).clamp_min(1.0)
        for y, product in zip(self.changes, inner, strict=True):
            size = y.square().sum(dim=1, keepdim=True)
            scale = torch.where(product > 0, product / size.clamp_min(torch.finfo(y.dtype).tiny), scale)
        return scale
