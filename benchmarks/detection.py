"""The cost of Algorithm 6 beside the forward passes that it needs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.counting import count_passes
from benchmarks.timing import paired_seconds, ratios, spread
from robustness_geometry.detection import curvature_score
from robustness_geometry.geometry import default_h

__all__ = ["measure_detection", "paragraphs"]

Plain = Mapping[str, Any]

BATCHES = (128, 256, 512, 1024)
"""Batch sizes of the plain forward passes; the fastest one counts."""

SAMPLE = 10
"""Number of plain passes that are timed; the time of all is extrapolated."""


def measure_detection(
    model: nn.Module, images: Tensor, *, repeats: int, directions: int = 10
) -> dict[str, object]:
    """The time of the scores of ``images`` beside that of 2 T + 30 plain forward passes over them.

    Along the directions there are 2 T forward passes; the 30 stand for those along the normals, for
    the logits and for one gradient per rival class, each counted as one pass, with ten classes.

    Args:
        model: the network.
        images: (N, C, H, W).
        repeats: number of timed rounds, after one that is thrown away.
        directions: number T of directions.
    """
    h, needed = default_h(images[0].numel()), 2 * directions + 30
    score = partial(curvature_score, model, images, h=h, directions=directions)
    with count_passes(model) as passes:
        score()
    runs: dict[str, Callable[[], object]] = {
        f"{batch} at once": partial(_plain, model, images, batch) for batch in BATCHES
    }
    runs["score"] = score
    seconds = paired_seconds(runs, repeats, images.device)
    fastest = min(
        (name for name in runs if name != "score"), key=lambda name: spread(seconds[name])["median"]
    )
    plain = [needed / SAMPLE * second for second in seconds[fastest]]
    return {
        "images": len(images),
        "directions": directions,
        "forward": passes.forward / len(images),
        "backward": passes.backward / len(images),
        "passes_needed": needed,
        "fastest_plain": fastest,
        "seconds": spread(seconds["score"]),
        "plain_seconds": spread(plain),
        "ratio": spread(ratios(seconds["score"], plain)),
    }


def _plain(model: nn.Module, images: Tensor, batch: int) -> None:
    with torch.no_grad():
        for _ in range(SAMPLE):
            for part in images.split(batch):
                model(part)


def paragraphs(results: Plain) -> list[str]:
    """The measurements as lines of Markdown."""
    ratio, seconds = results["ratio"], results["seconds"]
    return [
        "## Detection",
        "",
        f"Algorithm 6 on {results['images']} images with T = {results['directions']} takes "
        f"{results['forward']:.0f} forward and {results['backward']:.0f} backward passes per image "
        "and "
        f"{seconds['median']:.2f} s ({seconds['min']:.2f} to {seconds['max']:.2f}): "
        f"**{ratio['median']:.2f}** "
        f"({ratio['min']:.2f} to {ratio['max']:.2f}) times the {results['passes_needed']} plain "
        "forward passes "
        f"(2 T + 30) over the same images ({results['fastest_plain']}, the fastest of "
        f"{len(BATCHES)} batch sizes).",
    ]
