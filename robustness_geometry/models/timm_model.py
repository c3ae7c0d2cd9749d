"""Any classifier of the optional package timm."""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from robustness_geometry.checks import refuse
from robustness_geometry.extras import require
from robustness_geometry.models.checkpoint import load_weights, weights_alone
from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_taken
from robustness_geometry.models.torchvision_model import unsuited

__all__ = ["timm_model"]


def timm_model(
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
) -> Normalised:
    """A network of ``timm``, behind a normalisation layer.

    With published weights the normalisation is that of the weights, and channels and classes must
    be theirs; without, the network is built for the data set's channels and classes and normalises
    with its mean and standard deviation. With a ``checkpoint`` it is built for the data set, and
    ``weights`` says whose normalisation it gets.

    Args:
        channels: number of channels of the images.
        size: height and width of the images.
        classes: number of logits.
        mean: per-channel mean, in pixel units; used without published weights.
        std: per-channel standard deviation, in pixel units; used without published weights.
        name: a name of ``timm.list_models()``; a tag after a dot chooses among published weights.
        weights: ``DEFAULT``, or None for fresh weights, to be trained or loaded.
        checkpoint: a file of weights in place of the published ones, see
            :func:`robustness_geometry.models.load_weights`.
        weights_key: the entry of that file, or the prefix, that holds the weights.
        args: further arguments of ``timm.create_model``, such as ``img_size``.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: timm is not installed, an unknown name, or weights that cannot be had or do not
            suit the data.

    Example:
        >>> from robustness_geometry.models import timm_model
        >>> shape = {"channels": 1, "size": (32, 32), "classes": 4, "mean": (0.5,), "std": (0.5,)}
        >>> timm_model(**shape, name="resnet10t", weights=None).network.num_classes
        4
    """
    timm = require("timm", extra="timm")
    if not timm.is_model(name):
        refuse("model.name", name, "a name of timm.list_models()")
    if weights not in ("DEFAULT", None):
        refuse(
            "model.weights",
            weights,
            "DEFAULT or null; a tag after the name chooses published weights",
        )
    if weights is None or checkpoint is not None:
        network = _made(timm, name, args, num_classes=classes, in_chans=channels)
    else:
        network = _published(timm, name, weights, args)
    constants = mean, std
    if weights is not None:
        config = timm.data.resolve_model_data_config(network)
        given = classes if checkpoint is not None else network.num_classes
        known = (len(config["mean"]), given)
        if (channels, classes) != known:
            refuse("model.weights", weights, unsuited(name, known, (channels, classes)))
        constants = config["mean"], config["std"]
    model = Normalised(network, *constants)
    if getattr(network, "default_cfg", {}).get("fixed_input_size"):
        side = network.default_cfg["input_size"][1:]
        check_taken(model, name, channels, size, side, "img_size")
    if checkpoint is not None:
        load_weights(model, checkpoint, weights_key=weights_key)
    return model


def _made(timm: Any, name: str, args: Mapping[str, Any] | None, **options: Any) -> Any:
    try:
        return timm.create_model(name, pretrained=False, **options, **_plain(args))
    except (TypeError, ValueError) as error:
        refuse("model.args", dict(args or {}), f"arguments that {name} takes ({error})")


def _published(timm: Any, name: str, weights: str, args: Mapping[str, Any] | None) -> Any:
    try:
        with weights_alone():
            return timm.create_model(name, pretrained=True, **_plain(args))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        refuse("model.weights", weights, f"published weights that can be had from here ({why})")


def _plain(args: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in (args or {}).items()}
