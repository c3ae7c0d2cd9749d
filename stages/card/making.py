"""Measures what stands on a card with the experiments of all chapters, and writes the card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from pipeline.card import content, picked, written
from pipeline.card_lines import AGREEMENT, EXPERIMENTS
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.ledger import write_own
from pipeline.report.card import is_card, page
from pipeline.storage import refuse_full_disk
from pipeline.studies.agreement import seed_agreement
from robustness_geometry.checks import InputError, refuse
from robustness_geometry.types import Dataset, Network
from stages.command_line import command_line
from stages.config import Config
from stages.experiments import Experiment, select
from stages.names import STAGES, stage_of
from stages.networks import Candidate, candidate
from stages.overrides import check_used
from stages.results import check_folder, figure_files, write_results
from stages.runner import all_measured, only_run, output_folder, shown, tracked
from stages.tuning import tuned

__all__ = ["main", "make_card"]

OF_STAGE = {
    stage: names
    for stage in STAGES
    if (names := [name for name in EXPERIMENTS if stage_of(name) == stage])
}
"""The card's experiments by their stage."""


def main() -> None:
    """The command line of ``python -m stages.card``."""
    command_line("card", make_card, _check)


def _check(config: Config, raw: DictConfig, overrides: Sequence[str]) -> None:
    """Check that every override of a setting is used by one of the card's experiments."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for text, override in zip(overrides, parsed, strict=True):
        key = str(override.package or override.key_or_group)
        head, name = [*key.split("."), ""][:2]
        if head == "settings" and name not in EXPERIMENTS:
            raise InputError(f"{key} is not used, as the card takes {', '.join(EXPERIMENTS)}")
        stage = stage_of(name) if head == "settings" else head
        if stage in OF_STAGE:
            check_used(stage, _of(config, stage), raw, [text])
        elif stage in STAGES:
            taken = ", ".join(OF_STAGE)
            raise InputError(f"{key} is not used, as the card takes experiments of {taken}")


def _of(config: Config, stage: str) -> Config:
    """The configuration with the card's experiments of one stage."""
    asked = OF_STAGE[stage]
    if config.experiments is not None:
        asked = [name for name in asked if name in config.experiments]
    return replace(config, experiments=asked)


def _chosen(config: Config) -> dict[str, list[Experiment]]:
    """The experiments to run, by stage."""
    unknown = [name for name in config.experiments or () if name not in EXPERIMENTS]
    if unknown:
        refuse("experiments", unknown[0], "some of " + ", ".join(EXPERIMENTS))
    found = {stage: _of(config, stage) for stage in OF_STAGE}
    return {stage: select(stage, each) for stage, each in found.items() if each.experiments}


@dataclass(frozen=True)
class _Subject:
    """The network of the card, what is asked of it, and what limits the answers."""

    network: Network
    data: Dataset
    experiments: Sequence[Experiment]
    notes: Sequence[str]


def make_card(config: Config) -> None:
    """Measure the card's numbers on one network, and write ``card.json`` and ``card.html``.

    The results of the experiments lie beside them, as every stage writes them.

    Raises:
        InputError: nothing can be measured; an experiment that cannot use the network is noted.
    """
    config = tuned(config)
    experiments = [each for chosen in _chosen(config).values() for each in chosen]
    folder = output_folder(config)
    check_folder(folder)
    subject = candidate(config)
    experiments, unsuited = _suited(experiments, subject)
    notes = subject.probe(experiments, described=config.network is None)
    executor = Executor(**config.executor)
    with (
        only_run(folder, executor),
        tracked("card", config, [subject], experiments, executor) as run,
    ):
        network = subject.network("card", config, executor)
        taken = _Subject(network, subject.data, experiments, [*notes, *subject.data.notes])
        findings = unsuited | _measure(taken, executor)
        if not executor.is_global_zero:
            return
        with refuse_full_disk(folder):
            _write(folder, config, taken, findings, executor)
            run.log_findings("card", Findings(numbers=picked(findings)), "")
            for name in ("card.json", "card.html"):
                run.log_file(folder / name)
    print(f"card: {shown(folder / 'card.html')}")


def _suited(
    experiments: Sequence[Experiment], subject: Candidate
) -> tuple[list[Experiment], dict[str, Findings]]:
    """The experiments whose settings suit the network's data, and why the others' do not.

    Raises:
        InputError: none does.
    """
    suited, others = list[Experiment](), dict[str, Findings]()
    for each in experiments:
        try:
            each.check(subject.name, subject.data)
        except InputError as error:
            if len(experiments) - len(others) == 1 and not suited:
                raise
            others[each.name] = Findings(notes=[f"Not measured: {error}."])
        else:
            suited.append(each)
    return suited, others


def _measure(subject: _Subject, executor: Executor) -> dict[str, Findings]:
    """The findings of all experiments, and the card's own."""
    name = subject.network.name
    findings, refused = all_measured(
        subject.experiments, {name: subject.network}, {name: subject.data}, executor
    )
    for reason in refused:
        executor.say(reason)
    findings[AGREEMENT] = seed_agreement(subject.network, subject.data, executor)
    return findings


def _write(
    folder: Path,
    config: Config,
    subject: _Subject,
    findings: Mapping[str, Findings],
    executor: Executor,
) -> None:
    sections = dict.fromkeys(findings, "")
    sections |= {each.name: each.section for each in subject.experiments}
    network, data = subject.network, subject.data
    header: dict[str, Any] = {
        "network": network.name,
        "dataset": data.name,
        "seeds": sorted(network.models),
    }
    write_results(folder, header, findings, sections, share=executor.share)
    about = header | {
        "classes": len(data.classes),
        "shape": list(data.shape),
        "parameters": sum(each.numel() for each in network.model.parameters()),
        "budget": config.budget.name,
    }
    card = content(about, findings) | {"notes": list(subject.notes)}
    files = {name: figure_files(folder, name, found) for name, found in findings.items()}
    write_own(folder / "card.json", written(card), is_card)
    write_own(folder / "card.html", page(card, files), is_card)
