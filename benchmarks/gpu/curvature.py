"""Curvatures of the boundary beside plain gradients."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.blocks import Block, Contestant, average
from benchmarks.gpu.networks import Size
from robustness_geometry.geometry import (
    Boundary,
    Curvatures,
    MeanCurvature,
    leading_curvatures,
    mean_curvature,
    principal_curvatures,
)
from robustness_geometry.geometry.normals import passes_at_once

__all__ = ["SAMPLES", "curvature_block"]

GRADIENTS = "plain gradients"
SAMPLES = 10
"""Number of directions of a mean curvature."""


def curvature_block(size: Size, model: nn.Module, points: Boundary) -> Block:
    """Curvatures beside as many plain gradients as the most expensive one takes at most.

    The points were computed in single precision; in TF32 they may lie farther from the boundary
    than usual, so that no tolerance is set.
    """
    if not len(points):
        raise ValueError("no boundary point was found")
    one = points.select(torch.zeros(1, dtype=torch.int64, device=points.labels.device))
    count = 2 * (one.points.numel() if size.profile else 15 * size.leading)
    rows = [Contestant(GRADIENTS, 1, partial(_gradients, model, one, count), model=model)]
    if size.profile:
        run = _at(principal_curvatures, model, one)
        rows.append(Contestant("principal_curvatures", 1, run, _summary, model))
    run = _at(leading_curvatures, model, one, count=size.leading)
    rows.append(Contestant(f"leading_curvatures, count={size.leading}", 1, run, _summary, model))
    run = _at(mean_curvature, model, points, samples=SAMPLES)
    name = f"mean_curvature, samples={SAMPLES}"
    rows.append(Contestant(name, len(points), run, _summary, model))
    return Block(rows, [GRADIENTS])


def _at(
    function: Callable[..., Any], model: nn.Module, points: Boundary, **options: Any
) -> Callable[[], Any]:
    classes = {"labels": points.labels, "targets": points.targets}
    return partial(function, model, points.points, **classes, tolerance=math.inf, **options)


def _summary(result: Curvatures | MeanCurvature) -> dict[str, float | None]:
    """The largest (or mean) curvature averaged over the points, and the share of finite ones."""
    known = torch.isfinite(result.values)
    values = result.values if isinstance(result, MeanCurvature) else result.values[:, 0]
    value = average(values[torch.isfinite(values)])
    return {"value": value, "success": float(known.double().mean())}


def _gradients(model: nn.Module, point: Boundary, count: int) -> None:
    """Compute ``count`` gradients of f_target - f_label at the point.

    As many are computed at once as for the curvatures, but at most 512.
    """
    size = min(512, passes_at_once(point.points, None, model))
    target, label = int(point.targets), int(point.labels)
    for start in range(0, count, size):
        repeated = point.points.expand(min(size, count - start), -1, -1, -1)
        leaf = repeated.clone().requires_grad_()
        logits = model(leaf)
        torch.autograd.grad((logits[:, target] - logits[:, label]).sum(), leaf)
