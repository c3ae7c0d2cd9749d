"""What `pip install .` brings: the library alone, light enough for a bare environment."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

HEAVY = ("pandas", "matplotlib", "hydra", "omegaconf", "mlflow", "dvc", "lightning_fabric")
OPTIONAL = ("torchvision", "timm", "mlxtend", "networkx", "sklearn", "pyautoattack")
BUILD = "import setuptools.build_meta as b; print(b.build_wheel({folder!r}))"


def closure(names):
    """The distributions that some need, directly or not, without extras."""
    seen, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        try:
            dist = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if dist.name.lower() in seen:
            continue
        seen[dist.name.lower()] = dist
        for text in dist.requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(need.name)
    return seen


@pytest.fixture(scope="session")
def wheel(root, tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in listed:
        if name.startswith("robustness_geometry/") or name in (
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, source / name)
    for folder in ("pipeline", "stages"):  # packages beside it, as in the checkout
        (source / folder).mkdir()
        (source / folder / "__init__.py").touch()
    code = BUILD.format(folder=str(source))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = source.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def needs(wheel):
    """The names of the distributions that the wheel asks for, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        text = archive.read(name).decode()
    found = map(Requirement, re.findall(r"^Requires-Dist: (.*)$", text, flags=re.MULTILINE))
    return [r.name for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


@pytest.fixture(scope="session")
def bare(wheel, needs, tmp_path_factory):
    """The Python of an environment that holds the wheel and what it asks for, and nothing else."""
    home = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    for dist in closure(needs).values():
        for top in {path.parts[0] for path in dist.files or () if path.parts[0] != ".."}:
            target, link = Path(str(dist.locate_file(top))), site / top
            if target.exists() and not link.exists():
                link.symlink_to(target)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return home / "bin" / "python"


def run(python, code, folder):
    done = subprocess.run(
        [str(python), "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "robustness_geometry"
    }
    assert "robustness_geometry/py.typed" in names
    assert "robustness_geometry/models/weights/mnist5k_lenet.safetensors" in names


def test_at_most_eight_packages_come_beside_torch(needs):
    more = set(closure(needs)) - set(closure(["torch"]))
    assert len(more) <= 8, sorted(more)


def test_the_examples_of_the_readme_run_in_it(root, bare, tmp_path):
    text = (root / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(examples) == 2
    norm, curvature = (run(bare, example, tmp_path).split() for example in examples)
    assert float(norm[0]) == 1
    assert 0.5 < float(norm[1]) < 3
    assert all(abs(float(value)) < 100 for value in curvature)
    assert curvature


def test_the_import_is_light(bare, tmp_path):
    parts = "attacks, geometry, detection, training, models, datasets, norms"
    code = f"import sys; from robustness_geometry import {parts}; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run(bare, code, tmp_path).split()}
    assert not loaded & {*HEAVY, *OPTIONAL} - {"networkx"}  # torch itself may import networkx


def test_the_import_takes_less_than_a_second_beside_torchs_own(bare, tmp_path):
    def seconds(code):
        took = []
        for _ in range(3):
            began = time.perf_counter()
            run(bare, code, tmp_path)
            took.append(time.perf_counter() - began)
        return min(took)

    assert seconds("import torch, robustness_geometry") - seconds("import torch") < 1
