import functools
import json
import shutil
import subprocess

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from pipeline.findings import Findings
from pipeline.statistics import Estimate
from robustness_geometry.checks import InputError
from stages.results import LIST, check_folder, figure_files, write_results


def findings(value):
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1])
    return Findings(
        numbers={"rho": Estimate(value, 0.1, 0.3, n=10, seeds=3)},
        timings={"t": Estimate(1.0, 1.0, 1.0, n=10)},
        curves={"loss": [1.0, float("nan")]},
        tables={"main": pd.DataFrame({"a": [1.0]})},
        figures={"rho / eps": figure},
        tensors={"r": torch.ones(2)},
        notes=["ten images"],
    )


HEADER = {"network": "net", "dataset": "data", "seeds": [0]}


def test_layout_and_nan_as_null(tmp_path):
    write_results(tmp_path, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    found = metrics["experiments"]["attack_l2"]
    assert found["section"] == "Table 3.1"
    assert found["numbers"]["rho"] == {
        "value": 0.2,
        "low": 0.1,
        "high": 0.3,
        "n": 10,
        "std": None,
        "seeds": 3,
    }
    assert found["curves"]["loss"] == [1.0, None]
    assert "t" not in found["numbers"]
    assert (
        json.loads((tmp_path / "timings.json").read_text())["experiments"]["attack_l2"]["numbers"][
            "t"
        ]["value"]
        == 1
    )
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    assert names == [
        ".files.json",
        "figures/attack_l2_rho_eps.png",
        "metrics.json",
        "tables/attack_l2_main.csv",
        "tensors/attack_l2.safetensors",
        "timings.json",
    ]


def test_same_findings_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_results(
            tmp_path / name, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"}
        )
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert (
            path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        ), path.name


def test_a_failure_leaves_the_old_results_whole(tmp_path):
    write_results(tmp_path, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"})
    before = (tmp_path / "metrics.json").read_bytes()
    broken = findings(0.5)
    broken.tables["bad"] = None
    with pytest.raises(AttributeError):
        write_results(tmp_path, HEADER, {"attack_l2": broken}, {"attack_l2": "Table 3.1"})
    assert (tmp_path / "metrics.json").read_bytes() == before
    assert not list(tmp_path.glob(".writing-*"))


def test_figures_drawn_by_others_are_the_same_and_a_lost_one_is_drawn_here(tmp_path):
    drawn = []

    def only_even(count, work):
        for index in range(0, count, 2):
            drawn.append(index)
            work(index)

    two = findings(0.2)
    two.figures["again"] = two.figures["rho / eps"]
    for folder, share in (("alone", None), ("shared", only_even)):
        write_results(
            tmp_path / folder, HEADER, {"attack_l2": two}, {"attack_l2": "Table 3.1"}, share
        )
    assert drawn == [0]
    files = figure_files(tmp_path / "alone", "attack_l2", two)
    assert sorted(files) == ["again", "rho / eps"]
    for path in files.values():
        assert path.read_bytes() == (tmp_path / "shared" / "figures" / path.name).read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_replaces_and_removes_only_files_of_runs(tmp_path):
    write_results(tmp_path, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"})
    theirs = ["notes.txt", "tables/mine.csv", "figures/attack_l2_mine.png", "tensors/mine.bin"]
    for name in theirs:
        (tmp_path / name).write_text(name)
    write_results(tmp_path, HEADER, {"attack_linf": findings(0.3)}, {"attack_linf": "Table 3.2"})
    assert [(tmp_path / name).read_text() for name in theirs] == theirs
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        "attack_linf_main.csv",
        "mine.csv",
    ]
    assert not (tmp_path / "figures" / "attack_l2_rho_eps.png").exists()
    # Tensors of earlier runs stay: they may be weights that other stages read.
    assert sorted(path.name for path in (tmp_path / "tensors").glob("*.safetensors")) == [
        "attack_l2.safetensors",
        "attack_linf.safetensors",
    ]


def test_a_file_that_no_run_wrote_gives_way_and_is_kept(tmp_path):
    (tmp_path / "tables").mkdir()
    for text in ("first", "second"):
        (tmp_path / "tables" / "attack_l2_main.csv").write_text(text)
        (tmp_path / LIST).unlink(missing_ok=True)
        (tmp_path / "metrics.json").unlink(missing_ok=True)
        write_results(tmp_path, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"})
        assert (tmp_path / "tables" / "attack_l2_main.csv").read_text() == "a\n1\n"
    kept = {path.name: path.read_text() for path in (tmp_path / "tables").glob("*.before*")}
    assert kept == {"attack_l2_main.csv.before": "first", "attack_l2_main.csv.before1": "second"}


def test_results_of_a_checkout_have_no_list_and_are_replaced(tmp_path):
    write_results(tmp_path, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"})
    (tmp_path / LIST).unlink()
    check_folder(tmp_path)
    write_results(tmp_path, HEADER, {"attack_linf": findings(0.3)}, {"attack_linf": "Table 3.2"})
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["attack_linf_main.csv"]


def test_a_list_cannot_name_files_elsewhere(tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    folder = tmp_path / "results"
    write_results(folder, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"})
    (folder / LIST).write_text('{"files": ["../kept.txt", "tables/../../kept.txt", "other.txt"]}')
    (folder / "other.txt").write_text("kept")
    write_results(folder, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"})
    assert (tmp_path / "kept.txt").exists()
    assert (folder / "other.txt").exists()


def test_weights_are_written_beside_the_tensors(tmp_path):
    def weights(folder):
        (folder / "seed0.safetensors").write_bytes(b"weights")

    write_results(tmp_path, HEADER, {"t": findings(0.2)}, {"t": "Table 3.1"}, weights=weights)
    assert (tmp_path / "tensors" / "seed0.safetensors").read_bytes() == b"weights"
    assert "tensors/seed0.safetensors" in json.loads((tmp_path / LIST).read_text())["files"]


@pytest.mark.parametrize("name", ["file", "file/below", "file/below/more"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"output must be a folder that can be written to .*; got"):
        check_folder(tmp_path / name)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["metrics.json", "timings.json", "tables"])
def test_a_folder_of_another_program_is_refused(tmp_path, name):
    check_folder(tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=rf"output must be a folder .*{name}"):
        check_folder(tmp_path)


def test_a_check_leaves_nothing_behind(tmp_path):
    check_folder(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def written(tmp_path):
    """A folder of results, and what writes the same results there again."""

    def write(**options):
        write_results(tmp_path / "out", HEADER, {"t": findings(0.2)}, {"t": "Table 3.1"}, **options)
        return tmp_path / "out"

    write()
    return write


@pytest.mark.parametrize("name", ["tables/t_main.csv", "figures/t_rho_eps.png", "timings.json"])
def test_a_file_that_was_changed_by_hand_is_kept_beside_the_new_one(written, name):
    folder = written()
    (folder / name).write_text("my own")
    written()
    assert (folder / name).read_bytes() != b"my own"
    assert (folder / f"{name}.before").read_text() == "my own"
    written()
    assert not (folder / f"{name}.before1").exists()


def test_a_changed_table_of_an_experiment_that_does_not_run_again_stays(written, tmp_path):
    folder = written()
    (folder / "tables" / "t_main.csv").write_text("my own")
    write_results(folder, HEADER, {"other": findings(0.3)}, {"other": "Table 3.2"})
    assert (folder / "tables" / "t_main.csv").read_text() == "my own"
    assert not (folder / "figures" / "t_rho_eps.png").exists()


@pytest.mark.parametrize("name", ["tables/t_main.csv", ".files.json", "metrics.json"])
def test_a_link_gives_way_and_what_it_names_stays(written, tmp_path, name):
    folder, mine = written(), tmp_path / "mine"
    text = (folder / name).read_text() if name == ".files.json" else "my own"
    mine.write_text(text)
    (folder / name).unlink()
    (folder / name).symlink_to(mine)
    written()
    assert mine.read_text() == text
    assert not (folder / name).is_symlink()


def test_files_behind_a_link_in_the_place_of_a_folder_stay(written, tmp_path):
    folder, mine = written(), tmp_path / "mine"
    mine.mkdir()
    (mine / "t_main.csv").write_text("my own")
    shutil.rmtree(folder / "tables")
    (folder / "tables").symlink_to(mine)
    write_results(folder, HEADER, {"other": findings(0.3)}, {"other": "Table 3.2"})
    assert (mine / "t_main.csv").read_text() == "my own"
    written()
    assert (mine / "t_main.csv.before").read_text() == "my own"


def test_results_that_git_put_there_are_replaced(written):
    """The list is not under version control: it then describes other results."""
    folder = written()
    metrics = folder / "metrics.json"
    metrics.write_text(metrics.read_text().replace("0.2", "0.21"))
    (folder / "tables" / "t_main.csv").write_text("a\n2\n")
    written()
    assert not list(folder.rglob("*.before*"))
    assert (folder / "tables" / "t_main.csv").read_text() == "a\n1\n"


def test_in_a_checkout_a_file_that_git_does_not_know_stays(written, tmp_path):
    folder = written()
    git = functools.partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    git(["git", "init", "-q"])
    git(["git", "add", "."])
    (folder / LIST).unlink()
    (folder / "tables" / "t_mine.csv").write_text("my own")
    write_results(folder, HEADER, {"other": findings(0.3)}, {"other": "Table 3.2"})
    assert {path.name for path in (folder / "tables").iterdir()} == {"other_main.csv", "t_mine.csv"}


def test_under_dvc_no_tensors_of_earlier_runs_stay_but_those_of_others(written):
    folder = written()
    (folder / "tensors" / "mine.bin").write_text("my own")
    write_results(folder, HEADER, {"o": findings(0.3)}, {"o": "Table 3.2"}, keep_tensors=False)
    assert {path.name for path in (folder / "tensors").iterdir()} == {"o.safetensors", "mine.bin"}


@pytest.mark.parametrize("name", ["metrics.json", "tables", "", LIST])
def test_a_link_that_leads_nowhere_is_refused_before_the_work(tmp_path, name):
    link = tmp_path / "out" / name
    link.parent.mkdir(exist_ok=True, parents=True)
    link.symlink_to(tmp_path / "nowhere" / "file")
    with pytest.raises(InputError, match="output must be a folder"):
        check_folder(tmp_path / "out")


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON", '{"files": 3}'])
def test_a_list_of_another_program_is_refused(tmp_path, text):
    (tmp_path / LIST).write_text(text)
    with pytest.raises(InputError, match=r"without a \.files\.json of another program"):
        check_folder(tmp_path)
    assert (tmp_path / LIST).read_text() == text
