"""How far a class leads at many points, in passes of a size that suits the device."""

import torch
from torch import Tensor

from robustness_geometry.checks import check_classes
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Classifier, Images, Labels, PerImage, class_logits

__all__ = ["check_given", "leads", "rows_at_once"]

ROWS = {"cpu": 256, "cuda": 8192}
"""Points in one forward pass: on a CPU the activations of more points leave the cache."""


def rows_at_once(device: torch.device) -> int:
    """How many points to look at in one forward pass."""
    return ROWS.get(device.type, 1024)


def leads(model: Classifier, points: Images, labels: Labels) -> tuple[PerImage, Labels]:
    """How far the label leads at each point, and the predicted labels, without a graph.

    Returns:
        (N,) f_label - max_k f_k over the other classes, in units of the logits, and (N,) labels. A
        point whose logits are not finite has a lead of -inf and the label -1.
    """
    with torch.no_grad():
        logits: Tensor = class_logits(logits_at(model, points))
    own = labels[:, None]
    lead = logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(dim=1)
    finite = torch.isfinite(logits).all(dim=1)
    return torch.where(finite, lead, -torch.inf), torch.where(finite, logits.argmax(dim=1), -1)


def check_given(model: Classifier, points: Images, **given: Labels | None) -> None:
    """Check that given labels are classes of ``model``."""
    if len(points) and any(labels is not None for labels in given.values()):
        with torch.no_grad():
            classes = class_logits(logits_at(model, points[:1])).shape[1]
        for key, labels in given.items():
            if labels is not None:
                check_classes(labels, classes, key=key)
