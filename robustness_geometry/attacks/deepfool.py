"""DeepFool: the smallest perturbation that changes the label, by repeated linearisation (Algorithms 1, 2 and 3)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robustness_geometry.attacks.gradients import Pull, linearise
from robustness_geometry.attacks.hyperplanes import Hyperplanes, likely_nearest, nearest_hyperplane
from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    Number,
    as_logits,
    check_clip,
    check_input,
    confine,
    is_reached,
    judge,
    nothing,
    per_image,
)
from robustness_geometry.attacks.subspaces import Projection, Subspace, projection_onto
from robustness_geometry.checks import check_choice, check_count, check_norm, check_positive, refuse
from robustness_geometry.norms import dual, hyperplane_step, norms
from robustness_geometry.types import (
    Classifier,
    Images,
    Labels,
    Logits,
    Mask,
    Perturbed,
    class_logits,
)

__all__ = ["deepfool"]

VARIANTS = ("clean", "thesis", "overshot")

EXTRA = 1e-4
"""What the variant ``overshot`` adds to the distance of each step, in pixel units, as the published Python codes do."""

BATCH = 128
"""Images that a step works on at once on a CPU: with more of them the activations leave the cache."""


def deepfool(
    model: Classifier,
    images: Images,
    *,
    norm: Number = 2,
    overshoot: Number = 0.02,
    steps: int = 50,
    candidates: int | None = None,
    prune: Number | None = None,
    variant: str = "clean",
    clip: Bounds | None = None,
    labels: Labels | None = None,
    targets: Labels | None = None,
    subspace: Subspace | None = None,
) -> Perturbed:
    """Move each image to the nearest of its linearised decision boundaries until its label changes.

    With F_k = f_k - f_label and w_k = grad F_k, each step adds r_i = |F_l| / ||w_l||_q^q
    |w_l|^(q-1) sign(w_l) for l = argmin_k |F_k| / ||w_k||_q; the result is (1 + overshoot) sum_i
    r_i. Sections 3.2 (Algorithms 1 and 2), 3.4.1 (Equations 3.11 to 3.14, any l_p) and 3.4.2
    (Algorithm 3, subspaces: w_k is replaced by its projection).

    The variants differ in where they take gradients and look at the label, with x the image and r
    the sum:

    ========== ================= =================
    ===================================================== variant    gradients at      label tested
    at   also ========== ================= =================
    ===================================================== clean      x + r             x + (1 + o) r
    thesis     x + r             x + r             the boundary itself counts as crossed overshot
    x + (1 + o) r     x + (1 + o) r     adds 1e-4 (in pixel units) to the distance of each step
    ========== ================= =================
    =====================================================

    ``clean`` is the authors' MATLAB code; ``overshot`` their Python code and, with ``candidates=10,
    clip=(0, 1)``, foolbox. Images leave the batch when they are done, so that none waits for
    another.

    Args:
        model: a classifier in evaluation mode; logits f of shape (N, 1), whose sign decides, count
            as (0, f).
        images: x, (N, C, H, W).
        norm: p of the l_p norm to minimise, 1 <= p <= inf.
        overshoot: o >= 0; the default is the thesis'.
        steps: largest number of steps.
        candidates: only that many classes take part, those of the largest clean logits, the label
            included; None: all.
        prune: leave the gradient of a class out where its boundary could be the nearest only if
            that gradient was at least ``prune`` times as long as those of all classes with a
            smaller |F_k|; >= 1. It saves most of the work. 2 changed none of 1000 digits'
            perturbations on LeNet and FC500-150-10 and up to three on NIN, whose mean norm rose by
            0.01%; 1.5 changed 17 there. Not with a subspace, in which lengths differ much more.
            None: all classes take part. With ``targets`` there is nothing to leave out.
        variant: ``clean``, ``thesis`` or ``overshot``.
        clip: lowest and highest pixel value of the perturbed images; None does not clip, as in the
            thesis. With a norm below 2, whose steps move few pixels, pixels at their bound then
            take no part in a step.
        labels: (N,) the labels to leave; None: the classifier's own. An image that has another
            label gets r = 0.
        targets: (N,) labels to reach. Each step then goes to the boundary between the target and
            the label at the current point, until the target is predicted.
        subspace: orthonormal rows (m, d), or (N, m, d) for a subspace an image, or an orthogonal
            projector of (N, K, C, H, W); the perturbations then lie in it. Needs ``norm=2`` and
            ``clip=None``.

    Returns:
        Perturbed; ``success`` is False where the steps did not suffice or no boundary has a
        gradient, and the last iterate is returned. ``steps`` counts the linearisations.

    Raises:
        InputError: an option, a label, an image or a clean logit that cannot be used, or a model in
            training mode.

    Example:
        >>> result = deepfool(model, images)
        >>> (result.perturbations.flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)).mean()
    """
    options = Options(
        norm=check_norm("norm", norm),
        overshoot=check_positive("overshoot", overshoot, zero=True),
        steps=check_count("steps", steps),
        candidates=None if candidates is None else check_count("candidates", candidates, minimum=2),
        prune=check_prune(prune),
        variant=check_choice("variant", variant, VARIANTS),
        clip=check_clip(clip),
    )
    _check_combination(options, targets, subspace)
    check_input(model, images, clip=options.clip, labels=labels, targets=targets)
    images = images.detach()
    project = projection_onto(subspace, images)
    if not len(images):
        return nothing(images)
    search = Search(model, images, options, project, labels, targets)
    batch = BATCH if images.device.type == "cpu" else len(images)
    waiting = torch.arange(len(images), device=images.device)
    while len(waiting):
        waiting = torch.cat([search.advance(waiting[:batch]), waiting[batch:]])
    return search.result()


@dataclass(frozen=True)
class Options:
    """The checked options of a search, as :func:`deepfool` explains them."""

    norm: float
    overshoot: float
    steps: int
    candidates: int | None
    prune: float | None
    variant: str
    clip: Clip


def check_prune(value: Number | None) -> float | None:
    """Return DeepFool's option ``prune``, None or a number of at least 1."""
    prune = None if value is None else check_positive("prune", value)
    if prune is not None and prune < 1:
        refuse("prune", value, "None or a number >= 1")
    return prune


