"""The cost of a CURE step beside a plain step, a step of PGD training, and its own passes."""

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import paired_seconds, ratios, spread
from robustness_geometry.attacks import pgd
from robustness_geometry.training import Adversarial, CrossEntropy, Cure, Recipe
from robustness_geometry.training.loop import optimiser_of
from robustness_geometry.training.objectives import Step

__all__ = [
    "CURE",
    "EPS",
    "OBJECTIVES",
    "PGD",
    "PLAIN",
    "STEPS",
    "H",
    "fresh",
    "measure_cure",
    "paragraphs",
    "training_step",
]

Plain = Mapping[str, Any]

BATCH, EPS, WEIGHT, H = 64, 0.15, 4.0, 1.5
STEPS = 10
"""Steps of PGD."""

PLAIN, CURE, PGD, PASSES = (
    "plain step",
    "CURE step",
    f"PGD({STEPS}) step",
    "CURE's passes, one by one",
)
OBJECTIVES: dict[str, CrossEntropy] = {
    PLAIN: CrossEntropy(),
    CURE: Cure(weight=WEIGHT, h=H, ramp=0),
    PGD: Adversarial(partial(pgd, eps=EPS, steps=STEPS)),
}
SHARED = ("gradient at x", "gradient at x + h z", "backward pass through both")
SEPARATE = ("forward pass in training mode", *SHARED)


def measure_cure(
    models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, *, repeats: int
) -> dict[str, Any]:
    """Time a training step of each objective and CURE's passes on every network, in turns.

    Args:
        models: name -> network; those whose layers differ in training mode need a forward pass of
            their own for the cross-entropy.
        images: (N, C, H, W), N >= 64.
        labels: (N,).
        repeats: timed rounds.

    Returns:
        For each network the seconds of a step and of each pass, and the ratios of CURE's step to a
        plain step, to PGD's and to the sum of its passes.
    """
    return {
        name: _measure(model, images[:BATCH], labels[:BATCH], repeats)
        for name, model in models.items()
    }


def _measure(model: nn.Module, images: Tensor, labels: Tensor, repeats: int) -> dict[str, Any]:
    names = (
        SEPARATE
        if any(isinstance(layer, nn.BatchNorm2d | nn.Dropout) for layer in model.modules())
        else SHARED
    )
    parts: dict[str, list[float]] = {name: [] for name in names}
    contestants: dict[str, Callable[[], object]] = {
        name: partial(training_step, *fresh(model), images, labels, objective)
        for name, objective in OBJECTIVES.items()
    }
    contestants[PASSES] = partial(_passes, fresh(model)[0], images, labels, parts)
    seconds = paired_seconds(contestants, repeats, images.device)
    parts = {
        name: found[-repeats:] for name, found in parts.items()
    }  # without the round that is thrown away
    needed = [sum(found) for found in zip(*parts.values(), strict=True)]
    return {
        "batch": len(images),
        "seconds": {name: spread(found) for name, found in seconds.items() if name != PASSES},
        "passes": {name: spread(found) for name, found in parts.items()},
        "of_plain": spread(ratios(seconds[CURE], seconds[PLAIN])),
        "of_pgd": spread(ratios(seconds[CURE], seconds[PGD])),
        "of_passes": spread(ratios(seconds[CURE], needed)),
    }


def fresh(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A trainable copy of ``model`` as the training loop makes it, and its optimiser."""
    copied = copy.deepcopy(model).requires_grad_(True).to(memory_format=torch.channels_last)
    return copied, optimiser_of(
        copied, Recipe(optimiser="adam", learning_rate=1e-6, weight_decay=0.0)
    )


def training_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    objective: CrossEntropy,
) -> None:
    """One step of training ``model`` on images (N, C, H, W) with labels (N,)."""
    loss = objective.loss(
        Step(model.train(), images, labels, 1.0, torch.Generator().manual_seed(0))
    )
    optimiser.zero_grad(set_to_none=True)
    loss.total.backward(inputs=list(model.parameters()))
    optimiser.step()


def _passes(
    model: nn.Module, images: Tensor, labels: Tensor, parts: dict[str, list[float]]
) -> None:
    """The forward and backward passes of CURE's step and nothing else, each one timed."""
    clock = _Clock(images.device, parts)
    entropy = nn.functional.cross_entropy
    total = torch.zeros((), device=images.device)
    if SEPARATE[0] in parts:
        total = clock.timed(SEPARATE[0], lambda: entropy(model.train()(images), labels))
    model.eval()
    (here, own), points = clock.timed(SHARED[0], partial(_gradient, model, images, labels)), images
    if SEPARATE[0] not in parts:
        total = own / len(images)
    signs = here.detach().sign()
    points = images + H * signs / signs.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    there, _ = clock.timed(SHARED[1], partial(_gradient, model, points, labels))
    model.zero_grad(set_to_none=True)
    penalty = (there - here).square().sum() / len(images)
    total = total + WEIGHT * penalty
    clock.timed(SHARED[2], partial(total.backward, inputs=list(model.parameters())))


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.detach().requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), labels, reduction="sum")
    return torch.autograd.grad(loss, leaf, create_graph=True)[0], loss


class _Clock:
    """Notes the seconds of each part."""

    def __init__(self, device: torch.device, parts: dict[str, list[float]]) -> None:
        self.device, self.parts = device, parts

    def timed(self, name: str, function: Callable[[], Any]) -> Any:
        self._wait()
        start = time.perf_counter()
        value = function()
        self._wait()
        self.parts[name].append(time.perf_counter() - start)
        return value

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


LEGEND = (
    "A training step on {batch} digits, with its optimiser. CURE keeps the graph of both "
    "gradients; its passes are "
    "timed one by one, and networks whose layers differ in training mode need one forward pass "
    "more."
)


def paragraphs(results: Plain) -> list[str]:
    """The section of the report."""
    batch = next(iter(results.values()))["batch"]
    lines = ["## Steps of curvature regularisation (CURE)", "", LEGEND.format(batch=batch), ""]
    lines += [
        f"| network | {PLAIN} | {CURE} | {PGD} | of a plain step | of PGD({STEPS})'s | of its "
        "passes |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, found in results.items():
        cells = [f"{found['seconds'][each]['median'] * 1e3:.0f} ms" for each in (PLAIN, CURE, PGD)]
        cells += [_ratio(found[key]) for key in ("of_plain", "of_pgd", "of_passes")]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    for name, found in results.items():
        parts = ", ".join(
            f"{part} {each['median'] * 1e3:.1f} ms" for part, each in found["passes"].items()
        )
        lines += ["", f"{name}: {parts}."]
    return lines


def _ratio(values: Plain) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"
