"""Experiment tracking: the only file that imports MLflow, and only once a run is really logged.

``python -m pipeline.tracking dashboard`` serves what was logged, on this machine alone.
"""

import argparse
import atexit
import copy
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from filelock import FileLock
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from pipeline import database, processes
from pipeline.findings import Findings
from pipeline.keys import Fingerprint
from pipeline.processes import dvc_ancestor
from pipeline.statistics import Estimate
from robustness_geometry.checks import InputError, refuse
from robustness_geometry.types import Dataset

__all__ = ["Run", "Settings", "SweepParent", "dvc_ancestor", "main", "stage_run"]

PARENT = "PIPELINE_PARENT_RUN_ID"
"""The environment variable that hands a sweep's run to its jobs."""

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
_SESSION, _PROCESS = "pipeline.session", "pipeline.process"
_LONGEST = 500  # characters of a logged value
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is logged, and where.

    Attributes:
        enabled: False logs nothing and never imports MLflow.
        uri: of the tracking store; None is sqlite in the repository's root. Runs on several
            machines need the address of a server, as sqlite does not work over a network.
        experiment: MLflow's name for the collection of runs.
        log_models: also log trained networks.
        system_metrics: also log the load of processor, memory, disk and GPU.
    """

    enabled: bool = True
    uri: str | None = None
    experiment: str = "robustness-geometry"
    log_models: bool = True
    system_metrics: bool = True


class Run:
    """A run that is not logged: what every stage writes to when tracking is off."""

    def log_findings(
        self,
        experiment: str,
        findings: Findings,
        section: str,
        drawn: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """Log the numbers, timings, curves, tables and figures of one experiment.

        Args:
            experiment: its id, the first part of every name.
            findings: its results; their tensors stay out.
            section: the section of the thesis.
            drawn: PNG files of the figures, by their names; one without a file is drawn here.
        """

    def log_dataset(self, data: Dataset) -> None:
        """Log which data the run used: name, source, shape and digest."""

    def log_model(self, model: nn.Module, example: Tensor, name: str) -> None:
        """Log a network without pickled code.

        Args:
            model: the network.
            example: (N, C, H, W) images that it takes; two of them let the logged network take any
                number.
            name: what to call it.
        """

    def log_file(self, path: Path) -> None:
        """Log one file."""

    def log_folder(self, path: Path) -> None:
        """Log everything in a folder, under the folder's name."""


