import json
import subprocess

import pytest

from pipeline.committed import import_committed
from pipeline.tracking import Settings, Store, stage_run

METRICS = {
    "network": "toy",
    "dataset": "digits",
    "seeds": [0, 1],
    "experiments": {
        "attack_l2": {
            "section": "3.3",
            "numbers": {"rho / rho": {"value": 0.5, "n": 3}, "none": {"value": None, "n": 0}},
            "curves": {"loss": [2.0, None, 1.0]},
            "notes": [],
        }
    },
}
TESTS = {"asked": 4, "decided": 3, "verdict": {"reproduced": 3, "undecided": 1}}
CLAIMS = {"counts": {"verdict": {"reproduced": 3, "undecided": 5}, "tests": TESTS}}
ATTACK, REPORT = "small · attack · toy · committed", "small · report · committed"
TOLD = f"{REPORT} · 3 of 4 tests decided"


def git(place, *words):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *identity, *words], cwd=place, check=True, capture_output=True)


@pytest.fixture
def results(home):
    """A repository with a committed result and verdicts; returns the result's folder."""
    folder = home / "results" / "small" / "attack" / "toy"
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "a.csv").write_text("x\n1\n")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (home / "results" / "small" / "claims.json").write_text(json.dumps(CLAIMS))
    git(home, "init", "-q")
    git(home, "add", "results")
    git(home, "commit", "-qm", "x")
    return folder


@pytest.fixture
def imported(home):
    return lambda: import_committed(Store(Settings()))


def test_committed_results_become_runs_with_all_that_is_committed(home, results, imported, runs):
    assert imported() == [ATTACK, TOLD]
    attack, report = runs()  # in this order of time, so that the table shows the report first
    assert attack.info.run_name == ATTACK
    assert {run.info.status for run in runs()} == {"FINISHED"}
    tags = {"imported": "committed results", "suite": "small", "stage": "attack", "network": "toy"}
    assert tags.items() <= attack.data.tags.items()
    assert attack.data.params == {"dataset": "digits", "seeds": "[0, 1]"}
    numbers = attack.data.metrics
    assert numbers["attack_l2/rho over rho"] == 0.5
    assert numbers["attack_l2/loss"] == 1.0
    assert numbers["attack_l2/none"] != numbers["attack_l2/none"]
    folder = home / "mlruns" / attack.info.run_id / "artifacts"
    assert (folder / "metrics.json").read_bytes() == (results / "metrics.json").read_bytes()
    assert (folder / "tables" / "a.csv").exists()
    assert report.data.metrics["tests/decided"] == 3
    assert report.data.metrics["claims/undecided"] == 5


def test_nothing_is_imported_twice_not_even_what_was_deleted(home, results, imported, runs):
    imported()
    before = {run.info.run_id: run.to_dictionary() for run in runs()}
    assert imported() == []
    Store(Settings()).client.delete_run(runs()[0].info.run_id)
    assert imported() == []
    (results / "metrics.json").write_text(json.dumps({**METRICS, "dataset": "others"}))
    assert imported() == []  # not committed
    git(home, "commit", "-qam", "y")
    assert imported() == [ATTACK]
    after = {run.info.run_id: run.to_dictionary() for run in runs()}
    kept = before.keys() & after.keys()
    assert len(kept) == 1
    assert all(after[run] == before[run] for run in kept)


def test_what_a_run_here_has_logged_is_not_imported(home, results, imported, runs):
    options = {"stage": "attack", "network": "toy", "suite": "small", "parameters": {}, "tags": {}}
    with stage_run(Settings(system_metrics=False), **options) as run:
        run.log_file(results / "metrics.json")
    assert imported() == [TOLD]


@pytest.mark.parametrize("text", ["{", "[]", '{"experiments": {"a": {}}}'])
def test_a_damaged_result_is_named_and_leaves_no_run(home, results, imported, runs, capsys, text):
    (results / "metrics.json").write_text(text)
    git(home, "commit", "-qam", "damage")
    assert imported() == [TOLD]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dashboard: {results / 'metrics.json'} was not imported: ")
    assert len(runs()) == 1


def test_without_git_every_result_is_imported_and_old_verdicts_without_tests_too(
    home, results, imported
):
    (home / ".git").rename(home.parent / f"{home.name}.git")
    old = {"counts": {"verdict": {"reproduced": 3}}}
    (home / "results" / "small" / "claims.json").write_text(json.dumps(old))
    assert imported() == [ATTACK, REPORT]
