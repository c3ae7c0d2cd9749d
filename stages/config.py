"""The configuration's schema: unknown keys and wrong types are refused before any work."""

import dataclasses
import inspect
import logging
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from pipeline.executor import Executor
from pipeline.tracking import Settings as TrackingSettings
from robustness_geometry.checks import InputError, check_choice, refuse
from robustness_geometry.models import LogProbabilities, load_weights
from robustness_geometry.models.probabilities import OUTPUTS
from robustness_geometry.training import Recipe
from stages.links import without_links
from stages.refusals import plain_name, unknown_key

__all__ = [
    "OPEN",
    "Config",
    "NetworkConfig",
    "check_network",
    "check_values",
    "factory",
    "read",
    "ready",
    "recipe",
    "typed",
]

# What it says of a name that cannot be imported stands in the exception as well.
logging.getLogger("hydra.utils").addFilter(lambda record: False)

RANDOM = "random"
FACTORY = ("channels", "size", "classes", "mean", "std")
"""Options of a model's factory that come from the data set, never from the configuration."""

OPEN = ("radius",)
"""Options of an attack that an experiment fills in where the configuration says null."""

_SPOKEN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}
"""What messages call a type."""


@dataclass
class SuiteConfig:
    """A suite of networks.

    Attributes:
        name: its name, under which results are filed.
        description: one sentence for the report.
        networks: stage or experiment -> the networks that it measures; all where it is not listed.
        counterparts: network of the thesis -> the suite's network that answers for it.
        kin: data set of the thesis -> why the suite's pictures and networks are of its kind.
    """

    name: str = MISSING
    description: str = ""
    networks: dict[str, list[str]] = field(default_factory=dict)
    counterparts: dict[str, str] = field(default_factory=dict)
    kin: dict[str, str] = field(default_factory=dict)


@dataclass
class BudgetConfig:
    """How many images, seeds and steps are taken.

    Attributes:
        name: its name.
        description: a few words for the notes.
    """

    name: str = MISSING
    description: str = ""


