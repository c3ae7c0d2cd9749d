"""Sweeps in one table: what Hydra writes of a sweep, and the metrics of its jobs."""

import json
import shlex

import pandas as pd
import pytest
import yaml

from pipeline.plots import dominant_share
from pipeline.sweep import BASIC, main, missing, read, table


def write_sweep(folder, task, jobs, *, stage="attack"):
    """A sweep's folder as Hydra leaves it; jobs are pairs of overrides and numbers (or None)."""
    hydra = {
        "overrides": {"task": task, "hydra": [f"hydra.job.name={stage}"]},
        "sweeper": {"_target_": BASIC, "params": None},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    for number, (words, numbers) in enumerate(jobs):
        place = folder / str(number)
        (place / ".hydra").mkdir(parents=True, exist_ok=True)
        (place / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
        if numbers is not None:
            estimates = {
                name: {"value": v, "low": v - 1, "high": v + 1, "n": 7, "std": None, "seeds": 1}
                for name, v in numbers.items()
            }
            content = {"experiments": {"attack_l2": {"numbers": estimates}}}
            (place / "metrics.json").write_text(json.dumps(content))
    return folder


TASK = ["model=lenet,nin", "attack.steps=5,10,20", "seeds=[0]"]


def words(model, steps):
    return [f"model={model}", f"attack.steps={steps}", "seeds=[0]"]


@pytest.fixture
def partial_sweep(tmp_path):
    """Six jobs, of which four began, three ended and two measured rho."""
    jobs = [
        (words("lenet", 5), {"rho": 3.0, "fooled": 0.5}),
        (words("lenet", 10), {"rho": 2.0, "fooled": 0.6}),
        (words("lenet", 20), None),
        (words("nin", 5), {"fooled": 0.9}),
    ]
    return write_sweep(tmp_path / "sweep", TASK, jobs)


def test_a_row_for_each_job_with_overrides_and_intervals(partial_sweep):
    assert main([str(partial_sweep)]) == 0
    found = pd.read_csv(partial_sweep / "sweep.csv")
    assert found["job"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["model"].tolist() == ["lenet"] * 3 + ["nin"] * 3
    assert found["attack.steps"].tolist() == [5, 10, 20] * 2
    assert found["attack_l2.rho"].dropna().tolist() == [3, 2]
    assert found.loc[0, "attack_l2.rho low"] == 2
    assert found.loc[0, "attack_l2.rho high"] == 4
    assert found["attack_l2.fooled n"].count() == 3
    assert dominant_share(partial_sweep / "sweep.png") < 0.99


def test_the_metric_that_most_jobs_have_comes_first(partial_sweep):
    assert read(partial_sweep).metrics == ["attack_l2.fooled", "attack_l2.rho"]


def test_the_commands_of_what_is_missing_write_into_the_sweep(partial_sweep, capsys):
    assert main(["--missing", str(partial_sweep)]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[3:6] for line in lines] == [words("lenet", 20), words("nin", 10), words("nin", 20)]
    assert [line[:3] for line in lines] == [["python", "-m", "stages.attack"]] * 3
    assert [line[6] for line in lines] == [f"hydra.run.dir={partial_sweep}/{n}" for n in (2, 4, 5)]
    assert not (partial_sweep / "sweep.csv").exists()


def test_a_sweep_is_whole_once_these_have_run(partial_sweep):
    jobs = [(each, {"rho": 1.0}) for each in (words("lenet", 20), words("nin", 10))]
    for number, (overrides, numbers) in zip((2, 4), jobs, strict=True):
        made = write_sweep(partial_sweep.parent / "other", TASK, [(overrides, numbers)])
        (made / "0").rename(partial_sweep / f"late{number}")
    assert [job.number for job in read(partial_sweep).jobs if not job.metrics] == [5]


def test_results_of_another_command_in_the_same_folder_do_not_count(tmp_path):
    jobs = [(words("cnn", 5), {"rho": 1.0})]
    found = read(write_sweep(tmp_path, TASK, jobs))
    assert len(missing(found)) == 6
    assert table(found).columns.tolist() == ["job", "model", "attack.steps", "seeds"]


@pytest.mark.parametrize(
    ("task", "count"),
    [
        (["attack=deepfool,fgsm"], 2),
        (["attack.steps=range(1,4)", "attack.norm=2,inf"], 6),
        (["model=glob(lenet*)"], 3),
        (["+attack.eps=0.1,0.2"], 2),
    ],
)
def test_every_kind_of_sweep_is_drawn(tmp_path, task, count):
    jobs = read(write_sweep(tmp_path, task, [])).jobs
    assert len(jobs) == count
    done = [(list(job.overrides), {"rho": 1.0 + job.number}) for job in jobs]
    write_sweep(tmp_path, task, done)
    assert main([str(tmp_path), "--metric", "attack_l2.rho"]) == 0
    assert dominant_share(tmp_path / "sweep.png") < 0.99


def test_files_of_others_are_kept_and_its_own_are_replaced(partial_sweep):
    (partial_sweep / "sweep.csv").write_text("mine")
    for _ in range(2):
        assert main([str(partial_sweep)]) == 0
    assert (partial_sweep / "sweep.csv.before").read_text() == "mine"
    assert [path.name for path in partial_sweep.glob("sweep.*")].count("sweep.png") == 1
    assert len(list(partial_sweep.glob("sweep.*"))) == 3


@pytest.mark.parametrize("text", [None, "theirs", "hydra: {overrides: {task: 3}}", "a: ["])
def test_a_folder_without_a_sweep_is_one_line_and_exit_code_2(tmp_path, capsys, text):
    if text is not None:
        (tmp_path / "multirun.yaml").write_text(text)
    assert main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sweep: folder must be the folder of a sweep")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--metric", "rho"], "--metric must be one of attack_l2.fooled"),
        (["--metrics"], "--metric"),
        (["--missing", "twice"], "unrecognized arguments"),
    ],
)
def test_arguments_that_cannot_be_used_are_one_line(partial_sweep, capsys, arguments, says):
    assert main([str(partial_sweep), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize("content", ["", "{}", '{"experiments": 3}', '{"experiments": {"a": {}}}'])
def test_a_damaged_result_counts_as_missing(partial_sweep, content):
    (partial_sweep / "0" / "metrics.json").write_text(content)
    assert 0 in [job.number for job in read(partial_sweep).jobs if not job.metrics]


def test_no_results_at_all_are_refused(tmp_path, capsys):
    assert main([str(write_sweep(tmp_path, TASK, []))]) == 2
    assert "a sweep with results" in capsys.readouterr().err
