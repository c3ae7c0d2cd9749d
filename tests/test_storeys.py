"""Imports go one way: stages, then pipeline, then robustness_geometry."""

import ast
from pathlib import Path

import pytest

STOREYS = ("robustness_geometry", "pipeline", "stages")
BELOW_STUDIES = ("executor", "evaluation", "statistics", "tables")
CHAPTERS = {path.parent.name for path in Path(__file__).parents[1].glob("stages/*/__init__.py")}


def modules(root):
    """Dotted name -> file, of all three packages."""
    files = [path for package in STOREYS for path in (root / package).rglob("*.py")]
    names = [".".join(f.relative_to(root).with_suffix("").parts) for f in files]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def imports(path):
    """The modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.fixture(scope="module")
def every(root):
    return {name: imports(path) for name, path in modules(root).items()}


def storey(name):
    top = name.split(".")[0]
    return STOREYS.index(top) if top in STOREYS else -1


def test_no_storey_imports_a_higher_one(every):
    wrong = [(n, t) for n, targets in every.items() for t in targets if storey(t) > storey(n)]
    assert wrong == []


def test_no_chapter_imports_another(every):
    wrong = []
    for name, targets in every.items():
        here = name.split(".")
        if here[0] == "stages" and here[1:] and here[1] in CHAPTERS:
            there = {t.split(".")[1] for t in targets if t.startswith("stages.")} & CHAPTERS
            wrong += [(name, other) for other in there - {here[1]}]
    assert wrong == []


def test_what_the_studies_stand_on_does_not_know_them(every):
    for name in BELOW_STUDIES:
        assert not [t for t in every[f"pipeline.{name}"] if t.startswith("pipeline.studies")]


def test_the_experiments_keep_nothing_in_private_modules(root):
    private = [p for p in (root / "stages").rglob("_*.py") if not p.name.startswith("__")]
    assert private == []


@pytest.mark.parametrize("heavy", ["hydra", "omegaconf", "dvc", "mlflow", "pandas", "matplotlib"])
def test_the_library_needs_no_platform(every, heavy):
    users = {n for n, targets in every.items() if any(t.split(".")[0] == heavy for t in targets)}
    assert not [name for name in users if name.startswith("robustness_geometry")]


def test_only_tracking_imports_mlflow(root):
    users = {name for name, path in modules(root).items() if "import mlflow" in path.read_text()}
    assert users == {"pipeline.tracking"}
