"""Universal perturbations: one vector that changes the labels of most images (Algorithm 4)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustness_geometry.attacks._deepfool_options import check_prune
from robustness_geometry.attacks._look_ahead import LookAhead, keeps_label, moved
from robustness_geometry.attacks.deepfool import deepfool
from robustness_geometry.attacks.fooling import fooled_by, labels_to_change
from robustness_geometry.attacks.hyperplanes import AUTO, Prune
from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    Number,
    check_clip,
    check_input,
)
from robustness_geometry.checks import (
    Described,
    GivenLabels,
    check_count,
    check_positive,
    number,
    refuse,
)
from robustness_geometry.norms import project
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Images, Labels, Perturbed

__all__ = ["Universal", "check_ball", "universal_perturbation"]


@dataclass(frozen=True)
class Universal:
    """A universal perturbation and how it was found.

    Attributes:
        perturbation: (1, C, H, W) v, the best of those at the end of a pass, in pixel units.
        history: (passes,) share of X that v fooled after each pass, in float64.
        visits: (passes,) number of images that were not fooled yet and went to DeepFool.
        updates: (passes,) number of updates of v.
        reached: () whether the wanted fooling rate was reached.
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
        """Number of passes over X."""
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
    prune: Number | None = AUTO,
    clip: Bounds | None = None,
    labels: GivenLabels = None,
    look_ahead: int = 128,
    generator: torch.Generator | None = None,
) -> Universal:
    """Find one vector v, ||v||_p <= radius, that changes the labels of most of the images X.

    Each pass goes through X in a new random order. For every x with label(x + v) = label(x), it
    takes the l2 DeepFool perturbation dv of x + v and sets v <- P(v + dv), where P is the Euclidean
    projection onto the l_p ball. A dv that does not change the label is not added. The passes end
    once v fools the wanted share of X, or after a pass without an update, since the next one would
    have none either. The best v at the end of a pass is returned.

    With ``batch_size=1`` this is the algorithm of the thesis. The labels at x + v are computed for
    a block of images at once, to find the next image that is not fooled; near ties are computed
    again one by one, so that v is, bit for bit, that of the plain loop (``look_ahead=1``). With
    ``batch_size=B``, DeepFool runs from the next B images that are not fooled at once; their
    perturbations are then added and projected in turn, each only if the current v does not fool
    its image.

    Args:
        model: a classifier in evaluation mode.
        images: X, (N, C, H, W), of at least two labels.
        norm: p of the ball, 1, 2 or inf; DeepFool's steps are smallest in l2 for every p (Equation
            4.1).
        radius: xi of the ball, in pixel units; at most the l_p norm of an image of ones.
        fooling_rate: 1 - delta, the share of X to fool, between 0 and 1.
        passes: largest number of passes over X.
        batch_size: number of images that DeepFool works on at once.
        steps: largest number of steps of DeepFool.
        overshoot: overshoot of DeepFool.
        candidates: number of classes that take part in DeepFool; None: all.
        prune: ``prune`` of DeepFool, which skips gradients of classes that are unlikely to be the
            nearest; auto, a number of at least 1, or None, which skips none.
        clip: lowest and highest pixel value of x + v and of DeepFool's points; None does not clip,
            as in the thesis.
        labels: (N,) the labels to change; None: the classifier's own.
        look_ahead: largest number of images evaluated at once to find those that are not fooled.
        generator: generator of the orders of X; None starts from seed 0.

    Returns:
        Universal; an image with logits at x + v that are not finite counts as not fooled and is
        passed over.

    Raises:
        InputError: an option, an image or a clean logit that cannot be used, images of fewer than
            two labels, or a model in training mode.

    References:
        Thesis: Section 4.2, Algorithm 4 and Equation 4.1.

        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard, "Universal adversarial
        perturbations", CVPR 2017, arXiv:1610.08401.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import fooled, universal_perturbation
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.randn(40, 1, 4, 4)
        >>> found = universal_perturbation(model, images[:20], radius=2.0)
        >>> bool(found.perturbation.norm() <= 2.001)
        True
        >>> share = fooled(model, images[20:], found.perturbation).double().mean()
        >>> bool(0 <= share <= 1)
        True
    """
    box = check_clip(clip)
    model, images, labels, _ = check_input(model, images, clip=box, labels=labels)
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
        clip=box,
        look_ahead=check_count("look_ahead", look_ahead),
    )
    labels = labels_to_change(model, images, labels)
    if len(labels.unique()) < 2:
        refuse(
            "images",
            Described(f"{len(images)} images of {len(labels.unique())} labels"),
            "of at least two labels",
        )
    return _Search(model, images, labels, options, generator or seeded(0)).run()


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
    prune: Prune
    clip: Clip
    look_ahead: int


