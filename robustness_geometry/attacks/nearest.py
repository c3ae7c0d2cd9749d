"""The smallest perturbation that can be found fast: a close boundary point, by projections."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from robustness_geometry.attacks.alignment import check_subspace_options
from robustness_geometry.attacks.boundary_search import BoundarySearch, leaving, reaching
from robustness_geometry.attacks.deepfool import deepfool
from robustness_geometry.attacks.descent import descent
from robustness_geometry.attacks.gradients import difference_gradients, linearise
from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    Number,
    check_clip,
    check_input,
    clean_labels,
    confine,
    is_reached,
    nothing,
    per_image,
)
from robustness_geometry.attacks.steepest import share_of_steepest
from robustness_geometry.attacks.subspaces import (
    OwnSubspaces,
    Projection,
    Subspace,
    projection_onto,
)
from robustness_geometry.checks import (
    GivenLabels,
    check_choice,
    check_count,
    check_norm,
    check_positive,
    refuse,
)
from robustness_geometry.norms import norms
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import (
    Classifier,
    Images,
    Labels,
    Mask,
    Perturbed,
    class_logits,
)

__all__ = ["nearest"]

STARTS = ("deepfool", "ddn", "both")

PRUNE = 1.3
"""DeepFool's option: with 1.3 it still chose the right class of all of 60 training digits on a
fully connected network, for 6 gradients an image less than with 2; with 1 it did not."""

BATCH = 128
"""Images per step on a CPU: with more of them the activations no longer fit in the cache."""

FIRST_PUSH, GROWTH, PUSHES = 64, 4, 8
"""The overshoot: tries, the first in units of the rounding, and the factor between them."""

SLACK = 32
"""How far F must be above 0, in units of the logits' rounding: a label in another batch is then
the same."""


def nearest(
    model: Classifier,
    images: Images,
    *,
    norm: Number = 2,
    start: str = "ddn",
    rivals: int = 1,
    steps: int = 7,
    refinements: int = 20,
    bisections: int = 8,
    angle: Number = 0.01,
    clip: Bounds | None = None,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    subspace: Subspace | None = None,
) -> Perturbed:
    """Find a perturbation of nearly the least l_p norm in some twenty gradients.

    From each start, the line to where it ends is searched for the crossing of the boundary. Then
    the point of the tangent plane nearest to the image, within the box, shows where to search
    next, again and again: the norm never grows. The nearest point of all starts is moved just
    beyond the boundary. :attr:`Perturbed.alignment` says how nearly it is a smallest perturbation
    to first order.

    Args:
        model: a classifier in evaluation mode.
        images: x, (N, C, H, W).
        norm: p of the l_p norm to minimise, 1 <= p <= inf.
        start: ``ddn``, a short descent on spheres of changing radius, as DDN takes in l_2;
            ``deepfool``; or ``both``. Images for which ``ddn`` finds nothing are tried again with
            ``deepfool``.
        rivals: 1 starts towards any other class; k > 1 starts again towards each of the k
            foremost other classes of the image.
        steps: steps of the start ``ddn``: one gradient each, the first up to 3.
        refinements: largest number of projections from each start.
        bisections: largest number of evaluations in the search of one line.
        angle: angle between r and the normal, in radians, at which an image is no longer projected;
            1 - cos(angle) is what it may lack of an alignment of 1.
        clip: lowest and highest pixel value of the perturbed images; None does not clip.
        labels: (N,) the labels to leave; None: the classifier's own. An image that has another
            label gets r = 0.
        targets: (N,) labels to reach.
        subspace: as for :func:`robustness_geometry.attacks.deepfool`; needs ``norm=2`` and
            ``clip=None``.

    Returns:
        Perturbed, with ``alignment`` (N,): NaN where r = 0 or the attack failed. ``steps`` counts
        the linearisations after the starts.

    Raises:
        InputError: an option, a label, an image or a logit that cannot be used, or a model in
            training mode.

    References:
        Equations 6.1 and 7.1 of the thesis define r as the smallest perturbation.

        S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate method to
        fool deep neural networks", CVPR 2016, arXiv:1511.04599 (the start).

        J. Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial
        attacks and defenses", CVPR 2019, arXiv:1811.09600 (the start ``ddn``).

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import nearest
        >>> from robustness_geometry.geometry import Ball
        >>> image = torch.tensor([0.6, 0.8]).view(1, 1, 1, 2)
        >>> found = nearest(Ball(radius=2.0), image)
        >>> [round(value, 3) for value in found.perturbations.flatten().tolist()]
        [0.6, 0.8]
        >>> round(found.alignment.item(), 4)
        1.0
    """
    options = Options(
        norm=check_norm("norm", norm),
        start=check_choice("start", start, STARTS),
        rivals=check_count("rivals", rivals),
        steps=check_count("steps", steps, minimum=2),
        refinements=check_count("refinements", refinements, minimum=0),
        bisections=check_count("bisections", bisections),
        angle=check_positive("angle", angle, zero=True),
        clip=check_clip(clip),
    )
    check_subspace_options(subspace, options.norm, options.clip)
    if targets is not None and rivals > 1:
        refuse("rivals", rivals, "1 with targets, which name the only class to reach")
    model, images, labels, targets = check_input(
        model, images, clip=options.clip, labels=labels, targets=targets
    )
    project = projection_onto(subspace, images)
    if not len(images):
        return nothing(images)
    batch = BATCH if images.device.type == "cpu" else len(images)
    parts = []
    for rows in torch.arange(len(images), device=images.device).split(batch):
        own, goal = (None if given is None else given[rows] for given in (labels, targets))
        own = clean_labels(model, images[rows], own, goal)
        within = None if subspace is None else _Part(project, rows)
        found = _Nearest(model, images[rows], own, goal, options, within).result()
        lost = (~found.success).nonzero()[:, 0]
        if start == "ddn" and len(lost):
            again = _Nearest(
                model,
                images[rows[lost]],
                own[lost],
                None if goal is None else goal[lost],
                replace(options, start="deepfool"),
                None if within is None else _Part(project, rows[lost]),
            ).result()
            for f in fields(Perturbed):
                if getattr(found, f.name) is not None:
                    getattr(found, f.name)[lost] = getattr(again, f.name)
        parts.append(found)
    return _joined(parts)


@dataclass(frozen=True)
class Options:
    """The checked options, as :func:`nearest` explains them."""

    norm: float
    start: str
    rivals: int
    steps: int
    refinements: int
    bisections: int
    angle: float
    clip: Clip


class _Nearest:
    """The nearest perturbations of a few images so far; the sizes of failed ones are infinite."""

    def __init__(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        targets: Labels | None,
        options: Options,
        subspace: OwnSubspaces | None,
    ) -> None:
        self.model, self.images, self.labels, self.targets = model, images, labels, targets
        self.options, self.subspace = options, subspace
        self.project = None if subspace is None else subspace.project
        self.pairs = leaving(labels) if targets is None else reaching(targets)
        self.best = torch.zeros_like(images)
        self.sizes = images.new_full((len(images),), torch.inf)
        self.taken = torch.zeros_like(labels)

    def result(self) -> Perturbed:
        """Search from every start, and judge the nearest point."""
        for outward in self._starts():
            search = BoundarySearch(
                self.model,
                self.images,
                self.pairs,
                self.options.bisections,
                norm=self.options.norm,
                clip=self.options.clip,
                project=self.project,
            )
            search.run(outward, self.options.refinements, self.options.angle)
            self._keep(outward, self._is_across(outward))
            self._keep(*self._beyond(search.perturbations))
            self.taken += search.looks
            # Images that are on the other side to begin with need no perturbation.
            self._keep(torch.zeros_like(self.images), search.start >= 0)
        return self._judged()

    def _starts(self) -> Iterator[Images]:
        """Perturbations that lead to the other side, or should."""
        goals = [self.targets]
        if self.options.rivals > 1:
            with torch.no_grad():
                logits = class_logits(logits_at(self.model, self.images))
            others = logits.scatter(1, self.labels[:, None], -torch.inf)
            count = min(self.options.rivals, logits.shape[1] - 1)
            goals += list(others.topk(count).indices.T)
        for goal in goals:
            if self.options.start != "ddn":
                yield self._by_deepfool(goal)
            if self.options.start != "deepfool":
                yield descent(
                    self.model,
                    self.images,
                    self.labels,
                    goal,
                    steps=self.options.steps,
                    norm=self.options.norm,
                    clip=self.options.clip,
                    project=self.project,
                )

    def _by_deepfool(self, goal: Labels | None) -> Images:
        found = deepfool(
            self.model,
            self.images,
            norm=self.options.norm,
            prune=PRUNE if self.subspace is None else None,
            clip=self.options.clip,
            labels=self.labels,
            targets=goal,
            subspace=self.subspace,
        )
        return found.perturbations

    def _is_across(self, perturbations: Images) -> Mask:
        """Whether the images moved by ``perturbations`` are surely on the other side, (N,)."""
        with torch.no_grad():
            logits = class_logits(logits_at(self.model, self.images + perturbations))
        plus, minus = self.pairs(logits, torch.arange(len(logits), device=logits.device))
        gaps = (logits.gather(1, plus) - logits.gather(1, minus))[:, 0]
        slack = SLACK * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)
        return torch.isfinite(logits).all(dim=1) & (gaps > slack)

    def _beyond(self, perturbations: Images) -> tuple[Images, Mask]:
        """``perturbations`` made longer until they are across, and which of them are."""
        pushed, across = perturbations, torch.zeros_like(self.labels, dtype=torch.bool)
        share = FIRST_PUSH * torch.finfo(perturbations.dtype).eps
        for _ in range(PUSHES):
            tried = confine(self.images, (1 + share) * perturbations, self.options.clip)
            new = ~across & self._is_across(tried)
            pushed = torch.where(per_image(new, tried), tried, pushed)
            across |= new
            if bool(across.all()):
                break
            share *= GROWTH
        return pushed, across

    def _keep(self, perturbations: Images, across: Mask) -> None:
        """Take ``perturbations`` where they are across and smaller than the best so far."""
        sizes = norms(perturbations, self.options.norm)
        better = across & (sizes < self.sizes)
        self.sizes = torch.where(better, sizes, self.sizes)
        # Without a success so far, the last finite attempt stands in.
        finite = torch.isfinite(perturbations).flatten(1).all(dim=1)
        taken = better | (self.sizes.isinf() & finite)
        self.best = torch.where(per_image(taken, self.best), perturbations, self.best)

    def _judged(self) -> Perturbed:
        """The nearest points with their labels, success and alignment, from one evaluation."""
        logits, pull = linearise(self.model, self.images + self.best)
        rows = torch.arange(len(logits), device=logits.device)
        plus, minus = self.pairs(logits, rows)
        gradients = difference_gradients(pull, logits.shape[1], plus, minus)
        if self.project is not None:
            gradients = self.project(gradients, rows)
        found = logits.argmax(dim=1)
        success = torch.isfinite(logits).all(dim=1) & is_reached(found, self.labels, self.targets)
        shares = share_of_steepest(
            self.images, self.best, gradients[:, 0], self.options.norm, self.options.clip
        )
        return Perturbed(
            self.best,
            self.labels,
            found,
            success,
            self.taken,
            torch.where(success, shares, torch.nan),
        )


class _Part:
    """The subspaces of some of the images, as :class:`OwnSubspaces` of their own."""

    def __init__(self, projection: Projection, rows: Tensor) -> None:
        self.projection, self.rows = projection, rows

    def __len__(self) -> int:
        return len(self.rows)

    def project(self, vectors: Tensor, indices: Tensor) -> Tensor:
        return self.projection(vectors, self.rows[indices])


def _joined(parts: list[Perturbed]) -> Perturbed:
    return Perturbed(
        *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Perturbed))
    )
