"""dvc.yaml, derived from the stages' experiments and what their files import."""

import importlib
from pathlib import Path

from pipeline.keys import Sources
from stages.names import ACROSS, STAGES, experiments_of

__all__ = ["LISTED", "graph"]

LISTED = ("finetune", "semirandom", "curvature", "topology", "detect", "cure")
"""Chapters whose networks a suite may list."""

AFTER = {"curvature": ("universal",)}
"""Stages that take up what another one has made."""

NAMED = (
    "robustness_geometry/datasets",
    "robustness_geometry/models",
    "robustness_geometry/attacks",
)
"""Folders whose functions the configuration names: a stage depends on the whole of them."""

KEPT = ("pipeline/executor.py", "pipeline/jobs.py", "pipeline/keys.py", "pipeline/storage.py")
"""What makes and keeps results, though no key of a stored chunk holds its source."""

STAYS = ("      persist: true",)
"""DVC then leaves an output where it is before a stage runs: a stage removes what runs wrote."""

UNCACHED = ("      cache: false", *STAYS)

HEAD = """\
# The pipeline: `dvc repro` runs what changed. params.yaml, composed from conf/, names the networks.
# Written by `make params`. A stage's deps are the files that its experiments import, directly or
# not (models, data sets and attacks are whole folders: the configuration names functions in them).
# Its params are their settings; its outs are the five results of every stage. They persist, as DVC
# would otherwise remove a whole folder before a stage runs, whoever's files lie in it.
stages:
"""


def graph(root: Path) -> str:
    """The text of dvc.yaml.

    Args:
        root: the repository.
    """
    sources = Sources()
    stages = [_stage(root, sources, stage) for stage in (*STAGES, *ACROSS)]
    return HEAD + "\n".join([*stages, _report(root, sources)])


def _stage(root: Path, sources: Sources, stage: str) -> str:
    """One stage: on each network, or on all of them together."""
    across = stage in ACROSS
    item = "all" if across else "${item}" if stage in LISTED else "${key}"
    folder = f"results/${{suite.name}}/{stage}/{item}"
    network = "" if across else f" network={item}"
    made = [] if stage == "train" else ["train" if across else f"train/{item}/tensors"]
    made += [f"{other}/{item}/tensors" for other in AFTER.get(stage, ())]
    networks = "networks" if across else f"networks.{item}"
    params = [
        "seeds",
        stage,
        *(f"settings.{name}" for name in experiments_of(stage)),
        "suite.networks",
    ]
    body = [
        f'desc: "{_title(stage)}"',
        "cmd: >-",
        f"  python -m stages.{stage} --config-dir . --config-name params{network}",
        f"  output={folder} hydra.run.dir=outputs/repro/{stage}{'' if across else f'/{item}'}",
        "deps:",
        *(f"  - {dep}" for dep in deps(root, sources, stage)),
        *(f"  - results/${{suite.name}}/{part}" for part in made),
        "params:",
        *(f"  - {param}" for param in [*params, networks]),
        "metrics:",
        f"  - {folder}/metrics.json:",
        *UNCACHED,
        "outs:",
        f"  - {folder}/timings.json:",
        *STAYS,
        f"  - {folder}/tables:",
        *UNCACHED,
        f"  - {folder}/figures:",
        *STAYS,
        f"  - {folder}/tensors:",
        *STAYS,
    ]
    if across:
        return _indented([f"{stage}:"], 2) + _indented(body, 4)
    each = f"${{suite.networks.{stage}}}" if stage in LISTED else "${networks}"
    return _indented([f"{stage}:", f"  foreach: {each}", "  do:"], 2) + _indented(body, 6)


def _report(root: Path, sources: Sources) -> str:
    results = sorted((*STAGES, *ACROSS))
    body = [
        f'desc: "{_title("report")}"',
        "cmd: >-",
        "  python -m stages.report --config-dir . --config-name params",
        "  hydra.run.dir=outputs/repro/report",
        "deps:",
        *(f"  - {dep}" for dep in deps(root, sources, "report")),
        *(f"  - results/${{suite.name}}/{stage}" for stage in results),
        "params:",
        "  - seeds",
        "  - networks",
        "  - suite",
        "metrics:",
        "  - results/${suite.name}/claims.json:",
        *UNCACHED,
        "outs:",
        "  - reports/${suite.name}:",
        *STAYS,
    ]
    return _indented(["report:"], 2) + _indented(body, 4)


def deps(root: Path, sources: Sources, stage: str) -> list[str]:
    """The files that a stage's results rest on; a folder where it is all of the folder's files."""
    if stage == "report":
        folders, extra, modules = ["pipeline/report"], ["pipeline/claims.yaml"], []
    else:
        folders = list(NAMED if stage != "train" else NAMED[:2])
        extra, modules = list(KEPT), list(experiments_of(stage).values())
    for folder in folders:
        modules += [_module(root, path) for path in (root / folder).rglob("*.py")]
    modules.append(f"stages.{stage}.__main__")
    files = {_file(root, name) for module in modules for name in sources.closure(module)}
    return _folded(root, {*files, *extra})


def _folded(root: Path, files: set[str]) -> list[str]:
    """Files in alphabetical order, those that are all of a folder (of two names) as the folder."""
    folders = {"/".join(file.split("/")[:2]) for file in files if file.count("/") > 1}
    whole = {folder for folder in folders if _modules_of(root / folder, root) <= files}
    return sorted(whole | {f for f in files if "/".join(f.split("/")[:2]) not in whole})


def _modules_of(folder: Path, root: Path) -> set[str]:
    paths = (path for path in folder.rglob("*.py") if path.name != "__init__.py")
    return {path.relative_to(root).as_posix() for path in paths}


def _module(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _file(root: Path, module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}.py" if (root / f"{path}.py").exists() else f"{path}/__init__.py"


def _title(stage: str) -> str:
    """The first line of the stage's package."""
    text = importlib.import_module(f"stages.{stage}").__doc__ or ""
    return text.strip().splitlines()[0].removesuffix(".")


def _indented(lines: list[str], spaces: int) -> str:
    return "".join(f"{' ' * spaces}{line}\n" for line in lines)
