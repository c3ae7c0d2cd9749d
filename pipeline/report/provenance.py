"""The origin of a report: versions, machine and commit."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

__all__ = ["committed", "provenance"]

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "hydra-core", "dvc", "mlflow")
CODE = ("conf", "robustness_geometry", "pipeline", "stages", "dvc.yaml", "params.yaml")


def provenance(root: Path) -> dict[str, str]:
    """Commit, machine and versions, label -> text.

    Args:
        root: folder of the repository; without one, or without git, the commit is "unknown".
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    )
    return {
        "Commit": _commit(root),
        "Report written on": f"{platform.system()}, {device}",
        "Python": platform.python_version(),
        "Packages": ", ".join(versions),
    }


def committed(root: Path, folder: Path) -> Mapping[Path, str]:
    """The commit that each file below a folder was last committed with, unless it differs now.

    Args:
        root: folder of the repository; without git, nothing is known.
        folder: the folder.
    """
    place = folder.resolve()
    log = _git(root, "log", "--format=commit %H", "--name-only", "--", str(place))
    top = Path(_git(root, "rev-parse", "--show-toplevel"))
    found: dict[Path, str] = {}
    commit = ""
    for line in filter(None, log.splitlines()):
        if line.startswith("commit "):
            commit = line.removeprefix("commit ")
        else:
            found.setdefault(top / line, commit)
    changed = _git(root, "diff", "--name-only", "HEAD", "--", str(place)).splitlines()
    return {
        path: commit for path, commit in found.items() if path not in {top / n for n in changed}
    }


def _commit(root: Path) -> str:
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changed = _git(root, "status", "--porcelain", "--", *CODE)
    return f"{commit}, with changes that are not committed" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    try:
        command = ["git", "-C", str(root), *arguments]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
