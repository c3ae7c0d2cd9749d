"""The penalised, box-constrained L-BFGS attack, with which Table 3.1 compares DeepFool."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustness_geometry.attacks.gradients import difference_gradients, linearise
from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    as_logits,
    check_clip,
    check_input,
    is_reached,
    judge,
    labels_at,
    nothing,
    per_image,
)
from robustness_geometry.attacks.quasi_newton import minimise
from robustness_geometry.checks import GivenLabels, check_count, refuse
from robustness_geometry.norms import norms
from robustness_geometry.types import Classifier, Images, Labels, Mask, PerImage, Perturbed

__all__ = ["lbfgs"]

BATCH = 128
"""Number of images that are optimised side by side."""

RIVALS = 10
"""Number of classes, those of the largest logits, among which the nearest are searched for."""

GROWTH = 4.0
"""Factor by which the constant grows or shrinks until the smallest one that works is bracketed."""


@dataclass(frozen=True)
class Options:
    """The checked options of :func:`lbfgs`."""

    candidates: int
    constants: int
    steps: int
    clip: Clip


def lbfgs(
    model: Classifier,
    images: Images,
    *,
    candidates: int = 1,
    constants: int = 10,
    steps: int = 20,
    clip: Bounds | None = (0.0, 1.0),
    labels: GivenLabels = None,
    targets: GivenLabels = None,
) -> Perturbed:
    """Minimise the norm of r plus c times the loss at a target label t, for the smallest c.

    The problem min_r ||r||_2^2 + c J_t(x + r) subject to low <= x + r <= high, with J_t the
    cross-entropy at t, is solved by box-constrained L-BFGS from r = 0. The smallest c whose
    solution reaches the goal is bracketed by powers of 4, then bisected. The norm is squared,
    unlike in the original formulation: the problem is then smooth at r = 0 and has the same
    solutions at other constants. Of all points met on the way, the nearest that reaches the goal is
    returned.

    Without ``targets``, t runs over the ``candidates`` classes whose linearised boundaries are
    nearest to the image, and the smallest perturbation that changes the label at all is kept.

    Args:
        model: a classifier in evaluation mode.
        images: x, (N, C, H, W).
        candidates: number of classes that are tried as t.
        constants: number of values of c for each t.
        steps: number of L-BFGS steps for each c.
        clip: low and high; None leaves the pixels free.
        labels: (N,) the labels to leave; None: the classifier's own. An image that has another
            label gets r = 0.
        targets: (N,) labels to reach.

    Returns:
        Perturbed; ``steps`` counts the gradients taken. Where nothing reached the goal, the last
        solution.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.

    References:
        Thesis: Section 3.2.3 and Table 3.1, which compare DeepFool with it.

        C. Szegedy, W. Zaremba, I. Sutskever, J. Bruna, D. Erhan, I. Goodfellow, R. Fergus,
        "Intriguing properties of neural networks", ICLR 2014, arXiv:1312.6199.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import lbfgs
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.rand(4, 1, 4, 4)
        >>> result = lbfgs(model, images, clip=None)
        >>> bool(result.success.all())
        True
    """
    options = Options(
        check_count("candidates", candidates),
        check_count("constants", constants),
        check_count("steps", steps),
        check_clip(clip),
    )
    if targets is not None and candidates != 1:
        refuse("candidates", candidates, "1 with targets")
    model, images, labels, targets = check_input(
        model, images, clip=options.clip, labels=labels, targets=targets
    )
    if not len(images):
        return nothing(images)
    parts = []
    for part in torch.arange(len(images), device=images.device).split(BATCH):
        own, goal = (None if given is None else given[part] for given in (labels, targets))
        parts.append(_attack(model, images[part], own, goal, options))
    found, own, taken = (torch.cat(column) for column in zip(*parts, strict=True))
    return judge(model, images, found, own, taken, targets)


def _attack(
    model: Classifier,
    images: Images,
    labels: Labels | None,
    targets: Labels | None,
    options: Options,
) -> tuple[Images, Labels, Tensor]:
    """Perturbations, labels under attack and number of gradients of one batch."""
    logits, pull = linearise(model, images)
    logits = as_logits(logits, labels, targets)
    labels = logits.argmax(dim=1) if labels is None else labels.clone()
    others = logits.scatter(1, labels[:, None], -torch.inf)
    rivals = (
        others.topk(min(RIVALS, others.shape[1] - 1)).indices
        if targets is None
        else targets[:, None]
    )
    # The targets in the order of their linearised distances.
    own = labels[:, None].expand_as(rivals)
    gaps = (logits.gather(1, own) - logits.gather(1, rivals)).abs()
    sizes = norms(difference_gradients(pull, logits.shape[1], rivals, own).flatten(0, 1)).view_as(
        gaps
    )
    distances = torch.where(sizes > 0, gaps / sizes, torch.inf)
    # The first c: there the linearised cross-entropy balances the norm on the boundary.
    constants = 4 * distances.square() / gaps
    constants = torch.where(torch.isfinite(constants) & (constants > 0), constants, 1.0)
    search = Search(model, images, labels, targets, options)
    for column in distances.argsort(dim=1)[:, : options.candidates].T.unsqueeze(2):
        search.run(rivals.gather(1, column)[:, 0], constants.gather(1, column)[:, 0])
    waited = ~search.done
    return search.best, labels, (rivals.shape[1] + search.evaluations) * waited.long()


class Search:
    """The smallest perturbation met so far of each image, over all constants and targets.

    Attributes:
        best: (N, C, H, W) the smallest perturbation met that reaches the goal; where there is none,
            the last solution.
        sizes: (N,) its l_2 norm; infinite where there is none.
        done: (N,) whether the clean image is at the goal.
        evaluations: number of gradients per image.
    """

    def __init__(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        targets: Labels | None,
        options: Options,
    ) -> None:
        self.model, self.images, self.labels, self.targets, self.options = (
            model,
            images,
            labels,
            targets,
            options,
        )
        self.best, self.evaluations = torch.zeros_like(images), 0
        found, _ = labels_at(model, images)
        self.done = is_reached(found, labels, targets)
        self.sizes = torch.where(self.done, 0.0, torch.inf).to(images)
        low, high = options.clip or (-math.inf, math.inf)
        self.low, self.high = low - images.flatten(1), high - images.flatten(1)

    def run(self, goal: Labels, constants: PerImage) -> None:
        """Bracket and bisect the constants (N,) for the target classes ``goal`` (N,)."""
        below, above = torch.zeros_like(constants), torch.full_like(constants, torch.inf)
        for _ in range(self.options.constants):
            # ``below`` is the largest c that failed, ``above`` the smallest that worked.
            reached = self._solve(goal, constants)
            below, above = (
                torch.where(reached, below, constants),
                torch.where(reached, constants, above),
            )
            inside = torch.where(below > 0, (below * above).sqrt(), above / GROWTH)
            constants = torch.where(above.isinf(), below * GROWTH, inside)

    def _solve(self, goal: Labels, constants: PerImage) -> Mask:
        """Whether the solutions for these constants reach the goal."""

        def function(offsets: Tensor) -> tuple[Tensor, Tensor]:
            return self._penalised(offsets.view_as(self.images), goal, constants)

        start = torch.zeros_like(self.images).flatten(1)
        solution = minimise(
            function, start, self.low, self.high, steps=self.options.steps, curvature=2.0
        )
        moved = solution.view_as(self.images)
        self.best = torch.where(per_image(self.sizes.isinf(), moved), moved, self.best)
        found, finite = labels_at(self.model, self.images + moved)
        return finite & is_reached(found, self.labels, self.targets)

    def _penalised(self, moved: Images, goal: Labels, constants: PerImage) -> tuple[Tensor, Tensor]:
        """||r||^2 + c J_t(x + r) and its gradients (N, d); keeps the nearest points at the goal."""
        logits, pull = linearise(self.model, self.images + moved)
        self.evaluations += 1
        sizes = norms(moved)
        reached = torch.isfinite(logits).all(dim=1) & is_reached(
            logits.argmax(dim=1), self.labels, self.targets
        )
        nearer = reached & (sizes < self.sizes)
        self.sizes = torch.where(nearer, sizes, self.sizes)
        self.best = torch.where(per_image(nearer, moved), moved, self.best)
        scores = logits.double().log_softmax(dim=1)
        losses = -scores.gather(1, goal[:, None])[:, 0]
        weights = constants[:, None] * (scores.exp() - one_hot(goal, logits.shape[1]))
        return sizes.double() ** 2 + constants * losses, 2 * moved.flatten(1) + pull(
            weights
        ).flatten(1)
