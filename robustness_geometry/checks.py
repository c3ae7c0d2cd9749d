"""Named checks of input: each raises one clear line that names the key, the value and what is allowed."""

import math
from fractions import Fraction
from typing import NoReturn

import torch
from torch import Tensor, nn

__all__ = [
    "InputError",
    "check_choice",
    "check_count",
    "check_images",
    "check_logits",
    "check_model",
    "check_norm",
    "check_positive",
    "check_training_images",
    "number",
    "refuse",
]


class InputError(ValueError):
    """A setting or a piece of data that cannot be used; its text names the key, the value and what is allowed."""


def refuse(key: str, value: object, allowed: str) -> NoReturn:
    """Raise the one-line error for ``key``.

    Raises:
        InputError: always.
    """
    raise InputError(f"{key} must be {allowed}; got {value!r}")


def number(key: str, value: float | str) -> float:
    """Read a number that may be written as a fraction (``8/255``) or as ``inf``.

    Raises:
        InputError: the text is not a number.
    """
    if isinstance(value, bool):
        refuse(key, value, "a number, a fraction such as 8/255, or inf")
    if isinstance(value, int | float):
        return float(value)
    try:
        return float(Fraction(value)) if "/" in value else float(value)
    except (ValueError, ZeroDivisionError):
        refuse(key, value, "a number, a fraction such as 8/255, or inf")


def check_positive(key: str, value: float | str, *, zero: bool = False) -> float:
    """Return ``value`` as a finite float above zero (or at least zero, with ``zero=True``)."""
    result = number(key, value)
    if not math.isfinite(result) or result < 0 or (result == 0 and not zero):
        refuse(key, value, "a finite number >= 0" if zero else "a finite number > 0")
    return result


def check_count(key: str, value: int, *, minimum: int = 1) -> int:
    """Return ``value``, a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        refuse(key, value, f"a whole number >= {minimum}")
    return value


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return ``value``, one of ``allowed``."""
    if value not in allowed:
        refuse(key, value, "one of " + ", ".join(allowed))
    return value


def check_norm(key: str, value: float | str) -> float:
    """Return the exponent p of an l_p norm, 1 <= p <= inf."""
    result = number(key, value)
    if math.isnan(result) or result < 1:
        refuse(key, value, "a number p with 1 <= p <= inf")
    return result


def check_images(
    images: Tensor, *, key: str = "images", limits: tuple[float, float] | None = (0.0, 1.0)
) -> None:
    """Hold that ``images`` is a floating tensor (N, C, H, W), finite and inside ``limits``.

    Args:
        images: the tensor to check; N may be 0.
        key: the name to use in the message.
        limits: lowest and highest pixel value allowed; None accepts any finite value.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        shown = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        refuse(f"{key}.shape", shown, "a floating-point tensor (N, C, H, W)")
    if images.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        refuse(key, "non-finite pixels", "finite pixels")
    if limits is not None and (low < limits[0] or high > limits[1]):
        refuse(
            f"{key}.range", f"[{low:.4g}, {high:.4g}]", f"pixels in [{limits[0]:g}, {limits[1]:g}]"
        )


def check_training_images(name: str, count: int, *, instead: str = "") -> None:
    """Hold that the data set ``name`` has training images.

    Args:
        name: of the data set.
        count: of its training images.
        instead: what else would do.

    Raises:
        InputError: it has none.
    """
    if count == 0:
        refuse(
            "dataset",
            f"{name} without training images",
            f"a data set with training images{instead}",
        )


def check_model(model: nn.Module) -> None:
    """Hold that every layer of ``model`` is in evaluation mode."""
    for name, module in model.named_modules():
        if module.training:
            refuse(
                "model.training",
                f"True at layer '{name or type(model).__name__}'",
                "evaluation mode: model.eval()",
            )


def check_logits(logits: Tensor, batch: int) -> None:
    """Hold that ``logits`` is (batch, classes), or (batch, 1) for a binary classifier, and finite."""
    if logits.ndim != 2 or logits.shape[0] != batch or logits.shape[1] < 1:
        refuse(
            "logits.shape",
            tuple(logits.shape),
            f"({batch}, classes), or ({batch}, 1) whose sign decides",
        )
    if not bool(torch.isfinite(logits).all()):
        refuse("logits", "NaN or infinite values", "finite logits")
