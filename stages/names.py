"""The names of the stages and of their experiments, known without importing any of them."""

import importlib
import pkgutil

__all__ = ["ACROSS", "STAGES", "SUFFIX", "experiments_of", "stage_of"]

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
"""The stages whose experiments run on several networks at once.

Their experiments are found in ``stages/<name>/`` as ``*_transfer.py``.
"""


def experiments_of(stage: str) -> dict[str, str]:
    """The experiments of a stage by name, each with its module.

    They are the files of the stage's package whose names do not start with an underscore.
    """
    across = stage in ACROSS
    package = stage.removesuffix(SUFFIX) if across else stage
    modules = pkgutil.iter_modules(importlib.import_module(f"stages.{package}").__path__)
    names = sorted(module.name for module in modules if not module.name.startswith("_"))
    if f"{package}{SUFFIX}" in ACROSS:
        names = [name for name in names if name.endswith(SUFFIX) == across]
    return {name: f"stages.{package}.{name}" for name in names}


def stage_of(experiment: str) -> str | None:
    """The stage that an experiment belongs to; None for a name that no stage has."""
    return next((each for each in (*STAGES, *ACROSS) if experiment in experiments_of(each)), None)
