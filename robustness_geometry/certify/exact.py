"""The exact distance to the decision boundary of small ReLU networks, by branch and bound."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    Number,
    check_clip,
    check_input,
    clean_labels,
)
from robustness_geometry.certify.branching import Tree
from robustness_geometry.certify.leaves import Dense
from robustness_geometry.certify.lower import rival_rows
from robustness_geometry.certify.operations import (
    Concatenation,
    Input,
    Maximum,
    Node,
    Rectifier,
    Sum,
)
from robustness_geometry.certify.reading import read
from robustness_geometry.checks import (
    Described,
    InputError,
    check_count,
    check_norm,
    check_positive,
    refuse,
)
from robustness_geometry.geometry.boundary import boundary_points
from robustness_geometry.norms import norms
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Classifier, Images, Labels, PerImage, class_logits

__all__ = ["ExactDistance", "exact_distance"]

CHAIN = "a chain of affine layers and ReLUs (other than 0 slopes, max pooling and sums are not)"


@dataclass(frozen=True)
class ExactDistance:
    """The distance of each image to the decision boundary, as far as it was found.

    Attributes:
        lower: (N,) proved lower bounds, float64.
        upper: (N,) the distances of ``points``; inf where there is none. float64.
        points: (N, C, H, W) the nearest points of the boundary, float64; NaN where none was found.
        labels: (N,) the classes of the images.
        targets: (N,) the classes on the other side; the label itself where no point was found.
        status: ``exact`` where lower and upper agree to within the tolerance, ``bracket`` where
            both are known and do not, ``unresolved`` where no point was found.
        nodes: (N,) number of subproblems.
        seconds: (N,) time taken.
    """

    lower: PerImage
    upper: PerImage
    points: Images
    labels: Labels
    targets: Labels
    status: tuple[str, ...]
    nodes: Labels
    seconds: PerImage

    def __len__(self) -> int:
        return len(self.lower)


def exact_distance(
    model: Classifier,
    images: Images,
    *,
    norm: Number = 2.0,
    labels: Labels | None = None,
    clip: Bounds | None = None,
    time_limit: Number | None = 60.0,
    nodes: int | None = None,
    tolerance: Number = 1e-6,
) -> ExactDistance:
    """Find the nearest point of the decision boundary, and prove that none is nearer.

    Branch and bound over the signs of the ReLUs' inputs. A subproblem fixes some signs; its lower
    bound is that of :func:`robustness_geometry.certify.lower_bounds` with multipliers for the fixed
    signs (beta-CROWN). Once all signs are fixed, the network is linear and the nearest point is
    found by least squares under inequalities (l_2) or by a linear program (l_inf). The search
    starts from :func:`robustness_geometry.geometry.boundary_points`.

    The network is in exact arithmetic; its layers between two ReLUs are first multiplied out in
    float64, whose rounding (some 1e-13 of the values) is not counted, unlike in ``lower_bounds``.

    Args:
        model: a classifier in evaluation mode: a chain of affine layers (as ``lower_bounds`` knows
            them) and ReLUs, up to about a hundred of these.
        images: x, (N, C, H, W).
        norm: 2 or inf.
        labels: (N,) the classes of the images; None: the predicted ones. Images that are predicted
            otherwise have distance 0.
        clip: lowest and highest pixel value: only points in that box count; None: all points do.
        time_limit: seconds for each image; None: no limit.
        nodes: largest number of subproblems for each image, passed by one batch of them at most;
            None: no limit. Without a limit of time, the result is the same on every run.
        tolerance: largest difference of upper and lower bound, as a share of the upper one, at
            which a distance is called exact.

    Returns:
        ExactDistance.

    Raises:
        InputError: an option, a label or an image that cannot be used, another norm, or a network
            that is no such chain; the text names the layer.

    References:
        S. Wang et al., "Beta-CROWN: efficient bound propagation with per-neuron split constraints
        for neural network robustness verification", NeurIPS 2021, arXiv:2103.06624.
        C. L. Lawson and R. J. Hanson, "Solving least squares problems", 1974, chapter 23.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from robustness_geometry.certify import exact_distance
        >>> layer = nn.Linear(2, 1)  # the line 3 x + 4 y = 5
        >>> layer.weight.data, layer.bias.data = torch.tensor([[3.0, 4.0]]), torch.tensor([-5.0])
        >>> model = nn.Sequential(nn.Flatten(), layer).eval()
        >>> found = exact_distance(model, torch.zeros(1, 1, 1, 2))
        >>> found.status, round(found.upper.item(), 6)
        (('exact',), 1.0)
        >>> [round(value, 6) for value in found.points.flatten().tolist()]
        [0.6, 0.8]
    """
    p, box = check_norm("norm", norm), check_clip(clip)
    if p not in (2, math.inf):
        refuse("norm", norm, "2 or inf for an exact distance")
    limit = math.inf if time_limit is None else check_positive("time_limit", time_limit)
    most = math.inf if nodes is None else check_count("nodes", nodes)
    accuracy = check_positive("tolerance", tolerance)
    check_input(model, images, clip=box, labels=labels)
    images = images.detach()
    own = clean_labels(model, images, labels) if len(images) else images.new_zeros(0).long()
    layers = _dense(read(model, tuple(images.shape[1:])), images.device) if len(images) else []
    starts = _starts(model, images, own, box)
    found = [
        _one(layers, image, int(label), start, p, box, limit, most, accuracy)
        for image, label, start in zip(images.double(), own, starts, strict=True)
    ]
    values = torch.tensor([[f.lower, f.upper, f.seconds] for f in found], dtype=torch.float64)
    lower, upper, seconds = values.view(-1, 3).T.to(images.device)
    return ExactDistance(
        lower,
        upper,
        torch.stack([f.point for f in found]) if found else images.double(),
        own,
        own.new_tensor([f.target for f in found]),
        tuple(f.status for f in found),
        own.new_tensor([f.nodes for f in found]),
        seconds,
    )


def _starts(model: Classifier, images: Images, labels: Labels, clip: Clip) -> Tensor:
    """First steps (N, S, C, H, W) to the other side, in float64; NaN where there is none.

    One leads to the class that takes over first, the others each to one class.
    """
    if not len(images):
        return images.double()[:, None]
    with torch.no_grad():
        classes = class_logits(logits_at(model, images)).shape[1]
    count = classes - 1 if classes > 2 else 0
    targets = torch.arange(classes, device=labels.device).expand(len(labels), -1)
    targets = targets[targets != labels[:, None]].view(len(labels), -1)[:, :count]
    starts = torch.stack(
        [
            _outward(model, images, labels, None),
            *(_outward(model, images, labels, t) for t in targets.unbind(dim=1)),
        ],
        dim=1,
    )
    if clip is not None:  # cut to the box, a step may end on this side: the search looks at it
        wide = images.double()[:, None]
        starts = (wide + starts).clamp(*clip) - wide
    return starts


def _outward(model: Classifier, images: Images, labels: Labels, targets: Labels | None) -> Tensor:
    """Steps to the boundary in float64; NaN where there is none."""
    try:
        found = boundary_points(model, images, labels=labels, targets=targets)
        return found.perturbations.double()
    except InputError:  # no logit of any image has a gradient: nothing to start from
        return torch.full_like(images, torch.nan, dtype=torch.float64)


def _unit(node: Node, device: torch.device) -> Tensor:
    """The identity on a node's values, one row a value."""
    return torch.eye(node.size, dtype=torch.float64, device=device).view(-1, *node.shape)


