"""Sizes of feature maps, and the check that images are large enough."""

from collections.abc import Callable

from robustness_geometry.checks import Described, refuse

__all__ = ["check_size", "pooled", "window"]

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


def _left(side: int, rules: tuple[Side, ...]) -> int:
    for rule in rules:
        side = rule(side) if side >= 1 else 0
    return side
