"""What a certification costs, judged before it begins."""

import math

from robustness_geometry.certify.intermediate import bent_inputs
from robustness_geometry.certify.operations import (
    Convolution,
    Linear,
    Maximum,
    Node,
    Rectifier,
)
from robustness_geometry.certify.reading import read
from robustness_geometry.certify.receptive import groups
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.types import Classifier

__all__ = ["bound_cost"]


def bound_cost(
    model: Classifier,
    shape: tuple[int, ...],
    *,
    steps: int = 10,
    evaluations: int = 4,
    cuts: int = 16,
    enough: float | None = None,
) -> float:
    """The multiply-adds, or additions and comparisons, of one image's ``lower_bounds``, at most.

    For each ball, or part of one, every unit in front of a nonlinear layer is bounded from both
    sides, by one pass from the nonlinear layer before it back to the image. Units that share no
    pixel share a pass. A gradient step costs three passes from the logits.

    Args:
        model: a classifier in evaluation mode.
        shape: shape of an image, (C, H, W).
        steps: gradient steps, as of :func:`robustness_geometry.certify.lower_bounds`.
        evaluations: likewise.
        cuts: likewise.
        enough: the search for units that can share a pass, which takes long in large networks, is
            left out where the cost is above this at its best; None: never.

    Returns:
        The count; where it is above ``enough``, at least a lower bound of it.

    Raises:
        InputError: an option that cannot be used, or a layer that is not known; the text names it.

    Example:
        >>> from torch import nn
        >>> from robustness_geometry.certify import bound_cost
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
        >>> bound_cost(model, (1, 2, 2), steps=0, evaluations=1, cuts=0)
        53.0
    """
    check_count("steps", steps, minimum=0)
    check_count("evaluations", evaluations)
    check_count("cuts", cuts, minimum=0)
    limit = math.inf if enough is None else check_positive("enough", enough)
    nodes = read(model, tuple(shape))
    rivals = max(1, nodes[-1].size - 1)
    final = (1 + 3 * steps) * (evaluations * rivals + cuts) * sum(map(_multiply_adds, nodes))
    # At best one pass bounds a whole feature map.
    least = final + (evaluations + cuts) * _passes(nodes, [node.shape[0] for node in nodes])
    if least > limit:
        return float(least)
    rows = []
    for place, node in enumerate(nodes):
        shared = groups(nodes, place) if place in bent_inputs(nodes) else None
        rows.append(node.size if shared is None else node.shape[0] * len(shared.members))
    return float(final + (evaluations + cuts) * _passes(nodes, rows))


def _passes(nodes: list[Node], rows: list[int]) -> int:
    """The operations that bound the units of one ball, with so many rows for each node."""
    before, up_to_here, total = 0, 0, 0
    bent = bent_inputs(nodes)
    for place, node in enumerate(nodes):
        up_to_here += _multiply_adds(node)
        if isinstance(node.operation, Rectifier | Maximum):
            before = up_to_here
        if place in bent and place > 0:
            total += 2 * rows[place] * (before + nodes[0].size)
    return total


def _multiply_adds(node: Node) -> int:
    """The operations that take one row from a node to its inputs."""
    match node.operation:
        case Linear(weight):
            return weight.numel()
        case Convolution(weight):
            return weight[0].numel() * node.size
        case Maximum(windows):
            return windows.shape[-1] * node.size
    return node.size
