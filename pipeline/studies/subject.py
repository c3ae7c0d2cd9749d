"""What the studies of every chapter measure on: one training seed of a network and its images."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.executor import Executor
from robustness_geometry.types import Classifier, Split

__all__ = ["Subject", "placed"]


@dataclass(frozen=True)
class Subject:
    """One training seed of a network, the images that make something and the images that judge it.

    What several experiments ask of a subject alike has the same key and is computed once.

    Attributes:
        model: the classifier.
        seed: its training seed.
        train: the images (n, C, H, W) and labels that a vector, a subspace or a fine-tuned network
            is made of, or that options are chosen on.
        test: the images (m, C, H, W) and labels on which the result is judged; none of them is in
            ``train``.
        executor: the executor, scoped to the experiment and this seed.
    """

    model: Classifier
    seed: int
    train: Split
    test: Split
    executor: Executor


def placed(tensor: Tensor, model: Classifier) -> Tensor:
    """``tensor`` on the device and in the dtype of the model's weights.

    For work outside ``executor.map``, which places its tensors itself. A model without weights
    takes the tensor as it is.
    """
    return tensor.to(next(iter(model.parameters()), tensor))
