"""The options of every experiment, as its ``Settings`` class has them: keys, defaults, meanings."""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import robustness_geometry.attacks as attacks
from stages.names import experiments_of
from stages.source import Module

__all__ = [
    "GROUPED",
    "Option",
    "block",
    "meanings",
    "modules",
    "own_options",
    "plain",
    "shared_options",
]

ROOT = Path(__file__).resolve().parent.parent

GROUPED = ("attack", "boundary_attack", "universal", "training")
"""Options that a configuration group fills, whatever the default of the class."""


@dataclass(frozen=True)
class Option:
    """One key of a configuration.

    Attributes:
        name: the key.
        default: its default as a plain value.
        meaning: what it is, one or more sentences.
    """

    name: str
    default: Any
    meaning: str


def modules(stage: str) -> dict[str, ModuleType]:
    """The modules of a stage's experiments, by the experiments' names."""
    return {n: importlib.import_module(module) for n, module in experiments_of(stage).items()}


def own_options(module: ModuleType, shared: Mapping[str, Option]) -> list[Option]:
    """The options that an experiment has for itself: the fields that its own file declares.

    Args:
        module: the experiment's.
        shared: the block of its stage; a field of the same name and default belongs to that.
    """
    own = inspect.get_annotations(module.Settings)
    options = [_option(entry, module) for entry in _fields(module) if entry.name in own]
    return [o for o in options if o.name not in shared or shared[o.name].default != o.default]


def block(stage: str) -> dict[str, Option]:
    """The options that experiments of a stage share: the fields of the classes that they extend."""
    shared: dict[str, Option] = {}
    for module in modules(stage).values():
        own = inspect.get_annotations(module.Settings)
        for entry in _fields(module):
            if entry.name not in own:
                shared.setdefault(entry.name, _option(entry, module))
    return shared


def shared_options(module: ModuleType) -> list[str]:
    """The names of all options of an experiment, its own or its stage's, in order."""
    return [entry.name for entry in _fields(module)]


@cache
def meanings(module: ModuleType) -> dict[str, str]:
    """Field of an experiment's settings -> its meaning, as ``--help`` shows it."""
    options = Module.read(ROOT, module.__name__).options("Settings")
    return {option.name: option.meaning for option in options}


def plain(value: Any) -> Any:
    """A default as a configuration file holds it; a bound function has a ``_target_``."""
    if isinstance(value, partial):
        name = value.func.__name__
        package = attacks.__name__ if hasattr(attacks, name) else value.func.__module__
        options = {key: plain(option) for key, option in value.keywords.items()}
        return {"_target_": f"{package}.{name}", **options}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    return dict(value) if isinstance(value, dict) else value


def _fields(module: ModuleType) -> Iterator[Field[Any]]:
    """The fields with a default that no configuration group fills."""
    for entry in fields(module.Settings):
        if entry.name not in GROUPED and _default(entry) is not MISSING:
            yield entry


def _option(entry: Field[Any], module: ModuleType) -> Option:
    return Option(entry.name, plain(_default(entry)), meanings(module).get(entry.name, ""))


def _default(entry: Field[Any]) -> Any:
    if entry.default is not MISSING:
        return entry.default
    return MISSING if entry.default_factory is MISSING else entry.default_factory()
