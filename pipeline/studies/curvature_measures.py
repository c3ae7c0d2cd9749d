"""Curvatures of the boundary in the form in which the executor runs them.

The executor needs functions of a module, with all options first and then what it cuts into chunks:
points (n, C, H, W) on the boundary, the classes ``labels`` (n,) on their own side, and the classes
``targets`` (n,) on the other. The options have one meaning throughout: ``h`` is the length of the
differences in pixel units, ``output`` is ``logits`` or ``softmax``, ``normalised`` says whether to
divide by ||grad F||, and ``generator`` holds one generator per point.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustness_geometry.geometry import (
    RitzPairs,
    extreme_curvatures,
    mean_hessian_ends,
    normal_curvatures,
    principal_curvatures,
    random_directions,
)
from robustness_geometry.types import Classifier, Images, Labels

__all__ = ["along", "at_random", "ends", "extremes", "inside", "profiles"]


def along(
    model: Classifier,
    vectors: Tensor,
    h: float,
    output: str,
    normalised: bool,
    points: Images,
    labels: Labels,
    targets: Labels,
) -> Tensor:
    """(n, K) the curvatures along vectors (K, C, H, W), or (n, K, C, H, W) for others per point."""
    return normal_curvatures(
        model,
        points,
        vectors,
        labels=labels,
        targets=targets,
        normalised=normalised,
        h=h,
        output=output,
    )


def at_random(
    model: Classifier,
    count: int,
    h: float,
    output: str,
    normalised: bool,
    points: Images,
    normals: Images,
    labels: Labels,
    targets: Labels,
    *,
    generator: Sequence[torch.Generator],
) -> Tensor:
    """(n, count) the curvatures along random tangent directions, drawn anew for each point."""
    drawn = [random_directions(points, generator, normals=normals) for _ in range(count)]
    vectors = torch.stack(drawn, dim=1)
    return along(model, vectors, h, output, normalised, points, labels, targets)


def inside(
    model: Classifier,
    basis: Tensor,
    count: int,
    h: float,
    output: str,
    normalised: bool,
    points: Images,
    labels: Labels,
    targets: Labels,
    *,
    generator: Sequence[torch.Generator],
) -> Tensor:
    """(n, count) the curvatures along random directions of a subspace (m, d), anew per point."""
    drawn = [random_directions(points, generator, basis=basis) for _ in range(count)]
    vectors = torch.stack(drawn, dim=1)
    return along(model, vectors, h, output, normalised, points, labels, targets)


def extremes(
    model: Classifier,
    steps: int,
    h: float,
    output: str,
    points: Images,
    labels: Labels,
    targets: Labels,
    *,
    generator: Sequence[torch.Generator],
) -> RitzPairs:
    """Both ends of each point's spectrum by ``steps`` products; the directions in float32."""
    pairs = extreme_curvatures(
        model,
        points,
        labels=labels,
        targets=targets,
        steps=steps,
        generator=generator,
        h=h,
        output=output,
    )
    return _single(pairs)


def ends(
    model: Classifier,
    points: Images,
    labels: Labels,
    targets: Labels,
    steps: int,
    h: float,
    output: str,
) -> RitzPairs:
    """Both ends of the spectrum of the average Hessian; the eigenvectors in float32.

    This one is a task of its own, whose inputs are not cut into chunks: they go to the model's
    device here.
    """
    like = next(model.parameters(), points)
    points, labels, targets = points.to(like), labels.to(like.device), targets.to(like.device)
    pairs = mean_hessian_ends(
        model, points, labels=labels, targets=targets, steps=steps, h=h, output=output
    )
    return _single(pairs)


def profiles(
    model: Classifier,
    h: float,
    output: str,
    basis: str,
    points: Images,
    labels: Labels,
    targets: Labels,
) -> Tensor:
    """(n, d - 1) all principal curvatures of each point, the largest first, in float64.

    ``basis`` is ``spread`` or ``pixels``: the vectors that each Hessian is multiplied with.
    """
    return principal_curvatures(
        model, points, labels=labels, targets=targets, h=h, output=output, basis=basis
    ).values


def _single(pairs: RitzPairs) -> RitzPairs:
    return RitzPairs(pairs.values, pairs.vectors.float(), pairs.residuals)
