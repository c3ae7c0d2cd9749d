"""What is imported when, and what is said about packages that are not installed."""

import subprocess
import sys

import pytest

from robustness_geometry.checks import InputError
from robustness_geometry.extras import folder, require

PACKAGES = ("", ".attacks", ".geometry", ".models", ".datasets", ".training")
LATER = (
    *("pandas", "matplotlib", "hydra", "mlflow", "lightning", "lightning_fabric", "torchvision"),
    *("sklearn", "mlxtend", "networkx", "timm", "scipy", "PIL", "psutil", "pyautoattack"),
)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_the_library_loads_no_package_that_only_some_need(package, root):
    code = f"import sys, robustness_geometry{package}\nprint(*{LATER!r} & sys.modules.keys())"
    code = code.replace(repr(LATER), f"set({LATER!r})")
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []


def test_a_package_that_is_there_is_imported():
    assert require("json.decoder", "examples") is sys.modules["json.decoder"]
    assert folder("json", "examples").name == "json"


@pytest.mark.parametrize("find", [require, folder])
def test_a_package_that_is_not_there_is_named_with_its_extra(find):
    with pytest.raises(InputError) as caught:
        find("no_such_package", "examples")
    assert str(caught.value) == (
        "package no_such_package must be installed: "
        "pip install robustness-geometry[examples]; got nothing"
    )
