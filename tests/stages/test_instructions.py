"""A stage asks for the same instructions on every x86 processor; an import does not."""

import os
import platform
import subprocess
import sys

import pytest

from stages import INSTRUCTIONS

CODE = "import os, runpy; {}; print(*(os.environ.get(name) for name in {}))"


def seen(code, environment):
    names = repr(list(INSTRUCTIONS))
    command = [sys.executable, "-c", CODE.format(code, names)]
    free = {key: value for key, value in os.environ.items() if key not in INSTRUCTIONS}
    done = subprocess.run(command, env={**free, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 alone")
def test_a_stage_sets_them_unless_they_are_set():
    start = "import sys; sys.argv[0] = '-m'; import stages"
    assert seen(start, {}) == list(INSTRUCTIONS.values())
    assert seen(start, {"ATEN_CPU_CAPABILITY": "default"})[0] == "default"


def test_an_import_sets_nothing():
    assert seen("import stages", {}) == ["None"] * len(INSTRUCTIONS)
