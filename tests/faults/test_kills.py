"""kill -9 at seeded moments: of stages, and of dvc itself."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import EXPERIMENTS, REPRO, TRAINED, Disturbed, forget, repro, results

KILLS = range(4)


@pytest.mark.parametrize("number", KILLS)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_stage_that_was_killed_is_taken_up(tmp_path, name, number, undisturbed, identical, tried):
    chance = random.Random(f"{name} {number}")
    share, group = chance.uniform(0.1, 0.95), chance.random() < 0.5
    _, seconds = undisturbed(name)
    run = Disturbed(tmp_path, name)
    time.sleep(share * seconds)
    run.kill(group=group)
    killed = run.end().code == -signal.SIGKILL
    chunks = len(list((tmp_path / "work").rglob("*.bin")))
    identical(tmp_path, name)
    what = f"kill -9 of {name}{' and its workers' if group else ''} at {share:.0%}"
    how = "taken up, results identical" if killed else "it had ended, results identical"
    tried(what, f"{how} ({chunks} chunks were finished)")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("number", KILLS)
def test_a_dvc_that_was_killed_is_taken_up(repository, number, tried):
    place, expected, seconds = repository
    forget(place)
    share = random.Random(f"dvc {number}").uniform(0.3, 0.95)
    process = subprocess.Popen(
        REPRO, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(share * seconds)
    os.kill(process.pid, signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    ended = repro(place)
    assert ended.code == 0, ended.errors
    assert "Traceback" not in ended.errors
    assert results(place / TRAINED) == expected
    how = "run again" if killed else "it had ended"
    tried(f"kill -9 of dvc at {share:.0%}", f"{how}, results identical")
