"""What runs as jobs of Slurm, on two nodes of this machine, gives the bytes of one by one."""

import json
import sqlite3
import subprocess
import sys

import pytest

from tests.services.slurm import ROOT, cluster, until

__all__ = ["cluster"]

pytestmark = pytest.mark.timeout(3600)  # minutes on two free cores, and much more on busy ones

TINY = [
    "suite=smoke",
    "budget=smoke",
    "network=mnist5k_lenet",
    "executor.threads=1",
    "executor.progress=false",
]
SWEPT = [*TINY, "experiments=[attack_closed_forms]", "settings.attack_closed_forms.points=4,5,6,7"]


def python(*words):
    return [sys.executable, "-m", *words]


def runs(database):
    """Name, status, id and parent's id of every run in a database of MLflow."""
    with sqlite3.connect(database) as store:
        return store.execute(
            "select name, status, run_uuid, (select value from tags where tags.run_uuid = "
            "runs.run_uuid and key = 'mlflow.parentRunId') from runs"
        ).fetchall()


def states(database):
    """Name and status of every run; none while MLflow still makes its tables."""
    try:
        return [run[:2] for run in runs(database)]
    except sqlite3.OperationalError:
        return []


def one_parent(database):
    """The only run without a parent, and the runs that nest in it."""
    found = runs(database)
    (parent,) = [run for run in found if run[3] is None]
    assert {run[3] for run in found} == {None, parent[2]}
    return parent, [run for run in found if run[3]]


def test_four_jobs_of_a_sweep_on_two_nodes_are_the_runs_of_one_process(cluster, tmp_path):
    asked = {"partition": "all", "cpus_per_task": 1, "mem_gb": 2, "timeout_min": 10}
    launcher = [f"hydra.launcher.{key}={value}" for key, value in asked.items()]
    jobs, alone = tmp_path / "jobs", tmp_path / "alone"
    for folder, own in (
        (jobs, ["hydra/launcher=slurm", *launcher, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]),
        (alone, ["tracking=none"]),
    ):
        own += [f"hydra.sweep.dir={folder}", f"executor.work={folder}-work"]
        done = cluster.run(python("stages.attack", "-m", *SWEPT, *own))
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    for number in range(4):
        here, there = (folder / str(number) / "metrics.json" for folder in (jobs, alone))
        assert here.read_bytes() == there.read_bytes()
    parent, children = one_parent(tmp_path / "mlflow.db")
    assert parent[0].startswith("sweep · attack · ")
    assert parent[1] == "FINISHED"
    assert [child[1] for child in children] == ["FINISHED"] * 4
    assert all(child[0].startswith("attack · mnist5k_lenet") for child in children)
    said = "".join(path.read_text() for path in jobs.glob(".submitit/*/*_log.err"))
    assert "arning" not in said
    used = cluster.run(["scontrol", "--oneliner", "show", "jobs"]).stdout
    assert " NodeList=n1 " in used
    assert " NodeList=n2 " in used


def test_a_job_of_a_sweep_that_runs_out_of_time_is_queued_again(cluster, tmp_path):
    database = tmp_path / "mlflow.db"
    asked = {"cpus_per_task": 1, "mem_gb": 2, "timeout_min": 30, "name": "short of time"}
    words = [*TINY, "experiments=[attack_linf]", "executor.workers=2", "hydra/launcher=slurm"]
    words += [f"hydra.launcher.{key}={value}" for key, value in asked.items()]
    places = [f"hydra.sweep.dir={tmp_path}/jobs", f"executor.work={tmp_path}/work"]
    words += [*places, f"tracking.uri=sqlite:///{database}"]
    sweep = subprocess.Popen(python("stages.attack", "-m", *words), env=cluster.environment)
    until(lambda: database.exists() and ("attack mnist5k_lenet", "RUNNING") in states(database))
    until(lambda: list((tmp_path / "work").glob("*/*/*.bin")))
    done = cluster.run(["scancel", "--name=short of time", "--signal=USR2"])
    assert done.returncode == 0, done.stderr
    assert sweep.wait(600) == 0
    said = "".join(path.read_text() for path in tmp_path.glob("jobs/.submitit/*/*_log.*"))
    assert "Requeued job" in said
    parent, children = one_parent(database)
    assert parent[0].startswith("sweep · attack")
    assert parent[1] == "FINISHED"
    assert [child[1] for child in children] == ["FINISHED"]
    assert children[0][0].startswith("attack · mnist5k_lenet")
    assert (tmp_path / "jobs" / "0" / "metrics.json").exists()


SLOW = """
import functools, json, os, sys, time
import torch
from pipeline.executor import Executor
import work

executor = Executor(accelerator="cpu", threads=1, workers=2, chunk=2, progress=False, work="done")
images = torch.arange(40.0).reshape(20, 2)
found = executor.scope("e").map(work.slow, images, randomness=True).value
with open("result.json", "w") as file:
    json.dump(found.tolist(), file)
"""

WORK = """
import os, time
from robustness_geometry.randomness import normal

def slow(images, generator=None):
    with open("began", "a") as file:
        file.write(f"{int(images[0, 0])}\\n")
    time.sleep(float(os.environ.get("SECONDS_OF_A_CHUNK", "0")))
    return images + normal(images, generator)
"""


def began(folder):
    file = folder / "began"
    return file.read_text().split() if file.exists() else []


