"""What is wrong with a command line that Hydra refuses, in one sentence of this project's own."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from robustness_geometry.checks import NOTHING, InputError, refuse
from stages.overrides import origin
from stages.refusals import no_such, unknown_key

__all__ = ["explained", "quoted"]


def explained(
    error: Exception, overrides: Sequence[str], folder: str, name: str, *, multirun: bool
) -> str:
    """The sentence for an error of Hydra's.

    Args:
        error: what Hydra raised.
        overrides: the overrides of the command line, such as ``attack.norm=inf``.
        folder: the folder of the configuration.
        name: the name of the configuration.
        multirun: whether several runs were asked for.
    """
    try:
        parsed = [_parsed(text, multirun) for text in overrides]
        for each in parsed if not multirun else ():
            _check_single(each)
        with initialize_config_dir(folder, version_base="1.3"):
            _look(parsed, GlobalHydra.instance().config_loader(), name)
    except InputError as found:
        return str(found)
    except Exception:  # whatever is wrong is then said in Hydra's own words
        pass
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("To append", "See https"))]
    return " ".join(kept) or type(error).__name__


def _parsed(text: str, multirun: bool) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        text = text.lstrip("+")
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} is no setting: write key=value") from error
        raise InputError(
            f"{text} cannot be read: put a value with special characters in quotes, and all of it "
            f"in quotes for the shell: {quoted(key, value, each=multirun)}"
        ) from error


def quoted(key: str, value: str, *, each: bool = False) -> str:
    """What to type on the command line for a value that Hydra would not take as it is.

    Args:
        key: the key that gets the value.
        value: what the value is to be; a list or a mapping, in brackets, holds several.
        each: commas stand between values of a sweep.

    Example:
        >>> from stages.mistakes import quoted
        >>> print(quoted("model.checkpoint", "/w/epoch=3-step=10.ckpt"))
        'model.checkpoint="/w/epoch=3-step=10.ckpt"'
    """
    if value.startswith("~/"):  # no shell reads a ~ there, and neither does Hydra
        value = str(Path.home()) + value[1:]
    parts = value.split(",") if each else [value]
    written = ",".join(_in_brackets(part) or _text(part) for part in parts)
    return shlex.quote(f"{key}={written}")


def _text(value: str) -> str:
    """A text as Hydra's grammar has it, where a backslash counts before a quote alone."""
    return '"' + re.sub(r'(\\*)("|$)', _escaped, value) + '"'


def _escaped(found: re.Match[str]) -> str:
    return 2 * found[1] + ('\\"' if found[2] else "")


def _in_brackets(value: str) -> str | None:
    """A list or mapping with its texts in quotes; None if the value is neither."""
    if value[:1] + value[-1:] not in ("[]", "{}"):
        return None
    words = re.sub(r"[^][{},:\s][^][{},:]*", lambda found: _text(found[0].rstrip()), value)
    written = re.sub(r'"([A-Za-z_]\w*|-?\d+(?:\.\d+)?)"', r"\1", words)
    try:
        OverridesParser.create().parse_override(f"key={written}")
    except HydraException:
        return None
    return written


def _check_single(override: Override) -> None:
    if override.is_sweep_override():
        key, _, value = str(override.input_line).lstrip("+").partition("=")
        raise InputError(
            f"{key} has several values: write {key}=[{value}] for a list, {quoted(key, value)} for "
            "a text, or add -m to run once with each value"
        )


def _look(overrides: Sequence[Override], loader: ConfigLoader, name: str) -> None:
    """Find the first override that cannot be applied.

    Raises:
        InputError: what is wrong with it.
    """
    groups: list[Override] = []
    values: list[Override] = []
    for override in overrides:
        options = loader.get_group_options(override.key_or_group)
        (groups if options else values).append(override)
        if options and not override.is_delete():
            _check_option(override, options)
    config = compose(name, return_hydra_config=True)
    for override in groups:
        _check_group(override, config)
        if override.is_delete():
            _check_left_out(override, name)
    fixed = [str(each.input_line) for each in groups if not each.is_sweep_override()]
    config = compose(name, fixed, return_hydra_config=True)
    for override in values:
        if override.package is not None:
            group = override.key_or_group
            no_such("the group before @", group, _groups(config), "Groups")
        if not override.is_force_add():
            _check_key(override, config)


def _check_option(override: Override, options: Sequence[str]) -> None:
    if override.is_sweep_override():
        chosen: Any = list(override.sweep_string_iterator())
    else:
        chosen = override.value()
    for value in chosen if isinstance(chosen, list) else [chosen]:
        if isinstance(value, str) and value not in options:
            no_such(override.get_key_element().lstrip("+"), value, options)
        if (override.key_or_group, value) == ("hydra/launcher", "slurm"):
            _check_launcher(options)


def _check_launcher(options: Sequence[str]) -> None:
    """Slurm's launcher is always among the options; what it is made of may not be installed."""
    if "submitit_slurm" not in options:
        refuse("package hydra-submitit-launcher", NOTHING, "installed: it is in the extra slurm")


def _check_group(override: Override, config: DictConfig) -> None:
    key = override.get_key_element().lstrip("+~")
    if key not in config.hydra.runtime.choices and not override.is_add():
        groups = ", ".join(_groups(config))
        raise InputError(f"{key} cannot be chosen for this stage. What can be chosen: {groups}")


def _check_left_out(override: Override, name: str) -> None:
    try:
        compose(name, [str(override.input_line)])
    except (HydraException, OmegaConfBaseException) as error:
        group = override.key_or_group
        raise InputError(f"{group} cannot be left out: write {group}=name", group) from error


def _groups(config: DictConfig) -> list[str]:
    """The groups of which a configuration has an option each."""
    names = [str(each) for each in config.hydra.runtime.choices]
    return sorted(each for each in names if "@" not in each and not each.startswith("hydra/"))


def _check_key(override: Override, config: DictConfig) -> None:
    key = override.key_or_group
    node: Any = config
    parts = key.split(".")
    for index, part in enumerate(parts):
        there, rest = ".".join(parts[:index]), ".".join(parts[index:])
        if node._is_interpolation():
            instead = origin(config, f"{there}.{rest}")
            raise InputError(f"{key} cannot be set, as {there} is {node._value()}: write {instead}")
        if not isinstance(node, DictConfig):
            raise InputError(f"{key} is no key: {there} has none below it")
        names = [str(each) for each in node if each != "hydra" and not str(each).startswith("_")]
        if part not in node.keys():  # noqa: SIM118 - "in node" leaves out interpolations
            if override.is_add():
                return
            unknown_key(".".join(parts[: index + 1]), names)
        node = node._get_node(part)
    if override.is_add():
        line = str(override.input_line)
        raise InputError(f"{key} is set already: write {line.lstrip('+')} without the +")
