"""Networks whose trained weights come with the package."""

import json
from pathlib import Path

from torch import nn

from robustness_geometry.checks import refuse
from robustness_geometry.models.checkpoint import load_weights, read_metadata
from robustness_geometry.models.factories import FACTORIES

__all__ = ["WEIGHTS", "pretrained", "restore"]

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the committed weights."""


def pretrained(name: str) -> nn.Module:
    """A trained network of the embedded suite, such as ``mnist5k_lenet``, in evaluation mode.

    Example:
        >>> from robustness_geometry.datasets import mnist5k
        >>> from robustness_geometry.models import pretrained
        >>> model, data = pretrained("mnist5k_lenet"), mnist5k()

    Raises:
        InputError: no weights of that name; the text lists those there are.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        names = sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))
        refuse("pretrained", name, "one of " + ", ".join(names))
    return restore(path)


def restore(path: str | Path) -> nn.Module:
    """Build the network that a weight file describes (:func:`robustness_geometry.models.describe`) and load its weights.

    Raises:
        InputError: a file that is missing or damaged, or that describes no network of
            :mod:`robustness_geometry.models`.
    """
    notes = read_metadata(path)
    name = notes.get("factory", "")
    if name not in FACTORIES:
        refuse(
            "model.checkpoint",
            str(path),
            f"weights of one of {', '.join(FACTORIES)}; it names '{name}'",
        )
    arguments = json.loads(notes["arguments"])
    model: nn.Module = FACTORIES[name](**{**arguments, "size": tuple(arguments["size"])})
    load_weights(model, path)
    return model
