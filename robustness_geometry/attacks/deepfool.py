"""DeepFool: a small perturbation that changes the label, by repeated linearisation.

Algorithms 1, 2 and 3 of the thesis. The loop is in ``deepfool``, one round of it in
``Search.advance``, and the choice of the nearest boundary in ``hyperplanes.py``.
"""

import torch
from torch import Tensor

from robustness_geometry.attacks._deepfool_options import (
    Options,
    check_combination,
    check_prune,
)
from robustness_geometry.attacks.gradients import Pull, linearise
from robustness_geometry.attacks.hyperplanes import (
    AUTO,
    Hyperplanes,
    first_spread,
    nearest_hyperplane,
)
from robustness_geometry.attacks.protocol import (
    Bounds,
    Number,
    as_logits,
    at_least_rounding,
    check_clip,
    check_input,
    confine,
    is_reached,
    judge,
    nothing,
    per_image,
)
from robustness_geometry.attacks.subspaces import Projection, Subspace, projection_onto
from robustness_geometry.checks import (
    GivenLabels,
    check_choice,
    check_count,
    check_norm,
    check_positive,
)
from robustness_geometry.norms import dual, hyperplane_step, norms
from robustness_geometry.outputs import logits_at
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
"""Added to each distance by the variant ``overshot``, in pixel units, as in published codes."""

BATCH = 128
"""Images per step on a CPU: with more of them the activations no longer fit in the cache."""


