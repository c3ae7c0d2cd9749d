"""Any image classifier of the optional package transformers: a folder, or a name on its hub."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from robustness_geometry.checks import refuse
from robustness_geometry.extras import require
from robustness_geometry.models.class_names import check_count_of_classes, named
from robustness_geometry.models.custom import preprocessing
from robustness_geometry.models.normalisation import Normalised
from robustness_geometry.models.shapes import check_taken
from robustness_geometry.models.weight_files import short
from robustness_geometry.types import Images, Logits

__all__ = ["huggingface"]

EXTRA = "huggingface"
Constants: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel."""

FAILURES = (
    *(OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError),
    pickle.UnpicklingError,
)
"""What transformers raises for names, files and options that it cannot use."""


def huggingface(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    name: str,
    weights: str | None = "DEFAULT",
    download: bool = False,
    revision: str | None = None,
    normalise: str | Sequence[Sequence[float]] | None = None,
    args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A network of ``AutoModelForImageClassification``, behind a normalisation layer.

    It maps images to its logits in float32. Attention is computed by plain matrix products, as the
    fused kernels have no second derivatives.

    Args:
        channels: number of channels of the images, which the network must take.
        size: height and width of the images, which the network must take.
        classes: number of classes, which the network must have.
        mean: per-channel mean of the data set, in pixel units; used without ``weights``, and with
            ``normalise=dataset``.
        std: per-channel standard deviation of the data set, likewise.
        name: a folder that ``save_pretrained`` wrote, or a name on the hub, such as
            ``google/vit-base-patch16-224``.
        weights: ``DEFAULT``, or None for fresh weights of the same architecture with the data set's
            number of classes, to be trained or loaded.
        download: whether a name that is not in the hub's cache on this machine is downloaded.
        revision: a branch, tag or commit of the hub; None: the newest.
        normalise: None: as the image processor beside the weights says (without ``weights``: by the
            data set); ``none``, ``dataset``, or two lists: the mean and the standard deviation of
            each channel.
        args: entries of the network's configuration to replace, such as ``image_size``.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: transformers is not installed; a name that cannot be had or that is no image
            classifier; weights without a last layer; or a network for other channels, another size
            or other classes.

    Example:
        >>> from robustness_geometry.models import huggingface
        >>> shape = {"channels": 3, "size": (8, 8), "classes": 2, "mean": (0,) * 3, "std": (1,) * 3}
        >>> huggingface(**shape, name="./nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        robustness_geometry.checks.InputError: model.name must be an existing folder, ...
    """
    if weights not in ("DEFAULT", None):
        refuse("model.weights", weights, "DEFAULT or null")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        refuse("model.name", name, "an existing folder, or a name on the hub such as owner/model")
    transformers = require("transformers", extra=EXTRA)
    place = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    source = {"local_files_only": not download, "revision": revision or "main"}
    source["trust_remote_code"] = False  # code beside the weights is never run, and nobody is asked
    with _quiet(transformers):
        config = _config(transformers, place, source, args)
        flip = False
        own: Constants | None = None
        if weights is None:
            config.num_labels = classes
            network = _fresh(transformers, config, name)
            normalise = "dataset" if normalise is None else normalise
        else:
            network = _loaded(transformers, place, source, config)
            check_count_of_classes(name, _names(config), config.num_labels, classes)
            flip, own = _processing(transformers, place, source, normalise)
    taken = getattr(config, "num_channels", channels)
    if taken != channels:
        refuse("dataset.channels", channels, f"{taken}, as {name} takes")
    logits = _Logits(network.float(), flip)
    chosen = own if normalise is None else preprocessing(normalise, channels, mean, std)
    model = logits.eval() if chosen is None else Normalised(logits, *chosen)
    check_taken(model, name, channels, size, getattr(config, "image_size", None), "image_size")
    return model if weights is None else named(model, _names(config))


class _Logits(nn.Module):
    """The logits alone, of images whose channels may be wanted in the reverse order."""

    def __init__(self, network: nn.Module, flip: bool) -> None:
        super().__init__()
        self.network, self.flip = network, flip

    def forward(self, images: Images) -> Logits:
        """Logits (N, classes) of normalised images (N, C, H, W)."""
        logits: Logits = self.network(images.flip(1) if self.flip else images).logits
        return logits


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no warnings, as what matters of them is refused below."""
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before[0])
        if before[1]:
            log.enable_progress_bar()


def _config(
    transformers: Any, place: str, source: Mapping[str, Any], args: Mapping[str, Any] | None
) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(place, **source)
    except FAILURES as error:
        hint = "" if Path(place).is_dir() else ", or model.download=true"
        refuse(
            "model.name", place, f"a network of transformers on this machine{hint} ({short(error)})"
        )
    for key, value in (args or {}).items():
        if not hasattr(config, key):
            refuse("model.args", dict(args or {}), f"entries of {type(config).__name__}")
        setattr(config, key, list(value) if isinstance(value, tuple) else value)
    return config


def _fresh(transformers: Any, config: Any, name: str) -> nn.Module:
    try:
        network: nn.Module = transformers.AutoModelForImageClassification.from_config(
            config, attn_implementation="eager"
        )
    except FAILURES as error:
        refuse("model.name", name, f"an image classifier of transformers ({short(error)})")
    return network


def _loaded(transformers: Any, place: str, source: Mapping[str, Any], config: Any) -> nn.Module:
    try:
        network, report = transformers.AutoModelForImageClassification.from_pretrained(
            place, config=config, attn_implementation="eager", output_loading_info=True, **source
        )
    except FAILURES as error:
        refuse(
            "model.name",
            place,
            f"an image classifier of transformers with weights ({short(error)})",
        )
    if missing := sorted(report["missing_keys"]):
        refuse(
            "model.name",
            place,
            f"an image classifier with all its weights; it lacks {missing[0]} and is perhaps a "
            "network without a trained last layer",
        )
    made: nn.Module = network
    return made


def _names(config: Any) -> tuple[str, ...]:
    """The names of the classes in the order of the logits; empty where they are LABEL_0, ..."""
    names = [str(name) for _, name in sorted(config.id2label.items())]
    made_up = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return () if made_up else tuple(names)


def _processing(
    transformers: Any, place: str, source: Mapping[str, Any], normalise: object
) -> tuple[bool, Constants | None]:
    """Whether channels are reversed, and the mean and standard deviation for pixels in [0, 1]."""
    try:
        made = transformers.AutoImageProcessor.from_pretrained(place, **source)
    except FAILURES as error:
        if normalise is None:
            allowed = "none, dataset, or two lists, as no image processor lies beside the weights"
            refuse("model.normalise", normalise, f"{allowed} ({short(error)})")
        return False, None
    if isinstance(known := getattr(made, "data_config", None), Mapping):  # a network of timm
        return False, (tuple(known["mean"]), tuple(known["std"]))
    return bool(getattr(made, "do_flip_channel_order", False)), _constants(made)


def _constants(made: Any) -> Constants:
    # The processor takes pixels of 0 to 255: (255 x scale - shift - mean) / std.
    rescales = getattr(made, "do_rescale", True)
    scale = 255 * float(made.rescale_factor) if rescales else 255.0
    shift = 1.0 if rescales and getattr(made, "rescale_offset", False) else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if getattr(made, "do_normalize", True) and getattr(made, "image_mean", None) is not None:
        mean, std = _list(made.image_mean), _list(made.image_std)
    if getattr(made, "include_top", False):  # EfficientNet divides twice
        std = [value * value for value in std]
    return tuple((m + shift) / scale for m in mean), tuple(s / scale for s in std)


def _list(values: float | Sequence[float]) -> list[float]:
    return [float(values)] * 3 if isinstance(values, int | float) else [float(v) for v in values]
