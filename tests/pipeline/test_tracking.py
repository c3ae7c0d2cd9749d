import hashlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import nn

from pipeline import dashboard, database, processes, servers, tracking
from pipeline.findings import Findings
from pipeline.runs import LoggedRun
from pipeline.statistics import Estimate
from pipeline.storage import refuse_full_disk
from pipeline.tracking import Run, Settings, SweepParent, stage_run
from robustness_geometry.checks import InputError
from robustness_geometry.types import Dataset, Split

OPTIONS = {"stage": "attack", "network": "toy", "suite": "smoke", "parameters": {}, "tags": {}}


@pytest.fixture(autouse=True)
def _outside(monkeypatch):
    for name in (tracking.PARENT, "DVC_STAGE", "DVC_EXP_NAME", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def quiet():
    return Settings(system_metrics=False)


@pytest.fixture
def runs(home):
    def runs() -> list:
        store = tracking.Store(Settings())
        return sorted(store.search(""), key=lambda run: run.info.start_time)

    return runs


def artifacts(home: Path, run) -> set[str]:
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(home / "mlruns")
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def findings() -> Findings:
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1], [1, 0])
    return Findings(
        numbers={
            "rho_df": Estimate(0.2, 0.1, 0.3, n=100, std=0.05),
            "a / b": Estimate(2.0, 1.0, 3.0, n=100),
        },
        timings={"t_df": Estimate(0.01, 0.01, 0.01, n=100)},
        curves={"loss (train)": [3.0, 2.0, float("nan"), 1.0]},
        tables={"table 3.1": pd.DataFrame({"network": ["toy"], "rho": [0.2]})},
        figures={"figure_3_5": figure},
        notes=["One sentence."],
    )


# One run


def test_a_run_is_logged_with_everything_about_it(home, runs):
    parameters = {
        "attack": {"steps": 50, "norm": 2, "deep": {"er": None}},
        "long": "x" * 1000,
        "empty": {},
    }
    options = {**OPTIONS, "parameters": parameters, "tags": {"thesis.section": "3.3"}}
    with stage_run(Settings(), **options) as run:
        run.log_findings("attack_l2", findings(), "3.3")
        (home / "metrics.json").write_text("{}")
        run.log_file(home / "metrics.json")
        (home / "tables").mkdir()
        (home / "tables" / "a.csv").write_text("")
        run.log_folder(home / "tables")
    (logged,) = runs()
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == "attack · toy"
    assert (
        logged.data.tags["thesis.section"] == logged.data.tags["thesis.section.attack_l2"] == "3.3"
    )
    assert {
        "stage": "attack",
        "network": "toy",
        "suite": "smoke",
    }.items() <= logged.data.tags.items()
    assert "mlflow.parentRunId" not in logged.data.tags
    assert logged.data.params["attack.steps"] == "50"
    assert logged.data.params["attack.deep.er"] == "None"
    assert len(logged.data.params["long"]) == 500
    metrics = {
        name: value for name, value in logged.data.metrics.items() if not name.startswith("system/")
    }
    assert metrics == {
        "attack_l2/rho_df": 0.2,
        "attack_l2/a over b": 2.0,
        "attack_l2/timings/t_df": 0.01,
        "attack_l2/loss _train_": 1.0,
    }
    kept = {"numbers.csv", "timings.csv", "table 3.1.csv", "figure_3_5.png", "notes.txt"}
    assert artifacts(home, logged) == {f"attack_l2/{n}" for n in kept} | {
        "metrics.json",
        "tables/a.csv",
    }
    assert logged.data.tags["sha256.metrics.json"] == hashlib.sha256(b"{}").hexdigest()
    table = pd.read_csv(
        home / "mlruns" / logged.info.run_id / "artifacts" / "attack_l2" / "numbers.csv"
    )
    assert table.loc[0, ["name", "value", "low", "high", "n"]].tolist() == [
        "rho_df",
        0.2,
        0.1,
        0.3,
        100,
    ]