def deepfool(
    model: Classifier,
    images: Images,
    *,
    norm: Number = 2,
    overshoot: Number = 0.02,
    steps: int = 50,
    candidates: int | None = None,
    prune: Number | None = AUTO,
    variant: str = "clean",
    clip: Bounds | None = None,
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    subspace: Subspace | None = None,
) -> Perturbed:
    """Move each image to its nearest linearised decision boundary until its label changes.

    With F_k = f_k - f_label and w_k = grad F_k, each step goes to the boundary
    l = argmin_k |F_k| / ||w_k||_q by adding r_i = |F_l| / ||w_l||_q^q |w_l|^(q-1) sign(w_l), where
    1/p + 1/q = 1. The result is (1 + overshoot) sum_i r_i. In a subspace, w_k is replaced by its
    projection.

    The variants differ in where they take gradients and test the label (x is the image, r the sum
    of the steps, o the overshoot):

    ======== ============= ============= =============================================
    variant  gradients at  label tested  difference
    ======== ============= ============= =============================================
    clean    x + r         x + (1 + o) r none; the authors' MATLAB code
    thesis   x + r         x + r         the boundary itself counts as crossed
    overshot x + (1 + o) r x + (1 + o) r each step is 1e-4 pixel units longer; the
                                         authors' Python code and, with
                                         ``candidates=10, clip=(0, 1)``, foolbox
    ======== ============= ============= =============================================

    An image leaves the batch as soon as it is done, so that none waits for another.

    Args:
        model: a classifier in evaluation mode; logits f of shape (N, 1), whose sign decides, count
            as (0, f).
        images: x, (N, C, H, W).
        norm: p of the l_p norm to minimise, 1 <= p <= inf.
        overshoot: o >= 0; 0.02 in the thesis.
        steps: largest number of steps.
        candidates: number of classes that take part, those of the largest clean logits, the label
            included; None: all.
        prune: which gradients to skip; each of the others is taken once a step. ``auto`` skips
            those of classes whose boundaries could only be the nearest with gradients much longer
            than those that were seen of this image suggest
            (:func:`robustness_geometry.attacks.hyperplanes.nearest_hyperplane`). It changed none of
            600 digits' perturbations on LeNet, FC500-150-10 and NIN, and suits any number of
            classes. A number of at least 1 skips those that would have to be so many times as long
            as those of all classes with a smaller |F_k|: 2 changed up to three of 1000 digits on
            NIN; not with a subspace, in which lengths differ much more. None, or infinity: use all
            classes. With ``targets`` there is nothing to skip.
        variant: ``clean``, ``thesis`` or ``overshot``.
        clip: lowest and highest pixel value of the perturbed images; None does not clip, as in the
            thesis. With a norm below 2, whose steps move few pixels, pixels at their bound then
            take no part in a step.
        labels: (N,) the labels to leave; None: the classifier's own. An image that has another
            label gets r = 0.
        targets: (N,) labels to reach. Each step then goes to the boundary between the target and
            the label at the current point, until the target is predicted.
        subspace: orthonormal rows (m, d), or (N, m, d) for one subspace per image, or an
            orthogonal projector of (N, K, C, H, W); the perturbations then lie in it. Needs
            ``norm=2`` and ``clip=None``.

    Returns:
        Perturbed; ``success`` is False where the steps did not suffice or no boundary has a
        gradient, and the last iterate is returned. ``steps`` counts the linearisations.

    Raises:
        InputError: an option, a label, an image or a clean logit that cannot be used, or a model in
            training mode.

    References:
        Thesis: Section 3.2, Algorithms 1 and 2; Section 3.4.1, Equations 3.11 to 3.14 (any l_p
        norm); Section 3.4.2, Algorithm 3 (subspaces).

        S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate method to
        fool deep neural networks", CVPR 2016, arXiv:1511.04599.

        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, "Robustness of classifiers: from adversarial
        to random noise", NIPS 2016, arXiv:1608.08967 (perturbations in a subspace).

    Example:
        A linear classifier needs one step, whose length is the distance to the nearest boundary
        times 1.02:

        >>> import torch
        >>> from robustness_geometry.attacks import deepfool
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.rand(4, 1, 4, 4)
        >>> result = deepfool(model, images)
        >>> bool(result.success.all()), result.steps.tolist()
        (True, [1, 1, 1, 1])
        >>> ratio = result.perturbations.flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
        >>> bool((ratio < 1).all())
        True
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
    check_combination(options, targets, subspace)
    model, images, labels, targets = check_input(
        model, images, clip=options.clip, labels=labels, targets=targets
    )
    project = projection_onto(subspace, images)
    if not len(images):
        return nothing(images)
    # Algorithm 2, lines 5 to 14, for all images: each round takes the first images that are not
    # done yet one step further.
    search = Search(model, images, options, project, labels, targets)
    batch = BATCH if images.device.type == "cpu" else len(images)
    waiting = torch.arange(len(images), device=images.device)
    while len(waiting):
        waiting = torch.cat([search.advance(waiting[:batch]), waiting[batch:]])
    return search.result()


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
        lengths: (N, K) ||w||_q of the rivals at the last step, NaN where it was not taken.
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
        self.lengths = images.new_empty(len(images), 0)
        self.spread = first_spread(project, images)

    def advance(self, now: Tensor) -> Tensor:
        """Take the images ``now`` one step further and return those that need another one.

        This is the body of the loop of Algorithm 2, and of Algorithm 3 where there is a subspace.

        Args:
            now: (n,) indices of the images.
        """
        # Linearise the classifier at the current points x_i.
        points = self.images[now] + self._offset(now, overshot=self.options.variant == "overshot")
        logits, pull = linearise(self.model, points)
        fresh = self.steps[now] == 0
        if bool(fresh.any()):  # their point is the clean image x_0
            self._enter(now[fresh], logits[fresh])
        # Lines 6 to 10: among the hyperplanes F_k = 0 with normals w_k, find the nearest one.
        plus, minus = self._pairs(now, logits)
        plane = self._nearest(now, points, logits, pull, plus, minus)
        plane.gaps = at_least_rounding(plane.gaps, self.model, logits)
        # Lines 11 to 13: step onto it. Where no boundary has a gradient, stay.
        moving = ~self.success[now] & torch.isfinite(plane.distances)
        step = torch.where(per_image(moving, points), self._step(plane), 0.0)
        self.sums[now] = self._moved(now, step)
        self.steps[now] += moving.long()
        # Line 15 with the factor 1 + overshoot, and line 5: has the label changed?
        self._test(now)
        return now[moving & ~self.success[now] & (self.steps[now] < self.options.steps)]

    def restart(self, place: int, image: Tensor, label: Tensor) -> None:
        """Replace an image that is done by another one (C, H, W) with its label to leave."""
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
        """The nearest boundary between ``plus`` and ``minus``, linearised at ``points``."""
        known = self.lengths[now] if self.targets is None else None
        plane, lengths = nearest_hyperplane(
            logits,
            pull,
            plus,
            minus,
            norm=self.options.norm,
            project=lambda normals, rows: self._project(now[rows], points[rows], normals),
            again=lambda rows: linearise(self.model, points[rows])[1],
            prune=self.options.prune,
            known=known,
            spread=self.spread,
        )
        if self.targets is None:
            self.lengths[now] = lengths
        return plane

    def _offset(self, now: Tensor, *, overshot: bool) -> Tensor:
        """(n, C, H, W) the sum r, or (1 + overshoot) r, such that the images stay in ``clip``."""
        scale = 1 + self.options.overshoot if overshot else 1.0
        return confine(self.images[now], scale * self.sums[now], self.options.clip)

    def _project(self, now: Tensor, points: Images, normals: Tensor) -> Tensor:
        """The part of the gradients (n, K, C, H, W) at ``points`` that the steps follow.

        With a subspace, this is their projection (lines 9 and 10 of Algorithm 3). With ``clip``
        and a norm below 2, pixels that are held at their bound are left out: a step that insisted
        on them would never arrive.
        """
        options = self.options
        if options.clip is None or options.norm >= 2 or options.variant == "overshot":
            return self.project(normals, now)
        low, high = options.clip
        floor, ceiling = (points <= low)[:, None], (points >= high)[:, None]
        return normals.masked_fill((floor & (normals < 0)) | (ceiling & (normals > 0)), 0.0)

    def _moved(self, now: Tensor, step: Images) -> Images:
        """The sums of the images ``now`` after a step.

        The variant ``overshot`` clips the images only, not the sums.
        """
        sums = self.sums[now] + step
        return (
            sums
            if self.options.variant == "overshot"
            else confine(self.images[now], sums, self.options.clip)
        )

    def _enter(self, now: Tensor, logits: Logits) -> None:
        """Set labels, rivals and the slack of the images ``now`` from their clean logits."""
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
            self.lengths = logits.new_empty(len(self.images), count)
        self.lengths[now] = torch.nan
        self.rivals[now] = others.topk(count).indices
        gap = logits.gather(1, own)[:, 0] - others.amax(dim=1)
        eps = torch.finfo(logits.dtype).eps
        self.slack[now] = eps**0.5 * gap.abs() + 4 * eps * logits.abs().amax(dim=1)
        self.success[now] = self._is_reached(now, logits)

    def _pairs(self, now: Tensor, logits: Logits) -> tuple[Tensor, Tensor]:
        """The pairs of classes (n, K) whose boundaries count, as (plus, minus).

        All rivals against the label or, where there are targets, the target against the class with
        the largest of the other logits.
        """
        if self.targets is None:
            rivals = self.rivals[now]
            return rivals, self.labels[now, None].expand_as(rivals)
        target = self.targets[now, None]
        return target, logits.scatter(1, target, -torch.inf).argmax(dim=1, keepdim=True)

    def _step(self, plane: Hyperplanes) -> Tensor:
        """(n, C, H, W) the smallest step to the hyperplane (Equation 3.12)."""
        gaps = plane.gaps
        if self.options.variant == "overshot":
            gaps = gaps + EXTRA * norms(plane.normals, dual(self.options.norm))
        return hyperplane_step(gaps, plane.normals, self.options.norm)

    def _test(self, now: Tensor) -> None:
        """Test the labels of the images ``now`` at the point that the variant prescribes."""
        self.perturbations[now] = self._offset(now, overshot=True)
        on_sum = self.options.variant == "thesis"
        offset = self._offset(now, overshot=False) if on_sum else self.perturbations[now]
        with torch.no_grad():
            logits = class_logits(logits_at(self.model, self.images[now] + offset))
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
        """Whether the label leads by no more than the slack, or the target trails by no more."""
        chosen = self.labels[now, None] if self.targets is None else self.targets[now, None]
        lead = logits.gather(1, chosen)[:, 0] - logits.scatter(1, chosen, -torch.inf).amax(dim=1)
        near = lead <= self.slack[now] if self.targets is None else lead >= -self.slack[now]
        return near & torch.isfinite(logits).all(dim=1)
