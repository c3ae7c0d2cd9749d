"""What ``dvc repro`` would run, as jobs of Slurm: one a stage and network, after those it needs.

``python -m pipeline.cluster`` submits them and returns. Which stages there are, and what each
needs, is DVC's; when and where a job runs is Slurm's.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from robustness_geometry.checks import NOTHING, InputError, refuse

__all__ = ["CheckLauncher", "main", "planned", "submit"]

ROOT = Path(__file__).resolve().parent.parent
LOGS = "outputs/slurm"

_RESOURCES = {
    "partition": ("--partition={}", "partition", "name of the partition"),
    "time": ("--time={}", "timeout_min", "minutes, or as Slurm writes times: 1-12:00:00"),
    "memory": ("--mem={}G", "mem_gb", "gigabytes of memory"),
    "cpus": ("--cpus-per-task={}", "cpus_per_task", "number of cores"),
    "gpus": ("--gpus-per-node={}", "gpus_per_node", "number of GPUs"),
}
"""Option -> sbatch's option, the key in conf/hydra/launcher/slurm.yaml, and what it means."""


def planned(root: Path, *, force: bool = False) -> dict[str, list[str]]:
    """The stages that ``dvc repro`` would run, and all that rest on them.

    A stage that rests on one that changed is among them, whether or not the results turn out the
    same: its job then ends at once.

    Args:
        root: the repository's root.
        force: take all stages, also those that are up to date.

    Returns:
        Stage, such as ``attack@mnist5k_lenet`` -> stages among these whose results it needs, which
        come before it.
    """
    import networkx
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo:
        graph = repo.index.graph  # from each stage to those that it needs
        status = {} if force else repo.status()
        changed = [stage for stage in graph if force or stage.addressing in status]
        chosen = {*changed, *(above for s in changed for above in networkx.ancestors(graph, s))}
        order = reversed(list(networkx.topological_sort(graph)))
        return {
            stage.addressing: sorted(n.addressing for n in graph.successors(stage) if n in chosen)
            for stage in order
            if stage in chosen
        }


def submit(
    stages: Mapping[str, Sequence[str]],
    root: Path,
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    force: bool = False,
    wait: bool = False,
) -> dict[str, str]:
    """Submit a job for each stage; the jobs cancel those that need them when they fail.

    Args:
        stages: what :func:`planned` returns.
        root: the repository's root, which every node sees under the same name.
        words: further options of sbatch, for all jobs.
        environment: variables that the jobs get beside those of this process.
        force: run stages also where they are up to date.
        wait: wait for the last job.

    Returns:
        Stage -> id of its job.

    Raises:
        InputError: sbatch refuses a job; those that were submitted before are cancelled.
    """
    jobs: dict[str, str] = {}
    for stage, needs in stages.items():
        after = [f"afterok:{':'.join(jobs[each] for each in needs)}"] if needs else []
        last = ["--wait"] if wait and len(jobs) == len(stages) - 1 else []
        options = [
            "--parsable",
            f"--job-name={stage}",
            f"--chdir={root}",
            f"--output={LOGS}/%x-%j.log",
            "--open-mode=append",
            "--requeue",
            # The last: one run of a stage at a time, also where a graph is submitted twice.
            f"--dependency={','.join([*after, 'singleton'])}",
            "--kill-on-invalid-dep=yes",
        ]
        found = _sbatch([*options, *words, *last], _script(stage, environment, force=force))
        jobs[stage] = found.stdout.partition(";")[0].strip()
        if found.returncode and not jobs[stage]:
            if submitted := [job for job in jobs.values() if job]:
                subprocess.run(["scancel", *submitted], check=False)
            reason = " ".join(found.stderr.replace("sbatch: error: ", "").split())
            refuse("options of sbatch", shlex.join(words), f"such that Slurm takes them ({reason})")
    return jobs


def _sbatch(words: Sequence[str], script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sbatch", *words], input=script, text=True, capture_output=True, check=False
    )


def _script(stage: str, environment: Mapping[str, str], *, force: bool) -> str:
    """A job's script: DVC runs one stage, waiting while another job has DVC's files."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    variables = {"PATH": path, **environment}
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(["#!/bin/sh", *lines, shlex.join([*command, *["--force"] * force]), ""])


def _requested(given: argparse.Namespace) -> list[str]:
    """The resources of every job, as options of sbatch."""
    path = ROOT / "conf" / "hydra" / "launcher" / "slurm.yaml"
    defaults = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = []
    for name, (option, key, _) in _RESOURCES.items():
        value = getattr(given, name) or defaults[key]
        if name in ("memory", "cpus", "gpus") and value is not None:
            _check_number(f"--{name}", str(value))
        if value not in (None, "0"):
            words.append(option.format(value))
    return words


def _check_number(option: str, value: str) -> None:
    if not value.isdecimal() or (value == "0" and option != "--gpus"):
        refuse(option, value, f"a whole number >= {int(option != '--gpus')}")


def _session(root: Path) -> dict[str, str]:
    """Open the run in MLflow that the jobs' runs nest in: the variables by which they find it."""
    from pipeline import tracking  # here, as every sweep imports this module

    given = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")).get("tracking") or {}
    return tracking.begin_session(tracking.Settings(**given), "dvc repro on Slurm")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.cluster",
        description="Submit what dvc repro would run as jobs of Slurm, one a stage and network.",
        epilog="Any other option is sbatch's, such as --account=NAME. Defaults stand in "
        "conf/hydra/launcher/slurm.yaml.",
        allow_abbrev=False,
    )
    for name, (_, _, meaning) in _RESOURCES.items():
        parser.add_argument(f"--{name}", help=f"{meaning}, of each job")
    parser.add_argument("--force", action="store_true", help="also stages that are up to date")
    parser.add_argument("--wait", action="store_true", help="return when the last job has ended")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Submit the jobs, and name them.

    Raises:
        InputError: Slurm is not there, or refuses a job.
    """
    given, others = _parser().parse_known_args(arguments)
    words = [*_requested(given), *others]
    if shutil.which("sbatch") is None:
        refuse("sbatch", NOTHING, "on the PATH, as on the login node of a cluster with Slurm")
    os.chdir(ROOT)  # DVC names stages as seen from here
    stages = planned(ROOT, force=given.force)
    if not stages:
        print("every stage is up to date: there is nothing to submit")
        return
    (ROOT / LOGS).mkdir(parents=True, exist_ok=True)
    jobs = submit(
        stages,
        ROOT,
        words,
        environment=_session(ROOT),
        force=given.force,
        wait=given.wait,
    )
    for stage, job in jobs.items():
        after = " ".join(jobs[each] for each in stages[stage])
        print(f"{job}  {stage}{f'  after {after}' if after else ''}")
    print(f"{len(jobs)} jobs; squeue shows them, and {LOGS}/ has their output", flush=True)


class CheckLauncher(Callback):  # type: ignore[misc]
    """A Hydra callback: refuses Slurm's launcher before any work where Slurm is not installed."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check that the launcher can be used.

        Raises:
            SystemExit: it cannot; its code is the :class:`InputError`.
        """
        target = str(OmegaConf.select(config, "hydra.launcher._target_"))
        if target.endswith(".SlurmLauncher") and shutil.which("sbatch") is None:
            try:
                refuse("hydra/launcher", "slurm", "another one where Slurm's sbatch is not there")
            except InputError as error:  # Hydra would only warn of another exception
                raise SystemExit(error) from error


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"repro-slurm: {error}", file=sys.stderr)
        sys.exit(2)
