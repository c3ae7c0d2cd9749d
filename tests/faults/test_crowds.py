"""Several runs at once, too little memory, and clocks that jump."""

import os
import resource
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from conftest import REPRO, TRAINED, Disturbed, forget, one_line, repro, results, stage


def test_two_repros_at_once_leave_the_results_of_one(repository, tried):
    place, expected, _ = repository
    forget(place)
    pair = [
        subprocess.Popen(
            REPRO, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=280)[0] for process in pair]
    assert not [text for text in said if "Traceback" in text], said
    codes = sorted(process.returncode for process in pair)
    assert codes[0] == 0 or repro(place).code == 0
    assert repro(place).code == 0
    assert results(place / TRAINED) == expected
    tried("two dvc repro at once", f"exit codes {codes}, results identical")


def test_sixteen_jobs_at_once_on_a_cold_database(tmp_path, tried):
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    options = (uri, "tracking.system_metrics=false", "experiments=[attack_closed_forms]")
    options += ("executor.workers=1", "settings.attack_closed_forms.points=4")
    jobs = [Disturbed(tmp_path / str(job), "attack", *options) for job in range(16)]
    ended = [job.end() for job in jobs]
    assert [each.errors for each in ended if each.code or "Traceback" in each.errors] == []
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        rows = database.execute("select status from runs").fetchall()
    assert rows == [("FINISHED",)] * 16
    one, *others = [results(tmp_path / str(job) / "results") for job in range(16)]
    assert one
    assert all(other == one for other in others)
    tried("16 jobs at once on a cold database", "16 runs FINISHED, results identical")


@pytest.mark.parametrize("more", [16, 64, 256])
@pytest.mark.parametrize("name", ["train", "attack"])
def test_too_little_memory_is_one_line_and_costs_nothing(tmp_path, identical, tried, name, more):
    def limit():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used = pages * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + more * 2**20, resource.RLIM_INFINITY))

    ended = stage(tmp_path, name, before=limit)
    assert "Traceback" not in ended.errors, ended.errors
    how = "it sufficed" if ended.code == 0 else f"one line: {one_line(ended, 'memory')}"
    identical(tmp_path, name)
    tried(f"{more} MiB for {name}", how)


@pytest.mark.parametrize("when", [0, 2**33])
@pytest.mark.parametrize("name", ["train", "attack"])
def test_times_of_files_decide_nothing(tmp_path, undisturbed, identical, tried, name, when):
    """As after a clock that jumped: everything is as old as 1970, or is from the future."""
    seconds = undisturbed(name)[1]
    run = Disturbed(tmp_path, name)
    time.sleep(seconds / 2)
    run.kill(group=True)
    run.end()
    for path in tmp_path.rglob("*"):
        os.utime(path, (when, when))
    identical(tmp_path, name)
    identical(tmp_path, name)
    tried(f"files of {name} with times of {1970 if not when else 2242}", "results identical")
