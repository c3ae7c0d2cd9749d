"""Finding an experiment's file, and filling its settings from the configuration."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import partial
from types import ModuleType
from typing import Any, NoReturn

from pipeline.executor import Executor
from pipeline.findings import Findings
from robustness_geometry.checks import Described, InputError, refuse
from robustness_geometry.types import Dataset, Network
from stages.config import Config, check_values, ready
from stages.kinds import check_attack, kind_of
from stages.names import ACROSS, STAGES, experiments_of, stage_of
from stages.refusals import no_such, unknown_key

__all__ = ["ACROSS", "STAGES", "Experiment", "block_of", "experiments_of", "select"]


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the thesis: its function and its settings.

    Attributes:
        name: the name of its file.
        section: where it stands in the thesis.
        function: measures it.
        settings: its options, checked.
        across: whether it runs on several networks at once.
        named: whether it was asked for by name.
        networks: the networks that the suite measures it on; None: any.
        keys: setting -> the key of the configuration that it was read from.
    """

    name: str
    section: str
    function: Callable[..., object]
    settings: Any
    across: bool = False
    named: bool = False
    networks: Sequence[str] | None = None
    keys: Mapping[str, str] = field(default_factory=dict)

    def measure(
        self, networks: Mapping[str, Network], data: Mapping[str, Dataset], executor: Executor
    ) -> Findings:
        """Run the experiment: on all networks if it is one across networks, else on the only one.

        Networks that the suite leaves out take no part. One of them by itself, or one on whose data
        an experiment that trains cannot train, is skipped with a note that says so.

        Raises:
            InputError: the experiment's function returns something other than Findings.
        """
        if self.across:
            kept = {name: each for name, each in networks.items() if not self.leaves_out(name)}
            if len(kept) < 2:
                taken = ", ".join(self.networks or ()) or "no network"
                return Findings(notes=[f"Not measured across networks: this suite takes {taken}."])
            return self._findings(kept, data, executor.scope(self.name))
        (network,), (images,) = networks.values(), data.values()
        if self.leaves_out(network.name):
            taken = ", ".join(self.networks or ()) or "no network"
            note = f"Not measured on {network.name}: this suite takes {taken}."
            return Findings(notes=[note])
        if self.lacks(images):
            what = "no pictures" if self._needs_pictures(images) else "no training images"
            note = f"Not measured on {network.name}: {images.name} has {what}."
            return Findings(notes=[note])
        return self._findings(network, images, executor.scope(self.name, network=network.name))

    def _findings(self, network: Any, data: Any, executor: Executor) -> Findings:
        findings = self.function(network, data, self.settings, executor)
        if not isinstance(findings, Findings):
            file = f"{self.function.__module__.replace('.', '/')}.py"
            raise InputError(f"{file}: {self.name} must return Findings; got {findings!r:.80}")
        return findings

    def leaves_out(self, network: str) -> bool:
        """Whether the suite measures the experiment on other networks than this one."""
        return self.networks is not None and network not in self.networks

    def lacks(self, data: Dataset) -> bool:
        """Whether it needs training images or pictures, and the data have none."""
        trains = getattr(self.settings, "trains", False) and len(data.train) == 0
        return trains or self._needs_pictures(data)

    def _needs_pictures(self, data: Dataset) -> bool:
        return getattr(self.settings, "pictures", False) and not data.has_pictures

    def check(self, network: str, data: Dataset) -> None:
        """Check, before any work, that the data allow what the settings ask for.

        Raises:
            InputError: they do not. An experiment that was not asked for by name only raises what
                its settings can mend.
        """
        left_out = self.leaves_out(network) or (self.lacks(data) and not self.named)
        if self.named and not self.leaves_out(network) and self._needs_pictures(data):
            shown = f"{data.name} with inputs {data.shape}"
            refuse("dataset", Described(shown), f"a data set of pictures for {self.name}")
        if hasattr(self.settings, "check") and not left_out:
            try:
                self.settings.check(data)
            except InputError as error:
                raise _with_whole_key(error, self.keys) from error

    def parameters(self) -> dict[str, Any]:
        """The settings as plain values, for the log."""
        values = {f.name: getattr(self.settings, f.name) for f in fields(self.settings)}
        return {name: _described(value) for name, value in values.items()}

    def attacks(self) -> dict[str, partial[Any]]:
        """The attacks among the settings, by the key of the configuration that names them."""
        values = {f.name: getattr(self.settings, f.name) for f in fields(self.settings)}
        return {
            self.keys.get(name, name): value
            for name, value in values.items()
            if isinstance(value, partial)
        }


def select(stage: str, config: Config) -> list[Experiment]:
    """The experiments of ``stage`` that ``config.experiments`` names, with checked settings.

    None names all of them.

    Raises:
        InputError: an unknown experiment, an unknown key, a wrong type, a value out of range, or a
            file of an experiment that is not complete.
    """
    known = {name for each in (*STAGES, *ACROSS) for name in experiments_of(each)}
    for name in config.settings:
        if name not in known:
            unknown_key(f"settings.{name}", known)
    for name in config.suite.networks:
        if name not in (*STAGES, *known):
            unknown_key(f"suite.networks.{name}", (*STAGES, *known))
    available = experiments_of(stage)
    names = list(available) if config.experiments is None else config.experiments
    for name in names:
        if name not in available:
            _refuse_experiment(stage, name, available)
    modules = {name: _module(name, module) for name, module in available.items()}
    _check_block(stage, block_of(stage, config), modules)
    return [_experiment(stage, name, modules[name], config) for name in names]


