"""What `make clean` removes: what runs wrote, and nothing else."""

import json
import sqlite3

import pytest

from pipeline.cleaning import clean
from pipeline.ledger import digest, write_list

KEY = "0123456789abcdef" * 2
OURS = [
    f"work/attack_l2/{KEY}/00000.bin",
    "work/checkpoints/lenet.pt",
    "work/locks/a-b.lock",
    "outputs/2026-01-01/10-00-00/.hydra/hydra.yaml",
    "outputs/2026-01-01/10-00-00/.hydra/config.yaml",
    "outputs/2026-01-01/10-00-00/.hydra/overrides.yaml",
    "outputs/2026-01-01/10-00-00/attack.log",
    "outputs/2026-01-01/10-00-00/tables/attack_l2_main.csv",
    "outputs/2026-01-01/10-00-00/metrics.json",
    "multirun/today/multirun.yaml",
    "reports/embedded/index.html",
    "results/embedded/attack/lenet/figures/attack_l2_a.png",
    "results/embedded/attack/lenet/tensors/attack_l2.safetensors",
    "results/embedded/attack/lenet/timings.json",
]
COMMITTED = [
    "results/embedded/attack/lenet/metrics.json",
    "results/embedded/attack/lenet/tables/attack_l2_main.csv",
]
THEIRS = [
    "work/notes.txt",
    f"work/attack_l2/{KEY}/readme.txt",
    "outputs/mine.csv",
    "outputs/2026-01-01/10-00-00/tables/mine.csv",
    "outputs/2026-01-01/10-00-00/.hydra/mine.yaml",
    "outputs/other/.hydra/hydra.yaml",
    "multirun/other/multirun.yaml",
    "reports/embedded/mine.html",
    "reports/mine/index.html",
    "mlruns/1/mine.txt",
    "results/embedded/attack/lenet/figures/mine.png",
    "results/mine/figures/a.png",
    "results/mine/metrics.json",
]
METRICS = json.dumps({"network": "lenet", "experiments": {"attack_l2": {}}})
OVERRIDES = "hydra:\n  overrides:\n    hydra:\n    - hydra.job.name=attack\n"
TEXTS = {
    "index.html": "the page of robustness-geometry",
    "metrics.json": METRICS,
    "hydra.yaml": OVERRIDES,
    "multirun.yaml": OVERRIDES,
}


@pytest.fixture
def repository(tmp_path):
    for name in [*OURS, *COMMITTED, *THEIRS]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs" if name in THEIRS else TEXTS.get(path.name, "ours"))
    for folder in ("outputs/2026-01-01/10-00-00", "results/embedded/attack/lenet"):
        below = [tmp_path / name for name in [*OURS, *COMMITTED] if name.startswith(folder)]
        results = [path for path in below if path.parent.name != ".hydra" and path.suffix != ".log"]
        place = tmp_path / folder
        write_list(place, {p.relative_to(place).as_posix(): digest(p) for p in results})
    return tmp_path


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def logged(repository, *, others=()):
    """A database of MLflow with one run of ours, whose artifacts moved with the repository."""
    (repository / "mlruns/1/run/artifacts").mkdir(parents=True)
    (repository / "mlruns/1/run/artifacts/a.csv").write_text("ours")
    connection = sqlite3.connect(repository / "mlflow.db")
    with connection:
        connection.execute("create table runs (run_uuid, artifact_uri)")
        connection.execute("create table tags (key, run_uuid)")
        connection.execute("create table logged_models (artifact_location)")
        address = "file:///before/the/move/mlruns/1/run/artifacts"
        connection.execute("insert into runs values ('run', ?)", (address,))
        connection.execute("insert into tags values ('pipeline.process', 'run')")
        for name in others:
            connection.execute("insert into runs values (?, ?)", (name, f"mlruns/1/{name}"))
    connection.close()


def test_what_runs_wrote_goes_and_everything_else_stays(repository):
    logged(repository)
    kept = clean(repository)
    assert files(repository) == {*COMMITTED, *THEIRS}
    assert set(kept) == {name for name in THEIRS if not name.startswith("results/")}


def test_nothing_is_left_where_nobody_else_put_anything(repository):
    for name in THEIRS:
        (repository / name).unlink()
    assert clean(repository) == []
    assert files(repository) == set(COMMITTED)
    assert {path.name for path in repository.iterdir()} == {"results"}


def test_a_result_that_was_changed_by_hand_stays(repository):
    name = "results/embedded/attack/lenet/figures/attack_l2_a.png"
    (repository / name).write_text("mine")
    clean(repository)
    clean(repository)
    assert (repository / name).read_text() == "mine"


def test_a_database_with_runs_of_other_programs_stays(repository):
    logged(repository, others=["theirs"])
    assert "mlflow.db" in clean(repository)
    assert (repository / "mlruns/1/run/artifacts/a.csv").exists()


@pytest.mark.parametrize("content", [b"", b"no database at all, but a long text " * 40])
def test_a_database_that_cannot_be_read_stays(repository, content):
    (repository / "mlflow.db").write_bytes(content)
    assert "mlflow.db" in clean(repository)
    assert (repository / "mlflow.db").read_bytes() == content


def test_what_links_lead_to_stays(repository, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "metrics.json").write_text(METRICS)
    (outside / "timings.json").write_text("mine")
    (repository / "outputs" / "link").symlink_to(outside)
    clean(repository)
    assert files(outside) == {"metrics.json", "timings.json"}
    assert (repository / "outputs" / "link").is_symlink()