def check_ball(norm: Number, radius: Number, pixels: int) -> tuple[float, float]:
    """Return p and the radius of the l_p ball that universal perturbations are projected onto.

    A ball larger than an image of ones holds every difference of two images: such a radius is in
    other units than pixels in [0, 1].

    Args:
        norm: p, which must be 1, 2 or inf.
        radius: radius of the ball, in pixel units.
        pixels: number of values of an image, C * H * W.

    Raises:
        InputError: another norm, or a radius that is not positive or too large.
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
        """Make passes until v fools enough images, a pass changes nothing, or all are made."""
        history: list[float] = []
        counts: list[tuple[int, int]] = []
        best, reached = self.vector, False  # Algorithm 4, line 3: v = 0
        # Line 4: pass over X until v fools the wanted share of it.
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
        found = fooled_by(self.model, self.images, self.vector, self.labels, self.options.clip)
        return float(found.double().mean())

    def _pass(self) -> tuple[int, int]:
        """Go through X once, in a new random order (Algorithm 4, lines 5 to 10).

        Returns:
            The number of images that went to DeepFool, and the number of updates of v.
        """
        size = self.options.batch_size
        order = torch.randperm(len(self.images), generator=self.generator).tolist()
        clip, most = self.options.clip, self.options.look_ahead
        ahead = LookAhead(self.model, self.images, self.labels, clip, order, most=most)
        visits = updates = 0
        # Lines 5 and 6: the next images, in this order, that v does not fool.
        while group := ahead.take(self.vector, size):
            # Lines 7 and 8: DeepFool from x + v, then v <- P(v + dv).
            accepted = self._add_in_turn(group, self._deepfool(group))
            visits, updates = visits + len(group), updates + accepted
            if accepted:  # the labels seen with the v before no longer count
                ahead.forget()
        return visits, updates

    def _deepfool(self, group: list[int]) -> Perturbed:
        """The minimal perturbations dv of x + v for the images of ``group`` (line 7)."""
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
        """Add and project the perturbations of a group in turn (line 8).

        Each is added only if the v of its turn does not fool its image. With one image per group
        that is known; with more, it is first guessed for every image. The guesses determine v at
        each turn, so that all labels can be computed in one batch. Up to the first wrong guess the
        sequence is right and is kept; from there on the labels just seen are the next guesses.

        Args:
            group: indices of the images.
            found: what DeepFool returned for them.

        Returns:
            The number of perturbations that were added.
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
        """Guess which images v does not fool at their turn, as if all boundaries were planes.

        A step r is 1 + overshoot times the way to its plane, so a move dv of v has crossed that
        plane once (1 + overshoot) <dv, r> >= ||r||^2. The first image is known not to be fooled.
        """
        vector, guess = self.vector, list[bool]()
        for step in steps:
            along = ((vector - self.vector) * step).sum() * (1 + self.options.overshoot)
            guess.append(not guess or bool(along < step.square().sum()))
            vector = self._added(vector, step) if guess[-1] else vector
        return guess

    def _course(self, steps: list[Tensor], unfooled: list[bool]) -> list[Tensor]:
        """The values of v before each image and after the last, if ``unfooled`` is right."""
        vectors = [self.vector]
        for step, added in zip(steps, unfooled, strict=True):
            vectors.append(self._added(vectors[-1], step) if added else vectors[-1])
        return vectors

    def _added(self, vector: Tensor, step: Tensor) -> Tensor:
        """P(v + dv), in the ball."""
        return project(vector + step, self.options.radius, self.options.norm)

    def _unfooled(self, indices: list[int], vectors: list[Tensor]) -> list[bool]:
        """Which of the images are not fooled, each by the vector at its place."""
        if not indices:
            return []
        points = moved(self.images[indices], torch.cat(vectors), self.options.clip)
        kept, _ = keeps_label(self.model, points, self.labels[indices])
        return kept.tolist()