def test_curves_have_steps(home, quiet, runs):
    with stage_run(quiet, **OPTIONS) as run:
        run.log_findings("training", Findings(curves={"loss": np.arange(1500.0)[::-1]}), "3.2")
    history = tracking.Store(quiet).client.get_metric_history(
        runs()[0].info.run_id, "training/loss"
    )
    assert [point.step for point in history] == list(range(1500))
    assert [point.value for point in history] == list(np.arange(1500.0)[::-1])


def test_data_are_named_with_their_digest(home, quiet, runs):
    def logged(images: torch.Tensor) -> list:
        split, none = Split(images, torch.arange(5)), Split(images[:0], torch.arange(0))
        data = Dataset("digits", none, split, tuple("abcde"), (0.1,), (0.3,), source="made up")
        with stage_run(quiet, **OPTIONS) as run:
            run.log_dataset(data)
        return runs()[-1].inputs.dataset_inputs

    images = torch.rand(5, 1, 4, 4)
    (first,), (again,), (other,) = logged(images), logged(images.clone()), logged(images + 1)
    assert first.dataset.name == "digits"
    assert {tag.key: tag.value for tag in first.tags} == {
        "mlflow.data.context": "test",
        "origin": "made up",
    }
    assert first.dataset.digest == again.dataset.digest != other.dataset.digest


class Fickle(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) if float(images.sum().item()) > 0 else -images.flatten(1)


def test_a_network_is_logged_without_pickled_code(home, quiet, runs, caplog):
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 4, 4)
    with stage_run(quiet, **OPTIONS) as run:
        run.log_model(model, images, "toy")
        run.log_model(Fickle(), images, "fickle")
    messages = [record.getMessage() for record in caplog.records if record.name == "pipeline.runs"]
    assert len(messages) == 1
    assert messages[0].startswith("the network fickle was not logged: ")
    assert model.training
    folders = list(home.rglob("MLmodel"))
    assert len(folders) == 1
    assert not list(folders[0].parent.rglob("*.pth"))
    import mlflow

    loaded = mlflow.pytorch.load_model(str(folders[0].parent))
    many = torch.rand(7, 1, 4, 4)
    assert torch.allclose(loaded(many), model(many))
    assert runs()[0].info.status == "FINISHED"


def test_networks_stay_out_if_not_wanted(home, runs):
    with stage_run(Settings(log_models=False, system_metrics=False), **OPTIONS) as run:
        run.log_model(nn.Flatten(), torch.rand(2, 1, 4, 4), "toy")
    assert not list(home.rglob("MLmodel"))


def test_system_metrics_are_logged(home, runs, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with stage_run(Settings(), **OPTIONS):
        time.sleep(0.5)
    assert any(name.startswith("system/cpu") for name in runs()[0].data.metrics)


# How runs end


ENDS = [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "KILLED")]


@pytest.mark.parametrize(("error", "status"), ENDS)
def test_no_run_stays_open_after_an_error(home, quiet, runs, error, status):
    with pytest.raises(type(error)), stage_run(quiet, **OPTIONS):
        raise error
    assert [run.info.status for run in runs()] == [status]
    if status == "FAILED":
        assert runs()[0].data.tags["error"] == "ValueError: bad"


def test_sigterm_ends_the_run_and_the_handler_is_put_back(home, quiet, runs):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, stage_run(quiet, **OPTIONS):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert [run.info.status for run in runs()] == ["KILLED"]


def test_a_run_whose_process_was_killed_outright_is_closed_by_the_next(home, quiet, runs):
    store = tracking.Store(quiet)
    mine, host = processes.identity(), socket.gethostname()
    dead, gone = f"{host}:{os.getpid()}-1000", f"{host}:999999999-1000"
    for name, process in {"alive": mine, "dead": dead, "gone": gone, "far": "x:1-1"}.items():
        store.client.create_run(store.experiment, run_name=name, tags={"pipeline.process": process})
    with stage_run(quiet, **OPTIONS):
        pass
    statuses = {run.info.run_name: run.info.status for run in runs()}
    assert statuses.pop("attack · toy") == "FINISHED"
    assert statuses == {"alive": "RUNNING", "dead": "KILLED", "gone": "KILLED", "far": "RUNNING"}


# Nesting


