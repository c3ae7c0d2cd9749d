"""Finding the images that one vector does not fool, in blocks, as if taken one at a time."""

from collections import deque

import torch
from torch import Tensor

from robustness_geometry.attacks.protocol import Clip
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Classifier, Images, Labels, Logits, Mask, class_logits

__all__ = ["FIRST", "LookAhead", "keeps_label", "moved"]

NEAR = 1e-3
"""Relative margin of the largest logit below which rounding might decide the label.

It is a share of the largest absolute logit, or of 1 where that is smaller.
"""

FIRST = 2
"""Size of the first block on a CPU; each further one is twice as large until the vector changes."""


def moved(images: Images, vectors: Tensor, clip: Clip) -> Images:
    """Images x + v, clipped: (N, C, H, W) for vectors (N, C, H, W) or (1, C, H, W)."""
    points = images + vectors
    return points if clip is None else points.clamp(*clip)


def keeps_label(model: Classifier, points: Images, labels: Labels) -> tuple[Mask, Logits]:
    """Whether ``model`` gives ``labels`` (N,) to ``points`` by finite logits, and the logits."""
    with torch.no_grad():
        logits = class_logits(logits_at(model, points))
    return torch.isfinite(logits).all(dim=1) & (logits.argmax(dim=1) == labels), logits


class LookAhead:
    """The images of one pass in their order, from which those not fooled by a vector are taken.

    The logits of a batch differ in rounding from those of a single image. A label that this might
    decide is computed again, alone, so that the images taken do not depend on the blocks.
    """

    def __init__(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clip: Clip,
        order: list[int],
        *,
        most: int,
    ) -> None:
        self.model, self.images, self.labels, self.clip = model, images, labels, clip
        self.order, self.position = order, 0
        # Where every call has to wait for the device, a long block costs what a short one does.
        self.first = FIRST if images.device.type == "cpu" else most
        self.most, self.size = most, self.first
        self.seen: deque[tuple[bool, bool]] = deque()

    def take(self, vector: Tensor, count: int) -> list[int]:
        """The next images that ``vector`` does not fool, at most ``count``.

        Args:
            vector: (1, C, H, W); if it has changed since the last call, call :meth:`forget` first.
            count: number of images wanted.

        Returns:
            Their indices; none once the pass is over.
        """
        taken: list[int] = []
        while len(taken) < count and self.position < len(self.order):
            if not self.seen:
                self._look(vector, count - len(taken))
            index = self.order[self.position]
            kept, sure = self.seen.popleft()
            if kept if sure else self._keeps_alone(vector, index):
                taken.append(index)
            self.position += 1
        return taken

    def forget(self) -> None:
        """Forget the labels that were computed with another vector."""
        self.seen.clear()
        self.size = self.first

    def _look(self, vector: Tensor, wanted: int) -> None:
        now = self.order[self.position : self.position + min(max(self.size, wanted), self.most)]
        self.size *= 2
        kept, logits = keeps_label(
            self.model, moved(self.images[now], vector, self.clip), self.labels[now]
        )
        top = logits.topk(2, dim=1).values
        near = NEAR * logits.abs().amax(dim=1).clamp_min(1)
        # Written so that NaN is no certainty either.
        sure = top[:, 0] - top[:, 1] >= near if len(now) > 1 else torch.ones_like(kept)
        self.seen.extend(zip(kept.tolist(), sure.tolist(), strict=True))

    def _keeps_alone(self, vector: Tensor, index: int) -> bool:
        one = slice(index, index + 1)
        kept, _ = keeps_label(
            self.model, moved(self.images[one], vector, self.clip), self.labels[one]
        )
        return bool(kept)
