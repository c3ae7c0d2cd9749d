"""The two kinds of attack: on single images, or on a whole set of images (Algorithm 4)."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from robustness_geometry.attacks.protocol import attack_name
from robustness_geometry.attacks.universal import Universal
from robustness_geometry.checks import refuse
from robustness_geometry.types import Perturbed

__all__ = ["check_attack", "kind_of"]

PASSED: dict[type[Any], tuple[str, ...]] = {
    Perturbed: (),
    Universal: ("norm", "radius", "generator"),
}
"""What an attack returns -> the options that every experiment passes to it."""

WANTED: dict[type[Any], str] = {
    Perturbed: "an attack on single images, such as deepfool, fgsm or pgd, with every option that "
    "it requires (the stage universal takes the others)",
    Universal: "an attack on a whole set of images with the options norm, radius and generator, "
    "such as universal (the other stages take attacks on single images)",
}
"""What an attack of each kind is, for messages."""


def kind_of(annotation: Any) -> type[Any] | None:
    """What the attacks of a setting return: Perturbed or Universal; None if it holds no attack."""
    arguments = get_args(annotation)
    result = arguments[-1] if arguments and callable(annotation) else None
    return result if result in PASSED else None


def check_attack(attack: Callable[..., Any], kind: type[Any], key: str) -> None:
    """Check that an attack can be called as the experiments call attacks of this kind.

    Raises:
        InputError: it returns something else, lacks an option that experiments pass, or requires
            one that they do not.
    """
    function: Any = attack
    while isinstance(function, partial):
        function = function.func
    returned = inspect.signature(function).return_annotation
    fits = returned is kind or returned not in PASSED
    try:
        inspect.signature(attack).bind("model", "images", **dict.fromkeys(PASSED[kind]))
    except TypeError:
        fits = False
    if not fits:
        refuse(key, attack_name(attack), WANTED[kind])
