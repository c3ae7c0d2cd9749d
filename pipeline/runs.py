"""What a run of a stage logs: to MLflow, or nowhere."""

import copy
import json
import logging
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from torch import Tensor, nn

from pipeline.findings import Findings
from pipeline.keys import Fingerprint
from pipeline.ledger import digest
from pipeline.statistics import Estimate
from robustness_geometry.types import Dataset

__all__ = ["DIGEST", "LoggedRun", "Run", "changes", "cut", "legal_name", "run_name", "verdicts"]

DIGEST = "sha256."
"""Tags that begin so hold the SHA-256 of a logged file, whose name follows."""

_UNTOLD = re.compile(r"(network|model|dataset|suite|output)=|(tracking|executor|hydra)\b")
"""Overrides that do not stand in a run's name: the network's name tells them, or nobody asks."""

_LONGEST = 500  # characters of a logged value
_log = logging.getLogger(__name__)


class Run:
    """A run that is not logged: stages write to it when tracking is off.

    Attributes:
        id: its id in MLflow; empty where it is not logged.
    """

    id = ""

    def log_findings(
        self,
        experiment: str,
        findings: Findings,
        section: str,
        drawn: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """Log the numbers, timings, curves, tables and figures of one experiment.

        Args:
            experiment: name of the experiment, the first part of every logged name.
            findings: its results; their tensors are not logged.
            section: its section of the thesis.
            drawn: name of a figure -> its PNG file; a figure without one is drawn here.
        """

    def log_dataset(self, data: Dataset) -> None:
        """Log the data that the run used: name, source, shape and digest."""

    def log_model(self, model: nn.Module, example: Tensor, name: str) -> None:
        """Log a network without pickled code.

        Args:
            model: the network.
            example: (N, C, H, W) images that it takes; with two of them the logged network takes
                any number.
            name: name of the logged network.
        """

    def log_file(self, path: Path) -> None:
        """Log one file, and tag the run with its SHA-256."""

    def log_report(self, page: Path, claims: Path) -> None:
        """Log the report and the counts of verdicts, also with the ``dvc repro``'s own run.

        Args:
            page: the suite's page.
            claims: its ``claims.json``.
        """

    def log_folder(self, path: Path) -> None:
        """Log everything in a folder, under the folder's name."""


class LoggedRun(Run):
    """A run that is logged to MLflow.

    Args:
        mlflow: the package, which is imported only once a run is really logged.
        client: its client.
        run: id of the run.
        log_models: also log networks.
        above: id of the ``dvc repro``'s run around this one, which gets its headline numbers;
            None: there is none.
    """

    def __init__(
        self, mlflow: Any, client: Any, run: str, *, log_models: bool, above: str | None = None
    ) -> None:
        self._mlflow, self._client = mlflow, client
        self.id = run
        self._log_models, self._above = log_models, above

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log the configuration, nested names joined with dots."""
        entity = self._mlflow.entities.Param
        flat = [entity(legal_name(key), cut(value)) for key, value in _flatten(parameters)]
        for start in range(0, len(flat), 100):
            self._client.log_batch(self.id, params=flat[start : start + 100])

    def log_findings(
        self,
        experiment: str,
        findings: Findings,
        section: str,
        drawn: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """As :meth:`Run.log_findings`; each experiment is a group of names and a folder."""
        self._client.set_tag(self.id, f"thesis.section.{experiment}", section)
        self.log_curves(experiment, findings.curves)
        self.log_curves(experiment, {name: [e.value] for name, e in findings.numbers.items()})
        self.log_curves(
            f"{experiment}/timings", {name: [e.value] for name, e in findings.timings.items()}
        )
        if self._above:
            self._log_headline(self._above, experiment, findings.numbers)
        with tempfile.TemporaryDirectory() as name:
            _write_files(Path(name), findings, drawn)
            self._client.log_artifacts(self.id, name, experiment)

    def _log_headline(self, run: str, experiment: str, numbers: Mapping[str, Estimate]) -> None:
        """Log an experiment's first number that is no comparison with the ``dvc repro``'s run."""
        plain = [name for name in numbers if not re.search(" [-/] ", name)][:1]
        tags = self._client.get_run(self.id).data.tags
        group = f"{tags['stage']}/{tags['network']}/{experiment}"
        self.log_curves(group, {name: [numbers[name].value] for name in plain}, run)

    def log_curves(
        self, group: str, curves: Mapping[str, Sequence[float]], run: str | None = None
    ) -> None:
        """Log curves, or numbers as curves of one point.

        Args:
            group: the first part of every logged name.
            curves: name -> values by step.
            run: id of the run; None: this one.
        """
        now = int(time.time() * 1000)
        entity = self._mlflow.entities.Metric
        points = [
            entity(f"{group}/{legal_name(name)}", float(value), now, step)
            for name, values in curves.items()
            for step, value in enumerate(values)
        ]
        for start in range(0, len(points), 1000):  # the most that one batch may hold
            self._client.log_batch(run or self.id, metrics=points[start : start + 1000])

    def log_dataset(self, data: Dataset) -> None:
        """As :meth:`Run.log_dataset`, for the training and the test images."""
        for context, split in (("train", data.train), ("test", data.test)):
            if len(split):
                digest = Fingerprint().of(split).hex()[:16]
                pixels, labels = split.images.numpy(), split.labels.numpy()
                logged = self._mlflow.data.from_numpy(
                    pixels, targets=labels, name=data.name, digest=digest
                )
                self._mlflow.log_input(
                    logged, context=context, tags={"origin": cut(data.source or "-")}
                )

    def log_model(self, model: nn.Module, example: Tensor, name: str) -> None:
        """As :meth:`Run.log_model`; a network that cannot be exported costs a warning."""
        if not self._log_models:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about MLflow's own type hints
                self._mlflow.pytorch.log_model(
                    copy.deepcopy(model).cpu().eval(),
                    name=legal_name(name, "_"),
                    input_example=example.cpu().numpy(),
                    pip_requirements=["torch"],  # spares MLflow a search that takes seconds
                )
        except Exception as error:  # a network that cannot be exported must not cost its results
            _log.warning(
                "the network %s was not logged: %s", name, str(error).strip().partition("\n")[0]
            )

    def log_file(self, path: Path) -> None:
        """As :meth:`Run.log_file`."""
        self._client.log_artifact(self.id, str(path))
        self._client.set_tag(self.id, f"{DIGEST}{path.name}", digest(path))

    def log_report(self, page: Path, claims: Path) -> None:
        """As :meth:`Run.log_report`; the name of the ``dvc repro``'s run then tells the outcome."""
        counts, outcome = verdicts(claims)
        for run in filter(None, (self.id, self._above)):
            for group, numbers in counts.items():
                self.log_curves(group, {name: [n] for name, n in numbers.items()}, run)
            self._client.log_artifact(run, str(page))
        self.log_file(claims)
        if self._above:
            parts = self._client.get_run(self._above).info.run_name.split(" · ")[:2]
            self._client.update_run(self._above, name=run_name(*parts, outcome))

    def log_folder(self, path: Path) -> None:
        """As :meth:`Run.log_folder`."""
        self._client.log_artifacts(self.id, str(path), path.name)


def _write_files(folder: Path, findings: Findings, drawn: Mapping[str, Path]) -> None:
    """Write tables, figures and notes of an experiment, as files to log."""
    tables = {
        "numbers": _table(findings.numbers),
        "timings": _table(findings.timings),
        **findings.tables,
    }
    for name, table in tables.items():
        if len(table):
            table.to_csv(folder / f"{legal_name(name, '_')}.csv", index=False)
    for name, figure in findings.figures.items():
        path = folder / f"{legal_name(name, '_')}.png"
        if name in drawn:
            shutil.copyfile(drawn[name], path)
        else:
            figure.savefig(path, format="png")
    if findings.notes:
        (folder / "notes.txt").write_text("\n".join(findings.notes) + "\n", encoding="utf-8")


def verdicts(claims: Path) -> tuple[dict[str, dict[str, float]], str]:
    """The counts of verdicts in a ``claims.json``, and the outcome in a few words.

    Args:
        claims: the file.

    Returns:
        "claims" and "tests" (distinct ones) -> verdict -> how many, and such as "124 of 196 tests
        decided"; without tests and empty where the file does not count them.
    """
    counts = json.loads(claims.read_text("utf-8"))["counts"]
    found, tests = {"claims": dict(counts["verdict"])}, counts.get("tests")
    if tests is None:
        return found, ""
    found["tests"] = {key: tests[key] for key in ("asked", "decided")} | tests["verdict"]
    return found, f"{tests['decided']} of {tests['asked']} tests decided"


def run_name(*parts: str) -> str:
    """A run's name from its parts, the empty ones left out.

    Example:
        >>> from pipeline.runs import run_name
        >>> run_name("embedded", "attack", "mnist5k_lenet", "")
        'embedded · attack · mnist5k_lenet'
    """
    return cut(" · ".join(part for part in parts if part), 120)


def changes(overrides: Sequence[str] | None = None) -> str:
    """What a command line changed, as far as a run's name tells it, such as ``attack.norm=inf``.

    What a sweep takes in turn is always told.

    Args:
        overrides: those of the command line; None: of this process' own, none outside Hydra.
    """
    if overrides is None:
        known = HydraConfig.initialized()
        overrides = list(HydraConfig.get().overrides.task) if known else []
    words = [word.lstrip("+") for word in overrides]
    return " ".join(word for word in words if "," in word or not _UNTOLD.match(word))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def cut(value: object, longest: int = _LONGEST) -> str:
    """``value`` as text, no longer than MLflow takes, or than ``longest`` characters."""
    text = str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def legal_name(text: str, slash: str = " over ") -> str:
    """A name in MLflow's alphabet; a ratio ``a / b`` becomes ``a over b``."""
    return re.sub(r"[^\w\-. :/]", "_", re.sub(r" */ *", slash, text)).strip()


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"name": name, **estimate.as_dict()} for name, estimate in numbers.items()]
    )
