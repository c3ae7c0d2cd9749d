"""Finding an experiment's file, and filling its settings from the configuration."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields
from functools import partial
from types import ModuleType
from typing import Any

from pipeline.executor import Executor
from pipeline.findings import Findings
from robustness_geometry.checks import refuse
from robustness_geometry.types import Dataset, Network
from stages.config import Config, check_values, ready

__all__ = ["ACROSS", "STAGES", "Experiment", "experiments_of", "select"]

STAGES = (
    "train",
    "attack",
    "finetune",
    "universal",
    "semirandom",
    "curvature",
    "topology",
    "detect",
    "cure",
)
"""The stages whose experiments run on one network."""

SUFFIX = "_transfer"
ACROSS = (f"universal{SUFFIX}", f"curvature{SUFFIX}")
"""The stages whose experiments run on several networks at once: the files ``*_transfer.py`` of the package before."""


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the thesis: its function and its settings."""

    name: str
    section: str
    function: Callable[..., Findings]
    settings: Any
    across: bool = False
    named: bool = False
    networks: Sequence[str] | None = None

    def measure(
        self, networks: Mapping[str, Network], data: Mapping[str, Dataset], executor: Executor
    ) -> Findings:
        """Run the experiment: on all networks if it is one across networks, else on the only one.

        A network that the suite leaves out, or whose data an experiment that trains cannot train
        on, costs nothing: a note says so.
        """
        if self.across:
            return self.function(networks, data, self.settings, executor.scope(self.name))
        (network,), (own,) = networks.values(), data.values()
        if self.leaves_out(network.name):
            taken = ", ".join(self.networks or ()) or "no network"
            note = f"Not measured on {network.name}: this suite takes {taken}."
            return Findings(notes=[note])
        if self.lacks(own):
            note = f"Not measured on {network.name}: {own.name} has no training images."
            return Findings(notes=[note])
        scope = executor.scope(self.name, network=network.name)
        return self.function(network, own, self.settings, scope)

    def leaves_out(self, network: str) -> bool:
        """Whether the suite measures the experiment on other networks than this one."""
        return self.networks is not None and network not in self.networks

    def lacks(self, data: Dataset) -> bool:
        """Whether it trains networks, and the data have nothing to train them on."""
        return getattr(self.settings, "trains", False) and len(data.train) == 0

    def check(self, network: str, data: Dataset) -> None:
        """Check, before any work, that the data allow what the settings ask for.

        Raises:
            InputError: they do not. An experiment that was not asked for by name only raises what
                its settings can mend.
        """
        left_out = self.leaves_out(network) or (self.lacks(data) and not self.named)
        if hasattr(self.settings, "check") and not left_out:
            self.settings.check(data)

    def parameters(self) -> dict[str, Any]:
        """The settings as plain values, for the log."""
        values = {f.name: getattr(self.settings, f.name) for f in fields(self.settings)}
        return {name: _described(value) for name, value in values.items()}

    def attacks(self) -> dict[str, partial[Any]]:
        """The attacks among the settings, by the name of their field."""
        values = {f.name: getattr(self.settings, f.name) for f in fields(self.settings)}
        return {name: value for name, value in values.items() if isinstance(value, partial)}


def select(stage: str, config: Config) -> list[Experiment]:
    """The experiments of ``stage`` that ``config.experiments`` names (all for None), with checked settings.

    Raises:
        InputError: an unknown experiment, an unknown key, a wrong type or a value out of range.
    """
    known = {name for each in (*STAGES, *ACROSS) for name in experiments_of(each)}
    if unknown := set(config.settings) - known:
        refuse(
            f"settings.{min(unknown)}",
            config.settings[min(unknown)],
            "one of " + ", ".join(sorted(known)),
        )
    for key in config.suite.networks:
        if key not in (*STAGES, *known):
            refuse("suite.networks", key, "stages or experiments")
    available = experiments_of(stage)
    names = list(available) if config.experiments is None else config.experiments
    for name in names:
        if name not in available:
            refuse("experiments", name, "some of " + ", ".join(available))
    modules = {name: importlib.import_module(module) for name, module in available.items()}
    _check_block(stage, _block(stage, config), modules)
    return [_experiment(stage, name, modules[name], config) for name in names]


def experiments_of(stage: str) -> dict[str, str]:
    """The stage's experiments by name, each with its module: the files of its package without leading underscore."""
    across = stage in ACROSS
    package = stage.removesuffix(SUFFIX) if across else stage
    found = pkgutil.iter_modules(importlib.import_module(f"stages.{package}").__path__)
    names = sorted(module.name for module in found if not module.name.startswith("_"))
    if f"{package}{SUFFIX}" in ACROSS:
        names = [name for name in names if name.endswith(SUFFIX) == across]
    return {name: f"stages.{package}.{name}" for name in names}


def _block(stage: str, config: Config) -> dict[str, Any]:
    """The stage's block of settings; the attack stage's is the attack under study itself."""
    block: dict[str, Any] = getattr(config, stage)
    return {"attack": block} if stage == "attack" else block


def _check_block(stage: str, block: Mapping[str, Any], modules: Mapping[str, ModuleType]) -> None:
    allowed = {f.name for module in modules.values() for f in fields(module.Settings)}
    for key in block:
        if key not in allowed:
            refuse(f"{stage}.{key}", block[key], "one of " + ", ".join(sorted(allowed)))


def _experiment(stage: str, name: str, module: ModuleType, config: Config) -> Experiment:
    own = config.settings.get(name, {})
    shared = _block(stage, config)
    schema = {f.name: f for f in fields(module.Settings)}
    for key in own:
        if key not in schema:
            refuse(f"settings.{name}.{key}", own[key], "one of " + ", ".join(schema))
    given: dict[str, Any] = {}
    for key in schema:
        if key in own:
            given[key] = (f"settings.{name}.{key}", own[key])
        elif key in shared:
            given[key] = (f"{stage}.{key}" if key != stage else stage, shared[key])
    values = {key: _value(schema[key], *where) for key, where in given.items()}
    for key, entry in schema.items():
        if (
            key not in values
            and entry.default is NO_DEFAULT
            and entry.default_factory is NO_DEFAULT
        ):
            refuse(f"settings.{name}.{key}", "(absent)", f"a value of type {entry.type}")
    named = config.experiments is not None
    return Experiment(
        name,
        module.SECTION,
        getattr(module, name),
        module.Settings(**values),
        stage in ACROSS,
        named,
        None if config.network is None else config.suite.networks.get(name),
    )


def _value(entry: Field[Any], key: str, value: Any) -> Any:
    """A setting as the experiment takes it: a leaf becomes the function it names, the rest is checked for its type."""
    if isinstance(value, Mapping) and "_target_" in value:
        return ready(value, key)
    return check_values(entry, key, value)


def _described(value: Any) -> Any:
    if isinstance(value, partial):
        return {"_target_": f"{value.func.__module__}.{value.func.__qualname__}", **value.keywords}
    return value
