"""A rehearsal: every stage and network of a suite, tiny, on made-up pictures.

``python -m pipeline.rehearsal suite=thesis networks=mnist_lenet,cifar10_nin`` copies the checkout
to a temporary folder, makes up small data sets in the published formats there, sets
``budget=smoke`` and runs ``dvc repro`` on the CPU. Nothing of the checkout is touched. It tells
whether everything runs to its end, never what would come out: pictures and numbers mean nothing.
Weights are fresh, and trainings take three epochs.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

import yaml

from pipeline import made_up
from pipeline.params import ROOT, composed
from pipeline.processes import termination_raises
from robustness_geometry.checks import InputError, refuse

__all__ = ["Stage", "adapted", "copied", "main", "table"]

COUNTS = {"imagenet": (0, 12), "photographs": (20, 12)}
"""Training and held-out pictures, where they are not the following ones."""

USUAL = (150, 60)
SHORT = {
    "epochs": 3,
    "batch_size": 15,
    "schedule": "constant",
    "milestones": [],
    "final_rate": 0.0,
    "optimiser": "sgd",
    "learning_rate": 0.01,  # larger ones diverge in fine-tuning after so short a training
}
"""How networks are trained."""

BLOCKS = ("finetune", "semirandom", "curvature", "topology", "detect", "cure")
OWN = "robustness_geometry.datasets."
FAILED, RAN, WAITED = "failed", "ran", "not run"
STARTED = re.compile(r"^Running stage '([^']+)'")


@dataclass
class Stage:
    """What became of a stage.

    Attributes:
        name: its name in DVC, such as ``attack@mnist_lenet``.
        outcome: ``ran``, ``failed``, or ``not run`` where a stage before it failed.
        seconds: how long it took; 0 where it did not run.
        measured: how many of its experiments have numbers, and how many there are, as text.
    """

    name: str
    outcome: str = WAITED
    seconds: float = 0.0
    measured: str = ""


def adapted(params: dict[str, Any], names: Sequence[str], data: Path) -> dict[str, Any]:
    """The composed parameters of a suite, for made-up pictures, fresh weights and a CPU.

    Args:
        params: params.yaml as plain values, which are changed.
        names: the networks to keep; none: all.
        data: the folder of the made-up data sets, one folder each.

    Raises:
        InputError: a network that the suite does not have.
    """
    known = params["networks"]
    for name in names:
        if name not in known:
            refuse("networks", name, f"names of the suite's networks, {', '.join(known)}")
    kept = {name: known[name] for name in known if name in names or not names}
    suite = params["suite"]
    suite["networks"] = {
        stage: [name for name in listed if name in kept]
        for stage, listed in suite["networks"].items()
    }
    first = next(iter(kept))
    answers = suite.get("counterparts", {})
    suite["counterparts"] = {
        theirs: name if name in kept else first
        for theirs, name in answers.items()
        if name in kept or theirs == "default"
    }
    params["networks"] = {name: _small(network, data) for name, network in kept.items()}
    params["executor"] |= {"accelerator": "cpu", "devices": 1, "progress": False, "threads": 1}
    params["tracking"] |= {"uri": None, "log_models": False}
    if _sets(params) & set(COUNTS):  # a thousand classes
        few = [params["attack"], *(params[block] for block in BLOCKS)]
        for leaf in [*few, *(each.get(k) for each in few for k in ("attack", "boundary_attack"))]:
            if isinstance(leaf, dict) and "candidates" in leaf:
                leaf["candidates"] = 3
    return params


def _sets(params: Mapping[str, Any]) -> set[str]:
    """The data sets of the suite whose files are made up."""
    names = {_set_of(network) for network in params["networks"].values()}
    return names & set(made_up.DATASETS)


def _set_of(network: Mapping[str, Any]) -> str:
    return str(network["dataset"]["_target_"]).rpartition(".")[2]


def _small(network: dict[str, Any], data: Path) -> dict[str, Any]:
    """A network with made-up pictures, fresh weights and a short training."""
    name, leaf, model = _set_of(network), network["dataset"], network["model"]
    if name in made_up.DATASETS:
        leaf |= {"_target_": f"{made_up.__name__}.{name}", "root": str(data / name)}
        if "download" in leaf:
            leaf["download"] = False
    for key, count in zip(("train_limit", "test_limit"), COUNTS.get(name, USUAL), strict=True):
        if name not in COUNTS or leaf.get(key) is not None:
            leaf[key] = count
    if model.get("checkpoint") or model.get("weights"):
        model |= {"checkpoint": "random"} | ({"weights": None} if "weights" in model else {})
    elif "epochs" in network["training"]:
        network["training"] |= SHORT
    return network


def copied(root: Path, place: Path) -> Path:
    """A copy of the checkout without results: what git knows or does not ignore, as it stands.

    Args:
        root: the checkout, or an unpacked archive of it.
        place: the folder to be made.
    """
    left = {"results", "reports", "dvc.lock"}
    for name in _files(root):
        if Path(name).parts[0] not in left and (root / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, place / name)
    settings = place / ".dvc" / "config.local"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    return place


def _files(root: Path) -> Iterable[str]:
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip("\0").split("\0")
    inside = ["conf", "pipeline", "robustness_geometry", "stages", ".dvc/config", "dvc.yaml"]
    places = [path for name in inside for path in (root / name, *(root / name).rglob("*"))]
    return [path.relative_to(root).as_posix() for path in places if "__pycache__" not in path.parts]


def _without_across(place: Path) -> None:
    """Take the stages across networks out of the graph, as one network alone cannot run them."""
    path = place / "dvc.yaml"
    graph = yaml.safe_load(path.read_text(encoding="utf-8"))
    across = [name for name in graph["stages"] if name.endswith("_transfer")]
    for name in across:
        del graph["stages"][name]
    report = graph["stages"]["report"]
    report["deps"] = [dep for dep in report["deps"] if Path(dep).name not in across]
    path.write_text(yaml.safe_dump(graph, sort_keys=False), encoding="utf-8")


def prepared(place: Path, suite: str, names: Sequence[str], overrides: Sequence[str]) -> None:
    """Make the copy, its parameters and its data.

    Args:
        place: the folder to be made.
        suite: the suite's name.
        names: the networks to keep; none: all.
        overrides: further settings, such as ``seeds=[0,1]``.
    """
    known = sorted(path.stem for path in (ROOT / "conf" / "suite").glob("*.yaml"))
    if suite not in known:
        refuse("suite", suite, f"one of {', '.join(known)}")
    text = composed([f"suite={suite}", "budget=smoke", *overrides])
    params = yaml.safe_load(text)
    sets = _sets(adapted(params, names, place / "data"))
    copied(ROOT, place)
    (place / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    if len(params["networks"]) == 1:
        _without_across(place)
    for name in sets:
        train, test = COUNTS.get(name, USUAL)
        made_up.make(name, place / "data" / name, train=train, test=test)


def run(place: Path, log: Path) -> list[Stage]:
    """Run ``dvc repro`` in the copy, past stages that fail; what it prints goes to ``log``."""
    dvc = [sys.executable, "-m", "dvc"]
    own = str(Path(sys.executable).parent)  # the stages' `python` is this one
    environment = {**os.environ, "PATH": f"{own}{os.pathsep}{os.environ.get('PATH', '')}"}
    environment["PYTHONUNBUFFERED"] = "1"  # so that lines come when they are printed
    listing = subprocess.run(
        [*dvc, "stage", "list", "--name-only"],
        cwd=place, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    stages = {name: Stage(name) for name in listing.stdout.split()}
    command = [*dvc, "repro", "--keep-going"]
    pipe, join = subprocess.PIPE, subprocess.STDOUT
    with (
        log.open("w", encoding="utf-8", buffering=1) as file,
        subprocess.Popen(command, cwd=place, env=environment, stdout=pipe, stderr=join, text=True)
        as running,
    ):  # fmt: skip
        try:
            with termination_raises():
                _follow(running.stdout or (), stages, file.write)
        except BaseException:
            running.terminate()  # a stage stops without its dvc
            raise
    lock = place / "dvc.lock"
    done = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.exists() else {}
    for stage in stages.values():
        if stage.outcome == FAILED and stage.name in done:
            stage.outcome = RAN
        stage.measured = _measured(place, stage.name)
    return list(stages.values())


def _follow(lines: Iterable[str], stages: Mapping[str, Stage], write: Any) -> None:
    """Time the stages by what DVC prints; each counts as failed until it is found to have run."""
    current, began = Stage(""), time.monotonic()
    for line in lines:
        write(line)
        if found := STARTED.match(line):
            _end(current, began)
            current, began = stages.get(found[1], Stage(found[1])), time.monotonic()
            current.outcome = FAILED
    _end(current, began)


def _end(stage: Stage, began: float) -> None:
    stage.seconds = time.monotonic() - began
    if stage.name:
        print(f"{stage.name}: {stage.seconds:.0f} s", file=sys.stderr, flush=True)


def _measured(place: Path, name: str) -> str:
    """How many experiments of a stage have numbers, of how many."""
    stage, _, network = name.partition("@")
    found = list((place / "results").glob(f"*/{stage}/{network or 'all'}/metrics.json"))
    if not found:
        return ""
    every = loads(found[0].read_text(encoding="utf-8"))["experiments"]
    return f"{sum(bool(each['numbers']) for each in every.values())} of {len(every)}"


def table(stages: Sequence[Stage]) -> str:
    """The stages as lines of text, with a last line that counts them.

    Example:
        >>> from pipeline.rehearsal import Stage, table
        >>> print(table([Stage("train@mnist_lenet", "ran", 12.4, "1 of 1"), Stage("report")]))
        stage                outcome  seconds  experiments with numbers
        train@mnist_lenet    ran           12  1 of 1
        report               not run        0
        1 of 2 stages ran, 0 failed, 12 s in all
    """
    width = max([20, *(len(stage.name) for stage in stages)])
    lines = [f"{'stage':{width}} outcome  seconds  experiments with numbers"]
    lines += [
        f"{each.name:{width}} {each.outcome:7}  {each.seconds:7.0f}  {each.measured}".rstrip()
        for each in stages
    ]
    ran, failed = (sum(each.outcome == what for each in stages) for what in (RAN, FAILED))
    seconds = sum(each.seconds for each in stages)
    last = f"{ran} of {len(stages)} stages ran, {failed} failed, {seconds:.0f} s in all"
    return "\n".join([*lines, last])


def main(arguments: Sequence[str]) -> int:
    """Rehearse a suite and print the table; returns the exit code, 1 where a stage did not run."""
    given = dict(word.partition("=")[::2] for word in arguments)
    names = [name for name in given.pop("networks", "").strip("[]").split(",") if name]
    suite = given.pop("suite", "thesis")
    place = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    try:
        prepared(place, suite, names, [f"{key}={value}" for key, value in given.items()])
        stages = run(place, place / "rehearsal.log")
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    print(table(stages))
    if all(stage.outcome == RAN for stage in stages):
        shutil.rmtree(place, ignore_errors=True)
        return 0
    print(f"what every stage printed: {place / 'rehearsal.log'}", file=sys.stderr)
    return 1


def command(arguments: Sequence[str]) -> int:
    """``main``, with one line and exit code 2 for what cannot be used."""
    from hydra.errors import HydraException

    try:
        return main(arguments)
    except (InputError, HydraException) as error:
        print(f"rehearsal: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
