"""A network for a data set: initialised from a seed and tried on one image."""

import importlib
import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from robustness_geometry.checks import InputError, check_count, check_logits, check_model, refuse
from robustness_geometry.models.class_names import check_class_names
from robustness_geometry.models.probabilities import LogProbabilities
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Dataset

__all__ = ["Factory", "architectures", "build", "describe"]

Factory = Callable[..., nn.Module]
"""Called with channels, size, classes, mean and std; see :func:`build`."""

SHAPE = ("channels", "size", "classes", "mean", "std")
"""What every network is built for, from the data set."""


def architectures() -> dict[str, Factory]:
    """The architectures of this package by name, as a weight file may ask for them.

    These are the public functions of :mod:`robustness_geometry.models` that need nothing but a data
    set's channels, size, classes, mean and std.

    Example:
        >>> from robustness_geometry.models import architectures
        >>> sorted(architectures())[:3]
        ['caffenet', 'cnn', 'fc500_150_10']
    """
    package = importlib.import_module("robustness_geometry.models")
    public = {name: getattr(package, name) for name in package.__all__}
    return {name: value for name, value in public.items() if _is_architecture(value)}


def _is_architecture(value: object) -> bool:
    if not inspect.isfunction(value):
        return False
    parameters = inspect.signature(value).parameters
    needed = tuple(name for name, p in parameters.items() if p.default is p.empty)
    return needed == SHAPE


def build(factory: Factory, dataset: Dataset, seed: int = 0) -> nn.Module:
    """Call ``factory`` for the data set's channels, size, classes, mean and standard deviation.

    The initialisation is drawn from ``seed``; the global random state is left as it was.

    Args:
        factory: a function of :mod:`robustness_geometry.models`, or a partial of one with further
            options.
        dataset: the data set that the network is for.
        seed: seed of the initialisation.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        InputError: the network cannot take these images, or has another number of classes.

    Example:
        >>> from robustness_geometry.datasets import mnist5k
        >>> from robustness_geometry.models import build, lenet
        >>> data = mnist5k(train_limit=10, test_limit=10)
        >>> build(lenet, data, seed=1)(data.test.images).shape
        torch.Size([10, 10])
    """
    check_count("seed", seed, minimum=0)
    channels, *size = dataset.shape
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = factory(
            channels=channels,
            size=tuple(size),
            classes=len(dataset.classes),
            mean=dataset.mean,
            std=dataset.std,
        )
        _initialise(model, dataset)
        check_model(model)
        _try(model, dataset)
    check_class_names(model, dataset)
    return model


def describe(factory: Factory, dataset: Dataset) -> dict[str, str]:
    """The metadata from which :func:`robustness_geometry.models.restore` rebuilds a network.

    Args:
        factory: a function of :mod:`robustness_geometry.models`, or a partial of one with plain
            values.
        dataset: the data set that the network is for.

    Returns:
        The names of the factory and of the data set, and the factory's arguments as JSON.

    Example:
        >>> from robustness_geometry.datasets import mnist5k
        >>> from robustness_geometry.models import describe, lenet
        >>> describe(lenet, mnist5k(test_limit=10))["factory"]
        'lenet'
    """
    options: dict[str, object] = {}
    while isinstance(factory, partial):
        options = {**factory.keywords, **options}
        factory = factory.func
    channels, *size = dataset.shape
    arguments = {
        "channels": channels,
        "size": size,
        "classes": len(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        **options,
    }
    name = str(getattr(factory, "__name__", type(factory).__name__))
    return {
        "factory": name,
        "arguments": json.dumps(arguments, sort_keys=True),
        "dataset": dataset.name,
    }


def _initialise(model: nn.Module, dataset: Dataset) -> None:
    """Let layers that take their size from the images (``nn.LazyLinear``) draw their weights."""
    if any(isinstance(layer, LazyModuleMixin) for layer in model.modules()):
        with suppress(RuntimeError, ValueError, TypeError), torch.no_grad():
            model(torch.zeros(2, *dataset.shape))


def _try(model: nn.Module, dataset: Dataset) -> None:
    """Check on a black image that the logits are finite, one per class (or one for two)."""
    try:
        with torch.no_grad():
            if isinstance(model, LogProbabilities):
                model.check(torch.zeros(1, *dataset.shape))
            logits = logits_at(model, torch.zeros(1, *dataset.shape))
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        shape = "x".join(map(str, dataset.shape))
        refuse(
            "dataset.name",
            dataset.name,
            f"images that the network takes; it fails on {shape}: {why}",
        )
    check_logits(logits, 1)
    given, classes = logits.shape[1], len(dataset.classes)
    if given != classes and not (given == 1 and classes <= 2):
        refuse(
            "dataset.name",
            dataset.name,
            f"a data set of {given} classes, as the network has; not {classes}",
        )
