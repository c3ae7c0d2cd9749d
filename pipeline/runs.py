"""What a run of a stage logs: to MLflow, or nowhere."""

import copy
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
from torch import Tensor, nn

from pipeline.findings import Findings
from pipeline.keys import Fingerprint
from pipeline.statistics import Estimate
from robustness_geometry.types import Dataset

__all__ = ["LoggedRun", "Run", "cut", "legal_name"]

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
        """Log one file."""

    def log_folder(self, path: Path) -> None:
        """Log everything in a folder, under the folder's name."""


class LoggedRun(Run):
    """A run that is logged to MLflow.

    Args:
        mlflow: the package, which is imported only once a run is really logged.
        client: its client.
        run: id of the run.
        log_models: also log networks.
    """

    def __init__(self, mlflow: Any, client: Any, run: str, *, log_models: bool) -> None:
        self._mlflow, self._client, self._id = mlflow, client, run
        self.id = run
        self._log_models = log_models

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log the configuration, nested names joined with dots."""
        entity = self._mlflow.entities.Param
        flat = [entity(legal_name(key), cut(value)) for key, value in _flatten(parameters)]
        for start in range(0, len(flat), 100):
            self._client.log_batch(self._id, params=flat[start : start + 100])

    def log_findings(
        self,
        experiment: str,
        findings: Findings,
        section: str,
        drawn: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """As :meth:`Run.log_findings`; each experiment is a group of names and a folder."""
        self._client.set_tag(self._id, f"thesis.section.{experiment}", section)
        self._log_curves(experiment, findings.curves)
        self._log_curves(experiment, {name: [e.value] for name, e in findings.numbers.items()})
        self._log_curves(
            f"{experiment}/timings", {name: [e.value] for name, e in findings.timings.items()}
        )
        with tempfile.TemporaryDirectory() as name:
            _write_files(Path(name), findings, drawn)
            self._client.log_artifacts(self._id, name, experiment)

    def _log_curves(self, group: str, curves: Mapping[str, Sequence[float]]) -> None:
        now = int(time.time() * 1000)
        entity = self._mlflow.entities.Metric
        points = [
            entity(f"{group}/{legal_name(name)}", float(value), now, step)
            for name, values in curves.items()
            for step, value in enumerate(values)
        ]
        for start in range(0, len(points), 1000):  # the most that one batch may hold
            self._client.log_batch(self._id, metrics=points[start : start + 1000])

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
        self._client.log_artifact(self._id, str(path))

    def log_folder(self, path: Path) -> None:
        """As :meth:`Run.log_folder`."""
        self._client.log_artifacts(self._id, str(path), path.name)


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


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def cut(value: object) -> str:
    """``value`` as text, no longer than MLflow takes."""
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def legal_name(text: str, slash: str = " over ") -> str:
    """A name in MLflow's alphabet; a ratio ``a / b`` becomes ``a over b``."""
    return re.sub(r"[^\w\-. :/]", "_", re.sub(r" */ *", slash, text)).strip()


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"name": name, **estimate.as_dict()} for name, estimate in numbers.items()]
    )
