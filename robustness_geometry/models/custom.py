"""Networks from outside this package: any importable module class or function."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from robustness_geometry.checks import InputError, refuse
from robustness_geometry.models.checkpoint import load_weights
from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.outputs import unlocked

__all__ = ["custom", "preprocessing"]


def custom(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    target: str,
    checkpoint: str | None,
    args: Mapping[str, Any] | None = None,
    normalise: str | Sequence[Sequence[float]] = "none",
    weights_key: str | None = None,
) -> nn.Module:
    """The network that ``target(**args)`` makes, with weights from ``checkpoint``.

    The network gets images in [0, 1]. One that was trained on normalised images either normalises
    them itself, or gets a layer before it by ``normalise``.

    Args:
        channels: number of channels of the images, which the network must take.
        size: height and width of the images, which the network must take.
        classes: number of classes; the network must have as many logits (or one for two classes).
        mean: per-channel mean of the data set, for ``normalise=dataset``.
        std: per-channel standard deviation of the data set, for ``normalise=dataset``.
        target: a module class or a function by its full name, such as ``mypackage.nets.MyNet``.
        checkpoint: weights, see :func:`robustness_geometry.models.load_weights`; None keeps those
            that ``target`` makes, to be trained.
        args: keyword arguments of ``target``.
        normalise: ``none``, ``dataset``, or two lists: the mean and the standard deviation of each
            channel.
        weights_key: the entry of the checkpoint, or the prefix, that holds the weights; None finds
            it.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: a target that cannot be imported or makes no network, or a checkpoint that does
            not fit.

    Example:
        >>> import torch
        >>> from robustness_geometry.models import custom
        >>> shape = {"channels": 1, "size": (2, 2), "classes": 4, "mean": (0.5,), "std": (0.5,)}
        >>> model = custom(**shape, target="torch.nn.Flatten", checkpoint=None, normalise="dataset")
        >>> model(torch.ones(1, 1, 2, 2))
        tensor([[1., 1., 1., 1.]])
    """
    network = _make(target, dict(args or {}))
    if checkpoint is not None:
        load_weights(network, checkpoint, weights_key=weights_key)
    constants = preprocessing(normalise, channels, mean, std)
    return network.eval() if constants is None else Normalised(network, *constants)


def preprocessing(
    normalise: str | Sequence[Sequence[float]],
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Sequence[float], Sequence[float]] | None:
    """The mean and the standard deviation that the option ``normalise`` asks for; None: no layer.

    Raises:
        InputError: it is neither ``none`` nor ``dataset`` nor two lists of ``channels`` numbers.

    Example:
        >>> from robustness_geometry.models.custom import preprocessing
        >>> preprocessing("dataset", 1, (0.5,), (0.25,))
        ((0.5,), (0.25,))
    """
    if normalise == "none":
        return None
    if normalise == "dataset":
        return mean, std
    if (
        isinstance(normalise, str)
        or len(normalise) != 2
        or any(isinstance(row, int | float) or len(row) != channels for row in normalise)
    ):
        refuse("model.normalise", normalise, f"none, dataset, or two lists of {channels} numbers")
    return normalise[0], normalise[1]


def _make(target: str, args: dict[str, Any]) -> nn.Module:
    module, _, attribute = target.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        refuse("model.target", target, f"package.module.Name of an importable network ({error})")
    if not callable(factory):
        refuse("model.target", target, "a module class or a function that makes a network")
    try:
        network = factory(**args)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        refuse("model.args", args, f"arguments that {target} takes ({error})")
    if not isinstance(network, nn.Module):
        made = type(network).__name__
        refuse("model.target", target, f"a name that makes a torch.nn.Module, not {made}")
    return unlocked(network)
