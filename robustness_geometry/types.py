"""The tensors and results that every part of the library exchanges."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustness_geometry.checks import Described, refuse
from robustness_geometry.outputs import logits_at, unwrapped

__all__ = [
    "Attack",
    "Classifier",
    "Dataset",
    "Images",
    "Labels",
    "Logits",
    "Mask",
    "Network",
    "PerImage",
    "Perturbed",
    "Split",
    "Steps",
    "class_logits",
    "picture_shape",
    "predict",
]

Images: TypeAlias = Float[Tensor, "batch ..."]
Labels: TypeAlias = Int[Tensor, " batch"]
Logits: TypeAlias = Float[Tensor, "batch classes"]
Mask: TypeAlias = Bool[Tensor, " batch"]
PerImage: TypeAlias = Float[Tensor, " batch"]
Steps: TypeAlias = Int[Tensor, " batch"]
Classifier: TypeAlias = nn.Module
"""A module in evaluation mode that maps images (N, C, H, W) in [0, 1] to logits.

These are (N, classes), or (N, 1) for a binary classifier whose sign decides.
"""


@dataclass(frozen=True)
class Perturbed:
    """What an attack returns, one entry per image.

    Attributes:
        perturbations: (N, C, H, W), to be added to the images, in pixel units.
        labels: (N,) the labels under attack: the classifier's own on the clean images unless others
            were given.
        adversarial_labels: (N,) the labels of the perturbed images.
        success: (N,) whether the attack reached its goal; a failed or non-finite case is False.
        steps: (N,) number of gradient steps.
        alignment: (N,) how nearly the perturbations are smallest ones, from attacks that report it
            (see :func:`robustness_geometry.attacks.alignment`); None from others.
    """

    perturbations: Images
    labels: Labels
    adversarial_labels: Labels
    success: Mask
    steps: Steps
    alignment: PerImage | None = None

    def adversarial(self, images: Images) -> Images:
        """The perturbed images, ``images + perturbations``, (N, C, H, W)."""
        return images + self.perturbations


Attack: TypeAlias = Callable[[Classifier, Images], Perturbed]


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) in [0, 1] and their true labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Split":
        """The first ``count`` images (all of them when there are fewer)."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: name of the data set in results.
        train: the training images; empty for a data set that is only evaluated.
        test: the held-out images.
        classes: the class names, in the order of the labels.
        mean: per-channel mean of the training images, in pixel units.
        std: per-channel standard deviation, in pixel units.
        source: where the images come from, one line.
        notes: what a reader of results should know of how they were read, a line each.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image: channels, height and width, or that of another kind of input."""
        return tuple(self.test.images.shape[1:])

    @property
    def has_pictures(self) -> bool:
        """Whether its images are pictures, (C, H, W) with one or three channels."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3) and min(self.shape[1:]) > 1


@dataclass(frozen=True)
class Network:
    """A trained classifier: one model per training seed.

    All models are in evaluation mode and on the device that experiments run on.

    Attributes:
        name: name of the network in results, such as ``mnist5k_lenet``.
        dataset: name of the data set that it was trained on.
        models: training seed -> classifier.
        training: the recipe (optimiser, learning rate, epochs ...) as plain values; empty for
            pretrained weights.
        history: training seed -> {curve name: one value per epoch}.
    """

    name: str
    dataset: str
    models: Mapping[int, Classifier]
    training: Mapping[str, object] = field(default_factory=dict)
    history: Mapping[int, Mapping[str, list[float]]] = field(default_factory=dict)

    @property
    def model(self) -> Classifier:
        """The classifier of the first training seed."""
        return self.models[min(self.models)]


def picture_shape(data: Dataset) -> tuple[int, int, int]:
    """Channels, height and width of the pictures of a data set.

    Raises:
        InputError: its images are no pictures.
    """
    if not data.has_pictures:
        refuse("dataset", Described(f"{data.name} with inputs {data.shape}"), "one of pictures")
    channels, height, width = data.shape
    return channels, height, width


def class_logits(output: object) -> Tensor:
    """Logits with one column per class: (N, 1), whose sign decides, becomes (0, f).

    Args:
        output: what a network returns, as :func:`robustness_geometry.outputs.unwrapped` reads it.

    Example:
        >>> import torch
        >>> from robustness_geometry.types import class_logits
        >>> class_logits(torch.tensor([[2.5], [-1.0]])).tolist()
        [[0.0, 2.5], [0.0, -1.0]]
    """
    logits = unwrapped(output)
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def predict(model: Classifier, images: Images) -> Labels:
    """The labels (N,) that ``model`` gives to ``images``, computed without a graph.

    Example:
        >>> import torch
        >>> from robustness_geometry.types import predict
        >>> model = torch.nn.Flatten().eval()  # the pixels are the logits
        >>> predict(model, torch.tensor([0.0, 3.0, 1.0]).view(1, 1, 1, 3)).tolist()
        [1]
    """
    with torch.no_grad():
        labels: Tensor = class_logits(logits_at(model, images)).argmax(dim=1)
    return labels
