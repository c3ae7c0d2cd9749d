"""Imports go one way: stages, then the pipeline's services, then its algorithms, then its types."""

import ast
from pathlib import Path

import pytest

LAYERS = [
    {
        "robustness_geometry.checks",
        "robustness_geometry.types",
        "robustness_geometry.norms",
        "robustness_geometry.randomness",
        "pipeline.findings",
    },
    {
        "robustness_geometry.attacks",
        "robustness_geometry.geometry",
        "robustness_geometry.models",
        "robustness_geometry.datasets",
    },
    {
        "robustness_geometry.training",
        "pipeline.evaluation",
        "pipeline.plots",
        "robustness_geometry.detection",
        "pipeline.claims",
        "pipeline.report",
        "pipeline.keys",
        "pipeline.storage",
        "pipeline.progress",
        "pipeline.processes",
        "pipeline.database",
        "pipeline.crew",
        "pipeline.devices",
        "pipeline.executor",
        "pipeline.tracking",
        "pipeline.params",
    },
    {"stages"},
]


def level(module: str) -> int:
    for height, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return height
    raise AssertionError(f"{module} has no place in the layers")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.module == "pipeline":
                found |= {f"pipeline.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name for name in found if name.split(".")[0] in ("pipeline", "stages")}


def modules(root: Path) -> list[tuple[str, Path]]:
    files = [*root.glob("pipeline/**/*.py"), *root.glob("stages/**/*.py")]
    named = [
        (".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), f)
        for f in files
    ]
    return [(name, path) for name, path in named if name != "pipeline"]


def test_no_module_imports_a_higher_layer(root):
    wrong = [
        f"{name} imports {target}"
        for name, path in modules(root)
        for target in imports(path)
        if level(target) > level(name)
    ]
    assert wrong == []


@pytest.mark.parametrize("heavy", ["hydra", "dvc"])
def test_the_library_needs_neither_hydra_nor_dvc(root, heavy):
    users = [
        name
        for name, path in modules(root)
        if name.startswith("pipeline.")
        and name not in ("pipeline.params", "pipeline.tracking")
        and any(
            isinstance(node, ast.Import | ast.ImportFrom)
            and (getattr(node, "module", None) or node.names[0].name).split(".")[0] == heavy
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert users == []


def test_only_tracking_imports_mlflow(root):
    users = {name for name, path in modules(root) if "import mlflow" in path.read_text()}
    assert users == {"pipeline.tracking"}