class _Logged(Run):
    """A run of MLflow's; made by ``stage_run``."""

    def __init__(self, store: "_Store", run: str) -> None:
        self._mlflow, self._client, self._settings = store.mlflow, store.client, store.settings
        self._id = run

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        entity = self._mlflow.entities.Param
        flat = [entity(_name(key), _cut(value)) for key, value in _flatten(parameters)]
        for start in range(0, len(flat), 100):
            self._client.log_batch(self._id, params=flat[start : start + 100])

    def log_findings(
        self,
        experiment: str,
        findings: Findings,
        section: str,
        drawn: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
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
            entity(f"{group}/{_name(name)}", float(value), now, step)
            for name, values in curves.items()
            for step, value in enumerate(values)
        ]
        for start in range(0, len(points), 1000):  # the most that one batch may hold
            self._client.log_batch(self._id, metrics=points[start : start + 1000])

    def log_dataset(self, data: Dataset) -> None:
        for context, split in (("train", data.train), ("test", data.test)):
            if len(split):
                digest = Fingerprint().of(split).hex()[:16]
                pixels, labels = split.images.numpy(), split.labels.numpy()
                logged = self._mlflow.data.from_numpy(
                    pixels, targets=labels, name=data.name, digest=digest
                )
                self._mlflow.log_input(
                    logged, context=context, tags={"origin": _cut(data.source or "-")}
                )

    def log_model(self, model: nn.Module, example: Tensor, name: str) -> None:
        if not self._settings.log_models:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about MLflow's own type hints
                self._mlflow.pytorch.log_model(
                    copy.deepcopy(model).cpu().eval(),
                    name=_name(name, "_"),
                    input_example=example.cpu().numpy(),
                    pip_requirements=["torch"],  # spares MLflow a search that takes seconds
                )
        except Exception as error:  # a network that cannot be exported must not cost its results
            _log.warning(
                "the network %s was not logged: %s", name, str(error).strip().partition("\n")[0]
            )

    def log_file(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def log_folder(self, path: Path) -> None:
        self._client.log_artifacts(self._id, str(path), path.name)


@contextmanager
def stage_run(
    settings: Settings,
    *,
    stage: str,
    network: str,
    suite: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
) -> Iterator[Run]:
    """One run of a stage, nested in the sweep's or the ``dvc repro``'s own run where there is one.

    The run ends FINISHED, FAILED on an error, or KILLED on an interruption, and so does its parent.

    Args:
        settings: where to log; nothing is logged if not enabled, or in a process that is not the
            first.
        stage: the stage's name.
        network: the network's name.
        suite: the suite's name.
        parameters: what the run was configured with, nested; logged with dots between the levels.
        tags: further tags.
    """
    if not (settings.enabled and processes.is_first()):
        yield Run()
        return
    store = _Store(settings)
    described = {
        "stage": stage,
        "network": network,
        "suite": suite,
        **processes.provenance(),
        **tags,
    }
    with (
        processes.termination_raises(),
        _parent_run(store) as parent,
        _own_run(store, parent, described) as run,
    ):
        run.log_parameters(parameters)
        yield run


@contextmanager
def _own_run(store: "_Store", parent: str | None, tags: Mapping[str, str]) -> Iterator[_Logged]:
    run = store.mlflow.start_run(
        experiment_id=store.experiment,
        run_name=f"{tags['stage']} {tags['network']}",
        parent_run_id=parent,
        tags={
            _name(key): _cut(value)
            for key, value in {**tags, _PROCESS: processes.identity()}.items()
        },
        log_system_metrics=store.settings.system_metrics,
    )
    status = "KILLED"
    try:
        yield _Logged(store, run.info.run_id)
        status = "FINISHED"
    except Exception as error:
        status = "FAILED"
        store.client.set_tag(run.info.run_id, "error", _cut(f"{type(error).__name__}: {error}"))
        raise
    finally:
        store.mlflow.end_run(status)


@contextmanager
def _parent_run(store: "_Store") -> Iterator[str | None]:
    """The run to nest in: the sweep's, or that of the ``dvc`` process above, open while this stage runs."""
    if PARENT in os.environ:
        yield os.environ[PARENT]
        return
    _close_orphans(store)
    dvc = dvc_ancestor()
    if dvc is None:
        yield None
        return
    parent = _session_run(store, processes.identity(dvc))
    try:
        yield parent
    finally:
        _close_parent(store, parent)


def _session_run(store: "_Store", session: str) -> str:
    """Find and reopen, or make, the run of one ``dvc`` process."""
    with store.lock():
        found = store.search(f"tags.`{_SESSION}` LIKE '{session.rpartition('-')[0]}-%'")
        runs = [
            str(run.info.run_id)
            for run in found
            if processes.same(run.data.tags[_SESSION], session)
        ]
        if runs:
            store.client.update_run(runs[0], status="RUNNING")
            store.client.set_tag(runs[0], _PROCESS, processes.identity())
            return runs[0]
        tags = {key: value for key, value in processes.provenance().items() if key != "DVC_STAGE"}
        return store.open(
            os.environ.get("DVC_EXP_NAME") or "dvc repro", {**tags, _SESSION: session}
        )


def _close_parent(store: "_Store", parent: str, failed: bool = False) -> None:
    statuses = {
        child.info.status for child in store.search(f"tags.`mlflow.parentRunId` = '{parent}'")
    }
    failed = failed or bool(statuses & {"FAILED", "KILLED"})
    store.client.set_terminated(parent, "FAILED" if failed else "FINISHED")


def _close_orphans(store: "_Store") -> None:
    """Mark as KILLED what a process left open that was itself killed outright."""
    for run in store.search("attributes.status = 'RUNNING'"):
        if _PROCESS in run.data.tags and not processes.lives(run.data.tags[_PROCESS]):
            store.client.set_terminated(run.info.run_id, "KILLED")


class SweepParent(Callback):  # type: ignore[misc]
    """A Hydra callback: one run for a whole multirun, in which the runs of its jobs nest."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Open the sweep's run, and see to it that it is closed even if a job fails."""
        given = OmegaConf.select(config, "tracking") or {}
        settings = Settings(**{f.name: given[f.name] for f in fields(Settings) if f.name in given})
        if not (settings.enabled and processes.is_first()) or PARENT in os.environ:
            return
        self._store = _Store(settings)
        _close_orphans(self._store)
        name = f"sweep {OmegaConf.select(config, 'hydra.job.name') or ''}".strip()
        self._run = self._store.open(name, processes.provenance())
        os.environ[PARENT] = self._run  # the jobs' processes inherit it
        atexit.register(self._fail)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Close the sweep's run."""
        self._close(failed=False)

    def _fail(self) -> None:
        """At the process' end: Hydra does not call ``on_multirun_end`` when a job has failed."""
        self._close(failed=True)

    def _close(self, failed: bool) -> None:
        atexit.unregister(self._fail)
        if os.environ.get(PARENT) == getattr(self, "_run", ""):
            del os.environ[PARENT]
            _close_parent(self._store, self._run, failed)


def _write_files(folder: Path, findings: Findings, drawn: Mapping[str, Path]) -> None:
    """Tables, figures and notes of an experiment, as files to log."""
    tables = {
        "numbers": _table(findings.numbers),
        "timings": _table(findings.timings),
        **findings.tables,
    }
    for name, table in tables.items():
        if len(table):
            table.to_csv(folder / f"{_name(name, '_')}.csv", index=False)
    for name, figure in findings.figures.items():
        path = folder / f"{_name(name, '_')}.png"
        if name in drawn:
            shutil.copyfile(drawn[name], path)
        else:
            figure.savefig(path, format="png")
    if findings.notes:
        (folder / "notes.txt").write_text("\n".join(findings.notes) + "\n", encoding="utf-8")


class _Store:
    """A connection to the tracking store, made ready for use."""

    def __init__(self, settings: Settings) -> None:
        os.environ.update(_QUIET)
        import mlflow

        for name, level in (
            ("mlflow", logging.WARNING),
            ("mlflow.utils.environment", logging.ERROR),
        ):
            logging.getLogger(name).setLevel(level)
        self.mlflow, self.settings = mlflow, settings
        self.uri = settings.uri or f"sqlite:///{processes.root() / 'mlflow.db'}"
        self._file = (
            Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None
        )
        mlflow.set_tracking_uri(self.uri)
        # Several processes that create the database at once would leave it broken.
        with self.lock(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # about MLflow's own use of SQLAlchemy
            if self._file is not None:
                database.follow_move(self._file, settings.experiment)
            self.client = mlflow.MlflowClient()
            self.experiment = self._experiment(settings.experiment)
            if self._file is not None:
                database.read_beside_writes(self._file)

    def lock(self) -> AbstractContextManager[object]:
        """Held by one process at a time; a server needs none."""
        if self._file is None:
            return nullcontext()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lock: AbstractContextManager[object] = FileLock(self._file.parent / ".mlflow.lock")
        return lock

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = None if self._file is None else database.artifacts(self._file)
            return str(self.client.create_experiment(name, artifact_location=place))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def open(self, name: str, tags: Mapping[str, str]) -> str:
        """Make a run that holds others; returns its id."""
        tags = {**tags, _PROCESS: processes.identity()}
        return str(self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id)

    def search(self, query: str) -> list[Any]:
        """The runs that ``query`` describes."""
        return list(self.client.search_runs([self.experiment], query, max_results=1000))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _name(text: str, slash: str = " over ") -> str:
    """A name in MLflow's alphabet; a ratio ``a / b`` becomes ``a over b``."""
    return re.sub(r"[^\w\-. :/]", "_", re.sub(r" */ *", slash, text)).strip()


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"name": name, **estimate.as_dict()} for name, estimate in numbers.items()]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the dashboard on this machine alone, after printing the address of the view of its runs."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description=main.__doc__)
    parser.add_argument("command", choices=["dashboard"])
    parser.add_argument("--port", type=int, default=5000)
    port = parser.parse_args(arguments).port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            refuse("port", port, f"a port that no other program uses: try --port {port + 1}")
    store = _Store(Settings())
    # MLflow's own landing page is about language models; this is the page with the runs.
    page = f"#/experiments/{store.experiment}/runs?workflowType=machine_learning"
    print(f"http://127.0.0.1:{port}/{page}", flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        store.uri,
        "--workers",
        "1",
    ]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"dashboard: {error}")
