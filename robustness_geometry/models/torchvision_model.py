"""Any classifier of torchvision, with or without its published weights."""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from robustness_geometry.checks import check_choice, refuse
from robustness_geometry.extras import require
from robustness_geometry.models.checkpoint import load_weights, weights_alone
from robustness_geometry.models.class_names import named
from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_taken

__all__ = ["torchvision_model"]


def torchvision_model(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    name: str,
    weights: str | None = "DEFAULT",
    checkpoint: str | None = None,
    weights_key: str | None = None,
    args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A network of ``torchvision.models``, behind a normalisation layer.

    With published weights the normalisation is that of the weights, and channels and classes must
    be theirs. Without, the network is built for the data set: its last layer for the classes, its
    first convolution for the channels, and the data set's normalisation. With a ``checkpoint`` it
    is built for the data set, and ``weights`` says whose normalisation it gets.

    Args:
        channels: number of channels of the images.
        size: height and width of the images.
        classes: number of logits.
        mean: per-channel mean, in pixel units; used without published weights.
        std: per-channel standard deviation, in pixel units; used without published weights.
        name: a name of ``torchvision.models.list_models()``, such as ``resnet50``.
        weights: ``DEFAULT``, a name such as ``IMAGENET1K_V1``, or None for fresh weights, to be
            trained or loaded.
        checkpoint: a file of weights in place of the published ones, see
            :func:`robustness_geometry.models.load_weights`.
        weights_key: the entry of that file, or the prefix, that holds the weights.
        args: further arguments of the network's function, such as ``image_size``.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: torchvision is not installed, an unknown name, or weights that do not exist,
            cannot be downloaded, or do not suit the data.

    Example:
        >>> from robustness_geometry.models import torchvision_model
        >>> shape = {"channels": 1, "size": (32, 32), "classes": 4, "mean": (0.5,), "std": (0.5,)}
        >>> torchvision_model(**shape, name="resnet18", weights=None).network.fc.out_features
        4
    """
    zoo = require("torchvision.models", extra="examples")
    check_choice("model.name", name, tuple(zoo.list_models(module=zoo)))
    entry = None if weights is None else _entry(zoo, name, weights)
    if entry is not None and checkpoint is None:
        categories = entry.meta["categories"]
        known = (3, len(categories))
        if (channels, classes) != known:
            refuse("model.weights", weights, unsuited(name, known, (channels, classes)))
        preset = entry.transforms()
        return named(Normalised(_download(zoo, name, entry), preset.mean, preset.std), categories)
    network = _fresh(zoo, name, classes, args)
    constants = mean, std
    if entry is not None:
        if channels != 3:
            refuse("model.weights", weights, unsuited(name, (3, classes), (channels, classes)))
        preset = entry.transforms()
        constants = preset.mean, preset.std
    model = Normalised(_for_channels(network, channels), *constants)
    if isinstance(side := getattr(network, "image_size", None), int):  # a transformer
        check_taken(model, name, channels, size, side, "image_size")
    if checkpoint is not None:
        load_weights(model, checkpoint, weights_key=weights_key)
    return model


def _entry(zoo: Any, name: str, weights: str) -> Any:
    entries = zoo.get_model_weights(name)
    if weights not in entries.__members__:
        refuse("model.weights", weights, "one of " + ", ".join([*entries.__members__, "null"]))
    return entries[weights]


def _fresh(zoo: Any, name: str, classes: int, args: Mapping[str, Any] | None) -> nn.Module:
    options = {**_quiet(name), **(args or {})}
    try:
        network: nn.Module = zoo.get_model(name, weights=None, num_classes=classes, **options)
    except (TypeError, ValueError) as error:
        refuse("model.args", dict(args or {}), f"arguments that {name} takes ({error})")
    return network


def unsuited(name: str, known: tuple[int, int], wanted: tuple[int, int]) -> str:
    """What weights must be where the published ones do not have the data set's classes."""
    return (
        f"null for this data set: the published weights of {name} take {known[0]} channels and "
        f"give {known[1]} classes; the data set has {wanted[0]} and {wanted[1]}"
    )


def _download(zoo: Any, name: str, entry: Any) -> nn.Module:
    try:
        with weights_alone():
            network: nn.Module = zoo.get_model(name, weights=entry)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        place = "torch.hub's folder of checkpoints"
        refuse(
            "model.weights",
            entry.name,
            f"weights that can be downloaded, or put {entry.url} into {place} ({why})",
        )
    return network


def _quiet(name: str) -> dict[str, bool]:
    # These two warn without the first flag, and return tuples in training without the second.
    return (
        {"init_weights": False, "aux_logits": False}
        if name in ("googlenet", "inception_v3")
        else {}
    )


def _for_channels(network: nn.Module, channels: int) -> nn.Module:
    """Make the first convolution take ``channels``; all torchvision classifiers start with one."""
    path, old = next(pair for pair in network.named_modules() if isinstance(pair[1], nn.Conv2d))
    if old.in_channels != channels:
        options: dict[str, Any] = {
            key: getattr(old, key) for key in ("kernel_size", "stride", "padding")
        }
        new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **options)
        network.set_submodule(path, new)
    return network
