"""Checks of inputs: each raises one line that names the key, what it must be and what it is."""

import math
from collections.abc import Iterable
from fractions import Fraction
from os import PathLike, fspath
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

__all__ = [
    "NOTHING",
    "Described",
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
    "one_of",
    "refuse",
]


class InputError(ValueError):
    """A setting or a piece of data that cannot be used.

    Args:
        text: the message, one line.
        key: name of the setting or argument that was refused; empty where there is none.
    """

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text)
        self.key = key


class Described(str):
    """A description of a value that is too large to show; ``refuse`` prints it without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


NOTHING = Described("nothing")
"""The value of a key that is absent or empty."""


def refuse(key: str, value: object, allowed: str) -> NoReturn:
    """Raise the error for a value that ``key`` cannot have.

    Args:
        key: name of the setting or argument.
        value: the value itself, or a ``Described`` text about it.
        allowed: what the value must be: the text that follows "must be".

    Raises:
        InputError: always.

    Example:
        >>> from robustness_geometry.checks import refuse
        >>> refuse("norm", "two", "a number >= 1, or inf")
        Traceback (most recent call last):
        ...
        robustness_geometry.checks.InputError: norm must be a number >= 1, or inf; got 'two'
    """
    shown = fspath(value) if isinstance(value, PathLike) else value
    raise InputError(f"{key} must be {allowed}; got {shown!r}", key)


def one_of(names: Iterable[object]) -> str:
    """What a value must be that is chosen from ``names``, for :func:`refuse`.

    Example:
        >>> from robustness_geometry.checks import one_of
        >>> one_of(("sgd", "adam"))
        'one of sgd, adam'
    """
    return "one of " + ", ".join(map(str, names))


def number(key: str, value: float | str) -> float:
    """Read a number that may be written as a fraction (``8/255``) or as ``inf``.

    Raises:
        InputError: the text is not a number.

    Example:
        >>> from robustness_geometry.checks import number
        >>> number("eps", "1/4"), number("norm", "inf")
        (0.25, inf)
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
        refuse(key, value, one_of(allowed))
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
    """Check that ``images`` is a floating tensor (N, C, H, W), finite and inside ``limits``.

    Args:
        images: the tensor to check; N may be 0.
        key: the name to use in the message.
        limits: lowest and highest pixel value allowed; None accepts any finite value.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        shown = (
            f"{images.dtype} {tuple(images.shape)}"
            if isinstance(images, Tensor)
            else f"an object of type {type(images).__name__}"
        )
        refuse(key, Described(shown), "a floating-point tensor (N, C, H, W)")
    if images.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        refuse(key, Described("NaN or infinite pixels"), "finite")
    if limits is not None and (low < limits[0] or high > limits[1]):
        refuse(
            key,
            Described(f"pixels in [{low:.4g}, {high:.4g}]"),
            f"within [{limits[0]:g}, {limits[1]:g}]",
        )


def check_training_images(name: str, count: int, *, instead: str = "") -> None:
    """Check that the data set ``name`` has training images.

    Args:
        name: name of the data set.
        count: number of its training images.
        instead: alternative that the message offers, such as ", or a trained model".

    Raises:
        InputError: it has none.
    """
    if count == 0:
        refuse(
            "dataset",
            Described(f"{name} without training images"),
            f"a data set with training images{instead}",
        )


def check_model(model: nn.Module) -> None:
    """Check that ``model`` is a module and every layer of it is in evaluation mode.

    Raises:
        InputError: it is no module, a layer is in training mode, or one has no weights yet.
    """
    if not isinstance(model, nn.Module):
        _refuse_kind(model)
    exported: list[str] = []
    for name, module in model.named_modules():
        # An exported program keeps the mode in which it was exported, whatever its flag says.
        if "eval" in vars(module):
            exported.append(f"{name}." if name else "")
        if isinstance(module, LazyModuleMixin) and _is_empty(module):
            refuse(
                "model",
                Described(f"no weights yet at layer {name or type(model).__name__!r}"),
                "initialised (call it once on images before)",
            )
        if getattr(module, "training", False) and not f"{name}.".startswith(tuple(exported)):
            refuse(
                "model",
                Described(f"training mode at layer {name or type(model).__name__!r}"),
                "in evaluation mode (call model.eval())",
            )


def _is_empty(layer: Any) -> bool:
    return bool(layer.has_uninitialized_params())


def _refuse_kind(model: object) -> NoReturn:
    program = hasattr(model, "module") and not isinstance(model, type)
    advice = (
        "the module that its method module() returns"
        if program
        else "a function is wrapped in a class whose forward calls it"
    )
    refuse(
        "model",
        Described(f"an object of type {type(model).__name__}"),
        f"a torch.nn.Module ({advice})",
    )


def check_logits(logits: Tensor, batch: int) -> None:
    """Check that ``logits`` is finite and (batch, classes), or (batch, 1) for two classes."""
    if logits.ndim != 2 or logits.shape[0] != batch or logits.shape[1] < 1:
        refuse(
            "logits.shape",
            tuple(logits.shape),
            f"({batch}, classes), or ({batch}, 1) for a classifier by the sign",
        )
    if not bool(torch.isfinite(logits).all()):
        refuse("logits", Described("NaN or infinite values"), "finite")
