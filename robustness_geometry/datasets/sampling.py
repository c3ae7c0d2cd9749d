"""Which images of a data set are used: seeded, stratified subsets."""

import torch
from torch import Tensor

from robustness_geometry.checks import check_count
from robustness_geometry.randomness import seeded

__all__ = ["check_limits", "choose", "stratified_order"]


def stratified_order(labels: Tensor, *purpose: object) -> Tensor:
    """A random order in which every prefix holds the classes in the proportions of the whole.

    An image of random rank k among the n_c of its class c stands at (k + u) / n_c, with u uniform
    in [0, 1).

    Args:
        labels: (N,) class of each image.
        purpose: what the order is for, such as (seed, name, "train"); it seeds the draw.

    Returns:
        (N,) a permutation of 0 .. N - 1.
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
    """Indices of ``limit`` images, a stratified random subset; all, in their own order, if it holds all."""
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    return stratified_order(labels, *purpose)[:limit]


def check_limits(train_limit: int | None, test_limit: int | None, seed: int) -> None:
    """Hold that limits are None or at least 1 and that the seed is a whole number >= 0.

    Raises:
        InputError: naming the key ``dataset.train_limit``, ``dataset.test_limit`` or
            ``dataset.seed``.
    """
    if train_limit is not None:
        check_count("dataset.train_limit", train_limit)
    if test_limit is not None:
        check_count("dataset.test_limit", test_limit)
    check_count("dataset.seed", seed, minimum=0)
