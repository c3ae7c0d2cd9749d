"""Universal perturbations: one vector that changes the labels of most images (Algorithm 4)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustness_geometry.attacks._look_ahead import LookAhead, keeps_label, moved
from robustness_geometry.attacks.deepfool import check_prune, deepfool
from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    Number,
    as_logits,
    check_clip,
    check_input,
    is_reached,
    labels_at,
)
from robustness_geometry.checks import Described, check_count, check_positive, number, refuse
from robustness_geometry.norms import project
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Images, Labels, Mask, Perturbed

__all__ = ["Universal", "check_ball", "fooled", "universal_perturbation"]

BATCH = 256
"""Images that are looked at at once where nothing depends on how many they are."""


@dataclass(frozen=True)
class Universal:
    """A universal perturbation and how it was found.

    Attributes:
        perturbation: (1, C, H, W) v, the best of those at the end of a pass, in pixel units.
        history: (passes,) share of X that v fooled after each pass, in float64.
        visits: (passes,) images that each pass found not fooled yet and gave to DeepFool.
        updates: (passes,) updates that each pass accepted.
        reached: () whether the last pass reached the fooling rate that was asked for.
    """

    perturbation: Images
    history: Float[Tensor, " passes"]
    visits: Int[Tensor, " passes"]
    updates: Int[Tensor, " passes"]
    reached: Bool[Tensor, ""]

    @property
    def fooling_rate(self) -> float:
        """Share of X that the perturbation fools."""
        return float(self.history.max())

    @property
    def passes(self) -> int:
        """Passes over X that were made."""
        return len(self.history)

    @property
    def stopped(self) -> str:
        """Why no further pass was made."""
        if bool(self.reached):
            return "fooling rate reached"
        return "all passes made" if bool(self.updates[-1]) else "no update accepted in a pass"


def universal_perturbation(
    model: Classifier,
    images: Images,
    *,
    norm: Number = 2,
    radius: Number,
    fooling_rate: Number = 0.8,
    passes: int = 10,
    batch_size: int = 1,
    steps: int = 10,
    overshoot: Number = 0.02,
    candidates: int | None = None,
    prune: Number | None = None,
    clip: Bounds | None = None,
    labels: Labels | None = None,
    look_ahead: int = 128,
    generator: torch.Generator | None = None,
) -> Universal:
    """Find one vector v, ||v||_p <= radius, that changes the labels of most of the images X.

    Each pass goes through X in a new random order and, for every x with label(x + v) = label(x),
    takes the l2 DeepFool step dv from x + v and sets v <- P(v + dv), P the Euclidean projection
    onto the l_p ball. Section 4.2, Algorithm 4. Steps that did not change the label are left out.
    The passes end once v fools the wanted share of X, or when a pass accepted no step, since the
    next would not either; the best v at the end of a pass is returned.

    With ``batch_size=1`` this is the algorithm of the thesis. x + v is evaluated for a block of
    images at once, to jump to the next one that is not fooled; near ties are evaluated one by one,
    so that v is, bit for bit, that of the plain loop, which ``look_ahead=1`` is. With
    ``batch_size=B`` DeepFool runs from the next B images that v does not fool at once; their steps
    are then added and projected in turn, each only if the v of that moment leaves its image
    unfooled.

    Args:
        model: a classifier in evaluation mode.
        images: X, (N, C, H, W), of at least two labels.
        norm: p of the ball, 1, 2 or inf; DeepFool's steps are smallest in l2 for every p (Equation
            4.1).
        radius: xi of the ball, in pixel units; at most the l_p norm of an image of ones.
        fooling_rate: 1 - delta, the share of X to fool, between 0 and 1.
        passes: the most passes over X.
        batch_size: images that DeepFool works on at once.
        steps: largest number of steps of DeepFool.
        overshoot: of DeepFool.
        candidates: classes that take part in DeepFool; None: all.
        prune: of DeepFool, leaves out gradients of classes that are unlikely to be the nearest;
            None: none.
        clip: lowest and highest pixel value of x + v and of DeepFool's points; None does not clip,
            as in the thesis.
        labels: (N,) the labels to change; None: the classifier's own.
        look_ahead: images evaluated at once, at most, to find those that are not fooled.
        generator: of the orders of X; None starts from seed 0.

    Returns:
        Universal; an image with logits at x + v that are not finite counts as not fooled and is
        passed over.

    Raises:
        InputError: an option, an image or a clean logit that cannot be used, images of fewer than
            two labels, or a model in training mode.

    Example:
        >>> found = universal_perturbation(model, train_images, radius=2.0)
        >>> fooled(model, test_images, found.perturbation).double().mean()
    """
    p, size = check_ball(norm, radius, math.prod(images.shape[1:]))
    options = Options(
        norm=p,
        radius=size,
        fooling_rate=_check_share("fooling_rate", fooling_rate),
        passes=check_count("passes", passes),
        batch_size=check_count("batch_size", batch_size),
        steps=check_count("steps", steps),
        overshoot=check_positive("overshoot", overshoot, zero=True),
        candidates=None if candidates is None else check_count("candidates", candidates, minimum=2),
        prune=check_prune(prune),
        clip=check_clip(clip),
        look_ahead=check_count("look_ahead", look_ahead),
    )
    check_input(model, images, clip=options.clip, labels=labels)
    images = images.detach()
    labels = _labels(model, images, labels)
    if len(labels.unique()) < 2:
        refuse(
            "images",
            Described(f"{len(images)} images of {len(labels.unique())} labels"),
            "images of at least two labels",
        )
    return _Search(model, images, labels, options, generator or seeded(0)).run()


def fooled(
    model: Classifier,
    images: Images,
    perturbation: Tensor,
    *,
    labels: Labels | None = None,
    clip: Bounds | None = None,
) -> Mask:
    """Which images change their label once one vector is added to all; the mean is the fooling rate (Section 4.2).

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        perturbation: v, (1, C, H, W), in pixel units.
        labels: (N,) the labels to change; None: the classifier's own.
        clip: lowest and highest pixel value of x + v; None does not clip.

    Returns:
        (N,); False where the logits at x + v are not finite.

    Raises:
        InputError: an option, an image or a clean logit that cannot be used, or a model in training
            mode.
    """
    box = check_clip(clip)
    check_input(model, images, clip=box, labels=labels)
    if perturbation.shape != (1, *images.shape[1:]):
        refuse(
            "perturbation.shape",
            tuple(perturbation.shape),
            f"(1, C, H, W) = {(1, *images.shape[1:])}",
        )
    labels = _labels(model, images, labels)
    return _fooled(model, images, perturbation, labels, box)


@dataclass(frozen=True)
class Options:
    """The checked options of a search, as :func:`universal_perturbation` explains them."""

    norm: float
    radius: float
    fooling_rate: float
    passes: int
    batch_size: int
    steps: int
    overshoot: float
    candidates: int | None
    prune: float | None
    clip: Clip
    look_ahead: int


def check_ball(norm: Number, radius: Number, pixels: int) -> tuple[float, float]:
    """Return p and the radius of the l_p ball that universal perturbations of so many pixels are projected onto.

    A ball larger than an image of ones holds every difference of two images: such a radius is in
    other units.
    """
    p, size = number("norm", norm), check_positive("radius", radius)
    if p not in (1, 2, math.inf):
        refuse("norm", norm, "1, 2 or inf")
    largest = pixels ** (1 / p)
    if size > largest:
        refuse("radius", radius, f"at most {largest:.6g}, the l_{p:g} norm of an image of ones")
    return p, size


def _check_share(key: str, value: Number) -> float:
    share = number(key, value)
    if not 0 < share < 1:
        refuse(key, value, "a number between 0 and 1, neither included")
    return share


def _labels(model: Classifier, images: Images, labels: Labels | None) -> Labels:
    """The labels to change, taken from the classifier where none are given; clean logits are held to be finite."""
    own = []
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        with torch.no_grad():
            logits = as_logits(model(images[part]), None if labels is None else labels[part])
        own.append(logits.argmax(dim=1))
    if labels is not None:
        return labels
    return torch.cat(own) if own else torch.zeros(0, dtype=torch.int64, device=images.device)


def _fooled(model: Classifier, images: Images, vector: Tensor, labels: Labels, clip: Clip) -> Mask:
    found = torch.zeros_like(labels, dtype=torch.bool)
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        other, finite = labels_at(model, moved(images[part], vector, clip))
        found[part] = finite & is_reached(other, labels[part], None)
    return found


class _Search:
    """The vector v and the passes over X that improve it."""

    def __init__(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        options: Options,
        generator: torch.Generator,
    ) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.options, self.generator = options, generator
        self.vector = torch.zeros_like(images[:1])

    def run(self) -> Universal:
        """Make passes until the fooling rate is reached, no update is accepted or all passes are made."""
        history: list[float] = []
        counts: list[tuple[int, int]] = []
        best, reached = self.vector, False
        for _ in range(self.options.passes):
            counts.append(self._pass())
            rate = self._rate()
            if rate > max(history, default=-1.0):
                best = self.vector
            history.append(rate)
            reached = rate >= self.options.fooling_rate
            if reached or counts[-1][1] == 0:
                break
        visits, updates = (torch.tensor(count) for count in zip(*counts, strict=True))
        return Universal(
            best, torch.tensor(history, dtype=torch.float64), visits, updates, torch.tensor(reached)
        )

    def _rate(self) -> float:
        found = _fooled(self.model, self.images, self.vector, self.labels, self.options.clip)
        return float(found.double().mean())

    def _pass(self) -> tuple[int, int]:
        """Go through X once, in a new order; return how many images DeepFool was given, and the updates accepted."""
        size = self.options.batch_size
        order = torch.randperm(len(self.images), generator=self.generator).tolist()
        clip, most = self.options.clip, self.options.look_ahead
        ahead = LookAhead(self.model, self.images, self.labels, clip, order, most=most)
        visits = updates = 0
        while group := ahead.take(self.vector, size):
            accepted = self._add_in_turn(group, self._deepfool(group))
            visits, updates = visits + len(group), updates + accepted
            if accepted:
                ahead.forget()
        return visits, updates

    def _deepfool(self, group: list[int]) -> Perturbed:
        options = self.options
        return deepfool(
            self.model,
            moved(self.images[group], self.vector, options.clip),
            steps=options.steps,
            overshoot=options.overshoot,
            candidates=options.candidates,
            prune=options.prune,
            clip=options.clip,
            labels=self.labels[group],
        )

    def _add_in_turn(self, group: list[int], found: Perturbed) -> int:
        """Add and project the steps of a group in turn, each only if its image is not fooled yet; return how many.

        Which images the steps before theirs fool is guessed at first. What v would be at each image
        is then known, and
        all images are looked at together: up to the first that was guessed wrongly, all was right.
        The rest is taken to be as it was just seen, and looked at again.
        """
        rows = [row for row, success in enumerate(found.success.tolist()) if success]
        images, steps = (
            [group[row] for row in rows],
            [found.perturbations[row : row + 1] for row in rows],
        )
        guess, updates = self._guess(steps), 0
        while images:
            vectors = self._course(steps, guess)
            seen = guess[:1] + self._unfooled(images[1:], vectors[1:-1])
            wrong = [
                at for at, pair in enumerate(zip(guess, seen, strict=True)) if len(set(pair)) > 1
            ]
            right = wrong[0] if wrong else len(images)
            self.vector = vectors[right]
            updates += sum(guess[:right])
            images, steps, guess = images[right:], steps[right:], seen[right:]
        return updates

    def _guess(self, steps: list[Tensor]) -> list[bool]:
        """Which images v does not fool when their turn comes, if the boundaries that the steps cross were planes.

        A step r is 1 + overshoot times what leads to its plane, which a move dv of v has crossed
        once (1 + overshoot) <dv, r> >= ||r||^2. The first image is known not to be fooled.
        """
        vector, guess = self.vector, list[bool]()
        for step in steps:
            along = ((vector - self.vector) * step).sum() * (1 + self.options.overshoot)
            guess.append(not guess or bool(along < step.square().sum()))
            vector = self._added(vector, step) if guess[-1] else vector
        return guess

    def _course(self, steps: list[Tensor], unfooled: list[bool]) -> list[Tensor]:
        """What v is before each of the images and after the last, if those are the ones it does not fool."""
        vectors = [self.vector]
        for step, added in zip(steps, unfooled, strict=True):
            vectors.append(self._added(vectors[-1], step) if added else vectors[-1])
        return vectors

    def _added(self, vector: Tensor, step: Tensor) -> Tensor:
        return project(vector + step, self.options.radius, self.options.norm)

    def _unfooled(self, indices: list[int], vectors: list[Tensor]) -> list[bool]:
        """Which of the images are not fooled, each by its own vector."""
        if not indices:
            return []
        points = moved(self.images[indices], torch.cat(vectors), self.options.clip)
        kept, _ = keeps_label(self.model, points, self.labels[indices])
        return kept.tolist()
