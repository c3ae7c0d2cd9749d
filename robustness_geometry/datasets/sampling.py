"""Which images of a data set are used: seeded, stratified subsets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustness_geometry.checks import check_count
from robustness_geometry.randomness import seeded

__all__ = ["Limits", "choose", "stratified_order"]


@dataclass(frozen=True)
class Limits:
    """How many images of a data set to keep, as stratified random subsets.

    Attributes:
        train: number of training images; None: all.
        test: number of held-out images; None: all.
        seed: seed of both subsets.

    Raises:
        InputError: a limit below 1, or a seed below 0.

    Example:
        >>> from robustness_geometry.datasets.sampling import Limits
        >>> Limits(train=100).test is None
        True
    """

    train: int | None = None
    test: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train is not None:
            check_count("dataset.train_limit", self.train)
        if self.test is not None:
            check_count("dataset.test_limit", self.test)
        check_count("dataset.seed", self.seed, minimum=0)


def stratified_order(labels: Tensor, *purpose: object) -> Tensor:
    """A random order in which every prefix holds the classes in the proportions of the whole.

    The images of each class get random ranks. An image of rank k among the n_c of its class c is
    placed at (k + u) / n_c, with u uniform in [0, 1), and all images are sorted by place.

    Args:
        labels: (N,) class of each image.
        *purpose: what the order is for, such as (seed, name, "train"); it seeds the draw.

    Returns:
        (N,) a permutation of 0 .. N - 1.

    Example:
        >>> import torch
        >>> from robustness_geometry.datasets.sampling import stratified_order
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> labels[stratified_order(labels, "example")[:3]].bincount().tolist()
        [2, 1]
    """
    generator = seeded(*purpose)
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        rank = torch.randperm(len(members), generator=generator)
        offset = torch.rand(len(members), generator=generator, dtype=torch.float64)
        position[members] = (rank + offset) / len(members)
    return position.argsort(stable=True)


def choose(labels: Tensor, limit: int | None, *purpose: object) -> Tensor:
    """Indices of a stratified random subset.

    Args:
        labels: (N,) class of each image.
        limit: number of images; None, or N or more: all of them, in their order.
        *purpose: what the subset is for; it seeds the draw.

    Example:
        >>> import torch
        >>> from robustness_geometry.datasets.sampling import choose
        >>> choose(torch.tensor([0, 1, 0, 1]), None, "example").tolist()
        [0, 1, 2, 3]
    """
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    return stratified_order(labels, *purpose)[:limit]