def test_the_stages_of_one_dvc_process_share_a_parent(home, quiet, runs, monkeypatch):
    monkeypatch.setattr(tracking, "dvc_ancestor", psutil.Process)
    store = tracking.Store(quiet)
    states = []

    def parent():
        (found,) = [run for run in runs() if "pipeline.session" in run.data.tags]
        return found

    for network in ("one", "two"):
        with stage_run(quiet, **{**OPTIONS, "network": network}):
            states.append(parent().info.status)
        states.append(parent().info.status)
    with pytest.raises(ValueError, match="bad"), stage_run(quiet, **OPTIONS):
        raise ValueError("bad")
    states.append(parent().info.status)
    assert states == ["RUNNING", "FINISHED", "RUNNING", "FINISHED", "FAILED"]
    assert len(store.search(f"tags.`mlflow.parentRunId` = '{parent().info.run_id}'")) == 3
    assert len(runs()) == 4
    assert parent().info.run_name == "smoke · dvc repro"
    assert {run.info.run_name for run in runs()} >= {"smoke · attack · one", "smoke · attack · two"}


CLAIMS = {
    "verdict": {"reproduced": 3, "not tested here": 5},
    "tests": {"asked": 4, "decided": 3, "verdict": {"reproduced": 3, "undecided": 1}},
}


def test_the_run_of_a_dvc_process_tells_headlines_and_verdicts(home, quiet, runs, monkeypatch):
    monkeypatch.setattr(tracking, "dvc_ancestor", psutil.Process)
    with stage_run(quiet, **OPTIONS) as run:
        run.log_findings("attack_l2", findings(), "3.3")
    (home / "claims.json").write_text(json.dumps({"counts": CLAIMS}))
    (home / "index.html").write_text("the page")
    with stage_run(quiet, **{**OPTIONS, "stage": "report", "network": "all"}) as run:
        run.log_report(home / "index.html", home / "claims.json")
    parent, _, report = runs()
    assert parent.info.run_name == "smoke · dvc repro · 3 of 4 tests decided"
    counts = {"tests/asked": 4, "tests/decided": 3, "tests/reproduced": 3, "tests/undecided": 1}
    counts |= {"claims/reproduced": 3, "claims/not tested here": 5}
    assert report.data.metrics == counts
    assert parent.data.metrics == counts | {"attack/toy/attack_l2/rho_df": 0.2}
    assert artifacts(home, parent) == {"index.html"}
    assert artifacts(home, report) == {"index.html", "claims.json"}


def test_a_sweep_holds_its_jobs_and_closes(home, quiet, runs):
    sweep = SweepParent()
    config = OmegaConf.create(
        {
            "tracking": {"system_metrics": False},
            "hydra": {
                "job": {"name": "attack"},
                "overrides": {
                    "task": [
                        "++attack.norm=2,inf",
                        "model=lenet,nin",
                        "output=x",
                        "dataset=mnist5k",
                    ]
                },
            },
        }
    )
    sweep.on_multirun_start(config)
    parent = os.environ[tracking.PARENT]
    for network in ("one", "two"):
        with stage_run(quiet, **{**OPTIONS, "network": network}):
            assert runs()[0].info.status == "RUNNING"
    sweep.on_multirun_end(config)
    sweep._fail()
    assert tracking.PARENT not in os.environ
    first, *jobs = runs()
    assert first.info.run_name == "sweep · attack · attack.norm=2,inf model=lenet,nin"
    assert {run.info.status for run in runs()} == {"FINISHED"}
    assert [job.data.tags["mlflow.parentRunId"] for job in jobs] == [parent, parent]