def _dense(nodes: list[Node], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """The layers (W, b) of a chain of affine operations and ReLUs, multiplied out."""
    layers, weight, bias = [], None, None
    for place, node in enumerate(nodes):
        operation = node.operation
        if isinstance(operation, Input):
            weight = _unit(node, device)
            bias = weight.new_zeros(1, *node.shape)
            continue
        if isinstance(operation, Maximum | Concatenation | Sum) or node.inputs != (place - 1,):
            refuse("model", Described(f"a layer of type {type(operation).__name__}"), CHAIN)
        assert weight is not None
        assert bias is not None
        if isinstance(operation, Rectifier):
            if operation.slope:
                refuse("model", Described(f"a rectifier of slope {operation.slope}"), CHAIN)
            layers.append((weight.flatten(1).T, bias.flatten()))
            weight = _unit(node, device)
            bias = weight.new_zeros(1, *node.shape)
        else:
            zero = operation.apply(torch.zeros_like(bias))
            weight, bias = operation.apply(weight) - zero, operation.apply(bias)
    assert weight is not None
    assert bias is not None
    layers.append((weight.flatten(1).T, bias.flatten()))
    return [(w.detach().cpu().contiguous(), b.detach().cpu()) for w, b in layers]


@dataclass(frozen=True)
class _Found:
    """What is known of one image."""

    lower: float
    upper: float
    point: Tensor
    target: int
    status: str
    nodes: int
    seconds: float


def _one(
    layers: list[tuple[Tensor, Tensor]],
    image: Tensor,
    label: int,
    start: Tensor,
    norm: float,
    clip: Clip,
    limit: float,
    most: float,
    tolerance: float,
) -> _Found:
    """Search around one image (C, H, W)."""
    began = time.monotonic()
    flat = image.flatten().cpu()
    (weight, bias), rest = layers[0], layers[1:]
    outputs = len(layers[-1][1])
    rows, rivals = rival_rows(torch.tensor([label]), outputs)
    # The first layer sees only the span of its rows: an l_2 step has no part outside it.
    basis = None
    if norm == 2 and clip is None and len(weight) < weight.shape[1]:
        basis = torch.linalg.qr(weight.T).Q
    inner = weight if basis is None else weight @ basis
    centre = flat if clip is not None else torch.zeros_like(flat)
    centre = centre if basis is None else torch.zeros(basis.shape[1], dtype=torch.float64)
    shifted = [(inner, weight @ flat + bias), *rest]
    dense = Dense([(w.numpy(), b.numpy()) for w, b in shifted], centre.numpy())
    tree = Tree(dense, rows[0].numpy(), norm, clip, tolerance)
    steps = start.flatten(1).cpu()
    sizes = norms(steps, norm).nan_to_num(math.inf)
    for k in sizes.argsort().tolist():
        if float(sizes[k]) < 1.5 * tree.upper:  # those far longer than the best lead nowhere
            tree.offer(np.asarray((steps[k] if basis is None else basis.T @ steps[k]).numpy()))
    tree.search(began + limit, most)
    step = torch.from_numpy(tree.step)
    point = image.cpu() + (step if basis is None else basis @ step).view(image.shape)
    upper = float(norms((point - image.cpu())[None], norm)) if tree.found else math.inf
    lower = min(tree.lower, upper)
    closed = upper - lower <= tolerance * upper
    status = ("exact" if closed else "bracket") if tree.found else "unresolved"
    target = int(rivals[0, tree.rival]) if tree.found else label
    took = time.monotonic() - began
    return _Found(lower, upper, point.to(image.device), target, status, tree.nodes, took)
