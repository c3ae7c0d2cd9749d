"""AutoAttack through its package: the standard ensemble for evaluating defences."""

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustness_geometry.attacks.convolutions import FastInputGradients
from robustness_geometry.attacks.protocol import (
    Number,
    check_input,
    clean_labels,
    confine,
    judge,
    labels_at,
    nothing,
)
from robustness_geometry.checks import GivenLabels, check_positive, number, refuse
from robustness_geometry.extras import require
from robustness_geometry.norms import project
from robustness_geometry.outputs import logits_at, uncompiled
from robustness_geometry.randomness import Generators, seeded
from robustness_geometry.types import Classifier, Images, Logits, Perturbed, class_logits

__all__ = ["autoattack"]

BOX = (0.0, 1.0)
"""Range of pixels that the package assumes."""

STEPS = 100
"""Steps of each gradient attack of the ensemble, against each of its targets."""

TARGETS = 9
"""Number of runner-up classes that the targeted attacks aim at, where there are so many."""


def autoattack(
    model: Classifier,
    images: Images,
    *,
    eps: Number,
    norm: Number = math.inf,
    labels: GivenLabels = None,
    generator: Generators = None,
) -> Perturbed:
    """AutoAttack's standard ensemble inside the ball of radius ``eps`` and the box [0, 1].

    APGD on the cross-entropy, targeted APGD on the difference of logits ratio, targeted FAB, and
    Square with 5,000 queries; each attacks the images that those before it did not fool. The
    targeted ones aim at the 9 runner-up classes, or at all others where there are fewer; targeted
    APGD, whose loss needs four logits, is skipped where there are fewer.

    Images attacked together share random numbers: a result depends on the others in its batch,
    unlike those of this library's own attacks. Of several generators only the first is used.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W) in [0, 1].
        eps: radius of the ball, in pixel units.
        norm: 2 or inf.
        labels: (N,) labels to leave; None: the classifier's own.
        generator: generator of the seed of the ensemble; None starts from seed 0.

    Returns:
        Perturbed, with r = 0 for an image that withstood; ``steps`` counts gradient steps, of which
        Square has none.

    Raises:
        InputError: an option, an image or a logit that cannot be used, a model in training mode, or
            the package ``pyautoattack`` is not installed.

    References:
        Not in the thesis; a stronger check of the networks of Section 8.5.

        F. Croce, M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of
        diverse parameter-free attacks", ICML 2020, arXiv:2003.01690.

    Example:
        With no images there is nothing to attack, and the package is not needed:

        >>> import torch
        >>> from robustness_geometry.attacks import autoattack
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> len(autoattack(model, torch.rand(0, 1, 4, 4), eps="8/255").success)
        0
    """
    radius, p = check_positive("eps", eps), number("norm", norm)
    if p not in (2, math.inf):
        refuse("norm", norm, "2 or inf")
    model, images, labels, _ = check_input(model, images, clip=BOX, labels=labels)
    if not len(images):
        return nothing(images)
    labels = clean_labels(model, images, labels)
    found, _ = labels_at(model, images)
    moved, taken = images.float().clone(), torch.zeros_like(labels)
    waiting = (found == labels).nonzero()[:, 0]
    with _quiet(images.device), FastInputGradients():
        ensemble, attacks = _ensemble(model, images, radius, p, _seed(generator))
        for name, steps in attacks.items():
            if not len(waiting):
                break
            ensemble.attacks_to_run = [name]
            moved[waiting], reached = ensemble.run_standard_evaluation(
                images[waiting].float(), labels[waiting]
            )
            taken[waiting] += steps
            waiting = waiting[reached == labels[waiting]]
    perturbations = confine(images, project(moved.to(images) - images, radius, p), BOX)
    return judge(model, images, perturbations, labels, taken)


class _Network:
    """The network as the package calls it: float32 logits, and no gradients for the weights."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.dtype = model, images.dtype
        named = (*model.named_parameters(), *model.named_buffers())
        self.tensors = {name: tensor.detach() for name, tensor in named}

    def __call__(self, points: Tensor) -> Logits:
        points = points.to(self.dtype)
        if any(isinstance(layer, torch.jit.ScriptModule) for layer in self.model.modules()):
            logits = logits_at(self.model, points)  # whose weights cannot be replaced
        else:
            with uncompiled():
                logits = torch.func.functional_call(self.model, self.tensors, (points,))
        return class_logits(logits).float().clone()  # a copy: Square writes into the logits


def _ensemble(
    model: nn.Module, images: Images, eps: float, norm: float, seed: int
) -> tuple[Any, dict[str, int]]:
    """The package's object, and name -> gradient steps of the attacks to run with it."""
    package = require("pyautoattack", "autoattack")
    network = _Network(model, images)
    classes = network(images[:1].float()).shape[1]
    targets = min(TARGETS, classes - 1)
    name = "L2" if norm == 2 else "Linf"
    ensemble = package.AutoAttack(
        network, norm=name, eps=eps, seed=seed, device=images.device, version="standard"
    )
    ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = targets
    attacks = {"apgd-ce": STEPS, "apgd-t": STEPS * targets, "fab-t": STEPS * targets, "square": 0}
    if classes < 4:
        del attacks["apgd-t"]
    return ensemble, attacks


def _seed(generator: Generators) -> int:
    first = generator[0] if isinstance(generator, Sequence) else generator or seeded(0)
    return int(torch.randint(1 << 31, (1,), generator=first))


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """Undo the package's logging, its seeding of the process and its use of Python's trace."""
    logger, trace = logging.getLogger("auto-attack"), sys.gettrace()
    disabled, logger.disabled = logger.disabled, True
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        logger.disabled = disabled
        sys.settrace(trace)
