"""The dashboard of a fresh clone, as a browser shows it."""

import subprocess
import sys
import time

import pytest

from tests.services.servers import (
    answers,
    checkout,
    environment,
    free_ports,
    program,
    root,
    running,
    wait,
)

pytestmark = pytest.mark.timeout(1800)  # servers start slowly where much else runs

ATTACK = "results/embedded/attack/mnist5k_lenet/metrics.json"
KEPT = (ATTACK, "results/embedded/claims.json")


@pytest.fixture(scope="module")
def browser():
    return program("chromium", "Debian: chromium")


@pytest.fixture
def clone(tmp_path):
    missing = [name for name in KEPT if not (root() / name).is_file()]
    if missing:
        pytest.skip(f"{missing[0]} is not there")
    return checkout(tmp_path / "clone", KEPT)


def page(browser, address, folder):
    """The text of a page, after its scripts have run."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += [f"--user-data-dir={folder}", "--timeout=60000", "--virtual-time-budget=20000"]
    command = [browser, *options, "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    return done.stdout


def test_a_fresh_clone_shows_the_committed_results(browser, clone, tmp_path):
    (port,) = free_ports(1)
    log = tmp_path / "log"
    log.mkdir()
    command = [sys.executable, "-m", "pipeline.dashboard", "--port", str(port)]
    place = environment(PYTHONPATH=str(clone), DVC_ROOT=str(clone))
    with running(command, log, place) as process:
        wait(lambda: answers(port) or process.poll() is not None, "the dashboard listens", 900)
        said = (log / "output").read_text()
        address = f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning"
        lines = ["dashboard: 2 committed results are new in it", address]
        ours = [line for line in said.splitlines() if line.startswith(("dashboard:", "http"))]
        assert sorted(ours) == sorted(lines), said  # besides, MLflow speaks of its safety
        wanted = ["embedded · attack · mnist5k_lenet · committed", "embedded · report · committed"]
        end = time.monotonic() + 200
        while not all(name in (shown := page(browser, address, tmp_path / "b")) for name in wanted):
            assert time.monotonic() < end, shown[-3000:]
        again = subprocess.run(
            command, cwd=clone, env=place, capture_output=True, text=True, check=False
        )
        assert again.returncode == 2
        assert again.stdout == ""
        (line,) = again.stderr.splitlines()
        assert line.startswith("dashboard: port must be a port that no other program uses (try ")
