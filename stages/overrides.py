"""What the command line changes: every key has to exist, and some experiment has to use it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from robustness_geometry.checks import InputError
from stages.config import Config
from stages.experiments import Experiment, block_of, select
from stages.names import ACROSS, STAGES, stage_of

__all__ = ["check_used", "origin", "prepared", "with_origins"]

OPEN = ("model", "dataset", "training", "executor", "tracking", *STAGES)
"""Blocks whose keys this project's own schema checks, so that Hydra need not know each of them."""

PLAIN = re.compile(r"\+{0,2}(?=(?:settings|suite\.networks)\.|(?:" + "|".join(OPEN) + r")\.\w+=)")
NETWORK = ("model", "dataset", "training")


def prepared(arguments: Sequence[str]) -> list[str]:
    """The command line with ``++`` before every key that this project's own schema checks.

    A key that no file under conf/ mentions can then be set as well, as every option has a default
    in the code; and the message about one that does not exist names those that do.
    """
    return [PLAIN.sub("++", each, count=1) if PLAIN.match(each) else each for each in arguments]


def origin(raw: DictConfig, key: str) -> str:
    """The key that ``key`` takes its value from, through all interpolations ``${...}``."""
    node, parts = raw, key.split(".")
    for index, part in enumerate(parts):
        child: Any = node._get_node(part) if isinstance(node, DictConfig) else None
        if child is None:
            return key
        if child._is_interpolation():
            target = re.fullmatch(r"\$\{([\w.]+)\}", str(child._value()))
            rest = parts[index + 1 :]
            return origin(raw, ".".join([target[1], *rest])) if target else key
        node = child
    return key


def with_origins(message: str, stage: str, raw: DictConfig) -> str:
    """A message in which a key that takes its value from another is named as that other one."""
    if stage not in raw:  # the card, whose settings are those of many stages
        return message
    block = OmegaConf.select(raw, origin(raw, stage))
    names = [str(name) for name in block] if isinstance(block, DictConfig) else []
    patterns = {f"{stage}.{name}": r"\b" for name in names} | {stage: r"(?=\.\w|;|\. Keys)"}
    for key, end in patterns.items():
        if origin(raw, key) != key:
            message = re.sub(rf"(?<![\w.]){re.escape(key)}{end}", origin(raw, key), message)
    return message


@dataclass(frozen=True)
class _Use:
    """A setting of an experiment, and the key of the configuration that it is read from."""

    experiment: Experiment
    setting: str
    key: str

    def touches(self, key: str) -> bool:
        """Whether a change of ``key`` changes this setting."""
        return _below(key, self.key) or _below(self.key, key)

    def bound(self, key: str) -> str | None:
        """What to write instead, if ``key`` is an option that the experiment sets by itself."""
        binds: Mapping[str, Mapping[str, str]] = getattr(self.experiment.settings, "binds", {})
        return binds.get(self.setting, {}).get(key.removeprefix(f"{self.key}."))


def check_used(stage: str, config: Config, raw: DictConfig, overrides: Sequence[str]) -> None:
    """Check that every override of a setting is used by an experiment that is to run.

    Args:
        stage: the stage.
        config: the checked configuration.
        raw: the composed configuration, in which interpolations are not yet resolved.
        overrides: the overrides of the command line.

    Raises:
        InputError: an override changes nothing that the run computes.
    """
    chosen = select(stage, config)
    every = select(stage, _unchosen(config))
    uses = [use for each in chosen for use in _uses(stage, each, config, raw)]
    others = [use for each in every for use in _uses(stage, each, config, raw)]
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.package or override.key_or_group
        head = key.partition(".")[0]
        if head in NETWORK and isinstance(config.network, str) and stage not in ACROSS:
            name = f"networks.{config.network}.{key}"
            raise InputError(
                f"{key} is not used, as network={config.network} is one of the suite; "
                f"write {name}, or leave network out"
            )
        if head in ("settings", *STAGES, *ACROSS):
            _check_key(stage, key, uses, others, chosen)


def _check_key(
    stage: str,
    key: str,
    uses: Sequence[_Use],
    others: Sequence[_Use],
    chosen: Sequence[Experiment],
) -> None:
    touched = [use for use in uses if use.touches(key)]
    instead = [use.bound(key) for use in touched]
    if touched and None in instead:
        return
    if touched:
        written = next((each for each in instead if each), "")
        advice = f"; write {written} instead" if written else ""
        names = sorted({use.experiment.name for use in touched})
        who = ", ".join(names) if len(names) <= 3 else f"the {len(names)} experiments with it"
        set_it = "sets it itself" if len(names) == 1 else "set it themselves"
        raise InputError(f"{key} is not used, as {who} {set_it}{advice}")
    raise InputError(f"{key} is not used{_reason(stage, key, uses, others, chosen)}")


def _reason(
    stage: str,
    key: str,
    uses: Sequence[_Use],
    others: Sequence[_Use],
    chosen: Sequence[Experiment],
) -> str:
    """Why no experiment of the run uses the key."""
    head, _, rest = key.partition(".")
    field = rest.split(".")[0]
    if head == "settings":
        where = stage_of(field)
        if where == stage:
            return f": {field} is not among the experiments of this run"
        return f" by the stage {stage}: {field} is an experiment of the stage {where}"
    if left_out := sorted({use.experiment.name for use in others if use.touches(key)}):
        names = ", ".join(each.name for each in chosen)
        return f" by {names}, only by {', '.join(left_out)}"
    if head != stage:
        return f" by any experiment of the stage {stage}"
    own = sorted({use.key for use in uses if use.setting == field})
    return f"; write {', '.join(own)} instead, which takes its place" if own else " by anything"


def _uses(stage: str, each: Experiment, config: Config, raw: DictConfig) -> list[_Use]:
    own, shared = config.settings.get(each.name, {}), block_of(stage, config)
    return [
        _Use(each, entry.name, origin(raw, each.keys[entry.name]))
        for entry in fields(each.settings)
        if entry.name in own or entry.name in shared
    ]


def _below(key: str, other: str) -> bool:
    """Whether a key is another key, or stands below it."""
    return key == other or key.startswith(other + ".")


def _unchosen(config: Config) -> Config:
    """The same configuration for all experiments of the stage."""
    return Config(**{**vars(config), "experiments": None})
