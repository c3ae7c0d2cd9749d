"""How far networks that differ in their training seed draw the same decision regions.

References:
    G. Somepalli, L. Fowl, A. Bansal, P. Yeh-Chiang, Y. Dar, R. Baraniuk, M. Goldblum, T. Goldstein,
    "Can neural nets learn the same model twice? Investigating reproducibility and double descent
    from the decision boundary perspective", CVPR 2022, arXiv:2203.08124.
"""

from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.statistics import mean_share
from robustness_geometry.checks import check_count
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Classifier, Dataset, Images, Network, predict

__all__ = ["labels_in_triangles", "seed_agreement"]


def labels_in_triangles(
    model: Classifier, first: Images, second: Images, third: Images, *, steps: int
) -> Tensor:
    """The predicted classes on a grid of convex combinations of three images.

    Args:
        model: a classifier in evaluation mode.
        first: (N, C, H, W) first corners.
        second: (N, C, H, W) second corners.
        third: (N, C, H, W) third corners.
        steps: number of intervals of an edge, at least 1.

    Returns:
        (N, P) classes at the P = (steps + 1) (steps + 2) / 2 points.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball
        >>> corners = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
        >>> labels_in_triangles(Ball(radius=1.0), *corners, steps=2).shape
        torch.Size([1, 6])
    """
    check_count("steps", steps)
    weights = [
        (i / steps, j / steps, (steps - i - j) / steps)
        for i in range(steps + 1)
        for j in range(steps + 1 - i)
    ]
    labels = [predict(model, a * first + b * second + c * third) for a, b, c in weights]
    return torch.stack(labels, dim=1)


def seed_agreement(
    network: Network, data: Dataset, executor: Executor, *, triangles: int = 60, steps: int = 12
) -> Findings:
    """The share of points to which two trainings of a network give the same class.

    The points lie on triangles whose corners are test images; points between images show what the
    images themselves, on which trainings mostly agree, do not.

    Args:
        network: the trainings of a network.
        data: its data set.
        executor: computes the predictions.
        triangles: number of triangles; fewer where the test images are.
        steps: number of intervals of an edge.

    Returns:
        ``seed_agreement``, the mean over triangles and over pairs of trainings.
    """
    if len(network.models) < 2:
        return Findings(notes=["Not measured: there is one training of this network."])
    images = data.test.images
    corners = [
        images[torch.randperm(len(images), generator=seeded(f"corners {k}"))[:triangles]]
        for k in range(3)
    ]
    run = executor.scope("seed_agreement", network=network.name)
    labels = [
        run.cached(partial(labels_in_triangles, model, steps=steps), *corners).value
        for model in network.models.values()
    ]
    same = [(one == other).double().mean(dim=1) for one, other in combinations(labels, 2)]
    each = torch.stack(same).mean(dim=0)
    numbers = paired_bootstrap({"same": each[None]}, {"seed_agreement": mean_share("same")})
    note = (
        f"Training seeds agree or not on {labels[0].shape[1]} points of each of {len(each)} "
        "triangles of test images; the interval is over triangles."
    )
    return Findings(numbers=dict(numbers), notes=[note])
