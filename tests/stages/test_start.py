"""Who imports the package keeps the garbage collector; only a stage's own process goes without while it starts."""

import subprocess
import sys


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
