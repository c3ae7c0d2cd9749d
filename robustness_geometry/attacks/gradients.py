"""Logits and their gradients with respect to the image, without touching the model's parameters."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.checkpoint import CheckpointError

from robustness_geometry.attacks.convolutions import FastInputGradients
from robustness_geometry.checks import check_logits
from robustness_geometry.outputs import differentiate, logits_at, refuse_output_layer
from robustness_geometry.types import Classifier, Images, Labels, Logits, class_logits

__all__ = ["Pull", "class_gradients", "difference_gradients", "linearise", "loss_weights"]

Pull: TypeAlias = Callable[[Tensor], Tensor]
"""Maps weights c (N, classes) of the logits to the gradients of sum_k c_k f_k, (N, C, H, W)."""


def linearise(model: Classifier, points: Images) -> tuple[Logits, Pull]:
    """The logits at ``points``, and a function that turns weights of logits into gradients.

    pull(c) = sum_k c_k grad f_k(x), by one backward pass. Every image has its own gradient: the
    batch is summed, not averaged. Only the image gets a gradient, whether the parameters require
    one or not.

    Args:
        model: a classifier; logits f of shape (N, 1) become (0, f).
        points: x, (N, C, H, W).

    Returns:
        The logits (N, classes), without a graph, and ``pull``, which can be called any number of
        times.

    Raises:
        InputError: the model does not return (N, classes), its outputs are probabilities, or
            (raised by ``pull``) no gradient reaches the images.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks.gradients import linearise
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> logits, pull = linearise(model, torch.rand(1, 1, 4, 4))
        >>> gradient = pull(torch.tensor([[1.0, -1.0, 0.0]]))  # of f_0 - f_1
        >>> weight = model[1].weight
        >>> torch.equal(gradient.flatten(), weight[0] - weight[1])
        True
    """
    logits, leaf = _forward(model, points, FastInputGradients())

    def pull(weights: Tensor) -> Tensor:
        nonlocal logits, leaf
        try:
            return differentiate(model, logits, leaf, weights.to(logits), retain_graph=True)
        except CheckpointError:  # activations that are computed again are not as the fast ones
            logits, leaf = _forward(model, points, nullcontext())
            return differentiate(model, logits, leaf, weights.to(logits), retain_graph=True)

    return logits.detach(), pull


def _forward(
    model: Classifier, points: Images, mode: AbstractContextManager[object]
) -> tuple[Logits, Images]:
    """The logits with their graph, and the images that it starts from."""
    with torch.enable_grad(), mode:
        leaf = (points.clone() if points.is_inference() else points).detach().requires_grad_()
        raw = logits_at(model, leaf)
        if raw.ndim != 2 or len(raw) != len(points):
            check_logits(raw, len(points))
        refuse_output_layer(raw)
        return class_logits(raw), leaf


def difference_gradients(
    pull: Pull, classes: int, plus: Int[Tensor, "batch pairs"], minus: Int[Tensor, "batch pairs"]
) -> Float[Tensor, "batch pairs ..."]:
    """The gradients of f_plus - f_minus for several pairs of classes per image.

    Each pair takes one backward pass. On CPUs, passes one after another are as fast as batched
    ones, and they need no batching rules of the model's layers.

    Args:
        pull: from :func:`linearise`.
        classes: the number of logits.
        plus: (N, K) classes.
        minus: (N, K) classes.

    Returns:
        (N, K, C, H, W).
    """
    pairs = zip(plus.T, minus.T, strict=True)
    return torch.stack(
        [pull(one_hot(up, classes) - one_hot(down, classes)) for up, down in pairs], dim=1
    )


def class_gradients(
    model: Classifier, images: Images, classes: Int[Tensor, "batch chosen"]
) -> tuple[Logits, Float[Tensor, "batch chosen ..."]]:
    """The logits and the gradients of chosen logits with respect to the image.

    Args:
        model: a classifier.
        images: (N, C, H, W).
        classes: (N, K) the classes to differentiate, which may differ from image to image.

    Returns:
        The logits (N, classes), and the gradients grad f_k (N, K, C, H, W).
    """
    logits, pull = linearise(model, images)
    count = logits.shape[1]
    return logits, torch.stack([pull(one_hot(column, count)) for column in classes.T], dim=1)


def loss_weights(logits: Logits, labels: Labels) -> Logits:
    """Weights of the logits that give the direction of the gradient of the cross-entropy.

    grad J = sum_{k != y} p_k (grad f_k - grad f_y), here divided by 1 - p_y. The direction, which
    is all that the attacks use, stays the same, and it does not vanish where the softmax saturates.

    Args:
        logits: (N, classes).
        labels: (N,) y.

    Returns:
        (N, classes): the softmax over the classes k != y, and -1 at y.
    """
    own = one_hot(labels, logits.shape[1])
    return logits.masked_fill(own.bool(), -torch.inf).softmax(dim=1) - own
