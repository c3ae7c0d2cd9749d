"""l2 DeepFool of the other libraries behind one signature, each adapted as little as possible."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PEERS", "Peer", "Whole", "Widened", "art_classifier"]

Box = tuple[float, float]
WIDE: Box = (-1000.0, 1000.0)
NARROW: Box = (-1.0, 2.0)


@dataclass(frozen=True)
class Peer:
    """Another library's l2 DeepFool.

    Attributes:
        name: name of the library.
        distribution: package that carries it, for its version.
        module: name that it is imported by.
        attack: (model, images, labels, clip) -> adversarial images; clip is whether to stay inside
            [0, 1].
        images: largest number of images that it is measured on; None: all.
        unclipped: options with which it works without clipping.
    """

    name: str
    distribution: str
    module: str
    attack: Callable[[nn.Module, Tensor, Tensor, bool], Tensor]
    images: int | None
    unclipped: str

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        return util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """The version of the installed package."""
        return metadata.version(self.distribution)


class Widened(nn.Module):
    """A network that reads images in [0, 1] as images in ``box``, for libraries that always clip.

    An l2 distance in its input is 1 / (high - low) of the distance in pixels. The box is kept
    narrow, since the 1e-4 that some libraries add to every step grows with it.
    """

    def __init__(self, model: nn.Module, box: Box) -> None:
        super().__init__()
        self.model = model
        self.low, self.width = box[0], box[1] - box[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the images that ``inputs`` in [0, 1] stand for."""
        logits: Tensor = self.model(self.pixels(inputs))
        return logits

    def pixels(self, inputs: Tensor) -> Tensor:
        """From [0, 1] to the box."""
        return inputs * self.width + self.low

    def inputs(self, pixels: Tensor) -> Tensor:
        """From the box to [0, 1]."""
        return (pixels - self.low) / self.width


class Whole(nn.Module):
    """A network as one module.

    ART takes an ``nn.Sequential`` apart and calls its layers, so that hooks on it see nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model(images)
        return logits


def _foolbox(model: nn.Module, images: Tensor, labels: Tensor, clip: bool) -> Tensor:
    import foolbox

    bounded = foolbox.PyTorchModel(model, bounds=(0.0, 1.0) if clip else WIDE, device=images.device)
    # run() does the work; calling the attack would add predictions that are not needed here.
    adversarial: Tensor = foolbox.attacks.L2DeepFoolAttack().run(bounded, images, labels)
    return adversarial


def _adv_lib(model: nn.Module, images: Tensor, labels: Tensor, clip: bool) -> Tensor:
    from adv_lib.attacks import df

    if clip:
        adversarial: Tensor = df(model, images, labels).detach()
        return adversarial
    widened = Widened(model, NARROW)
    return widened.pixels(df(widened, widened.inputs(images), labels).detach())


def art_classifier(model: nn.Module, images: Tensor, *, clip: bool) -> Any:
    """A network as ART takes it.

    Args:
        model: the network.
        images: (N, C, H, W) images that it takes.
        clip: whether attacks stay inside [0, 1].
    """
    import logging

    from art.estimators.classification import PyTorchClassifier

    # It warns about clip_values=None, which is wanted here.
    logging.getLogger("art").setLevel(logging.ERROR)
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    return PyTorchClassifier(
        Whole(model).eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0) if clip else None,
        device_type=images.device.type.replace("cuda", "gpu"),
    )


def _art(model: nn.Module, images: Tensor, labels: Tensor, clip: bool) -> Tensor:
    import numpy as np
    from art.attacks.evasion import DeepFool

    classifier = art_classifier(model, images, clip=clip)
    # One image at a time, as by default: in a batch every image waits for the slowest, which takes
    # 100 steps as a rule.
    attack = DeepFool(
        classifier, epsilon=0.02, nb_grads=classifier.nb_classes, batch_size=1, verbose=False
    )
    adversarial = attack.generate(np.ascontiguousarray(images.cpu().numpy()))
    return torch.as_tensor(adversarial, device=images.device)


def _torchattacks(model: nn.Module, images: Tensor, labels: Tensor, clip: bool) -> Tensor:
    import torchattacks

    if clip:
        adversarial: Tensor = torchattacks.DeepFool(model)(images, labels)
        return adversarial
    widened = Widened(model, NARROW).eval()
    return widened.pixels(torchattacks.DeepFool(widened)(widened.inputs(images), labels))


_WIDENED = f"always clips: given the box {list(NARROW)} of pixels as its [0, 1]"

PEERS = (
    Peer("foolbox", "foolbox", "foolbox", _foolbox, None, f"bounds {list(WIDE)}"),
    Peer("adv-lib", "adv-lib", "adv_lib", _adv_lib, None, _WIDENED),
    Peer(
        "ART",
        "adversarial-robustness-toolbox",
        "art",
        _art,
        32,
        "clip_values=None, its default batch_size=1",
    ),
    Peer("torchattacks", "torchattacks", "torchattacks", _torchattacks, 8, _WIDENED),
)
"""The other libraries, the fastest first."""
