"""Runs of a team: an MLflow server on PostgreSQL, whose artifacts go to S3."""

import importlib.util
import subprocess
import sys
import time

import pytest

from tests.services.servers import KEYS, environment, free_ports, mlflow, postgresql, root, s3

pytestmark = pytest.mark.timeout(1800)  # servers start slowly where much else runs

WRITERS, NUMBERS, STEPS = 16, 40, 60

needs_joblib = pytest.mark.skipif(
    importlib.util.find_spec("joblib") is None
    or importlib.util.find_spec("hydra_plugins") is None
    or importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="hydra-joblib-launcher is not installed (PyPI)",
)
SMALL = ["experiments=[attack_closed_forms]", "budget=smoke", "model=lenet", "dataset=mnist5k"]
SMALL += ["dataset.train_limit=100", "dataset.test_limit=20", "training.epochs=1", "seeds=[0]"]
SMALL += ["executor.workers=1", "executor.progress=false", "tracking.log_models=false"]


@pytest.fixture(scope="module")
def places():
    with (
        s3(["runs"]) as endpoint,
        postgresql("runs") as database,
        mlflow(database, "s3://runs/artifacts", endpoint) as server,
    ):
        yield {"server": server, "database": database, "endpoint": endpoint}


def rows(places, query):
    import psycopg

    with psycopg.connect(places["database"]) as connection:
        return connection.execute(query).fetchall()


def stored(places):
    """The keys of the bucket's objects."""
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    region = KEYS["AWS_REGION"]
    s3 = boto3.client("s3", endpoint_url=places["endpoint"], region_name=region, **keys)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="runs")
    return [each["Key"] for page in pages for each in page.get("Contents", [])]


def attack(folder, *words, multirun=False, **more):
    """Run the stage's command line; returns what it said and how many seconds it took."""
    where = [f"hydra.run.dir={folder / 'run'}", f"hydra.sweep.dir={folder / 'sweep'}"]
    command = [sys.executable, "-m", "stages.attack", *(["-m"] if multirun else [])]
    began = time.monotonic()
    done = subprocess.run(
        [*command, *SMALL, *words, *where, f"executor.work={folder / 'work'}"],
        cwd=root(),
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    return done, time.monotonic() - began


WRITE = """
import os, sys
from pipeline.findings import Findings
from pipeline.statistics import Estimate
from pipeline.tracking import Settings, stage_run
import mlflow.tracking.client

writers, count, steps = map(int, sys.argv[1:])
numbers = {f"n{i}": Estimate(float(i), 0.0, 1.0, n=1) for i in range(count)}
findings = Findings(numbers=numbers, curves={"loss": [float(i) for i in range(steps)]})
settings = Settings(server=True, system_metrics=False)
children = []
for number in range(writers):
    child = os.fork()
    if child == 0:
        code, name = 1, f"writer{number}"
        try:
            options = {"network": name, "suite": "s", "parameters": {"x": number}, "tags": {}}
            with stage_run(settings, stage="attack", **options) as run:
                run.log_findings("e", findings, "3")
            code = 0
        finally:
            os._exit(code)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def test_sixteen_processes_write_at_once_and_no_row_is_lost(places):
    """None finds the collection of runs there, and all try to make it."""
    sizes = map(str, (WRITERS, NUMBERS, STEPS))
    done = subprocess.run(
        [sys.executable, "-c", WRITE, *sizes],
        cwd=root(),
        env=environment(MLFLOW_TRACKING_URI=places["server"]),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows(places, "select count(*) from experiments where name <> 'Default'") == [(1,)]
    assert rows(places, "select status, count(*) from runs group by status") == [
        ("FINISHED", WRITERS)
    ]
    counted = rows(places, "select run_uuid, count(*) from metrics group by run_uuid")
    assert [number for _, number in counted] == [NUMBERS + STEPS] * WRITERS
    values = rows(places, "select value, step from metrics where key = 'e/loss' order by step")
    assert values == [(float(i), i) for i in range(STEPS) for _ in range(WRITERS)]
    names = rows(places, "select name from runs order by name")
    assert names == sorted((f"attack · writer{number}",) for number in range(WRITERS))
    assert sum(key.endswith("/artifacts/e/numbers.csv") for key in stored(places)) == WRITERS


def test_a_stage_logs_to_the_server_that_the_environment_names(places, tmp_path):
    uri = places["server"]
    done, _ = attack(
        tmp_path,
        "tracking=server",
        "settings.attack_closed_forms.points=7",
        MLFLOW_TRACKING_URI=uri,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = "name like 'attack · mnist5k_lenet · experiments=[attack_closed_forms] %'"
    ((run, status),) = rows(places, f"select run_uuid, status from runs where {names}")
    assert status == "FINISHED"
    found = rows(places, f"select count(*) from metrics where run_uuid = '{run}'")
    assert found > [(5,)]
    assert any(f"/{run}/artifacts/metrics.json" in key for key in stored(places))
    assert not (tmp_path / "mlflow.db").exists()


@needs_joblib
def test_the_jobs_of_a_joblib_sweep_nest_on_the_server(places, tmp_path):
    words = [
        "tracking=server",
        f"tracking.uri={places['server']}",
        "settings.attack_closed_forms.points=8,9",
    ]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done, _ = attack(tmp_path, *words, *launcher, multirun=True)
    assert done.returncode == 0, done.stderr[-3000:]
    query = "select run_uuid, status from runs where name like 'sweep · attack · %'"
    ((parent, status),) = rows(places, query)
    assert status == "FINISHED"
    jobs = rows(
        places,
        "select r.status from runs r join tags t using (run_uuid) "
        f"where t.key = 'mlflow.parentRunId' and t.value = '{parent}'",
    )
    assert jobs == [("FINISHED",)] * 2


@pytest.fixture(scope="module")
def start():
    """Seconds that a stage takes to start on this machine now."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import stages.runner"], cwd=root(), check=True)
    return time.monotonic() - began


LAUNCHERS = [
    pytest.param(False, [], id="run"),
    pytest.param(True, ["settings.attack_closed_forms.points=8,9"], id="sweep"),
    pytest.param(
        True,
        [
            "settings.attack_closed_forms.points=8,9",
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2",
        ],
        id="joblib",
        marks=needs_joblib,
    ),
]


@pytest.mark.parametrize(("multirun", "words"), LAUNCHERS)
def test_without_the_server_a_run_and_a_sweep_are_refused_at_once(tmp_path, start, multirun, words):
    uri = f"http://127.0.0.1:{free_ports(1)[0]}"
    done, seconds = attack(
        tmp_path, "tracking=server", *words, multirun=multirun, MLFLOW_TRACKING_URI=uri
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "attack: tracking.uri must be the address of a server that answers "
        f"(Connection refused); got '{uri}'"
    ]
    assert seconds - start < 10
    assert not list(tmp_path.rglob("metrics.json"))
