"""F = f_target - f_label near a decision boundary: its gradients, normals and tangent spaces."""

from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from robustness_geometry.attacks.gradients import linearise
from robustness_geometry.attacks.protocol import as_logits, check_input, per_image
from robustness_geometry.checks import (
    Described,
    GivenLabels,
    check_choice,
    check_classes,
    check_count,
    refuse,
)
from robustness_geometry.norms import norms
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Classifier, Images, Labels, PerImage, class_logits

__all__ = ["OUTPUTS", "Directions", "Margin", "normals", "passes_at_once", "tangent_projection"]

OUTPUTS = ("logits", "softmax")

Directions: TypeAlias = Float[Tensor, "batch count ..."]
"""Several vectors of the image space for each image."""

CACHED, HELD = 1 << 17, 1 << 23
"""Pixels in one batch of gradients: what a CPU's cache holds with the activations, and a GPU."""

ACTIVATIONS = 6 << 20
"""Activations in one batch on a CPU: larger batches of a LeNet or a NIN leave the cache."""

FEWEST, MOST = 8, 512
"""Gradients in one pass, where memory and cache allow more or less."""


@dataclass(frozen=True)
class Margin:
    """F = f_target - f_label, with one pair of classes per image.

    It is negative on the images' own side of the boundary, and positive on the other.

    Attributes:
        model: a classifier in evaluation mode.
        labels: (N,) the classes on the images' own side.
        targets: (N,) the classes on the other side.
        output: ``logits``, or ``softmax`` for f the probabilities.
    """

    model: Classifier
    labels: Labels
    targets: Labels
    output: str = "logits"

    @classmethod
    def checked(
        cls,
        model: Classifier,
        points: Images,
        labels: GivenLabels,
        targets: GivenLabels,
        output: str = "logits",
    ) -> "Margin":
        """The margin of these classes, after a check that it can be used at ``points``.

        Raises:
            InputError: points, classes, an output or a model that cannot be used, or a target that
                equals its label.
        """
        check_choice("output", output, OUTPUTS)
        given = check_input(model, points, labels=labels, targets=targets)
        model, points, labels, targets = cast(tuple[Classifier, Images, Labels, Labels], given)
        same = (labels == targets).nonzero()[:, 0].tolist()
        if same:
            refuse(
                "targets",
                Described(f"the label itself at index {same[0]}"),
                "other classes than the labels",
            )
        if len(points):
            with torch.no_grad():
                classes = as_logits(logits_at(model, points[:1])).shape[1]
            for key, value in (("labels", labels), ("targets", targets)):
                check_classes(value, classes, key=key)
        return cls(model, labels, targets, output)

    def gradients(self, points: Images, rows: Tensor) -> tuple[PerImage, Images]:
        """F (k,) and its gradients (k, C, H, W) at points near the images ``rows`` (k,)."""
        logits, pull = linearise(self.model, points)
        return self._of(logits, rows), pull(self._weights(logits, rows))

    def with_graph(self, points: Images, rows: Tensor) -> PerImage:
        """F (k,) as a function of ``points`` that autograd can differentiate more than once."""
        return self._of(class_logits(logits_at(self.model, points)), rows)

    def _of(self, logits: Tensor, rows: Tensor) -> Tensor:
        values = logits.softmax(dim=1) if self.output == "softmax" else logits
        ahead, behind = self.targets[rows, None], self.labels[rows, None]
        return (values.gather(1, ahead) - values.gather(1, behind))[:, 0]

    def _weights(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The derivatives of F with respect to the logits, (k, classes)."""
        ahead = one_hot(self.targets[rows], logits.shape[1]).to(logits)
        behind = one_hot(self.labels[rows], logits.shape[1]).to(logits)
        if self.output == "logits":
            return ahead - behind
        # The Jacobian of the softmax is diag(p) - p p^T, applied here to e_target - e_label.
        shares = logits.softmax(dim=1)
        weighted = shares * (ahead - behind)
        return weighted - shares * weighted.sum(dim=1, keepdim=True)


def normals(
    model: Classifier,
    points: Images,
    labels: GivenLabels,
    targets: GivenLabels,
    *,
    output: str = "logits",
) -> Images:
    """The unit normals n = grad F / ||grad F|| of the boundaries F = f_target - f_label = 0.

    They point out of the region of ``labels``. The thesis omits the normalisation of n in
    P = I - n n^T.

    Args:
        model: a classifier in evaluation mode.
        points: (N, C, H, W), near the boundary or not.
        labels: (N,) the classes on this side.
        targets: (N,) the classes on the other side.
        output: ``logits``, or ``softmax`` for f the probabilities.

    Returns:
        (N, C, H, W), of length one.

    Raises:
        InputError: input that cannot be used, or logits that do not depend on the input at a point.

    References:
        Thesis, Section 7.4.
        A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard and S. Soatto, "Classification regions of deep
        neural networks", 2017, arXiv:1705.09552.

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import Ball, normals
        >>> point = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
        >>> normals(Ball(radius=5.0), point, torch.tensor([0]), torch.tensor([1])).flatten()
        tensor([0.6000, 0.8000])
    """
    margin = Margin.checked(model, points, labels, targets, output)
    return normals_of(margin, points.detach())[0]


def normals_of(
    margin: Margin, points: Images, *, at_once: int | None = None
) -> tuple[Images, PerImage, PerImage]:
    """The normals at points that were checked.

    Returns:
        n (N, C, H, W), ||grad F|| (N,), and F / ||grad F|| (N,), the signed distances to the
        tangent planes.

    Raises:
        InputError: logits that do not depend on the input at a point.
    """
    rows = torch.arange(len(points), device=points.device)
    size = passes_at_once(points, at_once, margin.model)
    parts = (
        [margin.gradients(points[part], part) for part in rows.split(size)] if len(points) else []
    )
    values = torch.cat([value for value, _ in parts]) if parts else points.new_zeros(0)
    gradients = (
        torch.cat([gradient for _, gradient in parts]) if parts else torch.zeros_like(points)
    )
    sizes = norms(gradients)
    flat = (~(torch.isfinite(sizes) & (sizes > 0))).nonzero()[:, 0].tolist()
    if flat:
        refuse(
            "model",
            Described(
                f"logits that do not depend on the input at {len(flat)} of {len(points)} points, "
                f"index {flat[0]} first"
            ),
            "a classifier with a finite, non-zero gradient of f_target - f_label",
        )
    return gradients / per_image(sizes, gradients), sizes, values / sizes


def tangent_projection(vectors: Directions, unit_normals: Images) -> Directions:
    """P v = v - n (n^T v): the part of each vector that is tangent to the boundary.

    Args:
        vectors: (N, K, C, H, W).
        unit_normals: n, (N, C, H, W), of length one.

    Returns:
        (N, K, C, H, W).

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import tangent_projection
        >>> vectors, normal = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])
        >>> tangent_projection(vectors.view(1, 1, 1, 1, 2), normal.view(1, 1, 1, 2)).flatten()
        tensor([3., 0.])
    """
    flat, normal = vectors.flatten(2), unit_normals.flatten(1)[:, :, None]
    return (flat - (flat @ normal) * normal.mT).view_as(vectors)


def passes_at_once(
    points: Images, wanted: int | None = None, model: Classifier | None = None
) -> int:
    """How many gradients to take in one pass: as many as suit the device, but at least 8.

    Args:
        points: (N, C, H, W).
        wanted: a number of at least 2 that is returned as it is; None: chosen here.
        model: a classifier; on a CPU the batch is then sized by the activations that its backward
            pass needs, and otherwise by the images alone.
    """
    if wanted is not None:
        return check_count("at_once", wanted, minimum=2)
    if not len(points):
        return FEWEST
    if points.device.type != "cpu":
        return max(FEWEST, HELD // points[0].numel())
    if model is None:
        return max(FEWEST, CACHED // points[0].numel())
    return min(MOST, max(FEWEST, ACTIVATIONS // _activations(model, points[:1])))


def _activations(model: Classifier, point: Images) -> int:
    """The number of values that the gradient at one point (1, C, H, W) keeps, without parameters.

    It is at least 1.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linearise(model, point)
    for parameter in (*model.parameters(), *model.buffers()):
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return max(1, sum(kept.values()))
