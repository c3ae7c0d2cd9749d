"""Runs a stage: prepares the network, calls the experiments, writes and logs the results."""

import gc
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipeline import tracking
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.ledger import RUN_TIME
from pipeline.processes import dvc_ancestor, root
from pipeline.statistics import exactly
from pipeline.storage import refuse_full_disk
from robustness_geometry.checks import InputError, refuse
from robustness_geometry.types import Dataset, Network
from stages.command_line import command_line
from stages.config import Config, typed
from stages.experiments import ACROSS, Experiment, select
from stages.headlines import headlines
from stages.meanwhile import begin_page
from stages.networks import ALL, Candidate, candidate, candidates
from stages.origin import begun, ended
from stages.overrides import check_used
from stages.results import check_folder, figure_files, write_results
from stages.tuning import tuned

__all__ = [
    "all_measured",
    "main",
    "only_run",
    "output_folder",
    "run_stage",
    "shown",
    "tracked",
]

MIXED = ("attack", "finetune", "train", "universal", "universal_transfer")
"""Stages that can run in mixed precision; the others measure differences of gradients."""

WAIT = 600
"""Seconds to wait for another run that writes the same results."""


def main(stage: str) -> None:
    """The command line of ``python -m stages.<stage>``, for single runs and multiruns."""
    command_line(stage, partial(run_stage, stage), partial(_check, stage))


def _check(stage: str, config: Config, raw: DictConfig, overrides: Sequence[str]) -> None:
    check_used(stage, tuned(config), raw, overrides)


def run_stage(stage: str, config: Config) -> None:
    """Run the chosen experiments of ``stage``: on one network, or on several together."""
    config = tuned(config)
    _check_precision(stage, config.executor["precision"])
    experiments = select(stage, config)
    folder = output_folder(config)
    check_folder(folder)
    origin = begun()
    chosen, notes = candidates(config) if stage in ACROSS else ([candidate(config)], [])
    for each in chosen:
        described = config.network is None and stage not in ACROSS
        notes = [*notes, *each.probe(experiments, described=described)]
    read = list(dict.fromkeys(note for each in chosen for note in each.data.notes))
    executor = Executor(**config.executor, alive=_parent_watch())
    if executor.is_global_zero:
        for note in read:
            print(f"{stage}: {note}", flush=True)
    with only_run(folder, executor), tracked(stage, config, chosen, experiments, executor) as run:
        gc.enable()  # the libraries are there
        networks = {each.name: each.network(stage, config, executor) for each in chosen}
        data = {each.name: each.data for each in chosen}
        findings, refused = all_measured(experiments, networks, data, executor)
        if config.network is None and stage not in ACROSS:
            notes = [*notes, f"Budget {config.budget.name}: {config.budget.description}."]
        for measured in findings.values():
            measured.notes.extend([*notes, *read])
        if not executor.is_global_zero:
            return
        sections = {e.name: e.section for e in experiments}
        weights = partial(chosen[0].save, networks[chosen[0].name]) if stage == "train" else None
        header = _header(stage, networks, data)
        with refuse_full_disk(folder):
            write_results(
                folder,
                header,
                findings,
                sections,
                share=executor.share,
                weights=weights,
                keep_tensors=dvc_ancestor() is None,
                origin=ended(origin, data, run.id),
            )
            _log(run, networks, data, findings, sections, folder)
        _tell(stage, config.suite.name, findings, folder, executor)
        if refused:
            raise InputError("; ".join(refused))


def _tell(
    stage: str, suite: str, findings: Mapping[str, Findings], folder: Path, executor: Executor
) -> None:
    """Say where the results are; under DVC, write the suite's page of them."""
    if dvc_ancestor() is None:
        if table := headlines(findings):
            print(table)
        print(f"{stage}: the results are in {shown(folder)}")
    elif page := begin_page(root(), suite):
        executor.say(f"the report so far: {page.relative_to(root())}")


def _check_precision(stage: str, precision: str) -> None:
    """Refuse half precision where the stage measures differences of gradients."""
    if precision in ("bf16-mixed", "16-mixed") and stage not in MIXED:
        refuse("executor.precision", precision, f"32-true or 64-true in the stage {stage}")


def all_measured(
    experiments: Sequence[Experiment],
    networks: Mapping[str, Network],
    data: Mapping[str, Dataset],
    executor: Executor,
) -> tuple[dict[str, Findings], list[str]]:
    """The findings of all experiments, and the errors of those that cannot use what they are given.

    Where others have results, these are written before the error ends the run.

    Raises:
        InputError: no experiment has results.
    """
    findings, refused = dict[str, Findings](), list[str]()
    for each in experiments:
        try:
            findings[each.name] = _measured(each, networks, data, executor)
        except InputError as error:
            if len(experiments) == 1:
                raise
            refused.append(f"{each.name}: {error}")
            findings[each.name] = Findings(notes=[f"Not measured: {error}."])
    if len(refused) == len(experiments):
        raise InputError("; ".join(refused))
    return findings, refused