@pytest.mark.parametrize("how", ["requeue", "scancel", "signal"])
def test_a_job_that_is_stopped_goes_on_where_it_was(cluster, tmp_path, how):
    folders = {name: tmp_path / name for name in ("stopped", "whole")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "script.py").write_text(SLOW)
        (folder / "work.py").write_text(WORK)
    stopped, whole = folders.values()
    own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    own |= {name: cluster.environment[name] for name in ("PATH", "SLURM_CONF")}
    export = ",".join(f"{key}={value}" for key, value in own.items())
    options = ["--requeue", f"--chdir={stopped}", f"--export={export},SECONDS_OF_A_CHUNK=1.5"]
    command = [sys.executable, "script.py"]
    job = cluster.submit(command, stopped, *options)
    until(lambda: len(began(stopped)) >= 4)
    if how == "requeue":
        assert cluster.run(["scontrol", "requeue", job]).returncode == 0
    else:
        kill = ["--full", "--signal=KILL"] if how == "signal" else []
        assert cluster.run(["scancel", *kill, job]).returncode == 0
        until(lambda: cluster.state(job) in ("CANCELLED", "FAILED"))
        job = cluster.submit(command, stopped, *options)
    until(lambda: cluster.state(job) == "COMPLETED")
    done = subprocess.run(command, cwd=whole, env={**cluster.environment, **own}, check=False)
    assert done.returncode == 0
    assert json.loads((stopped / "result.json").read_text()) == json.loads(
        (whole / "result.json").read_text()
    )
    assert set(began(stopped)) == set(began(whole))
    assert len(began(stopped)) - len(began(whole)) <= 2  # one chunk of each worker


def test_a_stage_on_two_nodes_gives_the_numbers_of_one(cluster, tmp_path):
    own = [*TINY, "experiments=[attack_linf]", "tracking=none", "executor.workers=null"]
    stage = python("stages.attack", *own)
    for name, before, nodes in (
        ("two", ["srun", "--quiet", "--nodes=2", "--ntasks-per-node=1"], ["executor=multi_node"]),
        ("one", [], []),
    ):
        folder = tmp_path / name
        places = [f"output={folder}", f"hydra.run.dir={folder}-run", f"executor.work={folder}-work"]
        done = cluster.run([*before, *stage, *nodes, *places])
        assert done.returncode == 0, done.stderr
        assert "arning" not in done.stderr
    two, one = (tmp_path / name for name in ("two", "one"))
    assert (two / "metrics.json").read_bytes() == (one / "metrics.json").read_bytes()
    chunks = [sorted(p.name for p in tmp_path.glob(f"{n}-work/*/*/*.bin")) for n in ("two", "one")]
    assert chunks[0] == chunks[1]


MACHINE = """
from pipeline.devices import Machine
options = dict(threads=1, tf32=False, deterministic=True)
"""


def test_fabric_does_not_look_at_slurm_unless_there_are_several_nodes(cluster):
    one = MACHINE + "print(Machine('cpu', 1, '64-true', **options).ranks)"
    for before in ([], ["srun", "--quiet"], ["srun", "--quiet", "--nodes=2"]):
        done = cluster.run([*before, sys.executable, "-W", "error", "-c", one])
        assert (done.returncode, done.stderr) == (0, "")
        assert set(done.stdout.split()) == {"1"}


@pytest.mark.parametrize("before", [[], ["srun", "--ntasks=1"]])
def test_several_nodes_are_refused_outside_a_step_that_has_them(cluster, before):
    two = MACHINE + "Machine('cpu', 1, '32-true', nodes=2, **options)"
    done = cluster.run([*before, sys.executable, "-c", two])
    assert done.returncode != 0
    assert (
        "executor.nodes must be 1, or the number of nodes of a step: srun --nodes=2" in done.stderr
    )


def test_the_graph_of_a_suite_runs_as_jobs_to_its_report(cluster, tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, clone], check=True)
    here = python("pipeline.params", "suite=smoke")
    assert cluster.run(here, cwd=clone).returncode == 0
    submit = python("pipeline.cluster", "--time=30", "--memory=2", "--cpus=1", "--wait")
    job = subprocess.Popen(submit, cwd=clone, env=cluster.environment, stdout=subprocess.PIPE)
    together = set()

    def ended():
        running = [line.split()[0] for line in cluster.queued() if line.endswith(" RUNNING")]
        together.add(frozenset(name.partition("@")[2] for name in running))
        return job.poll() is not None

    until(ended, 3000)
    logs = "".join(p.read_text() for p in sorted(clone.glob("outputs/slurm/*.log")))
    assert job.returncode == 0, logs[-3000:]
    assert frozenset(["mnist5k_lenet", "mnist5k_fc500_150_10"]) in together
    assert (clone / "reports" / "smoke" / "index.html").exists()
    status = cluster.run(python("dvc", "status"), cwd=clone)
    assert "up to date" in status.stdout
    parent, children = one_parent(clone / "mlflow.db")
    assert parent[:2] == ("dvc repro on Slurm", "FINISHED")
    assert {child[1] for child in children} == {"FINISHED"}
    assert len(children) == len(list((clone / "results" / "smoke").glob("*/*/metrics.json"))) + 1
    again = cluster.run(submit, cwd=clone)
    assert again.stdout == "every stage is up to date: there is nothing to submit\n"


def test_options_that_slurm_refuses_are_one_line_and_leave_no_job(cluster):
    done = cluster.run(python("pipeline.cluster", "--partition=nowhere", "--force"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("repro-slurm: options of sbatch must be such that Slurm takes them (")
    assert "nowhere" in line
    assert cluster.queued() == []
