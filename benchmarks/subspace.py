"""The cost of a DeepFool step in a random subspace, and of drawing the subspaces."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.timing import paired_seconds, ratios, spread
from robustness_geometry.attacks import deepfool
from robustness_geometry.geometry import RandomSubspaces, random_subspace
from robustness_geometry.randomness import per_image

__all__ = ["SHARES", "measure_subspaces", "paragraphs"]

Plain = Mapping[str, Any]

SHARES = (4, 16, 100)
"""Ratios d / m of the dimensions of the space and the subspaces."""

PLAIN = "plain"


def measure_subspaces(
    model: nn.Module, images: Tensor, *, batch: int, repeats: int
) -> dict[str, object]:
    """Time one DeepFool step in the whole space and in random subspaces, one per image, in turns.

    Args:
        model: the network.
        images: (N, C, H, W).
        batch: number of images at once.
        repeats: number of timed rounds.

    Returns:
        The seconds per image of a plain step, the ratio to it of a step in m of d dimensions, and
        the seconds per image of drawing the subspaces, beside those of dense bases by QR.
    """
    shape, d = tuple(images.shape[1:]), images[0].numel()
    parts = images.split(batch)
    drawn = {d // share: [_draw(shape, d // share, part) for part in parts] for share in SHARES}
    contestants: dict[str, Callable[[], object]] = {
        PLAIN: partial(_step, model, parts, [None] * len(parts))
    }
    contestants |= {f"m = {m}": partial(_step, model, parts, own) for m, own in drawn.items()}
    contestants |= {f"drawing, m = {m}": partial(_drawing, shape, m, parts) for m in drawn}
    contestants |= {
        f"drawing by QR, m = {m}": partial(_dense, d, m, min(len(images), 8)) for m in drawn
    }
    seconds = paired_seconds(contestants, repeats, images.device)
    each = {name: len(images) if "QR" not in name else min(len(images), 8) for name in seconds}
    return {
        "dimension": d,
        "plain_seconds": spread([value / each[PLAIN] for value in seconds[PLAIN]]),
        "step_over_plain": {
            f"m = {m}": spread(ratios(seconds[f"m = {m}"], seconds[PLAIN])) for m in drawn
        },
        "drawing_seconds": {
            name: spread([value / each[name] for value in values])
            for name, values in seconds.items()
            if name.startswith("drawing")
        },
    }


def _step(
    model: nn.Module, parts: tuple[Tensor, ...], subspaces: Sequence[RandomSubspaces | None]
) -> None:
    for part, own in zip(parts, subspaces, strict=True):
        deepfool(model, part, steps=1, subspace=own)


def _draw(shape: tuple[int, ...], m: int, images: Tensor) -> RandomSubspaces:
    channels, height, width = shape
    generators = per_image(0, "benchmark", range(len(images)))
    return RandomSubspaces((channels, height, width), m, generators, like=images[:0])


def _drawing(shape: tuple[int, ...], m: int, parts: tuple[Tensor, ...]) -> None:
    for part in parts:
        _draw(shape, m, part)


def _dense(d: int, m: int, count: int) -> None:
    for generator in per_image(0, "benchmark", range(count)):
        random_subspace(d, m, generator)


def paragraphs(results: Plain) -> list[str]:
    """The section of the report."""
    steps = ", ".join(
        f"{name} {each['median']:.2f} times ({each['min']:.2f} to {each['max']:.2f})"
        for name, each in results["step_over_plain"].items()
    )
    drawing = ", ".join(
        f"{name} {each['median'] * 1e3:.2f} ms" for name, each in results["drawing_seconds"].items()
    )
    return [
        "## DeepFool in random subspaces",
        "",
        f"A step in m of d = {results['dimension']} dimensions, each image with a subspace of its "
        "own, over a plain "
        f"step ({results['plain_seconds']['median'] * 1e3:.2f} ms per image): {steps}.",
        "",
        f"Drawing the subspaces, per image: {drawing}.",
    ]
