"""CONTRIBUTING's four recipes: each is applied to a copy of the repository, and runs."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from stages.experiments import STAGES

BLOCK = re.compile(r"`([\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)```", flags=re.DOTALL)
PARTS = {
    "experiment": ["stages/attack/confidence.py"],
    "attack": ["robustness_geometry/attacks/contrast.py", "conf/attack/contrast.yaml"],
    "model": ["robustness_geometry/models/mlp.py", "conf/model/mlp.yaml"],
    "data set": ["robustness_geometry/datasets/stripes.py", "conf/dataset/stripes.yaml"],
}
EXPORTED = {"attacks": "contrast", "models": "mlp", "datasets": "stripes"}


@pytest.fixture(scope="module")
def recipes(root):
    return dict(BLOCK.findall((root / "CONTRIBUTING.md").read_text()))


@pytest.fixture(scope="module")
def applied(root, recipes, tmp_path_factory):
    """A copy of the repository with all four recipes applied."""
    copy = tmp_path_factory.mktemp("guide") / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if not name.startswith(("results/", "docs/")) and (root / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, copy / name)
    for name, text in recipes.items():
        (copy / name).write_text(text)
    for package, name in EXPORTED.items():
        path = copy / "robustness_geometry" / package / "__init__.py"
        text = path.read_text()
        line = f"from robustness_geometry.{package}.{name} import {name}\n"
        text = text.replace("\n__all__ = [", f"{line}\n__all__ = [", 1)
        path.write_text(text.replace("__all__ = [", f'__all__ = [\n    "{name}",', 1))
    return copy


def run(copy, *command):
    # The copy comes first on the path of the child, and its own packages with it.
    environment = {**os.environ, "PYTHONPATH": str(copy), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_recipe_touches_as_few_places_as_it_says(recipes):
    assert set(recipes) == {name for names in PARTS.values() for name in names}
    places = {what: len(names) + (what != "experiment") for what, names in PARTS.items()}
    assert places == {"experiment": 1, "attack": 3, "model": 3, "data set": 3}


def test_they_pass_the_checks(applied, recipes):
    files = [name for name in recipes if name.endswith(".py")]
    exported = [f"robustness_geometry/{package}/__init__.py" for package in EXPORTED]
    run(applied, "ruff", "check", "--fix", "--select", "RUF022,I", "-q", *exported)
    run(applied, "ruff", "format", "-q", *exported)
    run(applied, "ruff", "check", *files)
    run(applied, "ruff", "format", "--check", *files)
    run(applied, "mypy", "--config-file", "pyproject.toml", *files)
    run(applied, "stages.generate")
    assert "  confidence:" in (applied / "conf" / "defaults.yaml").read_text()
    assert "`stages/attack/confidence.py`" in (applied / "README.md").read_text()
    run(applied, "stages.generate", "--check")
    run(applied, "pipeline.params")
    run(applied, "pipeline.params", "--check")


def test_all_of_them_run_together(applied, tmp_path):
    run(
        applied,
        "stages.attack",
        "experiments=[confidence]",
        "attack=contrast",
        "model=mlp",
        "dataset=stripes",
        "settings.confidence.samples=50",
        "seeds=[0]",
        "budget=smoke",
        "training.epochs=2",
        "tracking=none",
        f"executor.work={tmp_path / 'work'}",
        f"output={tmp_path / 'out'}",
    )
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert '"rho_sure"' in text
    assert '"section": "Beyond the thesis"' in text


def test_the_contract_tests_take_the_new_attack(applied):
    shown = run(
        applied,
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/robustness_geometry/attacks/test_attack_contract.py",
        "-k",
        "contrast",
        "-q",
    )
    assert shown.count(".") > 10  # a dot for each that passed


@pytest.mark.parametrize("stage", STAGES)
def test_the_experiment_fits_every_stage(applied, recipes, stage):
    """Without settings of the stage's block it runs on the defaults of its own class."""
    code = recipes[PARTS["experiment"][0]]
    if stage == "universal":  # whose attack is Algorithm 4, as the guide says
        code = code.replace("        attack: the", "        smallest: the")
        code = code.replace("    attack: Attack = field", "    smallest: Attack = field")
        code = code.replace("settings.attack", "settings.smallest")
        assert code.count("smallest") == 3
    (applied / "stages" / stage / "confidence.py").write_text(code)
    listing = (
        "from hydra import compose, initialize_config_dir\n"
        "from stages.config import read\n"
        "from stages.experiments import select\n"
        f"with initialize_config_dir({str(applied / 'conf')!r}, version_base='1.3'):\n"
        "    config = read(compose('base', ['experiments=[confidence]']))\n"
        f"(found,) = select({stage!r}, config)\n"
        "print(found.name, found.function.__module__)\n"
    )
    (applied / "listing.py").write_text(listing)
    assert run(applied, "listing").split() == ["confidence", f"stages.{stage}.confidence"]
