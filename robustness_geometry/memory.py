"""The memory format of weights: channels last, where a network computes the same with it."""

import torch
from torch import Tensor, nn

from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Images

__all__ = ["channels_last"]


def channels_last(model: nn.Module, images: Images) -> nn.Module:
    """Give the weights of ``model`` their channels last, in place, if it computes the same then.

    Activations get the format of the weights. A network that flattens its feature maps with
    ``view`` fails with it and keeps contiguous weights; so does one whose answer would change.

    Args:
        model: a network in evaluation mode.
        images: (N, C, H, W), on the network's device; the first two are tried.

    Returns:
        The same model.

    Example:
        >>> import torch
        >>> from robustness_geometry.memory import channels_last
        >>> class Viewing(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Conv2d(3, 2, 3)
        ...
        ...     def forward(self, images):
        ...         return self.layer(images).view(-1, 8)
        >>> channels_last(Viewing(), torch.rand(1, 3, 4, 4)).layer.weight.is_contiguous()
        True
    """
    few = images[:2].detach()
    before = _answer(model, few)
    model = model.to(memory_format=torch.channels_last)
    after = _answer(model, few)
    # A network that fails either way is refused elsewhere, by what it says then.
    if before is not None and (after is None or not _agree(before, after)):
        return model.to(memory_format=torch.contiguous_format)
    return model


def _answer(model: nn.Module, images: Images) -> Tensor | None:
    """The logits, in one row; None where they or their gradient fail.

    Gradients are not compared: at ties of max pooling, each format takes another pixel's.
    """
    try:
        with torch.enable_grad():
            leaf = images.clone().requires_grad_()
            logits = logits_at(model, leaf)
            if not logits.requires_grad:
                return logits.flatten()
            weights = torch.arange(1.0, logits[0].numel() + 1).to(logits).view_as(logits[0])
            torch.autograd.grad(
                logits, leaf, weights.expand_as(logits), allow_unused=True, materialize_grads=True
            )
        return logits.detach().flatten()
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return None


def _agree(before: Tensor, after: Tensor) -> bool:
    finite = torch.isfinite(before)
    scale = float(before[finite].abs().max()) if bool(finite.any()) else 0.0
    near = torch.finfo(before.dtype).eps ** 0.5 * scale
    same = torch.isclose(before, after, rtol=0.0, atol=near, equal_nan=True)
    return before.shape == after.shape and bool(same.all())
