"""Sweeps through the real command line: one run that fails leaves the others alone."""

import os
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pipeline.executor import Executor
from stages.runner import main
from stages.sweeps import Sweep

SMALL = [
    "-m",
    "suite=smoke",
    "budget=smoke",
    "network=mnist5k_lenet",
    "experiments=[attack_closed_forms]",
    "executor.threads=1",
    "executor.workers=1",
    "executor.progress=false",
]
POINTS = "settings.attack_closed_forms.points"


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Run a sweep in this process; returns exit code, the lines of stderr and its folder."""

    def run(*arguments):
        folder = tmp_path / "sweep"
        own = [f"executor.work={tmp_path / 'work'}", f"hydra.sweep.dir={folder}"]
        monkeypatch.setattr(sys, "argv", ["stages", *SMALL, *own, *arguments])
        GlobalHydra.instance().clear()
        try:
            main("attack")
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().err.splitlines(), folder

    return run


def finished(folder):
    return sorted(path.parent.name for path in folder.glob("*/metrics.json"))


def test_a_refused_run_leaves_the_others_and_is_named_at_the_end(sweep):
    code, lines, folder = sweep("tracking=none", f"{POINTS}=4,0,5,-1")
    assert code == 2
    assert finished(folder) == ["0", "2"]
    reason = f"{POINTS} must be a whole number >= 1; got"
    assert lines == [
        f"attack: {reason} 0",
        f"attack: {reason} -1",
        "attack: 2 of 4 runs failed:",
        f"  {POINTS}=0: {reason} 0",
        f"  {POINTS}=-1: {reason} -1",
    ]


def test_a_run_that_breaks_shows_its_trace_and_makes_the_exit_code_1(sweep, monkeypatch):
    scope = Executor.scope

    def breaks(self, *arguments, **options):
        made = scope(self, *arguments, **options)
        broken.append(made)
        if len(broken) == 1:
            raise ZeroDivisionError("of a network")
        return made

    broken = []
    monkeypatch.setattr(Executor, "scope", breaks)
    code, lines, folder = sweep("tracking=none", f"{POINTS}=4,0,5")
    assert code == 1
    assert finished(folder) == ["2"]
    assert lines[0].startswith("Traceback")
    assert lines[-3:] == [
        "attack: 2 of 3 runs failed:",
        f"  {POINTS}=4: ZeroDivisionError: of a network",
        f"  {POINTS}=0: {POINTS} must be a whole number >= 1; got 0",
    ]


def test_the_overrides_that_runs_share_are_not_repeated(sweep):
    code, lines, _ = sweep("tracking=none", f"{POINTS}=0,4", "seeds=[0],[1]")
    assert code == 2
    assert [line.partition(": ")[0] for line in lines[-2:]] == [
        f"  {POINTS}=0 seeds=[0]",
        f"  {POINTS}=0 seeds=[1]",
    ]


def test_an_option_that_is_not_there_is_refused_before_the_first_run(sweep):
    code, lines, folder = sweep("tracking=none", "attack=deepfool,fgms")
    assert code == 2
    assert len(lines) == 1
    assert "attack cannot be 'fgms'; did you mean fgsm?" in lines[0]
    assert finished(folder) == []


def test_a_store_that_is_not_there_refuses_the_whole_sweep_in_one_line(sweep):
    code, lines, folder = sweep("tracking.uri=http://127.0.0.1:9", f"{POINTS}=4,5,6")
    assert code == 2
    assert len(lines) == 1
    assert "tracking.uri must be the address of a server that answers" in lines[0]
    assert finished(folder) == []


@pytest.mark.parametrize("name", ["multirun.yaml", "0/.hydra/hydra.yaml"])
def test_a_folder_with_a_sweep_of_another_program_is_refused(sweep, tmp_path, name):
    path = tmp_path / "sweep" / name
    path.parent.mkdir(parents=True)
    path.write_text("theirs")
    code, lines, folder = sweep("tracking=none", f"{POINTS}=4,5")
    assert (code, len(lines)) == (2, 1)
    assert f"hydra.sweep.dir must be a folder without a {name} of another program" in lines[0]
    assert path.read_text() == "theirs"
    assert finished(folder) == []


def test_a_sweep_may_run_again_in_its_folder(sweep):
    for _ in range(2):
        assert sweep("tracking=none", f"{POINTS}=4,5")[:2] == (0, [])


def test_a_sweep_on_slurm_is_refused_in_one_line_where_it_cannot_run(sweep, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, lines, folder = sweep("tracking=none", "hydra/launcher=slurm", f"{POINTS}=4,5")
    assert (code, len(lines)) == (2, 1)
    launcher = "hydra/launcher must be another one where Slurm's sbatch is not there; got 'slurm'"
    extra = "package hydra-submitit-launcher must be installed: it is in the extra slurm; got"
    assert launcher in lines[0] or extra in lines[0]
    assert finished(folder) == []


@pytest.mark.parametrize("there", [{"process": os.getpid() + 1}, {"host": "another"}])
def test_in_another_process_of_a_launcher_a_failure_is_an_exception(monkeypatch, capsys, there):
    run = OmegaConf.create({"overrides": {"task": ["++seeds=0"]}})
    monkeypatch.setattr("stages.sweeps.HydraConfig.get", lambda: run)
    with pytest.raises(RuntimeError, match="seeds=0: no list"):
        Sweep("attack", **there).end("no list", 2, None)
    assert capsys.readouterr().err == "attack: no list\n"
