"""dvc.yaml names everything that a stage's results rest on, and nothing else."""

import functools
import subprocess

import pytest
import yaml

from pipeline.keys import Sources
from stages.experiments import ACROSS, STAGES, experiments_of
from stages.graph import LISTED, deps

ALL_STAGES = (*STAGES, *ACROSS)


def item(stage):
    """What stands for the network's name in a stage that runs on each."""
    return "${item}" if stage in LISTED else "${key}"


@pytest.fixture(scope="module")
def graph(root):
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


@pytest.fixture(scope="module")
def sources():
    return Sources()


def covers(dep, path):
    return path == dep or path.startswith(dep.rstrip("/") + "/")


def test_every_stage_is_in_the_graph(graph):
    assert set(graph) == {*ALL_STAGES, "report"}


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_what_an_experiment_imports_is_a_dep(root, graph, sources, stage):
    """By the same rule as the keys of stored chunks."""
    for module in experiments_of(stage).values():
        for name in sources.closure(module):
            path = f"{name.replace('.', '/')}"
            path = f"{path}.py" if (root / f"{path}.py").exists() else f"{path}/__init__.py"
            assert any(covers(dep, path) for dep in graph[stage]["deps"]), path


def test_a_file_of_one_chapter_is_no_dep_of_another(graph):
    for stage in ALL_STAGES:
        package = stage.removesuffix("_transfer")
        chapters = {dep.split("/")[1] for dep in graph[stage]["deps"] if dep.count("/") == 2}
        assert chapters & set(ALL_STAGES) <= {stage, package}


def test_a_folder_stands_for_all_of_its_files(root, sources):
    found = deps(root, sources, "attack")
    assert {"robustness_geometry/attacks", "stages/attack"} <= set(found)
    assert "robustness_geometry/attacks/deepfool.py" not in found
    assert not [dep for dep in found if "cure" in dep]


@pytest.mark.parametrize("stage", [*ALL_STAGES, "report"])
def test_every_dep_exists_in_the_repository(root, graph, stage):
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for dep in graph[stage]["deps"]:
        if not dep.startswith("results/"):
            assert any(covers(dep, path) for path in listed), dep


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_stage_waits_for_the_networks(graph, stage):
    needed = [dep for dep in graph[stage]["deps"] if dep.startswith("results/")]
    if stage != "train":
        weights = "train" if stage in ACROSS else f"train/{item(stage)}/tensors"
        assert f"results/${{suite.name}}/{weights}" in needed
    assert f"results/${{suite.name}}/{stage}" in graph["report"]["deps"]


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_stage_lists_its_five_outputs(graph, stage):
    outs = [out if isinstance(out, str) else next(iter(out)) for out in graph[stage]["outs"]]
    metrics = [next(iter(metric)) for metric in graph[stage]["metrics"]]
    folder = f"results/${{suite.name}}/{stage}/" + ("all" if stage in ACROSS else item(stage))
    names = ("metrics.json", "timings.json", "tables", "figures", "tensors")
    assert {*outs, *metrics} == {f"{folder}/{name}" for name in names}
    assert f"output={folder} " in graph[stage]["cmd"]


@pytest.mark.parametrize("stage", [*ALL_STAGES, "report"])
def test_dvc_removes_no_output_before_a_stage_runs(graph, stage):
    """It would remove whole folders, whoever's files lie in them."""
    for out in [*graph[stage]["outs"], *graph[stage]["metrics"]]:
        assert isinstance(out, dict), out
        assert next(iter(out.values()))["persist"] is True, out


def test_in_an_archive_dvc_needs_no_git_and_in_a_checkout_it_uses_git(root):
    git = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
    archive = git(["git", "archive", "--format=tar", "HEAD", ".dvc/config"]).stdout
    assert "\n    no_scm = true\n" in archive
    assert "\n    no_scm" not in (root / ".dvc" / "config").read_text()


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_stage_tracks_the_settings_of_its_experiments(root, graph, stage):
    network = "networks" if stage in ACROSS else f"networks.{item(stage)}"
    settings = {f"settings.{name}" for name in experiments_of(stage)}
    assert set(graph[stage]["params"]) == {"seeds", stage, network, "suite.networks", *settings}
    configured = yaml.safe_load((root / "params.yaml").read_text())["settings"]
    assert set(experiments_of(stage)) <= set(configured)


def test_a_chapter_runs_on_the_networks_that_the_suite_lists_for_it(root):
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    params = yaml.safe_load((root / "params.yaml").read_text())
    each = {name: stage["foreach"] for name, stage in stages.items() if "foreach" in stage}
    assert {name: foreach for name, foreach in each.items() if foreach != "${networks}"} == {
        name: f"${{suite.networks.{name}}}" for name in LISTED
    }
    assert set(LISTED) <= set(params["suite"]["networks"])
    for name, names in params["suite"]["networks"].items():
        assert names or name not in LISTED  # a suite may leave out an experiment, but no stage
        assert set(names) <= set(params["networks"])


def test_the_executor_is_no_parameter(graph):
    """A rerun on another device is asked for, never caused by a setting of the machine."""
    assert not [
        p for stage in graph.values() for p in stage.get("params", []) if p.startswith("executor")
    ]
