"""What ``python -m stages.<stage> --help`` prints: experiments, options, groups and examples."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from pipeline.card_lines import EXPERIMENTS
from stages.names import ACROSS, experiments_of, stage_of
from stages.source import Module, Option

__all__ = ["usage"]

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100
DESCRIBED = ("model", "dataset", "training")
"""Groups that describe a network; a stage across networks takes those of a suite instead."""


def usage(stage: str) -> str:
    """The help of a stage, read from the source of its experiments without importing them."""
    paths = _paths(stage)
    modules = {name: Module.read(ROOT, path) for name, path in paths.items()}
    options = {name: module.options("Settings") for name, module in modules.items()}
    parts = [
        _title(stage),
        _experiments(modules),
        _shared(stage, options, modules),
        _own(stage, options, modules),
        _groups(stage),
        _examples(stage, list(modules)),
        "Hydra's own help: --hydra-help. What a run would use: --cfg job.",
    ]
    return "\n\n".join(part for part in parts if part)


def _paths(stage: str) -> dict[str, str]:
    """The experiments of a stage, each with its module."""
    if stage == "card":
        return {name: experiments_of(str(stage_of(name)))[name] for name in EXPERIMENTS}
    return experiments_of(stage) if stage != "report" else {}


def _title(stage: str) -> str:
    return f"python -m stages.{stage} [key=value ...]\n{Module.read(ROOT, f'stages.{stage}').title}"


def _experiments(modules: Mapping[str, Module]) -> str:
    if not modules:
        return ""
    lines = [
        _entry(f"{name}  ({each.constant('SECTION')})", each.title)
        for name, each in modules.items()
    ]
    head = "Experiments, of which experiments=[a,b] chooses some (without it, all run):"
    return "\n".join([head, *lines])


def _shared(
    stage: str, options: Mapping[str, Sequence[Option]], modules: Mapping[str, Module]
) -> str:
    """The options that experiments share, which are set in the stage's block."""
    if stage == "card":  # its experiments are of many stages, whose own help has their options
        return ""
    shared: dict[str, Option] = {}
    users: dict[str, list[str]] = {}
    for name, entries in options.items():
        for entry in entries:
            if entry.module != modules[name].name or stage == "attack" == entry.name:
                shared.setdefault(entry.name, entry)
                users.setdefault(entry.name, []).append(name)
    if not shared:
        return ""
    write = "attack.<option of the attack>" if stage == "attack" else f"{_block(stage)}.<option>"
    lines = [
        _option(each, "" if len(users[name]) in (1, len(options)) else _only(users[name], options))
        for name, each in shared.items()
    ]
    head = f"Options that experiments share, set by {write}=value (for one of them alone by"
    return "\n".join([head, "settings.<experiment>.<option>=value):", *lines])


def _block(stage: str) -> str:
    """The block in which a stage's options are set; one stage takes the block of another."""
    with (ROOT / "conf" / "base.yaml").open(encoding="utf-8") as file:
        block = yaml.safe_load(file).get(stage)
    return block.strip("${}") if isinstance(block, str) else stage


def _only(users: Sequence[str], options: Mapping[str, Sequence[Option]]) -> str:
    others = [name for name in options if name not in users]
    if len(others) < len(users):
        return f"Not of {', '.join(others)}."
    return f"Of {', '.join(users)}."


def _own(stage: str, options: Mapping[str, Sequence[Option]], modules: Mapping[str, Module]) -> str:
    """The options that single experiments define."""
    blocks = []
    for name, entries in options.items():
        own = [each for each in entries if each.module == modules[name].name]
        lines = [_option(each) for each in own if not stage == "attack" == each.name]
        if lines:
            blocks.append("\n".join([f"Options set by settings.{name}.<option>=value:", *lines]))
    return "\n\n".join(blocks)


def _groups(stage: str) -> str:
    folders = sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir())
    lines = []
    for folder in folders:
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        if folder.name == "experiment":
            names = [name for name in names if f"stages.{stage} " in _text(folder, name)]
        if names and not (stage in (*ACROSS, "report") and folder.name in DESCRIBED):
            lines.append(_entry(f"{folder.name}=", ", ".join(names)))
    return "\n".join(["Groups, each chosen by group=name:", *lines])


def _text(folder: Path, name: str) -> str:
    return (folder / f"{name}.yaml").read_text(encoding="utf-8")


def _examples(stage: str, names: Sequence[str]) -> str:
    start = f"python -m stages.{stage}"
    if stage == "report":
        suites = ("fashion", "smoke", "thesis")
        lines = [start, *(f"{start} suite={suite}" for suite in suites), f"{start} tracking=none"]
    elif stage in ACROSS:
        pair = "'network=[mnist5k_lenet,mnist5k_fc500_150_10]'"
        lines = [start, f"{start} {pair}", f"{start} suite=smoke output=work/try"]
        lines += [f"{start} seeds=[0] tracking=none", f"{start} --cfg job"]
    else:
        lines = [
            start,
            f"{start} model=nin dataset=mnist5k seeds=[0]",
            f"{start} 'experiments=[{names[0]}]' output=work/try",
            f"{start} suite=smoke network=mnist5k_lenet tracking=none",
            f"{start} -m model=lenet,nin dataset=mnist5k",
        ]
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def _option(option: Option, remark: str = "") -> str:
    head = f"{option.name}: {option.kind}, default {option.default}"
    return _entry(head, " ".join(filter(None, [option.meaning, remark])))


def _entry(head: str, text: str) -> str:
    return "\n".join([*_wrapped(head, " " * 2), *_wrapped(text, " " * 6)])


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=" " * 6, break_on_hyphens=False
    )
