"""A suite's results as a Workflow Run RO-Crate: what ran, on what, from which commit, to what end.

``python -m pipeline.crate`` (``make crate``) packs the results of the suite of params.yaml, with
the workflow, its settings and the record of its inputs, into ``reports/<suite>.crate.zip``. The
crate follows the profiles Process, Workflow and Provenance Run Crate 0.5 (Leo et al., "Recording
provenance of workflow runs with RO-Crate", PLOS ONE 2024).
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.ledger import FILES, FOLDERS
from pipeline.processes import provenance, root
from pipeline.stage_runs import StageRun, stage_runs, times
from robustness_geometry.checks import InputError, refuse
from robustness_geometry.extras import require

__all__ = ["main", "write_crate"]

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
LICENCE = "https://spdx.org/licenses/MIT"
COMPLETED = "http://schema.org/CompletedActionStatus"
ENGINE = "dvc"

INPUTS = {
    "params.yaml": "Settings of every experiment, and the networks of the suite",
    "dvc.lock": "Hashes of the code, settings and results that each stage used and made",
    "LICENSE": "Licence",
    "CITATION.cff": "How to cite the software and the thesis",
}
"""Files of the repository that travel with the results."""

FORMATS = {
    ".json": "application/json",
    ".csv": "text/csv",
    ".png": "image/png",
    ".yaml": "application/yaml",
    ".lock": "application/yaml",
    ".cff": "application/yaml",
    ".html": "text/html",
}


def write_crate(place: Path, suite: str, target: Path) -> Path:
    """Write the crate of a suite's results.

    Args:
        place: the repository's root.
        suite: name of the suite.
        target: a zip file, or, without that ending, a folder.

    Returns:
        The target.

    Raises:
        InputError: the suite has no results, or the package rocrate is not installed.
    """
    runs = stage_runs(place, suite)
    if not runs:
        refuse("suite", suite, f"one with results in {place / 'results'}")
    crate = require("rocrate.rocrate", "crate").ROCrate(version="1.1")
    _Crate(crate, require("rocrate.model", "crate"), place, suite).fill(runs)
    target.parent.mkdir(parents=True, exist_ok=True)
    (crate.write_zip if target.suffix == ".zip" else crate.write)(target)
    return target


class _Crate:
    """A crate that is being filled.

    Args:
        crate: an empty one.
        model: the module ``rocrate.model``.
        place: the repository's root.
        suite: name of the suite.
    """

    def __init__(self, crate: Any, model: Any, place: Path, suite: str) -> None:
        self.crate, self.model, self.place, self.suite = crate, model, place, suite
        self.commit = provenance().get("git.commit", "")

    def fill(self, runs: Sequence[StageRun]) -> None:
        """Describe the workflow, its runs, what they used and what they made."""
        files = {name: self._file(name, text) for name, text in INPUTS.items()}
        files = {name: file for name, file in files.items() if file is not None}
        authors = self._describe(files)
        tools = {stage: self._tool(stage, runs) for stage in dict.fromkeys(r.stage for r in runs)}
        workflow = self._workflow(runs, tools)
        folders = {run.folder: self._folder(run) for run in runs}
        actions = [self._action(run, tools[run.stage], folders, files, authors) for run in runs]
        summary = [self._file(f"results/{self.suite}/claims.json", "The verdict on every claim")]
        made = [*folders.values(), *(file for file in summary if file is not None)]
        self._whole(workflow, actions, runs, made, files, authors)

    def _describe(self, files: Mapping[str, Any]) -> Any:
        """The root: name, licence, authors, profiles, and the thesis as citation."""
        citation = yaml.safe_load((self.place / "CITATION.cff").read_text(encoding="utf-8"))
        thesis = next(each for each in citation["references"] if each["type"] == "thesis")
        person = thesis["authors"][0]
        author = self._add(
            "#thesis-author",
            "Person",
            name=f"{person['given-names']} {person['family-names']}",
            givenName=person["given-names"],
            familyName=person["family-names"],
        )
        crate = self.crate
        crate.name = f"{citation['title']}: results of the suite {self.suite}"
        crate.description = (
            "Tables, figures and numbers of every experiment of the thesis, as the workflow in "
            f"dvc.yaml measured them on the networks of the suite {self.suite}."
        )
        crate.license = self._add(
            LICENCE, "CreativeWork", name="MIT License", identifier=LICENCE, url=LICENCE
        )
        crate.root_dataset["citation"] = self._add(
            "#thesis",
            "Thesis",
            name=thesis["title"],
            author=author,
            datePublished=str(thesis["year"]),
            sourceOrganization=self._add(
                "#thesis-institution", "Organization", name=thesis["institution"]["name"]
            ),
        )
        crate.root_dataset["conformsTo"] = [
            self._add(url, "CreativeWork", name=name, version=version)
            for url, (name, version) in PROFILES.items()
        ]
        authors = self._add("#authors", "Organization", name=citation["authors"][0]["name"])
        crate.root_dataset["author"] = crate.root_dataset["publisher"] = authors
        if "CITATION.cff" in files:
            files["CITATION.cff"]["about"] = crate.root_dataset
        return authors

    def _workflow(self, runs: Sequence[StageRun], tools: Mapping[str, Any]) -> Any:
        language = self.model.ComputerLanguage(
            self.crate,
            "https://dvc.org",
            {"name": "DVC pipeline", "url": "https://dvc.org", "alternateName": ENGINE},
        )
        self.crate.add(language)
        kinds = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
        path, properties = self.place / "dvc.yaml", {"@type": kinds}
        workflow = self.crate.add_workflow(
            path, "dvc.yaml", main=True, lang=language, properties=properties
        )
        workflow["name"] = "The experiments of the thesis, as a DVC pipeline"
        workflow["license"] = self.crate.license
        workflow["hasPart"] = list(tools.values())
        if self.commit:
            workflow["version"] = self.commit
        workflow["step"] = [
            self._add(
                f"#step-{run.name}",
                "HowToStep",
                name=run.name,
                position=str(position),
                workExample=tools[run.stage],
            )
            for position, run in enumerate(runs)
        ]
        return workflow

    def _tool(self, stage: str, runs: Iterable[StageRun]) -> Any:
        """The program of a stage, in the versions that ran."""
        own = (str(run.said.get("commit", "")) for run in runs if run.stage == stage)
        commits = list(dict.fromkeys(filter(None, own))) or list(filter(None, [self.commit]))
        version = ", ".join(commits) or "unknown"
        return self._add(
            f"#stage-{stage}",
            "SoftwareApplication",
            name=f"python -m stages.{stage}",
            softwareVersion=version,
            softwareRequirements=[
                self._package(name) for name in ("torch", "numpy", "scipy", "safetensors")
            ],
        )

    def _package(self, name: str) -> Any:
        version = importlib.metadata.version(name)
        return self._add(
            f"#package-{name}",
            "SoftwareApplication",
            name=name,
            softwareVersion=version,
            description="As installed where this crate was written",
        )

    def _action(
        self,
        run: StageRun,
        tool: Any,
        folders: Mapping[str, Any],
        files: Mapping[str, Any],
        authors: Any,
    ) -> Any:
        """The run of a stage: what it used and made, and when, where that is known."""
        used = [
            entity
            for path, entity in folders.items()
            if any(
                f"{path}/".startswith(f"{dep}/") or dep.startswith(f"{path}/") for dep in run.used
            )
        ]
        used += [files[name] for name in ("params.yaml",) if name in files]
        measured = ", ".join(run.experiments)
        dirty = ", with changes that were not committed" if run.said.get("changed") else ""
        at = f" at commit {run.said['commit']}{dirty}" if run.said.get("commit") else ""
        return self._add(
            f"#run-{run.name}",
            "CreateAction",
            name=f"Run of {run.name}",
            description=f"Measured {measured}{at}." if measured else f"Run of {run.name}{at}.",
            instrument=tool,
            object=used,
            result=folders[run.folder],
            agent=authors,
            actionStatus=COMPLETED,
            **times([run]),
        )

    def _whole(
        self,
        workflow: Any,
        actions: Sequence[Any],
        runs: Sequence[StageRun],
        made: Sequence[Any],
        files: Mapping[str, Any],
        authors: Any,
    ) -> None:
        """The run of the workflow, by DVC, as the sum of the stages' runs."""
        settings = self._parameter("settings", "File", [files["params.yaml"]])
        results = self._parameter("results", "Dataset", made[: len(runs)])
        workflow["input"], workflow["output"] = settings, results
        engine = self._package(ENGINE)
        whole = self._add(
            "#run",
            "CreateAction",
            name=f"dvc repro of the suite {self.suite}",
            instrument=workflow,
            object=[file for name, file in files.items() if name == "params.yaml"],
            result=list(made),
            agent=authors,
            actionStatus=COMPLETED,
            **times(runs),
        )
        controls = [
            self._add(
                f"#control-{run.name}",
                "ControlAction",
                name=f"Control of {run.name}",
                instrument=self.crate.dereference(f"#step-{run.name}"),
                object=action,
            )
            for run, action in zip(runs, actions, strict=True)
        ]
        self._add(
            "#engine-run",
            "OrganizeAction",
            name="Run of DVC",
            instrument=engine,
            object=controls,
            result=whole,
            agent=authors,
            **times(runs),
        )
        self.crate.root_dataset["mentions"] = [whole, *actions]

    def _parameter(self, name: str, kind: str, values: Sequence[Any]) -> Any:
        """A parameter of the workflow, and the data that stood for it."""
        parameter = self._add(
            f"#parameter-{name}",
            "FormalParameter",
            name=name,
            additionalType=kind,
            workExample=list(values),
        )
        for value in values:
            value["exampleOfWork"] = parameter
        return parameter

    def _folder(self, run: StageRun) -> Any:
        """The results of a run: its folder, and every file that runs write there."""
        parts = [self.place / run.folder / name for name in FILES]
        for name in FOLDERS:
            parts += sorted((self.place / run.folder / name).glob("*.*"))
        names = [path.relative_to(self.place).as_posix() for path in parts if path.is_file()]
        files = [self._file(name) for name in names if not Path(name).name.startswith(".")]
        folder = self.model.Dataset(self.crate, dest_path=f"{run.folder}/")
        folder["name"] = f"Results of {run.name}"
        folder["description"] = f"Numbers, times, tables, figures and tensors of {run.name}"
        folder["hasPart"] = files
        return self.crate.add(folder)

    def _file(self, name: str, text: str = "") -> Any:
        """A file of the repository, at its place in the crate; None where it is not there."""
        path = self.place / name
        if not path.is_file():
            return None
        properties: dict[str, Any] = {
            "name": Path(name).name,
            "contentSize": str(path.stat().st_size),
            "encodingFormat": FORMATS.get(path.suffix, "application/octet-stream"),
        }
        if text:
            properties["description"] = text
        if name == "LICENSE":
            properties["encodingFormat"] = "text/plain"
        return self.crate.add_file(path, name, properties=properties)

    def _add(self, identifier: str, kind: str, /, **properties: Any) -> Any:
        """An entity that is no file; one of that name that is there already."""
        there = self.crate.dereference(identifier)
        if there is not None:
            return there
        entity = self.model.ContextEntity(self.crate, identifier, {"@type": kind})
        self.crate.add(entity)
        for name, value in properties.items():
            entity[name] = value
        return entity


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the crate; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.crate", description=main.__doc__)
    parser.add_argument("--suite", help="name of the suite (default: that of params.yaml)")
    parser.add_argument("--output", type=Path, help="a folder, or a file that ends in .zip")
    given, place = parser.parse_args(arguments), root()
    try:
        suite = given.suite or yaml.safe_load((place / "params.yaml").read_text())["suite"]["name"]
        target = given.output or place / "reports" / f"{suite}.crate.zip"
        print(f"crate: {write_crate(place, suite, target)}")
    except InputError as error:
        print(f"crate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
