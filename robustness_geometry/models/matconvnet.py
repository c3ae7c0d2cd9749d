"""Weights of MatConvNet files (SimpleNN), as those of CaffeNet and VGG-F are published."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustness_geometry.checks import refuse
from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.sizes import check_size

__all__ = ["load_matconvnet"]

KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.Linear: "conv",
    nn.ReLU: "relu",
    nn.MaxPool2d: "pool",
    nn.AvgPool2d: "pool",
    nn.AdaptiveAvgPool2d: "pool",
    nn.LocalResponseNorm: "lrn",
    nn.BatchNorm1d: "bnorm",
    nn.BatchNorm2d: "bnorm",
}
_COMPRESSED = 15  # the type of a variable that zlib packed
SKIPPED = ("dropout", "softmax", "softmaxloss")


def load_matconvnet(model: Normalised, path: str | Path) -> None:
    """Copy the weights and the average image of a MatConvNet SimpleNN file into ``model``.

    Filters (H, W, C, K) become (K, C, H, W), or (K, C H W) for a fully connected layer. MatConvNet
    takes pixels of 0 to 255 less the average image a, which is (x - a / 255) / (1 / 255) for pixels
    x in [0, 1].

    Args:
        model: a network of the same layers in the same order (dropout and softmax aside).
        path: ``.mat`` file of version 7 or older, with ``layers`` and ``normalization`` at its top,
            or in ``net``.

    Raises:
        InputError: a file that cannot be read, another architecture, or no average image.

    References:
        A. Vedaldi and K. Lenc, "MatConvNet: convolutional neural networks for MATLAB", ACM
        Multimedia 2015, arXiv:1412.4564.
    """
    file = _open(Path(path))
    modules = [module for module in model.network.modules() if type(module) in KINDS]
    layers = [layer for layer in _layers(file, path) if _kind(layer) not in SKIPPED]
    found, expected = (
        [_kind(layer) for layer in layers],
        [KINDS[type(module)] for module in modules],
    )
    if found != expected:
        allowed = f"a file of the layers {' '.join(expected)}; this one has {' '.join(found)}"
        refuse("model.checkpoint", str(path), allowed)
    loaded = [
        _converted(module, layer, str(path)) for module, layer in zip(modules, layers, strict=True)
    ]
    mean = _average_image(file, str(path), model.normalise.mean.shape[1])
    for module, state in zip(modules, loaded, strict=True):
        module.load_state_dict(state)
    model.normalise.replace(mean / 255, torch.full((1, mean.shape[1], 1, 1), 1 / 255))


def _open(path: Path) -> Any:
    import scipy.io  # here, because most runs read no .mat file

    check_size("model.checkpoint", path, _unpacked(path))
    try:
        content = scipy.io.loadmat(path)
    except (
        OSError,
        ValueError,
        TypeError,
        NotImplementedError,
        MemoryError,
        zlib.error,
        scipy.io.matlab.MatReadError,
    ) as error:
        refuse("model.checkpoint", str(path), f"a whole .mat file of version 7 or older ({error})")
    return content["net"][0, 0] if "net" in content else content


def _unpacked(path: Path) -> int:
    """Bytes that the variables of a version 5 file declare; 0 for what is no such file."""
    size = 0
    with path.open("rb") as file:
        order = {b"IM": "<II", b"MI": ">II"}.get(file.read(128)[126:])
        while order and len(tag := file.read(8)) == 8:
            kind, count = struct.unpack(order, tag)
            head = file.read(min(count, 64)) if kind == _COMPRESSED else b""
            size += _declared(head, order) if head else count
            file.seek(count - len(head), os.SEEK_CUR)
    return size


def _declared(head: bytes, order: str) -> int:
    """Bytes of a compressed variable, as its own first eight bytes say."""
    try:
        first = zlib.decompressobj().decompress(head, 8)
    except zlib.error:  # scipy says what is wrong with it
        return 0
    return int(struct.unpack(order, first)[1]) if len(first) == 8 else 0


def _names(record: Any) -> tuple[str, ...]:
    return tuple(record) if isinstance(record, dict) else (record.dtype.names or ())


def _layers(file: Any, path: str | Path) -> list[Any]:
    if "layers" not in _names(file) or file["layers"].dtype != object:
        refuse(
            "model.checkpoint",
            str(path),
            "a SimpleNN file of MatConvNet, with a cell array 'layers'",
        )
    return [layer[0, 0] for layer in file["layers"].ravel()]


def _kind(layer: Any) -> str:
    kind = str(layer["type"].item())
    return "lrn" if kind == "normalize" else kind


def _converted(module: nn.Module, layer: Any, path: str) -> dict[str, Tensor]:
    """The state of ``module`` that ``layer`` holds; empty for a layer without weights."""
    convert = {"conv": _convolution, "bnorm": _batch_norm, "lrn": _response_norm}.get(
        KINDS[type(module)]
    )
    state = {} if convert is None else convert(module, layer, path)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if {name: tuple(value.shape) for name, value in state.items()} != shapes:
        name = str(layer["name"].item()) if "name" in _names(layer) else KINDS[type(module)]
        given = ", ".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
        wanted = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        refuse(
            "model.checkpoint", path, f"a file with {wanted} in layer {name}; this one has {given}"
        )
    return state


def _arrays(layer: Any) -> list[np.ndarray[Any, Any]]:
    # Files older than 2015 keep filters and biases in separate fields.
    weights = (
        layer["weights"].ravel()
        if "weights" in _names(layer)
        else (layer["filters"], layer["biases"])
    )
    return [np.asarray(weight, dtype=np.float32) for weight in weights]


def _convolution(module: nn.Module, layer: Any, path: str) -> dict[str, Tensor]:
    filters, *rest = _arrays(layer)
    # MATLAB drops trailing axes of length 1.
    filters = filters.reshape(filters.shape + (1,) * (4 - filters.ndim)).transpose(3, 2, 0, 1)
    if isinstance(module, nn.Linear):
        filters = filters.reshape(filters.shape[0], -1)
    state = {"weight": torch.from_numpy(np.ascontiguousarray(filters))}
    if rest and rest[0].size:
        state["bias"] = torch.from_numpy(rest[0].ravel())
    return state


def _batch_norm(module: nn.Module, layer: Any, path: str) -> dict[str, Tensor]:
    if len(arrays := _arrays(layer)) < 3:
        refuse("model.checkpoint", path, "a file whose batch normalisation has its moments")
    scale, shift, moments = (torch.from_numpy(array) for array in arrays[:3])
    # The second moment is sqrt(variance + epsilon).
    variance = moments[:, 1] ** 2 - float(module.eps)  # type: ignore[arg-type]
    return {
        "weight": scale.flatten(),
        "bias": shift.flatten(),
        "running_mean": moments[:, 0],
        "running_var": variance.clamp_min(0),
        "num_batches_tracked": torch.tensor(0),
    }


def _response_norm(module: nn.Module, layer: Any, path: str) -> dict[str, Tensor]:
    """Check that (size, kappa, alpha / size, beta) are the module's, which has no state."""
    assert isinstance(module, nn.LocalResponseNorm)
    mine = (module.size, module.k, module.alpha / module.size, module.beta)
    given = tuple(float(value) for value in layer["param"].ravel())
    if not np.allclose(mine, given, rtol=1e-4):
        refuse(
            "model.checkpoint",
            path,
            f"a file with local response normalisation {mine}; this one has {given}",
        )
    return {}


def _average_image(file: Any, path: str, channels: int) -> Tensor:
    record = file["meta"][0, 0] if "meta" in _names(file) else file
    image: Any = np.empty(0)
    if "normalization" in _names(record) and "averageImage" in _names(
        record["normalization"][0, 0]
    ):
        image = np.asarray(record["normalization"][0, 0]["averageImage"], dtype=np.float32)
    if image.size == channels:
        return torch.from_numpy(image.reshape(1, channels, 1, 1))
    if image.ndim != 3 or image.shape[2] != channels:
        refuse(
            "model.checkpoint",
            path,
            f"a file with a meta.normalization.averageImage of {channels} channels",
        )
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