def test_a_sweep_that_hydra_does_not_end_has_failed(home, runs):
    sweep = SweepParent()
    sweep.on_multirun_start(OmegaConf.create({"tracking": {}}))
    sweep._fail()
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_only_the_first_process_logs(home, quiet, runs, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with stage_run(quiet, **OPTIONS) as run:
        assert type(run) is Run
    SweepParent().on_multirun_start(OmegaConf.create({"tracking": {}}))
    assert tracking.PARENT not in os.environ
    assert runs() == []


DVC = """
import subprocess, sys
code = "from pipeline.processes import dvc_ancestor; p = dvc_ancestor(); print(p and p.pid)"
command = f"'{sys.executable}' -c '{code}'"
subprocess.run(["sh", "-c", command + "; true"], check=True)
"""


CASES = [("dvc", True, True), ("dvc", False, False), ("duo", True, False)]


@pytest.mark.parametrize(("name", "inside", "found"), CASES)
def test_the_dvc_process_above_is_found(tmp_path, root, name, inside, found):
    (tmp_path / name).write_text(DVC)
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        **({"DVC_STAGE": "attack"} if inside else {}),
    }
    command = [sys.executable, str(tmp_path / name), "repro"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        out = started.communicate(timeout=60)[0].strip()
    assert out == (str(started.pid) if found else "None")


# The store


def test_every_way_to_log_exists_in_both_kinds_of_run():
    public = {name for name, way in vars(Run).items() if callable(way) and name[0] != "_"}
    assert public <= vars(LoggedRun).keys()


COLD = """
import os, sys
from pipeline.findings import Findings
from pipeline.runs import LoggedRun
from pipeline.tracking import Settings, SweepParent, stage_run
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

# Switched off, it does nothing.
options = {"stage": "a", "network": "n", "suite": "s", "parameters": {"x": 1}, "tags": {}}
with stage_run(Settings(enabled=False), **options) as run:
    run.log_findings("x", Findings(), "3")
    run.log_dataset(None); run.log_model(None, None, ""); run.log_file(None); run.log_folder(None)
SweepParent().on_multirun_start(OmegaConf.create({"tracking": {"enabled": False}}))
SweepParent().on_multirun_end(None)
assert "mlflow" not in sys.modules
assert os.listdir(os.environ["DVC_ROOT"]) == []

# Four processes start at once, with no database yet; MLflow is imported once for all of them.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow.store.tracking.sqlalchemy_store
del os.environ["MLFLOW_DISABLE_TELEMETRY"]
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with stage_run(Settings(system_metrics=False), **options):
                for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
                    assert os.environ[name] == "true"
            code = 0
        finally:
            os._exit(code)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def test_off_it_does_nothing_and_four_processes_may_start_without_a_database(tmp_path, root):
    taken = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in taken}
    environment.update(DVC_ROOT=str(tmp_path), PYTHONPATH=str(root))
    command, pipes = [sys.executable, "-c", COLD], {"capture_output": True, "text": True}
    done = subprocess.run(command, env=environment, timeout=300, check=False, **pipes)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        counted = connection.execute(
            "select count(*), min(status), max(status) from runs"
        ).fetchone()
        journal = connection.execute("pragma journal_mode").fetchone()
    connection.close()
    assert counted == (4, "FINISHED", "FINISHED")
    assert journal == ("wal",)


def test_artifacts_are_found_after_a_move(home, quiet, tmp_path_factory, monkeypatch):
    with stage_run(quiet, **OPTIONS) as run:
        run.log_findings("attack_l2", findings(), "3.3")
    there = tmp_path_factory.mktemp("moved") / "repository"
    home.rename(there)
    monkeypatch.setenv("DVC_ROOT", str(there))
    store = tracking.Store(quiet)
    (logged,) = store.search("")
    listed = {item.path for item in store.client.list_artifacts(logged.info.run_id, "attack_l2")}
    assert "attack_l2/figure_3_5.png" in listed
    place = store.client.get_experiment(store.experiment).artifact_location
    assert place == database.artifacts(there / "mlflow.db")


def test_a_figure_that_was_drawn_already_is_logged_as_it_is(home, quiet):
    (home / "drawn.png").write_bytes(b"its bytes")
    with stage_run(quiet, **OPTIONS) as run:
        run.log_findings("attack_l2", findings(), "3.3", {"figure_3_5": home / "drawn.png"})
    store = tracking.Store(quiet)
    (logged,) = store.search("")
    place = store.client.download_artifacts(logged.info.run_id, "attack_l2/figure_3_5.png")
    assert Path(place).read_bytes() == b"its bytes"


def test_relocation_leaves_other_addresses_alone(tmp_path):
    file = tmp_path / "db"
    with sqlite3.connect(file) as connection:
        for table, column in database._ADDRESSES:
            connection.execute(f"create table {table} ({column} text)")
            values = [
                "file:///old/mlruns",
                "file:///old/mlruns/1/a",
                "file:///old/mlruns2",
                "s3://b/old",
            ]
            connection.executemany(
                f"insert into {table} values (?)", [(value,) for value in values]
            )
    connection.close()
    database.relocate(file, "file:///old/mlruns", "file:///new/place/mlruns")
    with sqlite3.connect(file) as connection:
        for table, column in database._ADDRESSES:
            rows = [row[0] for row in connection.execute(f"select {column} from {table}")]
            assert rows == [
                "file:///new/place/mlruns",
                "file:///new/place/mlruns/1/a",
                "file:///old/mlruns2",
                "s3://b/old",
            ]
    connection.close()


def test_an_experiment_deleted_in_the_dashboard_comes_back(home, quiet, runs):
    store = tracking.Store(quiet)
    store.client.delete_experiment(store.experiment)
    with stage_run(quiet, **OPTIONS):
        pass
    assert len(runs()) == 1


def test_provenance_names_commit_and_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_STAGE", "attack")
    assert processes.provenance() == {"DVC_STAGE": "attack"}

    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", *identity, *words]
        return subprocess.check_output(command, cwd=tmp_path, text=True).strip()

    git("init", "-q")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text("a: 1")
    git("add", ".")
    git("commit", "-qm", "x")
    (tmp_path / "dvc.lock").write_text(
        ""
    )  # changes during every run, and does not make the code dirty
    found = processes.provenance()
    assert found["git.commit"] == git("rev-parse", "HEAD")
    assert found["git.dirty"] == "False"
    assert found["dvc.lock md5 at start"] == "d41d8cd98f00b204e9800998ecf8427e"
    (tmp_path / "conf" / "base.yaml").write_text("a: 2")
    assert processes.provenance()["git.dirty"] == "True"


# A store that cannot be used


def refused(uri: str) -> str:
    with (
        pytest.raises(InputError) as caught,
        stage_run(Settings(uri=uri, system_metrics=False), **OPTIONS),
    ):
        raise AssertionError("the run began")
    text = str(caught.value)
    assert text.startswith("tracking.uri must be ")
    assert "\n" not in text
    return text


@pytest.fixture
def silent():
    """The port of a program that listens and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql"])
def test_a_server_that_is_not_there_is_refused_at_once(scheme):
    began = time.monotonic()
    text = refused(f"{scheme}://127.0.0.1:9")
    assert "the address of a server that answers (Connection refused)" in text
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("uri", "named", "got"),
    [
        (None, None, "nothing"),
        (None, "sqlite:////tmp/mlflow.db", "'sqlite:////tmp/mlflow.db'"),
        ("mlruns", "http://127.0.0.1:9", "'mlruns'"),
        ("http://", None, "'http://'"),
        (None, "ftp://me:secret@place/", "'ftp://place/'"),
    ],
)
def test_a_server_has_an_address(monkeypatch, uri, named, got):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if named is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    with pytest.raises(InputError) as caught:
        tracking.Store(Settings(server=True, uri=uri))
    wanted = "an address http://HOST:PORT of an MLflow server, here or in MLFLOW_TRACKING_URI"
    assert str(caught.value) == f"tracking.uri must be {wanted}; got {got}"


