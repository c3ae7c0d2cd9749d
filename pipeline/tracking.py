"""Experiment tracking: the only file that imports MLflow, and only once a run is really logged."""

import atexit
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.utils import JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from pipeline import database, processes, servers
from pipeline.processes import dvc_ancestor
from pipeline.runs import LoggedRun, Run, changes, cut, legal_name, run_name
from pipeline.storage import check_folder
from robustness_geometry.checks import InputError, refuse

__all__ = [
    "Run",
    "Settings",
    "Store",
    "SweepParent",
    "begin_session",
    "dvc_ancestor",
    "stage_run",
]

PARENT = "PIPELINE_PARENT_RUN_ID"
"""The environment variable that hands a sweep's run to its jobs."""

SESSION = "PIPELINE_SESSION"
"""The environment variable by which jobs of one graph find the run that holds theirs."""

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
_SESSION, _PROCESS, _JOB = "pipeline.session", "pipeline.process", "slurm.job"


@dataclass(frozen=True)
class Settings:
    """What is logged, and where.

    Attributes:
        enabled: False logs nothing and never imports MLflow.
        uri: address of the tracking store; None: an sqlite file in the repository's root. Runs on
            several machines need a server, as sqlite does not work over a network.
        server: log to an MLflow server alone: that of ``uri``, else that which the environment's
            MLFLOW_TRACKING_URI names.
        experiment: name of the collection of runs in MLflow.
        log_models: also log trained networks.
        system_metrics: also log the load of processor, memory, disk and GPU.
    """

    enabled: bool = True
    uri: str | None = None
    server: bool = False
    experiment: str = "robustness-geometry"
    log_models: bool = True
    system_metrics: bool = True


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
        stage: name of the stage.
        network: name of the network.
        suite: name of the suite.
        parameters: configuration of the run, nested; logged with dots between the levels.
        tags: further tags.

    Raises:
        InputError: the tracking store cannot be reached or written, or is damaged.
    """
    if not (settings.enabled and processes.is_first()):
        yield Run()
        return
    store = Store(settings)
    described = {
        "stage": stage,
        "network": network,
        "suite": suite,
        **processes.provenance(),
        **({_JOB: os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}),
        **tags,
    }
    with (
        processes.termination_raises(),
        _parent_run(store, suite) as parent,
        _own_run(store, parent, described) as run,
    ):
        run.log_parameters(parameters)
        yield run


@contextmanager
def _own_run(store: "Store", parent: str | None, tags: Mapping[str, str]) -> Iterator[LoggedRun]:
    above = parent if PARENT not in os.environ else None
    suite = [tags["suite"]] if above else []  # a direct run may measure what no suite names
    changed = "" if above else changes()
    run = store.mlflow.start_run(
        run_id=_before_requeue(store, parent, tags),
        experiment_id=store.experiment,
        run_name=run_name(*suite, tags["stage"], tags["network"], changed),
        parent_run_id=parent,
        tags={
            legal_name(key): cut(value)
            for key, value in {**tags, _PROCESS: processes.identity()}.items()
        },
        log_system_metrics=store.settings.system_metrics,
    )
    status = "KILLED"
    try:
        yield store.logged(run.info.run_id, above)
        status = "FINISHED"
    except Exception as error:
        status = "FAILED"
        with suppress(Exception):  # where the store fails too, the first error is the one to show
            store.client.set_tag(run.info.run_id, "error", cut(f"{type(error).__name__}: {error}"))
        raise
    finally:
        with nullcontext() if status == "FINISHED" else suppress(Exception):
            store.mlflow.end_run(status)


@contextmanager
def _parent_run(store: "Store", suite: str) -> Iterator[str | None]:
    """The run to nest in: the sweep's, or that of the ``dvc`` process above.

    It stays open while this stage runs.
    """
    if PARENT in os.environ:
        yield os.environ[PARENT]
        return
    _close_orphans(store)
    dvc = dvc_ancestor()
    if dvc is None:
        yield None
        return
    session = os.environ.get(SESSION) or processes.identity(dvc)
    parent = _session_run(store, session, suite)
    try:
        yield parent
    except BaseException:
        with suppress(Exception):
            _close_parent(store, parent)
        raise
    _close_parent(store, parent)


def _before_requeue(store: "Store", parent: str | None, tags: Mapping[str, str]) -> str | None:
    """The run that this job of Slurm left unfinished when it was queued again, to go on with."""
    if parent is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    wanted = {"mlflow.parentRunId": parent, **{k: tags[k] for k in (_JOB, "stage", "network")}}
    query = " AND ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
    found = store.search(f"{query} AND attributes.status != 'FINISHED'")
    return str(found[0].info.run_id) if found else None


def begin_session(settings: Settings, name: str) -> dict[str, str]:
    """Make the run that holds those of jobs which start later, maybe elsewhere.

    Args:
        settings: where to log; nothing is logged if not enabled.
        name: name of the run.

    Returns:
        The environment variables by which the jobs find it.

    Raises:
        InputError: the tracking store cannot be reached or written, or is damaged.
    """
    if not settings.enabled:
        return {}
    store, session = Store(settings), processes.identity()
    run = store.open(name, {**processes.provenance(), _SESSION: session})
    store.client.update_run(run, status="SCHEDULED")
    return {SESSION: session}


def _session_run(store: "Store", session: str, suite: str) -> str:
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
        name = run_name(suite, os.environ.get("DVC_EXP_NAME") or "dvc repro")
        return store.open(name, {**tags, "suite": suite, _SESSION: session})


def _close_parent(store: "Store", parent: str, failed: bool = False) -> None:
    statuses = {
        child.info.status for child in store.search(f"tags.`mlflow.parentRunId` = '{parent}'")
    }
    failed = failed or bool(statuses & {"FAILED", "KILLED"})
    store.client.set_terminated(parent, "FAILED" if failed else "FINISHED")


def _close_orphans(store: "Store") -> None:
    """Mark as KILLED what a process left open that was itself killed outright."""
    for run in store.search("attributes.status = 'RUNNING'"):
        if _PROCESS in run.data.tags and not processes.lives(run.data.tags[_PROCESS]):
            store.client.set_terminated(run.info.run_id, "KILLED")


class SweepParent(Callback):  # type: ignore[misc]
    """A Hydra callback: one run for a whole multirun, in which the runs of its jobs nest.

    A job whose value is not 0 has failed.
    """

    _failed = False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Open the sweep's run, and see to it that it is closed whatever happens.

        Raises:
            SystemExit: there is no store to log to; its code is the :class:`InputError`.
        """
        given = OmegaConf.select(config, "tracking") or {}
        settings = Settings(**{f.name: given[f.name] for f in fields(Settings) if f.name in given})
        if not (settings.enabled and processes.is_first()) or PARENT in os.environ:
            return
        try:
            self._store = Store(settings)
        except InputError as error:  # Hydra would only warn of it, and every run meet it again
            raise SystemExit(error) from error
        _close_orphans(self._store)
        stage = str(OmegaConf.select(config, "hydra.job.name") or "")
        given = OmegaConf.select(config, "hydra.overrides.task") or []
        name = run_name("sweep", stage, changes([str(word) for word in given]))
        self._run = self._store.open(name, processes.provenance())
        os.environ[PARENT] = self._run  # the jobs' processes inherit it
        atexit.register(self._fail)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Note whether a job failed; one that was refused has no run of its own."""
        done = job_return.status == JobStatus.COMPLETED
        self._failed = self._failed or not done or bool(job_return.return_value)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Close the sweep's run."""
        self._close(failed=self._failed)

    def _fail(self) -> None:
        """At the process' end: Hydra does not call ``on_multirun_end`` when a job has failed."""
        self._close(failed=True)

    def _close(self, failed: bool) -> None:
        atexit.unregister(self._fail)
        if os.environ.get(PARENT) == getattr(self, "_run", ""):
            del os.environ[PARENT]
            _close_parent(self._store, self._run, failed)


