"""Weight files: written as a whole, read without running code, checked against the network."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustness_geometry.checks import refuse
from robustness_geometry.files import whole
from robustness_geometry.models.matconvnet import load_matconvnet
from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.state_dicts import entries, matched, say
from robustness_geometry.models.weight_files import KEY, read_weights, short
from robustness_geometry.sizes import check_archive

__all__ = ["load_weights", "read_metadata", "save_weights", "weights_alone"]

_ALONE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


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


def load_weights(model: nn.Module, path: str | Path, *, weights_key: str | None = None) -> None:
    """Read weights into ``model``, which stays as it is when they do not fit.

    The file is recognised by its content, and none of its code is run. A prefix that all weights
    share, such as ``module.``, ``_orig_mod.`` or Lightning's ``model.``, is taken off. What is left
    out or converted is logged as a warning.

    Args:
        model: the network. A file without a normalisation layer fills the network behind that
            layer, whose mean and standard deviation stay as they are.
        path: safetensors, or the index of several such files; ``.mat`` of MatConvNet; or what
            ``torch.save`` wrote of a state dict, also as entry of a checkpoint (``state_dict``,
            ``model_state_dict``, ``model``, ``net`` ...).
        weights_key: the entry, or the prefix, of the weights. None takes the one that fits; of an
            average of weights (``state_dict_ema``, ``model_ema`` ...) and the weights themselves,
            the average, as the tools that keep both evaluate it.

    Raises:
        InputError: a file that is missing, damaged, of another kind, holds pickled code alone, or
            weights that are not finite, sparse, quantised or of another architecture; the text
            names the first weights that differ.

    Example:
        >>> from robustness_geometry.models import lenet, load_weights
        >>> from robustness_geometry.models.pretrained import WEIGHTS
        >>> model = lenet(channels=1, size=(28, 28), classes=10, mean=(0.0,), std=(1.0,))
        >>> load_weights(model, WEIGHTS / "mnist5k_lenet.safetensors")
        >>> round(model.normalise.mean.item(), 2)
        0.13
    """
    path = _existing(path)
    if path.suffix == ".mat":
        if not isinstance(model, Normalised):
            refuse(
                KEY,
                path,
                "safetensors or a state dict: a MatConvNet file is for this package's networks",
            )
        load_matconvnet(model, path)
        return
    found = entries(_contents(path), path, weights_key)
    target = model
    if isinstance(model, Normalised) and not any(
        name.endswith("normalise.mean") for entry in found for name in entry.state
    ):
        target = model.network
    own = target.state_dict()
    state = matched(own, found, path, weights_key)
    _check_fit(own, state, path)
    if isinstance(target, Normalised):
        # An average image has another shape than a mean per channel.
        target.normalise.replace(state["normalise.mean"], state["normalise.std"])
    target.load_state_dict(state)


def _contents(path: Path) -> object:
    check_archive(KEY, path)
    try:
        return read_weights(path)
    except RecursionError:  # an index that names itself, or what is nested without end
        refuse(KEY, path, "a file of weights, or an index of such files that names no other index")


@contextmanager
def weights_alone() -> Iterator[None]:
    """Within it torch.load runs no code of a file, whatever the library that calls it asks for.

    Libraries of networks read the files that they have downloaded, or that somebody has put in the
    place of these.

    Example:
        >>> import pickle, tempfile, torch
        >>> from robustness_geometry.models.checkpoint import weights_alone
        >>> with tempfile.TemporaryFile() as file, weights_alone():
        ...     torch.save(print, file)
        ...     _ = file.seek(0)
        ...     try:
        ...         torch.load(file, weights_only=False)
        ...     except pickle.UnpicklingError:
        ...         print("refused")
        refused
    """
    before = os.environ.get(_ALONE)
    os.environ[_ALONE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_ALONE)
        if before is not None:
            os.environ[_ALONE] = before


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.is_dir():
        kinds = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index.json")
        inside = sorted(file.name for file in path.iterdir() if file.name.endswith(kinds))
        hint = f", such as {path / inside[0]}" if inside else ""
        refuse(KEY, path, f"an existing file of weights, not a folder{hint}")
    if not path.is_file():
        refuse(KEY, path, "an existing file of weights")
    return path


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
        refuse(KEY, path, f"a file written by save_weights ({short(error)})")
    return {str(name): str(value) for name, value in notes.items()}


def _check_fit(own: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> None:
    faults = _listed("it lacks", [name for name in own if name not in state])
    faults += _listed("it has the unknown", [name for name in state if name not in own])
    wrong = [n for n in own if n in state and not _same_shape(n, own[n], state[n])]
    for name in wrong[:1]:
        faults.append(f"{name} is {_shape(state[name])} instead of {tuple(own[name].shape)}")
        faults += _classes(own, state, wrong) if not faults[:-1] else []
    if faults:
        refuse(KEY, path, "a file of this architecture's weights: " + "; ".join(faults))
    for name, value in state.items():
        if isinstance(value, Tensor):
            _check_values(name, own[name], value, path)
    _say_type(own, state, path)


def _check_values(name: str, own: object, value: Tensor, path: Path) -> None:
    wanted = isinstance(own, Tensor) and own.is_floating_point()
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        what = (
            "quantised" if value.is_quantized else "sparse" if not value.is_meta else "without data"
        )
        refuse(KEY, path, f"a file of plain dense weights; {name} is {what}")
    if wanted and not value.is_floating_point():
        kind = str(value.dtype).removeprefix("torch.")
        refuse(KEY, path, f"a file of floating-point weights; {name} is {kind}")
    # As the network holds them: large float64 values are infinite in float32.
    held = value.to(own.dtype) if isinstance(own, Tensor) else value
    if not bool(torch.isfinite(held).all()):
        refuse(KEY, path, f"a file of finite weights; {name} holds NaN or infinite values")


def _say_type(own: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> None:
    """Say it once where weights of another type are loaded into the network's own."""
    for name, value in own.items():
        given = state[name]
        if isinstance(value, Tensor) and isinstance(given, Tensor) and given.is_floating_point():
            if given.dtype != value.dtype and not is_lazy(value):
                kinds = [str(each.dtype).removeprefix("torch.") for each in (given, value)]
                say(f"{path}: the weights are {kinds[0]}; the network computes in {kinds[1]}")
            return


def _same_shape(name: str, own: object, given: object) -> bool:
    if not isinstance(own, Tensor) or is_lazy(own):
        return True
    if not isinstance(given, Tensor):
        return False
    if name == "normalise.mean" and given.ndim == 4:
        return own.shape[:2] == given.shape[:2]
    return own.shape == given.shape


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _classes(own: Mapping[str, Any], state: Mapping[str, Any], wrong: list[str]) -> list[str]:
    """What to say where the last layer alone differs, and only in its number of outputs."""
    weights = [n for n, v in own.items() if isinstance(v, Tensor) and v.ndim >= 2]
    if not weights or not isinstance(given := state[wrong[0]], Tensor):
        return []
    last = weights[-1].rpartition(".")[0]
    mine = own[wrong[0]].shape
    if {name.rpartition(".")[0] for name in wrong} != {last} or given.shape[1:] != mine[1:]:
        return []
    return [f"it was trained for {given.shape[0]} classes, and the network has {mine[0]}"]


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")]