def _measured(
    experiment: Experiment,
    networks: Mapping[str, Network],
    data: Mapping[str, Dataset],
    executor: Executor,
) -> Findings:
    """The experiment's findings, and a progress line that says how long it took."""
    began = time.monotonic()
    findings = experiment.measure(networks, data, executor)
    seconds = time.monotonic() - began
    findings.timings[RUN_TIME] = exactly(seconds)
    executor.say(f"{experiment.name}: {seconds:.0f} s")
    return findings


def output_folder(config: Config) -> Path:
    """Where results go: ``output``, else the folder that Hydra made for the run."""
    return Path(config.output) if config.output else Path(HydraConfig.get().runtime.output_dir)


def shown(folder: Path) -> Path:
    """The folder as seen from where the command was given."""
    whole, here = folder.resolve(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def _name(stage: str, names: Sequence[str]) -> str:
    return ALL if stage in ACROSS else names[0]


def _header(
    stage: str, networks: Mapping[str, Network], data: Mapping[str, Dataset]
) -> dict[str, Any]:
    """The entries at the top of ``metrics.json``."""
    header = {
        "network": _name(stage, list(networks)),
        "dataset": ", ".join(dict.fromkeys(each.name for each in data.values())),
        "seeds": sorted({seed for network in networks.values() for seed in network.models}),
    }
    return header | ({"networks": list(networks)} if stage in ACROSS else {})


def _log(
    run: tracking.Run,
    networks: Mapping[str, Network],
    data: Mapping[str, Dataset],
    findings: Mapping[str, Findings],
    sections: Mapping[str, str],
    folder: Path,
) -> None:
    for each in {id(each): each for each in data.values()}.values():
        run.log_dataset(each)
    for name, found in findings.items():
        run.log_findings(name, found, sections[name], figure_files(folder, name, found))
    if "train_classifiers" in findings:
        for name, network in networks.items():
            run.log_model(network.model, data[name].test.images[:2], name)
    run.log_file(folder / "metrics.json")


@contextmanager
def tracked(
    stage: str,
    config: Config,
    chosen: Sequence[Candidate],
    experiments: list[Experiment],
    executor: Executor,
) -> Iterator[tracking.Run]:
    """The run of a stage, logged with the networks and the settings of its experiments."""
    settings = typed(tracking.Settings, config.tracking, "tracking")
    if not executor.is_global_zero:
        settings = tracking.Settings(enabled=False)
    name = _name(stage, [each.name for each in chosen])
    specs = {each.name: asdict(each.spec) for each in chosen}
    parameters = {
        "suite": config.suite.name,
        "budget": config.budget.name,
        "network": name,
        **specs.get(name, specs),
        "seeds": config.seeds,
        "executor": {k: v for k, v in config.executor.items() if k not in ("progress", "work")},
        **{e.name: e.parameters() for e in experiments},
    }
    tags = {"thesis.section": "; ".join(dict.fromkeys(e.section for e in experiments))}
    with tracking.stage_run(
        settings,
        stage=stage,
        network=name,
        suite=config.suite.name,
        parameters=parameters,
        tags=tags,
    ) as run:
        yield run


@contextmanager
def only_run(folder: Path, executor: Executor) -> Iterator[None]:
    """Hold the lock of a results folder while this run may write into it.

    An orphan of a killed run then cannot write beside a new run.
    """
    if not executor.is_global_zero:
        yield
        return
    name = str(folder.resolve()).strip("/").replace("/", "-")
    if len(name) > 200:  # as long as the names of files may be, with room for a suffix
        name = hashlib.sha256(name.encode()).hexdigest()
    path = executor.work / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another run that writes {folder}", file=sys.stderr)
        try:
            lock.acquire(timeout=WAIT)
        except Timeout:
            wanted = f"a folder that no other run writes to (waited {WAIT} s for {path})"
            refuse("output", str(folder), wanted)
    try:
        yield
    finally:
        lock.release()


def _parent_watch() -> Callable[[], None] | None:
    """A check that the ``dvc`` process that started this stage still lives; None outside DVC."""
    parent = dvc_ancestor()
    return None if parent is None else partial(_stop_without, parent)


def _stop_without(parent: psutil.Process) -> None:
    if not parent.is_running():
        sys.exit(
            "stopped: the dvc process that started this stage has gone; finished chunks are kept"
        )
