"""What is derived from the experiments is up to date, and says the same as the classes."""

import dataclasses
import re

import pytest
import yaml

from stages import generate
from stages.experiments import ACROSS, STAGES, experiments_of
from stages.options import GROUPED, meanings, modules

EXPERIMENTS = [(stage, name) for stage in (*STAGES, *ACROSS) for name in experiments_of(stage)]


@pytest.fixture(scope="module")
def files():
    return generate.generated()


def test_the_committed_files_are_those_that_are_written(root, files, capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().err
    presets = {f"conf/experiment/{path.name}" for path in (root / "conf/experiment").glob("*.yaml")}
    assert presets == {name for name in files if name.startswith("conf/experiment/")}


def test_a_difference_is_named(monkeypatch, capsys):
    monkeypatch.setattr(generate, "table", lambda: "| other |\n")
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == "README.md is out of date: run make params\n"


@pytest.mark.parametrize(("stage", "name"), EXPERIMENTS)
def test_every_option_has_a_meaning(stage, name):
    settings = modules(stage)[name].Settings
    known = meanings(modules(stage)[name])
    missing = [f.name for f in dataclasses.fields(settings) if not known.get(f.name, "").strip()]
    assert missing == []


@pytest.mark.parametrize(("stage", "name"), EXPERIMENTS)
def test_every_option_can_be_set_for_one_experiment_alone(files, stage, name):
    """DVC composes conf/ without this package: what it may override has to stand there."""
    settings = modules(stage)[name].Settings
    known = yaml.safe_load(files["conf/defaults.yaml"])["settings"][name]
    assert set(known) >= {f.name for f in dataclasses.fields(settings)} - set(GROUPED)


def test_a_preset_names_experiments_of_one_section(files):
    for name, text in files.items():
        if name.startswith("conf/experiment/"):
            number = re.sub(r"_", ".", re.search(r"_(\d+(?:_\d+)?)\.yaml$", name)[1])
            chosen = yaml.safe_load(text)["experiments"]
            stage = re.search(r"stages\.(\w+) ", text)[1]
            assert all(number in modules(stage)[each].SECTION for each in chosen), name


def test_the_table_holds_every_experiment(files):
    for stage, name in EXPERIMENTS:
        package = stage.removesuffix("_transfer")
        assert f"`stages/{package}/{name}.py`" in files["README.md"]