def _refuse_experiment(stage: str, name: str, available: Iterable[str]) -> NoReturn:
    other = stage_of(name)
    if other is None:
        no_such("experiments", name, available, "Experiments")
    raise InputError(
        f"experiments cannot be {name!r} in the stage {stage}; run python -m stages.{other} for it",
        "experiments",
    )


def block_of(stage: str, config: Config) -> dict[str, Any]:
    """The stage's block of settings; the attack stage's is the attack under study itself."""
    block: dict[str, Any] = getattr(config, stage)
    return {"attack": block} if stage == "attack" else block


def _module(name: str, path: str) -> ModuleType:
    """The module of an experiment, which has everything that an experiment's file must have."""
    file = f"{path.replace('.', '/')}.py"
    try:
        module = importlib.import_module(path)
    except Exception as error:
        what = " ".join(str(error).split())
        raise InputError(
            f"{file} cannot be imported: {type(error).__name__}: {what}; an experiment's file "
            f"has to define SECTION, Settings and {name}"
        ) from error
    missing = [
        what
        for what, there in (
            ("SECTION, a text such as 'Table 3.1'", isinstance(_get(module, "SECTION"), str)),
            ("the dataclass Settings", is_dataclass(_get(module, "Settings"))),
            (f"the function {name}, called like its file", callable(_get(module, name))),
        )
        if not there
    ]
    if missing:
        raise InputError(f"{file} is no complete experiment: it lacks {' and '.join(missing)}")
    return module


def _get(module: ModuleType, name: str) -> object:
    return getattr(module, name, None)


def _check_block(stage: str, block: Mapping[str, Any], modules: Mapping[str, ModuleType]) -> None:
    allowed = {f.name for module in modules.values() for f in fields(module.Settings)}
    for key in block:
        if key not in allowed:
            unknown_key(f"{stage}.{key}", allowed)


def _experiment(stage: str, name: str, module: ModuleType, config: Config) -> Experiment:
    own, shared = config.settings.get(name, {}), block_of(stage, config)
    schema = {f.name: f for f in fields(module.Settings)}
    for key in own:
        if key not in schema:
            unknown_key(f"settings.{name}.{key}", schema)
    keys = {key: _key(stage, name, key, own, shared) for key in schema}
    given = {key: {**shared, **own}[key] for key in schema if key in own or key in shared}
    values = {key: _value(schema[key], keys[key], value) for key, value in given.items()}
    for key, entry in schema.items():
        if key not in values and entry.default is entry.default_factory is NO_DEFAULT:
            refuse(keys[key], None, f"a value of type {entry.type}")
    try:
        settings = module.Settings(**values)
    except InputError as error:
        raise _with_whole_key(error, keys) from error
    return Experiment(
        name,
        module.SECTION,
        getattr(module, name),
        settings,
        across=stage in ACROSS,
        named=config.experiments is not None,
        networks=_networks(stage, name, config),
        keys=keys,
    )


def _networks(stage: str, name: str, config: Config) -> list[str] | None:
    """The networks that the suite lists for an experiment; None where the reader chose others.

    A stage across networks takes the suite's where no network is named, any other stage where one
    of the suite is.
    """
    of_suite = (config.network is None) == (stage in ACROSS)
    return config.suite.networks.get(name) if of_suite else None


def _key(
    stage: str, name: str, setting: str, own: Mapping[str, Any], shared: Mapping[str, Any]
) -> str:
    """The key of the configuration that a setting is read from."""
    if setting in own or setting not in shared:
        return f"settings.{name}.{setting}"
    return setting if setting == stage else f"{stage}.{setting}"


def _with_whole_key(error: InputError, keys: Mapping[str, str]) -> InputError:
    """The error with the key that its reader can change in place of the name of a setting."""
    name = error.key.partition(".")[0]
    if name not in keys or not str(error).startswith(error.key):
        return error
    whole = keys[name] + error.key[len(name) :]
    return InputError(whole + str(error)[len(error.key) :], whole)


def _value(entry: Field[Any], key: str, value: Any) -> Any:
    """A setting as the experiment takes it.

    A leaf becomes the function that it names; everything else is checked for its type.
    """
    kind = kind_of(entry.type)
    if kind is not None or (isinstance(value, Mapping) and "_target_" in value):
        attack = ready(value if isinstance(value, Mapping) else {"_target_": value}, key)
        if kind is not None:
            check_attack(attack, kind, key)
        return attack
    return check_values(entry, key, value)


def _described(value: Any) -> Any:
    if isinstance(value, partial):
        return {"_target_": f"{value.func.__module__}.{value.func.__qualname__}", **value.keywords}
    return value