def _check_combination(options: Options, targets: Labels | None, subspace: Subspace | None) -> None:
    if subspace is not None and options.norm != 2:
        refuse("norm", options.norm, "2 with a subspace")
    if subspace is not None and options.clip is not None:
        refuse("clip", options.clip, "None with a subspace, which clipping would leave")
    if options.prune is not None and subspace is not None:
        refuse("prune", options.prune, "None with a subspace")
    if targets is not None and options.candidates is not None:
        refuse(
            "candidates",
            options.candidates,
            "None with targets, which name the only class to reach",
        )


class Search:
    """The state of every image, and the step that takes any of them further.

    Attributes:
        sums: (N, C, H, W) r, the steps so far.
        perturbations: (N, C, H, W) (1 + overshoot) r, clipped.
        labels: (N,) the labels to leave.
        found: (N,) the labels where they were last tested.
        success: (N,) whether that test was passed.
        steps: (N,) steps taken.
        rivals: (N, K) the classes to go to, without the label; set when an image enters.
        slack: (N,) how far below zero F may be to count as on the boundary (``thesis`` only).
    """

    def __init__(
        self,
        model: Classifier,
        images: Images,
        options: Options,
        project: Projection,
        labels: Labels | None,
        targets: Labels | None,
    ) -> None:
        self.model, self.images, self.options, self.project = model, images, options, project
        self.given, self.targets = labels, targets
        self.sums, self.perturbations = torch.zeros_like(images), torch.zeros_like(images)
        self.steps = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.labels = self.steps.clone() if labels is None else labels.clone()
        self.found = self.steps.clone()
        self.success = self.steps.bool()
        self.slack = images.new_zeros(len(images))
        self.rivals = self.steps.new_empty(len(images), 0)

    def advance(self, now: Tensor) -> Tensor:
        """Take the images of indices ``now`` one step further; return those that need another one."""
        points = self.images[now] + self._offset(now, overshot=self.options.variant == "overshot")
        logits, pull = linearise(self.model, points)
        fresh = self.steps[now] == 0
        if bool(fresh.any()):  # their point is the clean image
            self._enter(now[fresh], logits[fresh])
        plus, minus = self._pairs(now, logits)
        plane = self._nearest(now, points, logits, pull, plus, minus)
        moving = ~self.success[now] & torch.isfinite(plane.distances)
        step = torch.where(per_image(moving, points), self._step(plane), 0.0)
        self.sums[now] = self._moved(now, step)
        self.steps[now] += moving.long()
        self._test(now)
        return now[moving & ~self.success[now] & (self.steps[now] < self.options.steps)]

    def restart(self, place: int, image: Tensor, label: Tensor) -> None:
        """Put another image (C, H, W) with the label to leave in the place of one that is done."""
        self.images[place], self.labels[place] = image, label
        self.sums[place], self.perturbations[place] = 0.0, 0.0
        self.steps[place], self.success[place] = 0, False
        if self.given is not None:
            self.given[place] = label

    def result(self) -> Perturbed:
        """The outcome, with success as seen on the tensors that are returned."""
        if self.options.variant == "thesis":  # which tested the sums
            return judge(
                self.model, self.images, self.perturbations, self.labels, self.steps, self.targets
            )
        return Perturbed(self.perturbations, self.labels, self.found, self.success, self.steps)

    def _nearest(
        self, now: Tensor, points: Images, logits: Logits, pull: Pull, plus: Tensor, minus: Tensor
    ) -> Hyperplanes:
        """The nearest of the boundaries between ``plus`` and ``minus``, linearised at ``points``."""
        norm = self.options.norm
        if self.options.prune is None:
            project = partial(self._project, now, points)
            return nearest_hyperplane(logits, pull, plus, minus, norm=norm, project=project)
        return likely_nearest(
            logits,
            pull,
            plus,
            minus,
            norm=norm,
            project=lambda normals, rows: self._project(now[rows], points[rows], normals),
            prune=self.options.prune,
            again=lambda rows: linearise(self.model, points[rows])[1],
        )

    def _offset(self, now: Tensor, *, overshot: bool) -> Tensor:
        """The sum r, or (1 + overshoot) r, of the images ``now``, confined to ``clip`` with them."""
        scale = 1 + self.options.overshoot if overshot else 1.0
        return confine(self.images[now], scale * self.sums[now], self.options.clip)

    def _project(self, now: Tensor, points: Images, normals: Tensor) -> Tensor:
        """What of the gradients (n, K, C, H, W) at ``points`` the steps follow.

        With a subspace, their projection. With ``clip`` and a norm below 2, pixels that are held at
        their bound are
        left out: else the step would insist on them and never arrive.
        """
        if (
            self.options.clip is None
            or self.options.norm >= 2
            or self.options.variant == "overshot"
        ):
            return self.project(normals, now)
        low, high = self.options.clip
        floor, ceiling = (points <= low)[:, None], (points >= high)[:, None]
        return normals.masked_fill((floor & (normals < 0)) | (ceiling & (normals > 0)), 0.0)

    def _moved(self, now: Tensor, step: Images) -> Images:
        """The sums of the images ``now`` after a step; the variant ``overshot`` clips the images only, not the sums."""
        sums = self.sums[now] + step
        return (
            sums
            if self.options.variant == "overshot"
            else confine(self.images[now], sums, self.options.clip)
        )

    def _enter(self, now: Tensor, logits: Logits) -> None:
        """Take labels, rivals and what counts as the boundary from the logits of clean images."""
        as_logits(
            logits, *(None if given is None else given[now] for given in (self.given, self.targets))
        )
        if self.given is None:
            self.labels[now] = logits.argmax(dim=1)
        own = self.labels[now, None]
        others = logits.scatter(1, own, -torch.inf)
        count = min(self.options.candidates or logits.shape[1], logits.shape[1]) - 1
        if self.rivals.shape[1] != count:
            self.rivals = self.rivals.new_empty(len(self.images), count)
        self.rivals[now] = others.topk(count).indices
        gap = logits.gather(1, own)[:, 0] - others.amax(dim=1)
        eps = torch.finfo(logits.dtype).eps
        self.slack[now] = eps**0.5 * gap.abs() + 4 * eps * logits.abs().amax(dim=1)
        self.success[now] = self._is_reached(now, logits)

    def _pairs(self, now: Tensor, logits: Logits) -> tuple[Tensor, Tensor]:
        """The classes (n, K) whose boundaries count: all rivals against the label, or the target against the leader."""
        if self.targets is None:
            rivals = self.rivals[now]
            return rivals, self.labels[now, None].expand_as(rivals)
        target = self.targets[now, None]
        return target, logits.scatter(1, target, -torch.inf).argmax(dim=1, keepdim=True)

    def _step(self, plane: Hyperplanes) -> Tensor:
        """The smallest step to the hyperplane, (n, C, H, W)."""
        gaps = plane.gaps
        if self.options.variant == "overshot":
            gaps = gaps + EXTRA * norms(plane.normals, dual(self.options.norm))
        return hyperplane_step(gaps, plane.normals, self.options.norm)

    def _test(self, now: Tensor) -> None:
        """Look at the labels of the images ``now`` where the variant says."""
        self.perturbations[now] = self._offset(now, overshot=True)
        on_sum = self.options.variant == "thesis"
        offset = self._offset(now, overshot=False) if on_sum else self.perturbations[now]
        with torch.no_grad():
            logits = class_logits(self.model(self.images[now] + offset))
        self.found[now] = logits.argmax(dim=1)
        self.success[now] |= (
            self._is_on_boundary(now, logits) if on_sum else self._is_reached(now, logits)
        )

    def _is_reached(self, now: Tensor, logits: Logits) -> Mask:
        targets = None if self.targets is None else self.targets[now]
        return torch.isfinite(logits).all(dim=1) & is_reached(
            logits.argmax(dim=1), self.labels[now], targets
        )

    def _is_on_boundary(self, now: Tensor, logits: Logits) -> Mask:
        """Whether the logit to be left leads by no more than the slack (or the one to be reached trails by none)."""
        chosen = self.labels[now, None] if self.targets is None else self.targets[now, None]
        lead = logits.gather(1, chosen)[:, 0] - logits.scatter(1, chosen, -torch.inf).amax(dim=1)
        near = lead <= self.slack[now] if self.targets is None else lead >= -self.slack[now]
        return near & torch.isfinite(logits).all(dim=1)
