"""dvc.yaml names everything that a stage uses, and nothing that is not there."""

import json
import subprocess
import sys

import pytest
import yaml

STAGES = ("train", "attack", "finetune", "report")

USED = """
import importlib, json, pathlib, pkgutil, sys
root, stage = pathlib.Path(sys.argv[1]), sys.argv[2]
package = importlib.import_module(f"stages.{stage}")
names = [m.name for m in pkgutil.iter_modules(package.__path__)]
for name in names:
    importlib.import_module(f"stages.{stage}.{name}")
files = {pathlib.Path(m.__file__) for n, m in list(sys.modules.items())
         if n.split(".")[0] in ("pipeline", "stages") and getattr(m, "__file__", None)}
print(json.dumps(sorted(str(f.relative_to(root)) for f in files)))
"""


@pytest.fixture(scope="module")
def graph(root):
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def covers(dep, path):
    return path == dep or path.startswith(dep.rstrip("/") + "/")


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_that_a_stage_imports_is_a_dep(root, graph, stage):
    done = subprocess.run(
        [sys.executable, "-c", USED, str(root), stage], cwd=root, capture_output=True, text=True, check=True
    )
    missing = [
        path for path in json.loads(done.stdout)
        if not any(covers(dep, path) for dep in graph[stage]["deps"])
    ]
    assert missing == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_dep_exists_in_the_repository(root, graph, stage):
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split()
    for dep in graph[stage]["deps"]:
        if not dep.startswith("results/"):
            assert any(covers(dep, path) for path in listed), dep


@pytest.mark.parametrize("stage", ["train", "attack", "finetune"])
def test_a_stage_lists_its_five_outputs(graph, stage):
    outs = [out if isinstance(out, str) else next(iter(out)) for out in graph[stage]["outs"]]
    metrics = [next(iter(metric)) for metric in graph[stage]["metrics"]]
    names = {path.rpartition("/")[2] for path in [*outs, *metrics]}
    assert names == {"metrics.json", "timings.json", "tables", "figures", "tensors"}


@pytest.mark.parametrize("stage", ["train", "attack", "finetune"])
def test_a_stage_tracks_the_settings_of_its_experiments(root, graph, stage):
    params = graph[stage]["params"]
    assert "seeds" in params
    assert "networks.${key}" in params
    assert stage in params
    files = {p.stem for p in (root / "stages" / stage).glob("*.py") if not p.stem.startswith("_")}
    configured = yaml.safe_load((root / "params.yaml").read_text())["settings"]
    for name in files & set(configured):
        assert f"settings.{name}" in params


def test_the_executor_is_no_parameter(graph):
    """A rerun on another device is asked for, never caused by a setting of the machine."""
    assert not [p for stage in graph.values() for p in stage.get("params", []) if p.startswith("executor")]
