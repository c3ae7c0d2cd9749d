"""Sizes of feature maps, and the refusal of images that are too small."""

from collections.abc import Callable

from robustness_geometry.checks import refuse

__all__ = ["check_size", "pooled", "window"]

Side = Callable[[int], int]


def window(kernel: int, stride: int = 1, padding: int = 0) -> Side:
    """The side after a convolution or a pooling: floor((n + 2 padding - kernel) / stride) + 1."""
    return lambda side: (side + 2 * padding - kernel) // stride + 1


def pooled(kernel: int, stride: int) -> Side:
    """The side after a pooling of Caffe, which rounds up: ceil((n - kernel) / stride) + 1."""
    return lambda side: -((kernel - side) // stride) + 1


def check_size(model: str, size: tuple[int, int], *rules: Side) -> tuple[int, int]:
    """The height and width that are left after all ``rules``.

    Raises:
        InputError: nothing is left at some layer; it names the model and the smallest side that it
            takes.
    """
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
