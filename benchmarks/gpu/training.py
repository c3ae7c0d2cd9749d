"""Steps of plain, CURE and PGD training."""

from functools import partial

from torch import Tensor, nn

from benchmarks.comparison import Subject
from benchmarks.cure import OBJECTIVES, PGD, PLAIN, H, fresh, training_step
from benchmarks.gpu.blocks import Block, Contestant
from benchmarks.gpu.networks import Size, smooth_images
from robustness_geometry.training import cure_penalty
from robustness_geometry.types import predict

__all__ = ["training_block"]

PENALTY = "cure_penalty and its gradient"


def training_block(size: Size, subject: Subject) -> Block:
    """A step of each kind of training, and CURE's penalty with its gradient in the weights."""
    images = smooth_images(size.trained, size.side, subject.images.device, seed=2)
    labels = predict(subject.model, images)
    rows = []
    for name, objective in OBJECTIVES.items():
        step = partial(training_step, *fresh(subject.model), images, labels, objective)
        rows.append(Contestant(name, len(images), step))
    penalty = partial(_penalty, fresh(subject.model)[0], images, labels)
    rows.append(Contestant(PENALTY, len(images), penalty, lambda value: {"value": value}))
    return Block(rows, [PLAIN, PGD])


def _penalty(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.zero_grad(set_to_none=True)
    value = cure_penalty(model, images, labels, h=H)
    value.backward()
    return float(value.detach())
