"""Universal perturbations as files, with the settings that they were found with."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from robustness_geometry.attacks.universal import Universal, check_ball
from robustness_geometry.checks import InputError, refuse
from robustness_geometry.norms import norms

__all__ = ["load_universal", "save_universal"]

KEY = "vector"
NAMES = tuple(entry.name for entry in fields(Universal))


def save_universal(found: Universal, path: str | Path, settings: Mapping[str, Any]) -> None:
    """Write a universal perturbation as safetensors.

    Args:
        found: what :func:`robustness_geometry.attacks.universal_perturbation` returned.
        path: the file; its folder is made when missing.
        settings: the options that it was found with, ``norm`` and ``radius`` among them, as plain
            values.

    Raises:
        InputError: the vector is longer than the radius, or norm or radius are missing or cannot be
            used.

    Example:
        >>> import tempfile, torch
        >>> from robustness_geometry.attacks import load_universal, save_universal
        >>> from robustness_geometry.attacks import universal_perturbation
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> found = universal_perturbation(model, torch.randn(20, 1, 4, 4), radius=2.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/vector.safetensors"
        ...     save_universal(found, path, {"norm": 2, "radius": 2.0})
        ...     again, settings = load_universal(path, shape=(1, 4, 4))
        >>> bool((again.perturbation == found.perturbation).all()), settings
        (True, {'norm': 2, 'radius': 2.0})
    """
    _check(found, settings)
    plain = {name: _plain(value) for name, value in settings.items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: getattr(found, name).detach().to("cpu", copy=True).contiguous() for name in NAMES
    }
    save_file(tensors, path, {"settings": json.dumps(plain, sort_keys=True)})


def load_universal(
    path: str | Path, shape: Sequence[int] | None = None
) -> tuple[Universal, dict[str, Any]]:
    """Read a universal perturbation and the settings that it was found with.

    Args:
        path: a file that :func:`save_universal` wrote.
        shape: (C, H, W) of the images that it is meant for; None takes any.

    Returns:
        The perturbation on the CPU, and the settings; a norm that is infinite is the text ``inf``.

    Raises:
        InputError: no such file, another kind of file, a vector of another shape, one with values
            that are not finite or longer than the radius, or a radius in other units than pixels in
            [0, 1].

    Example:
        See :func:`save_universal`.
    """
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {})["settings"])
            tensors = {name: file.get_tensor(name) for name in NAMES}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        refuse(KEY, path, f"a file written by save_universal ({str(error).splitlines()[0]})")
    here = tuple(tensors["perturbation"].shape)
    if len(here) != 4 or here[0] != 1 or (shape is not None and here[1:] != tuple(shape)):
        wanted = "(1, C, H, W)" if shape is None else str((1, *shape))
        refuse(KEY, path, f"a file of a vector of shape {wanted}, not {here}")
    found = Universal(**tensors)
    try:
        _check(found, settings)
    except InputError as error:
        raise InputError(f"{path}: {error}", error.key) from error
    return found, settings


def _check(found: Universal, settings: Mapping[str, Any]) -> None:
    vector = found.perturbation
    missing = sorted({"norm", "radius"} - set(settings))
    if missing:
        refuse(
            "settings", sorted(settings), f"a mapping with {' and '.join(missing)} among its names"
        )
    p, radius = check_ball(settings["norm"], settings["radius"], vector[0].numel())
    size = float(norms(vector.double(), p))
    # Rounding of the projection is allowed for; a value that is not finite fails the comparison.
    if not size <= radius * (1 + 1e-4):
        refuse("vector.norm", size, f"at most the radius {radius:.6g} in l_{p:g}")


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: infinite numbers as text, tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
