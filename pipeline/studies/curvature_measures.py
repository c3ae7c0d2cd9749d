"""The heavy work of this stage, as the executor runs it: curvatures at boundary points along directions."""

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
    """(n, K) the curvatures along vectors: (K, C, H, W), the same at every boundary point, or (n, K, C, H, W).

    Args:
        model: the classifier.
        vectors: (K, C, H, W) or (n, K, C, H, W).
        h: length of the differences, in pixel units.
        output: ``logits`` or ``softmax``.
        normalised: divide by ||grad F||.
        points: (n, C, H, W), on the boundary.
        labels: (n,) the classes before it.
        targets: (n,) the classes behind it.
    """
    return normal_curvatures(
        model,
        points,
        vectors,
        labels=labels,
        targets=targets,
        h=h,
        output=output,
        normalised=normalised,
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
    """(n, count) the curvatures along random tangent directions, drawn anew for each point; arguments as above."""
    drawn = torch.stack(
        [random_directions(points, generator, normals=normals) for _ in range(count)], dim=1
    )
    return along(model, drawn, h, output, normalised, points, labels, targets)


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
    """(n, count) the curvatures along random directions of a subspace with basis (m, d), drawn anew for each point."""
    drawn = torch.stack(
        [random_directions(points, generator, basis=basis) for _ in range(count)], dim=1
    )
    return along(model, drawn, h, output, normalised, points, labels, targets)


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
    found = extreme_curvatures(
        model,
        points,
        labels=labels,
        targets=targets,
        steps=steps,
        h=h,
        output=output,
        generator=generator,
    )
    return RitzPairs(found.values, found.vectors.float(), found.residuals)


def ends(
    model: Classifier,
    points: Images,
    labels: Labels,
    targets: Labels,
    steps: int,
    h: float,
    output: str,
) -> RitzPairs:
    """Both ends of the spectrum of the average tangent-projected Hessian; the eigenvectors in float32."""
    like = next(model.parameters(), points)
    points, labels, targets = points.to(like), labels.to(like.device), targets.to(like.device)
    found = mean_hessian_ends(
        model, points, labels=labels, targets=targets, steps=steps, h=h, output=output
    )
    return RitzPairs(found.values, found.vectors.float(), found.residuals)


def profiles(
    model: Classifier, h: float, output: str, points: Images, labels: Labels, targets: Labels
) -> Tensor:
    """(n, d - 1) all principal curvatures of each boundary point, the largest first, in float64."""
    return principal_curvatures(
        model, points, labels=labels, targets=targets, h=h, output=output
    ).values
