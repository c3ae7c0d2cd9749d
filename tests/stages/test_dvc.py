"""dvc.yaml names everything that a stage's results rest on, and nothing else."""

import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.keys import Sources
from stages.experiments import ACROSS, STAGES, experiments_of

ALL_STAGES = (*STAGES, *ACROSS)
NAMED = {
    "robustness_geometry/attacks",
    "robustness_geometry/datasets",
    "robustness_geometry/models",
}
"""Folders whose functions the configuration names: a stage depends on the whole of them."""
WORK = {"pipeline/executor.py", "pipeline/keys.py", "pipeline/storage.py"}
"""What makes and keeps results, though no key of a stored chunk holds its source."""


def stages_of(root):
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


LISTED = ("semirandom", "curvature", "topology", "detect", "cure")
"""Chapters whose networks a suite may list."""


def item(stage):
    """What stands for the network's name in a stage that runs on each."""
    return "${item}" if stage in LISTED else "${key}"


@pytest.fixture(scope="module")
def graph(root):
    return stages_of(root)


@pytest.fixture(scope="module")
def sources():
    return Sources()


def built():
    return [stage for stage in ALL_STAGES if experiments_of(stage)]


def covers(dep, path):
    return path == dep or path.startswith(dep.rstrip("/") + "/")


def rests_on(root, sources, stage):
    """The files that the stage's results rest on, by the same rule as the keys of stored chunks."""
    folders = (
        {"pipeline/report"}
        if stage == "report"
        else NAMED
        if stage != "train"
        else NAMED - {"robustness_geometry/attacks"}
    )
    found = [path for folder in folders for path in (root / folder).rglob("*.py")]
    modules = [
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in found
    ]
    modules += [
        f"stages.{stage}.__main__",
        *(experiments_of(stage).values() if stage != "report" else []),
    ]
    files = {
        f"{name.replace('.', '/')}.py" for module in modules for name in sources.closure(module)
    }
    files = {
        name if (root / name).exists() else name.removesuffix(".py") + "/__init__.py"
        for name in files
    }
    return files | (WORK if stage != "report" else set())


def test_every_stage_with_an_experiment_is_in_the_graph(graph):
    assert set(graph) == {*built(), "report"}


@pytest.mark.parametrize("stage", [*built(), "report"])
def test_the_deps_are_what_the_results_rest_on(root, graph, sources, stage):
    deps = [dep for dep in graph[stage]["deps"] if not dep.startswith("results/")]
    needed = rests_on(root, sources, stage)
    assert [path for path in sorted(needed) if not any(covers(dep, path) for dep in deps)] == []
    assert [dep for dep in deps if dep.endswith(".py") and dep not in needed] == []


@pytest.mark.parametrize("stage", [*built(), "report"])
def test_every_dep_exists_in_the_repository(root, graph, stage):
    listed = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    for dep in graph[stage]["deps"]:
        if not dep.startswith("results/"):
            assert any(covers(dep, path) for path in listed), dep


@pytest.mark.parametrize("stage", built())
def test_a_stage_waits_for_the_networks(graph, stage):
    deps = [dep for dep in graph[stage]["deps"] if dep.startswith("results/")]
    if stage != "train":
        assert (
            "results/${suite.name}/train" + ("" if stage in ACROSS else f"/{item(stage)}/tensors")
            in deps
        )
    assert f"results/${{suite.name}}/{stage}" in graph["report"]["deps"]


@pytest.mark.parametrize("stage", built())
def test_a_stage_lists_its_five_outputs(graph, stage):
    outs = [out if isinstance(out, str) else next(iter(out)) for out in graph[stage]["outs"]]
    metrics = [next(iter(metric)) for metric in graph[stage]["metrics"]]
    folder = f"results/${{suite.name}}/{stage}/" + ("all" if stage in ACROSS else item(stage))
    names = ("metrics.json", "timings.json", "tables", "figures", "tensors")
    assert {*outs, *metrics} == {f"{folder}/{name}" for name in names}
    assert f"output={folder} " in graph[stage]["cmd"]


@pytest.mark.parametrize("stage", built())
def test_a_stage_tracks_the_settings_of_its_experiments(root, graph, stage):
    params = graph[stage]["params"]
    assert {"seeds", stage, "networks" if stage in ACROSS else f"networks.{item(stage)}"} <= set(
        params
    )
    configured = yaml.safe_load((root / "params.yaml").read_text())["settings"]
    tracked = {param.removeprefix("settings.") for param in params if param.startswith("settings.")}
    assert tracked == set(experiments_of(stage)) & set(configured)


def test_a_chapter_runs_on_the_networks_that_the_suite_lists_for_it(root):
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    params = yaml.safe_load((root / "params.yaml").read_text())
    each = {name: stage["foreach"] for name, stage in stages.items() if "foreach" in stage}
    assert {name: foreach for name, foreach in each.items() if foreach != "${networks}"} == {
        name: f"${{suite.networks.{name}}}" for name in LISTED
    }
    assert set(params["suite"]["networks"]) == set(LISTED)
    for names in params["suite"]["networks"].values():
        assert names
        assert set(names) <= set(params["networks"])
    assert params["cure"]["networks"] == params["suite"]["networks"]["cure"]


def test_a_suite_sets_no_experiment_that_the_graph_does_not_track(root):
    """DVC asks params.yaml for what dvc.yaml tracks, so that base.yaml has to name it."""
    base = set(yaml.safe_load((root / "conf" / "base.yaml").read_text())["settings"])
    for path in sorted(Path(root / "conf" / "suite").glob("*.yaml")):
        assert set(yaml.safe_load(path.read_text()).get("settings", {})) <= base, path.name


def test_the_executor_is_no_parameter(graph):
    """A rerun on another device is asked for, never caused by a setting of the machine."""
    assert not [
        p for stage in graph.values() for p in stage.get("params", []) if p.startswith("executor")
    ]
