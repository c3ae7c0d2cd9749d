"""How a stage's process starts and ends: its garbage collector, and its help without torch."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

from pipeline.card_lines import EXPERIMENTS
from stages.experiments import ACROSS, STAGES, experiments_of


def said(root, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, capture_output=True, text=True, check=False
    )


def test_an_import_leaves_the_collector_on(root):
    assert said(root, "-c", "import gc, stages; print(gc.isenabled())").stdout == "True\n"


def test_the_command_line_ends_without_a_word_of_leaks(root, tmp_path):
    wrong = ("detect.directions=0", "network=mnist5k_lenet", f"hydra.run.dir={tmp_path}")
    done = said(root, "-m", "stages.detect", *wrong)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("stage", [*STAGES, *ACROSS, "report", "card"])
def test_help_lists_what_can_be_set_without_importing_torch(root, stage):
    program = (
        "import runpy, sys, time; began = time.monotonic(); sys.argv = ['stage', '--help']; "
        f"runpy.run_module('stages.{stage}', run_name='__main__'); "
        "print('torch' in sys.modules, time.monotonic() - began)"
    )
    done = said(root, "-c", program)
    *lines, last = done.stdout.splitlines()
    text = "\n".join(lines)
    torch, seconds = last.split()
    assert done.returncode == 0, done.stderr
    assert torch == "False"
    assert float(seconds) < 3
    assert text.startswith(f"python -m stages.{stage} ")
    assert "--hydra-help" in text
    assert all(len(line) <= 100 for line in lines)
    examples = [line for line in lines if line.startswith(f"  python -m stages.{stage}")]
    assert len(examples) == 5
    for group in ("suite=", "executor=", "tracking="):
        assert f"  {group}" in lines
    if stage == "card":
        assert all(any(line.startswith(f"  {name}  (") for line in lines) for name in EXPERIMENTS)
        return
    for name, module in (experiments_of(stage) if stage != "report" else {}).items():
        experiment = importlib.import_module(module)
        assert f"  {name}  ({experiment.SECTION})" in lines
        for entry in dataclasses.fields(experiment.Settings):
            assert any(line.startswith(f"  {entry.name}: ") for line in lines), entry.name


def test_help_tells_type_default_and_meaning(root):
    lines = said(root, "-m", "stages.curvature", "--help").stdout.splitlines()
    index = lines.index("  h: number or null, default null")
    assert lines[index + 1].startswith("      ")
    assert len(lines[index + 1].split()) > 3
    assert "  output: text, default logits" in lines
    assert "Options set by settings.sc_diversity.<option>=value:" in lines
    assert any(line.startswith("      autoattack, ddn, deepfool") for line in lines)


def test_hydra_keeps_its_own_help(root):
    assert "Hydra" in said(root, "-m", "stages.attack", "--hydra-help").stdout