class Store:
    """A connection to the tracking store, made ready for use.

    Args:
        settings: where to log.

    Raises:
        InputError: the store cannot be reached or written, or is damaged.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        if settings.server:
            self.uri = servers.address(settings.uri)
        else:
            self.uri = settings.uri or f"sqlite:///{processes.root() / 'mlflow.db'}"
        self._file = (
            Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None
        )
        # First, as to import MLflow takes seconds.
        if self._file is None:
            servers.check_server(self.uri)
        else:
            check_folder("tracking.uri", self._file.parent)
            with self.lock():
                database.check(self._file)
        self.mlflow = _mlflow()
        with servers.asking_once():
            try:
                self._connect()
            except Exception as error:  # of MLflow, of its database or of a missing driver
                reason = cut(" ".join(str(error).split()))
                refuse(
                    "tracking.uri",
                    servers.without_password(self.uri),
                    f"a tracking store that MLflow can use ({reason})",
                )

    def _connect(self) -> None:
        self.mlflow.set_tracking_uri(self.uri)
        # Several processes that create the database at once would leave it broken.
        with self.lock(), warnings.catch_warnings():
            # About MLflow's own use of SQLAlchemy.
            warnings.simplefilter("ignore", DeprecationWarning)
            if self._file is not None:
                if not self._file.exists():
                    self._create(self._file)
                database.follow_move(self._file, self.settings.experiment)
            self.client = self.mlflow.MlflowClient()
            self.experiment = self._experiment(self.settings.experiment)
            if self._file is not None:
                database.read_beside_writes(self._file)

    def logged(self, run: str, above: str | None = None) -> LoggedRun:
        """The run with an id, to log to.

        Args:
            run: its id.
            above: id of the ``dvc repro``'s run around it, which gets its headline numbers.
        """
        models = self.settings.log_models
        return LoggedRun(self.mlflow, self.client, run, log_models=models, above=above)

    def _create(self, file: Path) -> None:
        """Make the database under another name: half of one would refuse all later runs."""
        new = file.with_name(f"{file.name}.new")
        for stale in file.parent.glob(f"{new.name}*"):
            stale.unlink()
        self.mlflow.MlflowClient(f"sqlite:///{new}").search_experiments()
        new.replace(file)

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
            try:
                return str(self.client.create_experiment(name, artifact_location=place))
            except self.mlflow.exceptions.MlflowException:
                # A process elsewhere may have made it on the server in the meantime.
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
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


def _mlflow() -> Any:
    """MLflow, without its messages and telemetry."""
    os.environ.update(_QUIET)
    import mlflow

    for name, level in (("mlflow", logging.WARNING), ("mlflow.utils.environment", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    return mlflow
