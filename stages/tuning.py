"""Settings that belong to a network, such as chapter 8's h, lambda and eps for its data set."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from robustness_geometry.checks import refuse
from stages.config import Config
from stages.names import STAGES, experiments_of

__all__ = ["tuned"]

CONF = Path(__file__).resolve().parent.parent / "conf"


def tuned(config: Config) -> Config:
    """The configuration with the settings in ``networks.<name>.tuned`` of the named network.

    A direct run, whose model and data set the command line describes, has none.

    Raises:
        InputError: the network tunes what is no stage, or a value that was changed by hand as well.
    """
    if not isinstance(config.network, str):
        return config
    where = f"networks.{config.network}.tuned"
    own = config.networks[config.network].tuned
    changed: dict[str, Any] = {}
    settings = config.settings
    for block, values in own.items():
        if block not in (*STAGES, "settings"):
            refuse(where, block, "settings of stages: " + ", ".join((*STAGES, "settings")))
        given = getattr(config, block)
        for path, value in _leaves(values):
            _check_unchanged(config, (block, *path), value, f"{where}.{'.'.join((block, *path))}")
        if block != "settings":
            changed[block] = _merged(given, values)
            settings = _without(settings, block, {name: given.get(name) for name in values})
    return replace(config, **changed, settings=_merged(settings, own.get("settings", {})))


def _without(
    settings: Mapping[str, Mapping[str, Any]], stage: str, values: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The settings of experiments without those that only repeat values of their stage's block."""
    mine = experiments_of(stage)
    return {
        name: {
            key: value
            for key, value in own.items()
            if name not in mine or key not in values or value != values[key]
        }
        for name, own in settings.items()
    }


def _check_unchanged(config: Config, path: tuple[str, ...], value: Any, where: str) -> None:
    """Check that no other value was given for what the network tunes: it would be ignored."""
    current = _at(getattr(config, path[0]), path[1:])
    budget = _read(CONF / "budget" / f"{config.budget.name}.yaml")
    usual = [value, _at(_read(CONF / "defaults.yaml"), path), _at(budget, path)]
    if path[1:2] == ("training",):
        usual.append(_at(_read(CONF / "training" / "cure.yaml"), path[2:]))
    if path[1:2] == ("attack",):
        usual.append(current)
    if current not in usual:
        refuse(".".join(path), current, f"left as it is: {where} sets it; write {where}=...")


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from (((name, *path), leaf) for path, leaf in _leaves(value))
        else:
            yield (name,), value


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(values)
    for name, value in over.items():
        own = both.get(name)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            both[name] = _merged(own, value)
        else:
            both[name] = value
    return both


@cache
def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
