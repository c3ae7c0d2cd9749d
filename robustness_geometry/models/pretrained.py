"""Networks whose trained weights come with the package."""

import json
from pathlib import Path

from torch import nn

from robustness_geometry.checks import one_of, refuse
from robustness_geometry.models.build import architectures
from robustness_geometry.models.checkpoint import load_weights, read_metadata

__all__ = ["WEIGHTS", "pretrained", "restore"]

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the committed weights."""


def pretrained(name: str) -> nn.Module:
    """A trained network of the embedded suite, in evaluation mode.

    Args:
        name: name of the weights, such as ``mnist5k_lenet``.

    Raises:
        InputError: no weights of that name; the text lists those there are.

    Example:
        >>> from robustness_geometry.datasets import mnist5k
        >>> from robustness_geometry.models import pretrained
        >>> model, data = pretrained("mnist5k_lenet"), mnist5k(test_limit=4)
        >>> model(data.test.images).shape
        torch.Size([4, 10])
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        names = sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))
        refuse("pretrained", name, one_of(names))
    return restore(path)


def restore(path: str | Path) -> nn.Module:
    """Build the network that a weight file describes, and load its weights.

    Args:
        path: a file of :func:`robustness_geometry.models.save_weights` with the metadata of
            :func:`robustness_geometry.models.describe`.

    Raises:
        InputError: a file that is missing or damaged, or that describes none of the architectures
            of :mod:`robustness_geometry.models`.

    Example:
        >>> from robustness_geometry.models import restore
        >>> from robustness_geometry.models.pretrained import WEIGHTS
        >>> type(restore(WEIGHTS / "mnist5k_lenet.safetensors")).__name__
        'Normalised'
    """
    notes = read_metadata(path)
    name, known = notes.get("factory", ""), architectures()
    if name not in known:
        names = ", ".join(known)
        refuse("model.checkpoint", path, f"a file of weights of one of {names}; it names '{name}'")
    arguments = json.loads(notes["arguments"])
    model: nn.Module = known[name](**{**arguments, "size": tuple(arguments["size"])})
    load_weights(model, path)
    return model
