"""Results of a team in S3: pushed from one clone, pulled in another, nothing left to run there."""

import subprocess
import sys
import time

import pytest
import yaml

from tests.services.servers import checkout, commit, environment, free_ports, git, s3

pytestmark = pytest.mark.timeout(1800)  # servers start slowly where much else runs

OUTPUTS = ("metrics.json", "timings.json", "tables", "figures", "tensors")


@pytest.fixture(scope="module")
def endpoint():
    with s3(["team"]) as address:
        yield address


def run(place, *words, **more):
    command = [sys.executable, "-m", *words]
    done = subprocess.run(
        command,
        cwd=place,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def remote(place, endpoint, url="s3://team/results"):
    options = ["--endpoint", endpoint, "--region", "us-east-1"]
    return run(place, "pipeline.remote", url, *options)


def contents(place, name):
    folder = place / name
    files = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    return {file.relative_to(place): file.read_bytes() for file in files if file.is_file()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A repository with results: the training of one network, and the report of it."""
    place = checkout(tmp_path_factory.mktemp("first") / "repository")
    graph = yaml.safe_load((place / "dvc.yaml").read_text())
    train, report = graph["stages"]["train"], graph["stages"]["report"]
    train["foreach"] = {"mnist5k_lenet": 0}
    others = [dep for dep in report["deps"] if dep.startswith("results/") and "/train" not in dep]
    report["deps"] = [dep for dep in report["deps"] if dep not in others]
    (place / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": train, "report": report}}))
    run(place, "pipeline.params", "suite=smoke", "tracking=none", "executor.workers=1")
    assert run(place, "dvc", "repro").count("Running stage") == 2
    commit(place)
    return place


def test_a_fresh_clone_pulls_every_result_and_has_nothing_to_run(measured, endpoint, tmp_path):
    remote(measured, endpoint)
    run(measured, "dvc", "push")
    git(tmp_path, "clone", "-q", str(measured), "clone")
    clone = tmp_path / "clone"
    assert not (clone / "reports").exists()
    said = remote(clone, endpoint)
    assert said.startswith("remote: s3://team/results (in .dvc/config.local)")
    began = time.monotonic()
    run(clone, "dvc", "pull")
    assert "Running stage" not in run(clone, "dvc", "repro")
    assert time.monotonic() - began < 120  # some ten seconds where nothing else runs
    for name in [f"results/smoke/train/mnist5k_lenet/{output}" for output in OUTPUTS]:
        assert contents(clone, name), name
        assert contents(clone, name) == contents(measured, name)
    assert contents(clone, "reports/smoke") == contents(measured, "reports/smoke")
    assert b"mnist5k_lenet" in (clone / "reports" / "smoke" / "index.html").read_bytes()
    status = ["git", "status", "--porcelain"]
    assert subprocess.run(status, cwd=clone, capture_output=True, check=True).stdout == b""


WRONG = [
    ("s3://nobody/results", {}, "in a bucket, or a folder, that exists"),
    ("s3://team/results", {"AWS_SECRET_ACCESS_KEY": "x"}, "a place that DVC can use ("),
]


@pytest.mark.parametrize(("url", "keys", "wanted"), WRONG)
def test_a_bucket_that_cannot_be_used_is_one_line(endpoint, tmp_path, url, keys, wanted):
    git(tmp_path, "init", "-q")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("")
    (at,) = free_ports(1)
    for address, text in (
        (endpoint, f"URL must be {wanted}"),
        (f"http://127.0.0.1:{at}", "refused"),
    ):
        command = [sys.executable, "-m", "pipeline.remote", url, "--endpoint", address]
        place = environment(DVC_ROOT=str(tmp_path), **keys)
        done = subprocess.run(command, env=place, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert text in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / ".dvc" / "config.local").exists()
