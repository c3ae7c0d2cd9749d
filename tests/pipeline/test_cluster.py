"""Stages as jobs of Slurm, as far as no cluster is needed."""

import json
import os
import signal
import time

import pytest
import torch
from dvc.repo import Repo

from pipeline import cluster, devices, tracking
from pipeline.devices import Machine
from pipeline.executor import Executor
from robustness_geometry.checks import InputError


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of DVC with two chains of stages and an end that needs both."""
    stages = {
        "train": {"foreach": ["a", "b"], "do": {"cmd": "cp in-${item} t-${item}"}},
        "attack": {"foreach": ["a", "b"], "do": {"cmd": "cp t-${item} r-${item}"}},
        "report": {"cmd": "cat r-a r-b > page", "deps": ["r-a", "r-b"], "outs": ["page"]},
    }
    stages["train"]["do"] |= {"deps": ["in-${item}"], "outs": ["t-${item}"]}
    stages["attack"]["do"] |= {"deps": ["t-${item}"], "outs": ["r-${item}"]}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    for name in "ab":
        (tmp_path / f"in-{name}").write_text(name)
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True)
    return tmp_path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what DVC itself calls
def test_what_changed_is_planned_with_all_that_rests_on_it(repository):
    everything = {
        "train@a": [],
        "train@b": [],
        "attack@a": ["train@a"],
        "attack@b": ["train@b"],
        "report": ["attack@a", "attack@b"],
    }
    assert cluster.planned(repository) == everything
    with Repo(str(repository)) as repo:
        repo.reproduce()
    assert cluster.planned(repository) == {}
    assert cluster.planned(repository, force=True) == everything
    (repository / "in-b").write_text("other")
    found = cluster.planned(repository)
    assert found == {"train@b": [], "attack@b": ["train@b"], "report": ["attack@b"]}
    assert list(found) == ["train@b", "attack@b", "report"]


SBATCH = """#!/bin/sh
count=$(($(cat count 2>/dev/null || echo 100) + 1))
echo $count > count
echo "$@" >> words
cat >> scripts
test $count -le ${LAST:-999} || { echo "sbatch: error: no such partition" >&2; exit 1; }
echo "$count;box"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """An sbatch and an scancel that note what they are given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\necho "$@" > cancelled\n')):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PLAN = {"train@a": [], "train@b": [], "report": ["train@a", "train@b"]}


def test_a_job_waits_for_those_that_it_needs(slurm):
    environment = {"PIPELINE_SESSION": "host:1-2"}
    jobs = cluster.submit(PLAN, slurm, ["--mem=3G"], environment=environment, wait=True)
    assert jobs == {"train@a": "101", "train@b": "102", "report": "103"}
    lines = (slurm / "words").read_text().splitlines()
    assert "--job-name=train@a" in lines[0]
    assert "--dependency=singleton --kill-on-invalid-dep=yes --mem=3G" in lines[0]
    assert "--dependency=afterok:101:102,singleton" in lines[2]
    assert [line.endswith("--wait") for line in lines] == [False, False, True]
    scripts = (slurm / "scripts").read_text()
    assert scripts.count("export PIPELINE_SESSION=host:1-2\n") == 3
    assert "-m dvc --wait-for-lock repro --single-item report\n" in scripts


def test_a_job_that_slurm_refuses_cancels_those_before_it(slurm, monkeypatch):
    monkeypatch.setenv("LAST", "102")
    with pytest.raises(InputError, match=r"\(no such partition\); got '--mem=3G'"):
        cluster.submit(PLAN, slurm, ["--mem=3G"], environment={})
    assert (slurm / "cancelled").read_text() == "101 102\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cpus=0"], "--cpus must be a whole number >= 1; got '0'"),
        (["--gpus=two"], "--gpus must be a whole number >= 0; got 'two'"),
        (["--memory=8G"], "--memory must be a whole number >= 1; got '8G'"),
        ([], "sbatch must be on the PATH, as on the login node of a cluster with Slurm"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_any_work(monkeypatch, words, message):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError) as caught:
        cluster.main(words)
    assert str(caught.value).startswith(message)


def test_a_job_is_asked_for_what_the_launcher_of_sweeps_asks_for():
    given = cluster._parser().parse_args(["--gpus=1", "--time=1-0"])
    words = cluster._requested(given)
    assert words == ["--time=1-0", "--mem=8G", "--cpus-per-task=4", "--gpus-per-node=1"]
    given = cluster._parser().parse_args(["--gpus=0", "--partition=long"])
    assert cluster._requested(given)[0] == "--partition=long"
    assert not [word for word in cluster._requested(given) if "gpus" in word]


def logged(uri, **kept):
    settings = tracking.Settings(uri=uri, system_metrics=False)
    described = {"stage": "attack", "network": "a", "suite": "smoke", "tags": {}}
    return tracking.stage_run(settings, **described, parameters={"seeds": [0]}, **kept)


def test_jobs_nest_in_the_run_of_their_graph_and_a_requeued_one_goes_on(tmp_path, monkeypatch):
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    found = tracking.begin_session(tracking.Settings(uri=uri), "graph")
    for name, value in {**found, "DVC_STAGE": "attack@a", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tracking, "dvc_ancestor", lambda: tracking.processes.psutil.Process())
    with pytest.raises(SystemExit), logged(uri):
        raise SystemExit(143)
    client = mlflow.MlflowClient(uri)

    def children():
        runs = client.search_runs(["1"])
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        return parent.info.status, [run.info.status for run in runs if run is not parent]

    assert children() == ("FAILED", ["KILLED"])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with logged(uri):
        pass
    assert children() == ("FINISHED", ["FINISHED"])
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with logged(uri):
        pass
    assert children() == ("FINISHED", ["FINISHED"] * 2)


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({}, 6),
        ({"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_CPUS_ON_NODE": "2"}, 2),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "2"}, 4),
        ({"SLURM_CPUS_PER_TASK": "64"}, 6),
    ],
)
def test_a_job_makes_no_more_processes_than_it_was_given_cores(monkeypatch, variables, cores):
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: range(6), raising=False)
    assert devices._cores() == cores


SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize("inside", [False, True])
def test_fabric_needs_no_slurm_where_its_commands_are(monkeypatch, slurm, inside):
    (slurm / "bin" / "srun").symlink_to("/bin/true")
    for name, value in (SLURM if inside else {}).items():
        monkeypatch.setenv(name, value)
    options = {"threads": 1, "tf32": False, "deterministic": False}
    assert Machine("cpu", 1, "64-true", **options).ranks == 1  # a warning would be an error


@pytest.mark.parametrize(("nodes", "tasks"), [("1", "1"), ("2", "4"), ("3", "2"), ("", "")])
def test_several_nodes_need_a_step_with_a_task_for_each_device(monkeypatch, nodes, tasks):
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", nodes)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    with pytest.raises(InputError, match=r"executor\.nodes must be 1, or .*--nodes=2 .*; got 2"):
        devices.launch("cpu", 1, "32-true", 2)


def told(images):
    time.sleep(0.05)  # long enough for both processes to get a chunk
    if os.getpid() != int(os.environ["OWNER"]):
        os.kill(os.getpid(), signal.SIGUSR2)
    return torch.full((len(images),), os.getpid(), dtype=torch.float64)


def test_only_the_first_process_heeds_that_its_time_is_nearly_over(tmp_path, monkeypatch):
    monkeypatch.setenv("OWNER", str(os.getpid()))
    heard = tmp_path / "heard"
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.touch())
    try:
        options = {"accelerator": "cpu", "threads": 1, "chunk": 1, "progress": False}
        executor = Executor(**options, workers=2, work=tmp_path / "work")
        found = executor.map(told, torch.zeros(6, 1)).value
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert len(found.unique()) == 2
    assert not heard.exists()
