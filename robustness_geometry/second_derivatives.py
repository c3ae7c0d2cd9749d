"""Whether autograd's second derivatives of a network are there, and those of its gradients."""

import torch
from torch import Tensor, nn

from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Images

__all__ = ["note_on_second_derivatives"]

STEP = 1e-2
"""Length of the central differences of gradients, in pixel units per pixel."""

MISSING = (
    "The network has no second derivatives by autograd ({}): curvatures are to be measured by "
    "differences over a finite length (the default), not with exact=True; CURE needs a network "
    "that has them."
)
ZERO = (
    "The second derivatives of the network are zero, as of piecewise linear layers such as ReLU: "
    "curvatures are to be measured by differences over a finite length (the default), not with "
    "exact=True."
)
WRONG = (
    "The second derivatives of the network by autograd are not those of its gradients: a layer, "
    "such as a torch.autograd.Function, hides its own. Curvatures are to be measured by "
    "differences over a finite length (the default), not with exact=True, and CURE cannot be "
    "trusted."
)


def note_on_second_derivatives(model: nn.Module, image: Images) -> list[str]:
    """At most one sentence on second derivatives that are missing, zero or hidden.

    Args:
        model: a classifier that has gradients.
        image: (1, C, H, W).
    """
    generator = torch.Generator().manual_seed(1)
    step = STEP * (2 * torch.rand(image.shape, generator=generator) - 1).to(image)
    try:
        product = _twice(model, image, step)
    except (RuntimeError, NotImplementedError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return [MISSING.format(why.rstrip("."))]
    # Gradients at x + s, x - s, x + s / 2 and x - s / 2.
    around = torch.cat([image + step, image - step, image + step / 2, image - step / 2])
    leaf = around.requires_grad_()
    gradients = _gradient(model, leaf, create_graph=False)
    wide, narrow = (gradients[0] - gradients[1]) / 2, gradients[2] - gradients[3]
    # Where the network is smooth, both differences are the derivative along the step; across the
    # kinks of a piecewise linear one they differ.
    size = float(wide.norm())
    noise = 100 * torch.finfo(gradients.dtype).eps * float(gradients.norm())
    smooth = size > noise and float((wide - narrow).norm()) < 0.05 * size
    if smooth and float((product - narrow).norm()) > 0.2 * size:
        return [WRONG]
    return [] if bool(product.any()) or (smooth and size > noise) else [ZERO]


def _twice(model: nn.Module, image: Images, step: Images) -> Tensor:
    """H s as the gradient of <grad f, s>; zero where no graph is left."""
    leaf = image.clone().requires_grad_()
    gradient = _gradient(model, leaf, create_graph=True)
    if not gradient.requires_grad:
        return torch.zeros_like(image)
    (product,) = torch.autograd.grad(
        (gradient * step).sum(), leaf, allow_unused=True, materialize_grads=True
    )
    return product


def _gradient(model: nn.Module, leaf: Tensor, *, create_graph: bool) -> Tensor:
    """The gradients (N, C, H, W) of a weighted sum of the logits."""
    with torch.enable_grad():
        logits = logits_at(model, leaf)
        weights = torch.arange(1.0, logits.shape[1] + 1).to(logits) / logits.shape[1]
        if not logits.requires_grad:
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(
            logits,
            leaf,
            weights.expand_as(logits),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return gradient
