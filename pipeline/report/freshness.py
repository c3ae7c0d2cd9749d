"""Whether results are still those of the present code and settings, by what dvc.lock recorded."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pathspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["Freshness"]

FOLDER = ".dir"
"""How the recorded hash of a folder ends."""


@dataclass(frozen=True)
class Freshness:
    """What dvc.lock recorded of every stage, compared with the files and settings now.

    Attributes:
        root: folder of the repository; without a dvc.lock nothing is recorded.
    """

    root: Path
    _known: dict[Path, tuple[str, ...] | None] = field(
        default_factory=dict, repr=False, compare=False
    )
    _hashes: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def changed(self, folder: Path) -> tuple[str, ...] | None:
        """The dependencies and settings of a stage that have changed since its results were made.

        Args:
            folder: folder of the results, ``results/<suite>/<stage>/<network>``.

        Returns:
            Files, folders and keys of params.yaml; none if all are as they were. None: the results
            there are not those that dvc.lock records, so that nothing can be said of them.
        """
        if folder not in self._known:
            self._known[folder] = self._changed(folder)
        return self._known[folder]

    def _changed(self, folder: Path) -> tuple[str, ...] | None:
        try:
            name = folder.resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError:
            return None
        stage = self._makers.get(f"{name}/metrics.json")
        if stage is None or not self._recorded(stage):
            return None
        files = [dep["path"] for dep in stage.get("deps", ()) if self._differs(dep)]
        settings = [
            key
            for key, value in stage.get("params", {}).get("params.yaml", {}).items()
            if _value(self._params, key) != value
        ]
        return (*files, *settings)

    @cached_property
    def _stages(self) -> Mapping[str, Mapping[str, Any]]:
        stages: Mapping[str, Mapping[str, Any]] = _yaml(self.root / "dvc.lock").get("stages", {})
        return stages

    @cached_property
    def _params(self) -> Mapping[str, Any]:
        return _yaml(self.root / "params.yaml")

    @cached_property
    def _makers(self) -> Mapping[str, Mapping[str, Any]]:
        """Recorded output -> the stage that made it."""
        return {
            out["path"]: stage for stage in self._stages.values() for out in stage.get("outs", ())
        }

    @cached_property
    def _ignored(self) -> pathspec.GitIgnoreSpec:
        path = self.root / ".dvcignore"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return pathspec.GitIgnoreSpec.from_lines(lines)

    def _recorded(self, stage: Mapping[str, Any]) -> bool:
        """Whether metrics and timings are the recorded ones; a fresh checkout has no timings."""
        files = [out for out in stage["outs"] if out["path"].endswith(".json")]
        return all(
            self._hash(out["path"]) == out["md5"]
            for out in files
            if out["path"].endswith("metrics.json") or (self.root / out["path"]).exists()
        )

    def _differs(self, dep: Mapping[str, Any]) -> bool:
        """Whether a dependency is not what it was.

        Results of another stage are told by what was recorded of them, as a fresh checkout has no
        tensors or figures; a whole folder of results counts only where all of its files are there.
        """
        path = str(dep["path"])
        if (made := self._output(path)) is not None:
            return bool(made != dep["md5"])
        if path.startswith("results/") and len(self._files(path)) != dep.get("nfiles"):
            return False
        return self._hash(path) != dep["md5"]

    def _output(self, path: str) -> str | None:
        """The recorded hash of an output of a stage."""
        outs = self._makers.get(path, {}).get("outs", ())
        return next((out["md5"] for out in outs if out["path"] == path), None)

    def _hash(self, path: str) -> str:
        """The hash of a file or folder as DVC computes it; empty where there is none."""
        if path not in self._hashes:
            place = self.root / path
            whole = _md5(place.read_bytes()) if place.is_file() else ""
            self._hashes[path] = self._folder(path) if place.is_dir() else whole
        return self._hashes[path]

    def _folder(self, path: str) -> str:
        entries = [
            {"md5": _md5(file.read_bytes()), "relpath": name}
            for name, file in sorted(self._files(path).items())
        ]
        return _md5(json.dumps(entries, sort_keys=True).encode()) + FOLDER

    def _files(self, path: str) -> dict[str, Path]:
        place = self.root / path
        return {
            file.relative_to(place).as_posix(): file
            for file in place.rglob("*")
            if file.is_file() and not self._ignored.match_file(file.relative_to(self.root))
        }


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _yaml(path: Path) -> Mapping[str, Any]:
    """The content of a YAML file, read as DVC reads it; nothing where that cannot be done."""
    try:
        found = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _value(params: Any, key: str) -> Any:
    """What a key with dots names; None where there is nothing of that name, as in dvc.lock."""
    for part in key.split("."):
        params = params.get(part) if isinstance(params, Mapping) else None
    return params
