"""Weight files: written as a whole, read without running code, checked against the network."""

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from robustness_geometry.checks import refuse
from robustness_geometry.files import whole
from robustness_geometry.models.matconvnet import load_matconvnet
from robustness_geometry.models.normalisation import Normalised

__all__ = ["load_weights", "read_metadata", "save_weights"]

KEY = "model.checkpoint"
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Entries under which checkpoints keep the weights."""


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the weights and buffers of ``model`` as safetensors.

    The file appears as a whole or not at all, and the same weights always give the same bytes.

    Args:
        model: any module.
        path: the file; its folder is made if missing.
        metadata: texts to keep beside the weights.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from robustness_geometry.models import load_weights, read_metadata, save_weights
        >>> model = nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(model, f"{folder}/linear.safetensors", {"epochs": "6"})
        ...     load_weights(model, f"{folder}/linear.safetensors")
        ...     read_metadata(f"{folder}/linear.safetensors")
        {'epochs': '6'}
    """
    state = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
    }
    # One entry, because safetensors writes several in random order.
    notes = {"metadata": json.dumps(dict(metadata or {}), sort_keys=True)}
    with whole(Path(path)) as file:
        file.write(safetensors.torch.save(state, notes))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read weights into ``model``, which stays as it is when they do not fit.

    Args:
        model: the network. A file without a normalisation layer fills the network behind that
            layer, whose mean and standard deviation stay as they are.
        path: ``.safetensors``; ``.mat`` of MatConvNet; or what ``torch.save`` wrote of a state
            dict, also as entry ``state_dict``, ``model_state_dict`` or ``model`` of a checkpoint,
            and with the prefix ``module.``.

    Raises:
        InputError: a file that is missing, damaged, holds pickled code or non-finite weights, or is
            of another architecture; the text names the first weights that differ.

    Example:
        >>> from robustness_geometry.models import lenet, load_weights
        >>> from robustness_geometry.models.pretrained import WEIGHTS
        >>> model = lenet(channels=1, size=(28, 28), classes=10, mean=(0.0,), std=(1.0,))
        >>> load_weights(model, WEIGHTS / "mnist5k_lenet.safetensors")
        >>> round(model.normalise.mean.item(), 2)
        0.13
    """
    path = Path(path).expanduser()
    if not path.is_file():
        refuse(KEY, path, "an existing file of weights")
    if path.suffix == ".mat":
        if not isinstance(model, Normalised):
            refuse(
                KEY,
                path,
                "safetensors or a state dict: a MatConvNet file is for this package's networks",
            )
        load_matconvnet(model, path)
        return
    state = _unwrapped(_read(path), path)
    target = model
    if isinstance(model, Normalised) and "normalise.mean" not in state:
        target = model.network
    _check_fit(target, state, path)
    if isinstance(target, Normalised):
        # An average image has another shape than a mean per channel.
        target.normalise.replace(state["normalise.mean"], state["normalise.std"])
    target.load_state_dict(state)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts that :func:`save_weights` kept beside the weights.

    Raises:
        InputError: a file that is missing or that :func:`save_weights` did not write.

    Example:
        >>> from robustness_geometry.models import read_metadata
        >>> from robustness_geometry.models.pretrained import WEIGHTS
        >>> read_metadata(WEIGHTS / "mnist5k_lenet.safetensors")["factory"]
        'lenet'
    """
    path = Path(path).expanduser()
    if not path.is_file():
        refuse(KEY, path, "an existing file of weights")
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})["metadata"])
    except (SafetensorError, KeyError, ValueError) as error:
        refuse(KEY, path, f"a file written by save_weights ({_short(error)})")
    return {str(name): str(value) for name, value in notes.items()}


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch finds odd either loads or is refused
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
        return loaded
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            refuse(
                KEY,
                path,
                "a file of weights alone: safetensors, or a saved state dict; this is pickled code",
            )
        refuse(KEY, path, f"a whole file of weights ({_short(error)})")
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        refuse(KEY, path, f"a whole file of weights ({_short(error)})")


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefix of a parallel module."""
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        refuse(KEY, path, f"a state dict, alone or as entry {', '.join(WRAPPERS)} of a checkpoint")
    state = {str(name): value for name, value in loaded.items()}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _check_fit(target: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = target.state_dict()
    faults = _listed("it lacks", [name for name in own if name not in state])
    faults += _listed("it has the unknown", [name for name in state if name not in own])
    for name in own:
        if name in state and not _same_shape(name, own[name], state[name]):
            faults.append(
                f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            )
            break
    if faults:
        refuse(KEY, path, "a file of this architecture's weights: " + "; ".join(faults))
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            refuse(KEY, path, f"a file of finite weights; {name} holds NaN or infinite values")


def _same_shape(name: str, own: Tensor, given: Tensor) -> bool:
    if name == "normalise.mean" and given.ndim == 4:
        return own.shape[:2] == given.shape[:2]
    return own.shape == given.shape


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")]


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
