"""Any network of the optional package robustbench: the robust networks that it publishes."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from robustness_geometry.checks import check_choice, one_of, refuse
from robustness_geometry.extras import require
from robustness_geometry.models.checkpoint import weights_alone
from robustness_geometry.models.weight_files import short

__all__ = ["robustbench"]

EXTRA = "robustbench"
DATA = ("cifar10", "cifar100", "imagenet", "imagenet_3d")
FAILURES = (
    *(OSError, RuntimeError, KeyError, ValueError, AssertionError),
    pickle.UnpicklingError,
)
THREATS = ("Linf", "L2", "corruptions", "corruptions_3d")


def robustbench(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    name: str,
    data: str = "cifar10",
    threat_model: str = "Linf",
    weights: str | None = "DEFAULT",
    folder: str = "models",
    download: bool = False,
) -> nn.Module:
    """A network of ``robustbench.utils.load_model``, which takes pixels in [0, 1].

    Args:
        channels: number of channels of the images, which the network must take.
        size: height and width of the images, which the network must take.
        classes: number of classes, which the network must have.
        mean: has no effect, as the networks normalise by themselves.
        std: likewise.
        name: a name of the leaderboard, such as ``Standard`` or ``Carmon2019Unlabeled``.
        data: the data set that it was trained on: cifar10, cifar100, imagenet or imagenet_3d.
        threat_model: Linf, L2, corruptions or corruptions_3d.
        weights: ``DEFAULT``: the published ones are the only ones.
        folder: where robustbench keeps the weights, as ``<data>/<threat_model>/<name>.pt``.
        download: whether weights that are not there are downloaded.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: robustbench is not installed, an unknown name, or weights that cannot be had.

    Example:
        >>> from robustness_geometry.models import robustbench
        >>> shape = {"channels": 3, "size": (8, 8), "classes": 2, "mean": (0,) * 3, "std": (1,) * 3}
        >>> robustbench(**shape, name="Standard", data="mnist")
        Traceback (most recent call last):
        ...
        robustness_geometry.checks.InputError: model.data must be one of cifar10, cifar100, \
imagenet, imagenet_3d; got 'mnist'
    """
    check_choice("model.data", data, DATA)
    check_choice("model.threat_model", threat_model, THREATS)
    if weights != "DEFAULT":
        refuse("model.weights", weights, "DEFAULT, as robustbench has published weights alone")
    utils = require("robustbench.utils", extra=EXTRA)
    zoo = require("robustbench.model_zoo", extra=EXTRA)
    _check_name(zoo, name, data, threat_model)
    place = Path(folder).expanduser()
    file = place / data / threat_model / f"{name}.pt"
    if not download and not list(file.parent.glob(f"{name}*")):
        refuse("model.folder", folder, f"a folder with {file}, or model.download=true")
    try:
        with weights_alone():
            network: nn.Module = utils.load_model(
                model_name=name, model_dir=str(place), dataset=data, threat_model=threat_model
            )
    except FAILURES as error:
        refuse("model.name", name, f"a network whose weights can be had ({short(error)})")
    return network.eval()


def _check_name(zoo: Any, name: str, data: str, threat_model: str) -> None:
    """Check the name among those of robustbench, whose dictionary has enumerations as keys."""
    known: list[str] = []
    for key, threats in zoo.model_dicts.items():
        if str(getattr(key, "value", key)) == data:
            for threat, networks in threats.items():
                if str(getattr(threat, "value", threat)) == threat_model:
                    known = list(networks)
    if name not in known:
        allowed = one_of(known) if known else f"null, as there are none for {threat_model}"
        refuse("model.name", name, allowed)
