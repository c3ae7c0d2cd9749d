"""Networks with random weights, and random images, that are the same on every device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robustness_geometry.models import resnet18, torchvision_model

__all__ = [
    "BRANCH",
    "FULL",
    "SMALL",
    "SPREAD",
    "Size",
    "network",
    "precision_of",
    "precisions",
    "smooth_images",
]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BRANCH = 0.25
"""Weight of the residual branches."""

SPREAD = 2.0
"""Standard deviation of the classes' mean logits, in units of the logits' over the images.

With this and ``BRANCH`` DeepFool takes about as many steps, of about the same length, as on trained
networks. Without them a random network is so sensitive to its input that rounding decides where its
nearest boundary is.
"""


@dataclass(frozen=True)
class Size:
    """A network, and how much is measured on it.

    Attributes:
        name: name of the network in the tables.
        build: function that builds the network, called like those of
            ``robustness_geometry.models``.
        side: height and width of the images, in pixels.
        classes: number of logits.
        images: number of images attacked at once.
        candidates: number of classes that take part in DeepFool where all would be too many (ten,
            as in foolbox); None: all.
        few: where ``candidates`` is given, number of images also attacked with all classes, since
            adv-lib always takes all.
        compared: number of images whose norms are compared with the CPU's.
        trained: number of images in a training step.
        curved: number of boundary points whose mean curvature is computed.
        leading: number of largest curvatures computed, at one point.
        profile: whether all principal curvatures are computed too, at one point.
        branch: suffix of the names of the batch normalisations that end a residual branch.
    """

    name: str
    build: Callable[..., nn.Module]
    side: int
    classes: int
    images: int
    candidates: int | None
    few: int
    compared: int
    trained: int
    curved: int
    leading: int
    profile: bool
    branch: str


FULL = (
    Size(
        name="ResNet-18, 32x32", build=resnet18, branch="body.4",
        side=32, classes=10, images=128, candidates=None, few=0, compared=16,
        trained=128, curved=16, leading=10, profile=True,
    ),
    Size(
        name="ResNet-50, 224x224",
        build=partial(torchvision_model, name="resnet50", weights=None), branch="bn3",
        side=224, classes=1000, images=16, candidates=10, few=2, compared=4,
        trained=32, curved=4, leading=10, profile=False,
    ),
)  # fmt: skip
SMALL = (
    Size(
        name="ResNet-18 of width 8, 8x8", build=partial(resnet18, width=8), branch="body.4",
        side=8, classes=10, images=4, candidates=None, few=0, compared=2,
        trained=4, curved=2, leading=2, profile=True,
    ),
    Size(
        name="ResNet-18 of torchvision, 32x32",
        build=partial(torchvision_model, name="resnet18", weights=None), branch="bn2",
        side=32, classes=12, images=2, candidates=10, few=1, compared=2,
        trained=2, curved=1, leading=2, profile=False,
    ),
)  # fmt: skip


def network(size: Size, device: torch.device) -> nn.Module:
    """The network of ``size`` in evaluation mode, with the same random weights on every device.

    Batch normalisation has the statistics of random images; ``BRANCH`` and ``SPREAD`` describe the
    remaining adjustments.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sides = (size.side, size.side)
        model = size.build(channels=3, size=sides, classes=size.classes, mean=MEAN, std=STD)
        model = model.to(device)
        offsets = torch.randn(size.classes).to(device)
    images = smooth_images(64, size.side, device, seed=0)
    with torch.no_grad():
        _normalise(model, images, size.branch)
        logits = model.eval()(images)
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        last.bias.add_(SPREAD * logits.std(dim=0).mean() * offsets - logits.mean(dim=0))
    return model.requires_grad_(False)


def _normalise(model: nn.Module, images: Tensor, branch: str) -> None:
    """Give batch normalisation the statistics of ``images``, and the branches their weight."""
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)
    }
    for name, layer in layers.items():
        layer.momentum = 1.0
        if name.endswith(branch):
            layer.weight.fill_(BRANCH)
    model.train()(images)
    for layer in layers.values():
        layer.momentum = 0.1


def smooth_images(count: int, side: int, device: torch.device, *, seed: int) -> Tensor:
    """Random images (count, 3, side, side) in [0, 1], the same on every device.

    Each one is interpolated from 8x8 random pixels.
    """
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return images.clamp(0, 1).to(device)


def precisions(device: torch.device) -> tuple[str, ...]:
    """Names of the precisions that are measured on ``device``."""
    return ("fp32", "tf32") if device.type == "cuda" else ("fp32",)


@contextmanager
def precision_of(name: str) -> Iterator[None]:
    """Single precision, with TF32 in matrix products and convolutions if ``name`` is tf32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
