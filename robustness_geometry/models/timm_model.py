"""Any classifier of the optional package timm."""

from collections.abc import Sequence

from robustness_geometry.checks import refuse
from robustness_geometry.extras import require
from robustness_geometry.models.normalisation import Normalised
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
) -> Normalised:
    """A network of ``timm``, behind a normalisation layer.

    With published weights the normalisation is that of the weights, and channels and classes must
    be theirs; without, the network is built for the data set's channels and classes and normalises
    with its mean and standard deviation.

    Args:
        channels: number of channels of the images.
        size: height and width of the images.
        classes: number of logits.
        mean: per-channel mean, in pixel units; used without published weights.
        std: per-channel standard deviation, in pixel units; used without published weights.
        name: a name of ``timm.list_models()``; a tag after a dot chooses among published weights.
        weights: ``DEFAULT``, or None for fresh weights, to be trained or loaded.

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
    if weights is None:
        network = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
        return Normalised(network, mean, std)
    if weights != "DEFAULT":
        refuse(
            "model.weights",
            weights,
            "DEFAULT or null; a tag after the name chooses published weights",
        )
    try:
        network = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        refuse("model.weights", weights, f"published weights that can be had from here ({why})")
    config = timm.data.resolve_model_data_config(network)
    known = (config["input_size"][0], network.num_classes)
    if (channels, classes) != known:
        refuse("model.weights", weights, unsuited(name, known, (channels, classes)))
    return Normalised(network, config["mean"], config["std"])