@dataclass
class NetworkConfig:
    """A network: a data set, a model and a training recipe, and what was tuned for it.

    Attributes:
        dataset: the data set's function and its options.
        model: the model's function and its options.
        training: the recipe.
        tuned: stage, or ``settings``, -> settings that hold for this network alone.
    """

    dataset: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    """Everything that a stage can be given; base.yaml says what each key means."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    networks: dict[str, NetworkConfig] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    network: Any = None
    experiments: list[str] | None = None
    output: str | None = None
    executor: dict[str, Any] = field(default_factory=dict)
    tracking: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    universal: dict[str, Any] = field(default_factory=dict)
    universal_transfer: dict[str, Any] = field(default_factory=dict)
    semirandom: dict[str, Any] = field(default_factory=dict)
    curvature: dict[str, Any] = field(default_factory=dict)
    curvature_transfer: dict[str, Any] = field(default_factory=dict)
    topology: dict[str, Any] = field(default_factory=dict)
    detect: dict[str, Any] = field(default_factory=dict)
    cure: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    training: dict[str, Any] | None = None

    def named(self) -> list[Any]:
        """The networks of the suite that ``network`` names: none, one, or a list of them."""
        if isinstance(self.network, list):
            return list(self.network)
        return [self.network] if self.network else []


def read(raw: DictConfig) -> Config:
    """The composed configuration as checked dataclasses.

    Raises:
        InputError: a key is unknown, a value has the wrong type, or a name is not in the suite.
    """
    raw = without_links(raw)
    OmegaConf.set_struct(raw, False)
    config: Config = _merge(Config, raw, "")
    config.executor = dataclasses.asdict(_schema_object(Executor, config.executor, "executor"))
    config.tracking = dataclasses.asdict(typed(TrackingSettings, config.tracking, "tracking"))
    if not config.seeds or len(set(config.seeds)) != len(config.seeds) or min(config.seeds) < 0:
        refuse("seeds", config.seeds, "one or more different whole numbers >= 0")
    if not OmegaConf.is_missing(raw, "suite.name") and config.suite.name:
        plain_name("suite.name", config.suite.name)
    for name, network in config.networks.items():
        plain_name("networks", name)
        check_network(network, f"networks.{name}.")
    for name in config.named():
        if name not in config.networks:
            refuse("network", name, "one of " + ", ".join(config.networks))
    _check_suite(config)
    return config


def _check_suite(config: Config) -> None:
    named = {
        f"suite.counterparts.{claimed}": [name]
        for claimed, name in config.suite.counterparts.items()
    }
    named |= {f"suite.networks.{stage}": names for stage, names in config.suite.networks.items()}
    for key, names in named.items():
        for name in names:
            if name not in config.networks:
                refuse(key, name, "one of " + ", ".join(config.networks))


def check_network(network: NetworkConfig, key: str) -> None:
    """Check the leaves of one network against the signatures of what they name."""
    ready(network.dataset, f"{key}dataset")
    factory(network.model, f"{key}model")
    recipe(network, key)


def factory(leaf: Mapping[str, Any], key: str) -> Callable[..., nn.Module]:
    """The function that makes the model of a leaf, with the weights that ``checkpoint`` names.

    Every model takes ``checkpoint``: a weight file (safetensors, a ``state_dict``, or MatConvNet's
    .mat), or ``random``, which asks for untrained weights by name; ``weights_key``, the entry of
    that file to take; and ``output``: ``logits``, or ``probabilities`` for a network whose outputs
    need a logarithm.
    """
    output = check_choice(f"{key}.output", leaf.get("output", OUTPUTS[0]), OUTPUTS)
    leaf = {name: value for name, value in leaf.items() if name != "output"}
    made = _bare(leaf, key)
    return made if output == OUTPUTS[0] else partial(_with_logarithm, made)


def _bare(leaf: Mapping[str, Any], key: str) -> Callable[..., nn.Module]:
    checkpoint = leaf.get("checkpoint")
    own = "checkpoint" in inspect.signature(_target(leaf, key)).parameters
    if own and checkpoint != RANDOM:
        return ready(leaf, key, supplied=FACTORY)
    bare = (
        {name: None if name in ("checkpoint", "weights") else v for name, v in leaf.items()}
        if own
        else {name: v for name, v in leaf.items() if name not in ("checkpoint", "weights_key")}
    )
    made = ready(bare, key, supplied=FACTORY)
    if checkpoint in (None, RANDOM):
        return made
    return partial(_with_weights, made, checkpoint, leaf.get("weights_key"))


def _with_logarithm(make: Callable[..., nn.Module], **shape: Any) -> nn.Module:
    return LogProbabilities(make(**shape))


def _with_weights(
    make: Callable[..., nn.Module], checkpoint: str, weights_key: str | None, **shape: Any
) -> nn.Module:
    model = make(**shape)
    load_weights(model, checkpoint, weights_key=weights_key)
    return model


def recipe(network: NetworkConfig, key: str) -> Recipe | None:
    """The network's training recipe.

    It is None with ``training=pretrained``, and for a model that brings its own weights.
    """
    given = network.model.get("checkpoint") or network.model.get("weights")
    if network.training.get("pretrained"):
        if not given:
            refuse(
                f"{key}training",
                "pretrained",
                "a recipe, as the model names neither a checkpoint nor weights",
            )
        return None
    return None if given else typed(Recipe, network.training, f"{key}training")


def typed(schema: type, values: Mapping[str, Any], key: str) -> Any:
    """An instance of the dataclass ``schema`` with ``values``, whose keys and types are checked."""
    return _merge(schema, values, key)


def ready(
    leaf: Mapping[str, Any], key: str, *, supplied: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """The function that a leaf names by ``_target_``, with the leaf's other keys as its options.

    Args:
        leaf: ``_target_`` and options, as a group file holds them; one of OPEN may be null, and is
            then not bound.
        key: where the leaf stands in the configuration, for messages.
        supplied: options that the caller passes later, so that the leaf need not name them.

    Raises:
        InputError: the target does not exist, or an option is unknown or has the wrong type.
    """
    function = _target(leaf, key)
    leaf = {name: value for name, value in leaf.items() if name not in OPEN or value is not None}
    options = {name: value for name, value in leaf.items() if name not in ("_target_", "_partial_")}
    _schema_object(
        function, options, key, (*supplied, *(name for name in OPEN if name not in leaf))
    )
    try:
        made: Callable[..., Any] = instantiate(dict(leaf), _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise InputError(f"{key}: {_line(error)}") from error
    # Lists become tuples: immutable and hashable, as the functions' defaults are.
    options = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in typing.cast(partial[Any], made).keywords.items()
    }
    return partial(function, **options)


def _target(leaf: Mapping[str, Any], key: str) -> Callable[..., Any]:
    name = leaf.get("_target_")
    if not isinstance(name, str):
        refuse(f"{key}._target_", name, "the dotted name of a function or class")
    try:
        function: Callable[..., Any] = get_object(name)
    except Exception as error:
        why = " ".join(str(error).split())
        wanted = f"the dotted name of something that can be imported ({why})"
        refuse(f"{key}._target_", name, wanted)
    return function


def check_values(entry: dataclasses.Field[Any], key: str, value: Any) -> Any:
    """``value`` as the type of the dataclass field ``entry``; lists become tuples.

    Raises:
        InputError: the type is another.
    """
    head, _, name = key.rpartition(".")
    kind = _plain(entry.type) or Any
    schema = dataclasses.make_dataclass("Setting", [(name, kind, field(default=MISSING))])
    checked = getattr(_merge(schema, {name: value}, head), name)
    return tuple(checked) if isinstance(checked, list) else checked


def _schema_object(
    function: Callable[..., Any],
    values: Mapping[str, Any],
    key: str,
    supplied: tuple[str, ...] = (),
) -> Any:
    return _merge(_schema(function, supplied), values, key)


@cache
def _schema(function: Callable[..., Any], supplied: tuple[str, ...]) -> type:
    """A dataclass with one field for each option of ``function`` that plain values can express."""
    fields: list[tuple[str, Any, Any]] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        if name in supplied and parameter.default is parameter.empty:
            continue
        kind = _plain(parameter.annotation)
        if kind is None:
            continue
        default = MISSING if parameter.default is parameter.empty else parameter.default
        kind = Any if isinstance(default, tuple | list | dict) else kind
        fields.append((name, kind, field(default_factory=partial(_same, default))))
    return dataclasses.make_dataclass(getattr(function, "__name__", "Options"), fields)


def _same(value: Any) -> Any:
    return value


def _plain(annotation: Any) -> Any:
    """The annotation as OmegaConf reads it.

    It is None for what a configuration cannot express, such as tensors and generators.
    """
    if annotation in (int, float, str, bool, Any):
        return annotation
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple, dict, Sequence, Mapping) or annotation in (list, tuple, dict):
        return Any
    if origin is Literal:
        return str
    if origin in (Union, types.UnionType):
        parts = [
            part for part in (_plain(a) for a in inner if a is not type(None)) if part is not None
        ]
        if not parts:
            return None
        if float in parts and len(parts) > 1:
            parts.append(int)  # a whole number is a number; OmegaConf's unions are stricter
        union: Any = Any if Any in parts else Union[tuple(parts)]  # noqa: UP007
        return union | None if type(None) in inner and union is not Any else union
    return None


def _merge(schema: type, values: Mapping[str, Any] | DictConfig, key: str) -> Any:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        _explain(error, schema, key)


def _explain(error: OmegaConfBaseException, schema: type, key: str) -> NoReturn:
    name = str(error.full_key or error.key or "")
    full = f"{key}.{name}" if key and name else key or name
    there = error.object_type if dataclasses.is_dataclass(error.object_type) else schema
    kinds = {entry.name: entry.type for entry in dataclasses.fields(there)}
    if "not in" in _line(error):
        unknown_key(full, kinds)
    kind = kinds.get(name.rpartition(".")[2])
    if getattr(error, "value", None) is not None and kind is not None:
        refuse(full, error.value, _spoken(kind))
    raise InputError(f"{full}: {_line(error)}") from error


def _spoken(annotation: Any) -> str:
    """A type as a message names it: ``int | None`` is "a whole number or null"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        parts = [part for part in inner if not (part is int and float in inner)]
        return " or ".join(dict.fromkeys(map(_spoken, parts)))
    if origin is list:
        return f"a list, each item {_spoken(inner[0])}"
    if origin is dict:
        return "a mapping of keys to values"
    if dataclasses.is_dataclass(annotation):
        names = ", ".join(entry.name for entry in dataclasses.fields(annotation))
        return f"a mapping with the keys {names}"
    return _SPOKEN.get(annotation, str(annotation))


def _line(error: BaseException) -> str:
    """The first line of an error's text that says something."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
