"""Checks of inputs: each raises one line that names the key, what it must be and what it is."""

import math
from collections.abc import Iterable
from fractions import Fraction
from os import PathLike, fspath
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

__all__ = [
    "NOTHING",
    "Described",
    "GivenLabels",
    "InputError",
    "check_choice",
    "check_classes",
    "check_count",
    "check_images",
    "check_labels",
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
    """Check that ``images`` is a floating tensor (N, ...), finite and inside ``limits``.

    Without limits any finite values pass, as points beside an image need not lie in [0, 1]. Only
    pictures whose pixels are plainly counted from 0 to 255 are refused then: their lowest pixel is
    near 0, where a perturbation would have led below 0 as far as above 1.

    Args:
        images: the tensor to check, of any shape (N, ...); N may be 0.
        key: the name to use in the message.
        limits: lowest and highest pixel value allowed; None accepts any finite value.

    Raises:
        InputError: another type or shape, or values that cannot be used.

    Example:
        >>> import torch
        >>> from robustness_geometry.checks import check_images
        >>> check_images(torch.full((2, 3, 8, 8), 200.0))
        Traceback (most recent call last):
        ...
        robustness_geometry.checks.InputError: images must be within [0, 1] (pixels that count \
from 0 to 255 are to be divided by 255); got pixels in [200, 200]
    """
    if not isinstance(images, Tensor) or images.ndim < 2 or not images.is_floating_point():
        refuse(key, Described(_described(images)), f"{_IMAGES}{_instead(images)}")
    if images.numel() == 0:
        if len(images):
            refuse(key, Described(_described(images)), f"{_IMAGES}, with at least one value each")
        return
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        refuse(key, Described("NaN or infinite pixels"), "finite")
    shown = Described(f"pixels in [{low:.4g}, {high:.4g}]")
    if limits is not None and (low < limits[0] or high > limits[1]):
        refuse(key, shown, f"within [{limits[0]:g}, {limits[1]:g}]{_range_hint(low, high, limits)}")
    if limits is None and _counts_to_255(images, low, high):
        refuse(key, shown, "in the units of [0, 1]: pixels / 255")


_IMAGES = "a floating-point tensor (N, ...)"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"an object of type {type(value).__name__}"


def _instead(images: object) -> str:
    """What to write in place of images that are no floating tensor with a batch dimension."""
    if not isinstance(images, Tensor):
        return ": torch.as_tensor(images)" if hasattr(images, "__array__") else ""
    if images.dtype == torch.uint8:
        return ": images / 255"
    if not images.is_floating_point():
        return ": images.float()"
    return ": images[None] for a single one"


def _range_hint(low: float, high: float, limits: tuple[float, float]) -> str:
    if limits != (0.0, 1.0):
        return ""
    if low >= 0 and high > 2:
        return " (pixels that count from 0 to 255 are to be divided by 255)"
    if low < 0:
        return " (images are normalised inside the network, see models.Normalised)"
    return ""


def _counts_to_255(images: Tensor, low: float, high: float) -> bool:
    """Whether these are pictures, (N, C, H, W) of 1 to 4 channels, with pixels up to 255.

    A perturbation that leads above 1 leads about as far below 0.
    """
    if images.ndim != 4 or not 1 <= images.shape[1] <= 4 or min(images.shape[2:]) < 2:
        return False
    return high > 2 and high - 1 > 8 * max(0.0, -low)


GivenLabels: TypeAlias = Any
"""Labels as functions take them: whatever :func:`check_labels` reads, or None where it may be."""


def check_labels(
    labels: Any,
    count: int,
    *,
    key: str = "labels",
    classes: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Labels in any of their usual forms as a tensor (N,) of int64.

    Args:
        labels: a tensor, list, tuple or NumPy array of whole numbers, one per image; for one image
            also a single number.
        count: N, the number of images.
        key: the name to use in the message.
        classes: number of classes; None: not checked here.
        device: the device that the result is on; None: that of ``labels``.

    Raises:
        InputError: anything else.

    Example:
        >>> from robustness_geometry.checks import check_labels
        >>> check_labels([2, 0], 2)
        tensor([2, 0])
        >>> check_labels([0.5, 1.0], 2)
        Traceback (most recent call last):
        ...
        robustness_geometry.checks.InputError: labels must be whole numbers of shape (2,), one \
class per image; got torch.float32 (2,)
    """
    found = _as_tensor(labels)
    allowed = f"whole numbers of shape ({count},), one class per image"
    if found is None:
        refuse(key, Described(f"an object of type {type(labels).__name__}"), allowed)
    if found.ndim == 0 and count == 1:
        found = found[None]
    empty = count == 0 and found.shape == (0,) and not isinstance(labels, Tensor)
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.shape != (count,) or not (whole or empty):
        one_hot = f" (of one-hot rows, {key}.argmax(1))" if found.ndim == 2 else ""
        refuse(key, Described(_described(found)), f"{allowed}{one_hot}")
    found = found.to(device, torch.int64)
    if classes is not None:
        check_classes(found, classes, key=key)
    return found


def check_classes(labels: Tensor, classes: int, *, key: str = "labels") -> None:
    """Check that ``labels`` (N,) are among the classes 0 to ``classes`` - 1."""
    if not bool(((labels >= 0) & (labels < classes)).all()):
        refuse(key, labels.unique().tolist()[:5], f"whole numbers from 0 to {classes - 1}")


def _as_tensor(labels: Any) -> Tensor | None:
    """``labels`` as a tensor; None if they cannot be one."""
    if isinstance(labels, Tensor):
        return labels.detach()
    try:
        if hasattr(labels, "__array__"):  # NumPy's arrays and what behaves like them
            labels = labels.__array__().tolist()
        elif isinstance(labels, list | tuple):
            labels = [each.tolist() if hasattr(each, "tolist") else each for each in labels]
        return torch.tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


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
