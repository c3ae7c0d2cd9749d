"""Runs of stages and of dvc that can be disturbed, and the table of what was tried."""

import atexit
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.update(OMP_NUM_THREADS="1", DVC_NO_ANALYTICS="1", MPLBACKEND="agg")
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

import torch

from pipeline.tracking import _mlflow
from robustness_geometry.training import warm_up
from stages import runner

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "suite=smoke",
    "budget=smoke",
    "network=mnist5k_lenet",
    "executor.workers=2",
    "executor.progress=false",
)
EXPERIMENTS = {
    "train": "train_classifiers",
    "attack": "attack_l2",
    "universal": "uap_main",
    "cure": "cure_eps_curve",
}
"""Stage -> the experiment that is disturbed."""

QUICK = {
    "train": ("networks.mnist5k_lenet.training.epochs=3",),
    "attack": ("settings.attack_l2.lbfgs_samples=4", "settings.attack_l2.judge_samples=20"),
    "universal": ("settings.uap_main.norms=[2.0]", "settings.uap_main.random_vectors=2"),
    "cure": ("settings.cure_eps_curve.samples=20",),
}
"""Stage -> what makes its runs short."""

TRIED: list[tuple[str, str]] = []

torch.set_num_threads(1)
warm_up()  # what every run imports is imported once, here
_mlflow()
for _stage, _experiment in EXPERIMENTS.items():
    importlib.import_module(f"stages.{_stage}.{_experiment}")


@dataclass
class Ended:
    """How a process ended: its exit code (negative: the signal), stderr, and the seconds."""

    code: int
    errors: str
    seconds: float


class Disturbed:
    """A stage in a process forked from this one, which spares the imports of its libraries.

    Args:
        folder: its results, finished work and messages lie there.
        stage: the stage.
        arguments: overrides of its command line.
        before: called in the process before it starts, such as to set a limit.
    """

    def __init__(
        self, folder: Path, stage: str, *arguments: str, before: Callable[[], object] = lambda: None
    ) -> None:
        self.errors, self.began = folder / "stderr", time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        own = {
            "experiments": f"[{EXPERIMENTS[stage]}]",
            "tracking": "none",
            "executor.work": folder / "work",
            "hydra.run.dir": folder / "run",
            "output": folder / "results",
        }
        keys = {each.partition("=")[0] for each in arguments}
        if any(key.startswith("tracking.") for key in keys):
            keys.add("tracking")
        words = [f"{key}={value}" for key, value in own.items() if key not in keys]
        self.pid = os.fork()
        if not self.pid:
            quick = QUICK[stage] if "experiments" not in keys else ()
            self._run(stage, [*SMALL, *words, *quick, *arguments], before)

    def _run(self, stage: str, arguments: list[str], before: Callable[[], object]) -> None:
        os.setsid()
        code = 1
        with self.errors.open("w") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        sys.argv = ["stages", *arguments]
        try:
            before()
            runner.main(stage)
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
            if isinstance(stopped.code, str):
                print(stopped.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            sys.stderr.flush()
            os._exit(code)

    def kill(self, *, group: bool) -> None:
        try:
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not made its group yet
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> Ended:
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        errors = self.errors.read_text(errors="replace")
        return Ended(code, errors, time.monotonic() - self.began)


def stage(folder: Path, name: str, *arguments: str, **options: Callable[[], object]) -> Ended:
    """Run a stage to its end."""
    return Disturbed(folder, name, *arguments, **options).end()


def results(folder: Path) -> dict[str, str]:
    """The digest of every result; seconds are no results."""
    paths = [folder / "metrics.json"]
    paths += [p for part in ("tables", "figures", "tensors") for p in (folder / part).rglob("*")]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
        if path.is_file()
    }


def one_line(ended: Ended, *words: str) -> str:
    """Check that a run ended in one line with those words; returns the line."""
    lines = ended.errors.strip().splitlines()
    assert ended.code in (1, 2), ended
    assert "Traceback" not in ended.errors, ended.errors
    assert len(lines) == 1, ended.errors
    assert all(word in lines[0] for word in words), lines[0]
    return lines[0]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Stage -> the folder of an undisturbed run, and its seconds; run at the first use."""
    found: dict[str, tuple[Path, float]] = {}

    def run(name: str) -> tuple[Path, float]:
        if name not in found:
            folder = tmp_path_factory.mktemp(f"undisturbed-{name}")
            ended = stage(folder, name)
            assert ended.code == 0, ended.errors
            found[name] = folder, ended.seconds
        return found[name]

    return run


@pytest.fixture
def identical(undisturbed):
    """Check that a stage runs to its end in a folder, with the results of an undisturbed run."""

    def check(folder: Path, name: str, *arguments: str) -> Ended:
        ended = stage(folder, name, *arguments)
        assert ended.code == 0, ended.errors
        assert "Traceback" not in ended.errors, ended.errors
        assert results(folder / "results") == results(undisturbed(name)[0] / "results")
        return ended

    return check


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """A copy of the repository on the smallest suite, and the results of its stage train."""
    place = tmp_path_factory.mktemp("repository")
    words = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("results/", "tests/", "dvc.lock")) and (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    command("dvc", "config", "--local", "core.no_scm", "true", place=place)
    made = command(sys.executable, "-m", "pipeline.params", "suite=smoke", place=place)
    assert made.code == 0, made.errors
    began = repro(place)
    assert began.code == 0, began.errors
    return place, results(place / TRAINED), began.seconds


TRAINED = "results/smoke/train/mnist5k_lenet"
REPRO = ("dvc", "repro", "train@mnist5k_lenet")


def command(*words: str, place: Path) -> Ended:
    """Run a program to its end; stderr holds all that it said."""
    began = time.monotonic()
    done = subprocess.run(
        words, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280
    )
    return Ended(done.returncode, done.stdout, time.monotonic() - began)


def repro(place: Path) -> Ended:
    """Run the stage train by dvc."""
    return command(*REPRO, place=place)


def forget(place: Path) -> None:
    """Remove all that dvc and the stage have made, so that the next run does everything anew."""
    for name in ("results", "work", "outputs", "mlruns", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(place / name, ignore_errors=True)
    for name in ("dvc.lock", "mlflow.db", "mlflow.db-wal", "mlflow.db-shm"):
        (place / name).unlink(missing_ok=True)


@pytest.fixture
def tried():
    """Note what was tried and how it ended, for the table."""
    return lambda what, how: TRIED.append((what, how))


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of some bytes, which may be made read-only; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(name: str, size: int) -> Path:
        place = tmp_path / name
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("only root may mount a small disk")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, option: str) -> None:
    """Change a mounted disk: ``ro``, ``rw`` or ``size=...``."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


def pytest_terminal_summary(terminalreporter) -> None:
    lost = terminalreporter.stats.get("failed", []) + terminalreporter.stats.get("error", [])
    rows = [*TRIED, *((each.nodeid.rpartition("::")[2], "LOST, or a traceback") for each in lost)]
    skipped = terminalreporter.stats.get("skipped", [])
    rows += [(each.nodeid.rpartition("::")[2], f"skipped: {each.longrepr[2]}") for each in skipped]
    width = max((len(what) for what, _ in rows), default=0)
    terminalreporter.section("what was tried, and how it ended")
    for what, how in rows:
        terminalreporter.write_line(f"{what:<{width}}  {how}")
