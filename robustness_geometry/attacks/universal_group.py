"""Several universal perturbations of one classifier at once, each by Algorithm 4."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustness_geometry.attacks._deepfool_options import Options as DeepFoolOptions
from robustness_geometry.attacks._deepfool_options import check_prune
from robustness_geometry.attacks._look_ahead import FIRST, keeps_label, moved
from robustness_geometry.attacks.deepfool import Search
from robustness_geometry.attacks.hyperplanes import AUTO, Prune
from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    Number,
    check_clip,
    check_input,
    clean_labels,
    is_reached,
    labels_at,
)
from robustness_geometry.attacks.subspaces import projection_onto
from robustness_geometry.attacks.universal import Universal, check_ball
from robustness_geometry.checks import Described, check_count, check_positive, number, refuse
from robustness_geometry.norms import project
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Images, Labels

__all__ = ["Wanted", "universal_perturbations"]

BATCH = 256
"""Batch size for the fooling rate; it does not affect results."""


@dataclass(frozen=True)
class Wanted:
    """One of the universal perturbations to be found.

    Attributes:
        radius: xi of its ball, in pixel units.
        norm: p of the ball, 1, 2 or inf.
        members: indices of the images that make up its X; None takes all.
        generator: generator of the orders of X; None starts from seed 0.
    """

    radius: Number
    norm: Number = 2
    members: Sequence[int] | None = None
    generator: torch.Generator | None = None


def universal_perturbations(
    model: Classifier,
    images: Images,
    wanted: Sequence[Wanted],
    *,
    fooling_rate: Number = 0.8,
    passes: int = 10,
    steps: int = 10,
    overshoot: Number = 0.02,
    candidates: int | None = None,
    prune: Number | None = AUTO,
    clip: Bounds | None = None,
    look_ahead: int = 128,
) -> list[Universal]:
    """Find several universal perturbations of one classifier at once.

    Every vector goes through its own X in its own orders, one image at a time, as
    :func:`robustness_geometry.attacks.universal_perturbation` does. The logits and the DeepFool
    step that all vectors need at the same moment are computed together, so that K vectors cost far
    less than K times one. Each equals that of the single call but for the rounding of batches.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W), of which each X is a part.
        wanted: the balls, parts and orders.
        fooling_rate: 1 - delta, the share of each X to fool, between 0 and 1.
        passes: largest number of passes over X.
        steps: largest number of steps of DeepFool.
        overshoot: overshoot of DeepFool.
        candidates: number of classes that take part in DeepFool; None: all.
        prune: ``prune`` of DeepFool.
        clip: lowest and highest pixel value of x + v and of DeepFool's points; None does not clip.
        look_ahead: largest number of images on which one vector is tried at once.

    Returns:
        One Universal for each entry of ``wanted``.

    Raises:
        InputError: as for the single call; an X has fewer than two labels.

    References:
        Thesis: Section 4.2, Algorithm 4.

        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard, "Universal adversarial
        perturbations", CVPR 2017, arXiv:1610.08401.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks.universal_group import Wanted, universal_perturbations
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.randn(20, 1, 4, 4)
        >>> small, large = universal_perturbations(model, images, [Wanted(0.1), Wanted(2.0)])
        >>> bool(small.fooling_rate <= large.fooling_rate)
        True
    """
    share = number("fooling_rate", fooling_rate)
    if not 0 < share < 1:
        refuse("fooling_rate", fooling_rate, "a number between 0 and 1, neither included")
    options = _Options(
        fooling_rate=share,
        passes=check_count("passes", passes),
        steps=check_count("steps", steps),
        overshoot=check_positive("overshoot", overshoot, zero=True),
        candidates=None if candidates is None else check_count("candidates", candidates, minimum=2),
        prune=check_prune(prune),
        clip=check_clip(clip),
        look_ahead=check_count("look_ahead", look_ahead),
    )
    model, images, *_ = check_input(model, images, clip=options.clip)
    labels = clean_labels(model, images, None) if len(images) else torch.zeros(0, dtype=torch.int64)
    courses = [_Course(images, labels, each, options) for each in wanted]
    if courses:
        _run(model, images, labels, courses, options)
    return [course.result() for course in courses]


@dataclass(frozen=True)
class _Options:
    fooling_rate: float
    passes: int
    steps: int
    overshoot: float
    candidates: int | None
    prune: Prune
    clip: Clip
    look_ahead: int


def _run(
    model: Classifier,
    images: Images,
    labels: Labels,
    courses: Sequence["_Course"],
    options: _Options,
) -> None:
    """Take all courses to their ends, one DeepFool step of each at a time.

    None waits for another: a course whose image is done goes on to its next one while others still
    work on theirs.
    """
    at = DeepFoolOptions(
        norm=2.0,
        overshoot=options.overshoot,
        steps=options.steps,
        candidates=options.candidates,
        prune=options.prune,
        variant="clean",
        clip=options.clip,
    )
    places = torch.zeros(len(courses), *images.shape[1:], dtype=images.dtype, device=images.device)
    search = Search(
        model, places, at, projection_onto(None, places), labels.new_zeros(len(courses)), None
    )
    busy: set[int] = set()
    while True:
        # Algorithm 4, lines 4 to 6: every idle course goes to its next image that is not fooled.
        for place in _at_next_image(
            model, labels, courses, [k for k in range(len(courses)) if k not in busy]
        ):
            course = courses[place]
            search.restart(place, course.moved([course.current])[0], labels[course.current])
            busy.add(place)
        if not busy:
            return
        # Line 7: one step of DeepFool from x + v, for the images of all courses together.
        left = set(search.advance(torch.tensor(sorted(busy), device=images.device)).tolist())
        # Line 8: where DeepFool is done and has changed the label, v <- P(v + dv).
        success = search.success.tolist()
        for place in sorted(busy - left):
            if success[place]:
                courses[place].add(search.perturbations[place : place + 1].clone())
        busy = left


def _at_next_image(
    model: Classifier, labels: Labels, courses: Sequence["_Course"], idle: Sequence[int]
) -> list[int]:
    """Take the ``idle`` courses to the next image that their vector does not fool.

    Returns:
        The indices of those courses that are not over.
    """
    looking = [place for place in idle if not courses[place].done]
    while looking:
        for place in looking:
            if courses[place].is_pass_over:
                courses[place].end_pass(model)
        looking = [place for place in looking if not courses[place].done]
        blocks = [courses[place].upcoming() for place in looking]
        if not blocks:
            break
        points = torch.cat(
            [courses[place].moved(block) for place, block in zip(looking, blocks, strict=True)]
        )
        kept, _ = keeps_label(model, points, labels[[index for block in blocks for index in block]])
        answers = kept.split([len(block) for block in blocks])
        pairs = zip(looking, answers, strict=True)
        looking = [place for place, answer in pairs if not courses[place].look(answer.tolist())]
    return [place for place in idle if not courses[place].done]


class _Course:
    """One universal vector v and its progress through its X."""

    def __init__(self, images: Images, labels: Labels, wanted: Wanted, options: _Options) -> None:
        self.images, self.labels, self.options = images, labels, options
        self.norm, self.radius = check_ball(wanted.norm, wanted.radius, images[:1].numel())
        self.members = list(range(len(images)) if wanted.members is None else wanted.members)
        if len(labels[self.members].unique()) < 2:
            count = len(labels[self.members].unique())
            refuse(
                "images",
                Described(f"{len(self.members)} images of {count} labels"),
                "of at least two labels",
            )
        self.generator = wanted.generator or seeded(0)
        self.vector = self.best = torch.zeros_like(images[:1])
        self.history: list[float] = []
        self.counts: list[tuple[int, int]] = []
        self.done = self.reached = False
        self.current = -1
        self._begin_pass()

    def _begin_pass(self) -> None:
        order = torch.randperm(len(self.members), generator=self.generator).tolist()
        self.order = [self.members[place] for place in order]
        self.position = self.visits = self.updates = 0
        self.size = FIRST

    @property
    def is_pass_over(self) -> bool:
        """Whether every image of X has been looked at in this pass."""
        return self.position == len(self.order)

    def moved(self, indices: list[int]) -> Tensor:
        """The images of ``indices`` plus the current vector."""
        return moved(self.images[indices], self.vector, self.options.clip)

    def upcoming(self) -> list[int]:
        """The next images to look at: twice as many each time, until one is not fooled."""
        block = self.order[self.position : self.position + self.size]
        self.size = min(2 * self.size, max(self.options.look_ahead, 1))
        return block

    def look(self, kept: list[bool]) -> bool:
        """Go to the first upcoming image that keeps its label; return whether there is one."""
        found = next((place for place, keeps in enumerate(kept) if keeps), None)
        self.position += len(kept) if found is None else found + 1
        if found is None:
            return False
        self.current, self.size = self.order[self.position - 1], FIRST
        self.visits += 1
        return True

    def add(self, step: Tensor) -> None:
        """Set v <- P(v + dv) for the perturbation dv (1, C, H, W)."""
        self.vector = project(self.vector + step, self.radius, self.norm)
        self.updates += 1

    def end_pass(self, model: Classifier) -> None:
        """Measure the fooling rate, keep the best vector, and begin the next pass or stop."""
        self.counts.append((self.visits, self.updates))
        rate = self._rate(model)
        if rate > max(self.history, default=-1.0):
            self.best = self.vector
        self.history.append(rate)
        self.reached = rate >= self.options.fooling_rate
        self.done = self.reached or self.updates == 0 or len(self.history) == self.options.passes
        if not self.done:
            self._begin_pass()

    def _rate(self, model: Classifier) -> float:
        changed = 0
        for start in range(0, len(self.members), BATCH):
            part = self.members[start : start + BATCH]
            other, finite = labels_at(model, self.moved(part))
            changed += int((finite & is_reached(other, self.labels[part], None)).sum())
        return changed / len(self.members)

    def result(self) -> Universal:
        """The best vector at the end of a pass."""
        visits, updates = torch.tensor(self.counts).T
        history = torch.tensor(self.history, dtype=torch.float64)
        return Universal(self.best, history, visits, updates, torch.tensor(self.reached))
