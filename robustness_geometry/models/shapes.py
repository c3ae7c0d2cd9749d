"""Sizes of feature maps, and the check that images are large enough."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from robustness_geometry.checks import Described, refuse

__all__ = ["check_size", "check_taken", "pooled", "window"]

Side = Callable[[int], int]


def window(kernel: int, stride: int = 1, padding: int = 0) -> Side:
    """The side after a convolution or a pooling: floor((n + 2 padding - kernel) / stride) + 1.

    Example:
        >>> from robustness_geometry.models.shapes import window
        >>> window(5)(28)
        24
    """
    return lambda side: (side + 2 * padding - kernel) // stride + 1


def pooled(kernel: int, stride: int) -> Side:
    """The side after a pooling of Caffe, which rounds up: ceil((n - kernel) / stride) + 1.

    Example:
        >>> from robustness_geometry.models.shapes import pooled
        >>> pooled(3, 2)(32)
        16
    """
    return lambda side: -((kernel - side) // stride) + 1


def check_size(model: str, size: tuple[int, int], *rules: Side) -> tuple[int, int]:
    """The height and width that are left after all ``rules``.

    Args:
        model: name of the model, for the message.
        size: height and width of the images.
        *rules: one per layer: the side after it, from the side before it.

    Raises:
        InputError: nothing is left at some layer; the text names the smallest side that the model
            takes.

    Example:
        >>> from robustness_geometry.models.shapes import check_size, window
        >>> check_size("lenet", (28, 32), window(5), window(2, 2))
        (12, 14)
    """
    if len(size) != 2:
        refuse(
            "dataset", Described(f"inputs of {len(size) + 1} dimensions"), f"pictures for {model}"
        )
    smallest = next(side for side in range(1, 1000) if _left(side, rules) >= 1)
    if min(size) < smallest:
        refuse(
            "dataset.size",
            f"{size[0]}x{size[1]}",
            f"at least {smallest}x{smallest} pixels for {model}",
        )
    return _left(size[0], rules), _left(size[1], rules)


def check_taken(
    model: nn.Module,
    name: str,
    channels: int,
    size: tuple[int, int],
    wanted: int | Sequence[int] | None,
    option: str,
) -> None:
    """Check that a network from elsewhere takes images of this size, by giving it one.

    Args:
        model: the network.
        name: its name, for the message.
        channels: number of channels of the images.
        size: height and width of the images.
        wanted: the side, or the sides, that it was built for; None where it does not say.
        option: the entry of ``model.args`` that builds it for another size.

    Raises:
        InputError: it does not take them; the text says which size, and the option.

    Example:
        >>> from torch import nn
        >>> from robustness_geometry.models.shapes import check_taken
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        >>> check_taken(model, "mlp", 1, (4, 4), 4, "image_size")
    """
    try:
        with torch.no_grad():
            model(torch.zeros(1, channels, *size))
    except (ValueError, RuntimeError, AssertionError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        given = f"{size[0]}x{size[1]}"
        sides = [wanted] if isinstance(wanted, int) else list(wanted or ())
        first = "x".join(map(str, sides))
        refuse(
            "dataset.size",
            given,
            f"{first or 'a size'} for {name}, or build it for these images by "
            f"model.weights=null model.args={{{option}: [{size[0]}, {size[1]}]}} ({why})",
        )


def _left(side: int, rules: tuple[Side, ...]) -> int:
    for rule in rules:
        side = rule(side) if side >= 1 else 0
    return side