def test_the_environment_names_the_server_unless_the_settings_do(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for uri, port in ((None, 9), ("http://127.0.0.1:7", 7)):
        with pytest.raises(InputError, match=rf"Connection refused.*127.0.0.1:{port}'"):
            tracking.Store(Settings(server=True, uri=uri))


def test_a_server_that_does_not_answer_is_refused(silent, monkeypatch):
    assert servers.PATIENCE <= 5
    monkeypatch.setattr(servers, "PATIENCE", 0.2)
    assert "a server that answers (timed out)" in refused(f"http://127.0.0.1:{silent}")


def test_a_name_that_takes_long_to_look_up_is_refused_in_time(monkeypatch):
    seconds = 3.0

    def slow(*_, **__):
        time.sleep(seconds)
        raise OSError("no such name")

    monkeypatch.setattr(servers, "PATIENCE", 0.2)
    monkeypatch.setattr(servers.urllib.request, "urlopen", slow)
    began = time.monotonic()
    assert "a server that answers (none did within 0 s)" in refused("http://nowhere.example")
    assert time.monotonic() - began < seconds


def test_a_database_on_a_full_disk_is_an_input_error(tmp_path):
    connection = sqlite3.connect(tmp_path / "small.db")
    connection.execute("pragma max_page_count = 3")
    connection.execute("create table t (text)")
    with pytest.raises(InputError, match="on a disk with free space"), refuse_full_disk(tmp_path):
        connection.executemany("insert into t values (?)", [("x" * 4000,)] * 20)
    connection.close()


class Stranger(BaseHTTPRequestHandler):
    """A web server that knows nothing of MLflow."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_is_not_mlflows_is_refused_and_no_password_is_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            text = refused(f"http://me:secret@127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert "a tracking store that MLflow can use (" in text
    assert "404" in text
    assert text.endswith(f"got 'http://127.0.0.1:{server.server_port}'")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_an_address_of_no_known_kind_is_refused():
    assert "ftp" in refused("ftp://somewhere")


@pytest.mark.parametrize("harm", ["garbage", "page"])
def test_a_damaged_database_is_refused_and_kept(home, harm):
    file = home / "mlflow.db"
    content = bytearray(file.read_bytes())
    if harm == "garbage":
        content = bytearray(b"no database at all, but long enough for a header" * 40)
    else:
        content[4096 * 3 : 4096 * 4] = b"\xff" * 4096
    file.write_bytes(content)
    text = refused(f"sqlite:///{file}")
    assert "a whole database (" in text
    assert "move the damaged file away, and the next run makes a new one" in text
    assert str(file) in text
    assert file.read_bytes() == content


def test_a_database_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    text = refused(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert "a database that can be written (unable to open database file)" in text
    (tmp_path / "file").write_text("")
    text = refused(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
    assert "a folder that can be written (" in text


def test_a_database_that_another_process_may_only_read_is_refused(home, monkeypatch):
    opened = sqlite3.connect

    def readonly(path, **options):
        return opened(f"file:{path}?mode=ro", uri=True, **options)

    monkeypatch.setattr(database.sqlite3, "connect", readonly)
    text = refused(f"sqlite:///{home / 'mlflow.db'}")
    assert "a database that can be written (attempt to write a readonly database)" in text


def test_a_sweep_is_refused_as_a_whole_before_its_first_job():
    config = OmegaConf.create({"tracking": {"uri": "http://127.0.0.1:9"}})
    with pytest.raises(SystemExit) as stopped:
        SweepParent().on_multirun_start(config)
    assert isinstance(stopped.value.code, InputError)
    assert tracking.PARENT not in os.environ


@pytest.mark.parametrize(("values", "status"), [((0, 0), "FINISHED"), ((2, 0), "FAILED")])
def test_a_sweep_with_a_job_that_was_refused_has_failed(home, runs, values, status):
    sweep, config = SweepParent(), OmegaConf.create({"tracking": {}})
    sweep.on_multirun_start(config)
    for value in values:
        job = JobReturn(status=JobStatus.COMPLETED)
        job.return_value = value
        sweep.on_job_end(config, job)
    sweep.on_multirun_end(config)
    assert [run.info.status for run in runs()] == [status]


# The dashboard


def test_the_dashboard_serves_the_runs_on_loopback(home, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append((program, command)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    dashboard.main(["--port", port])
    page = f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning"
    assert capsys.readouterr().out.splitlines() == [page]
    ((program, command),) = started
    assert program == sys.executable
    assert command[1:4] == ["-m", "mlflow", "ui"]
    chosen = dict(zip(command[4::2], command[5::2], strict=True))
    assert chosen["--host"] == "127.0.0.1"
    assert chosen["--port"] == port
    assert chosen["--backend-store-uri"] == f"sqlite:///{home / 'mlflow.db'}"
    assert os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_taken_port_is_an_input_error(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=f"port must be a port that no other program uses.*; got {port}"
        ):
            dashboard.main(["--port", str(port)])
