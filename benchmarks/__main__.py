"""Run the comparison: ``python -m benchmarks [--device cuda] [--only minimum_norm ...]``."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import minimum_norm
from benchmarks.comparison import OURS, Subject, compare, fastest_batches, measure_bound
from benchmarks.cure import measure_cure
from benchmarks.curvature import measure_curvature
from benchmarks.detection import measure_detection
from benchmarks.machine import describe, slug
from benchmarks.minimum_norm import measure_minimum_norms
from benchmarks.peers import PEERS, Peer
from benchmarks.report import SECTIONS, markdown
from benchmarks.subspace import measure_subspaces
from benchmarks.universal import Setting, measure_universal
from robustness_geometry.checks import InputError, check_choice, check_count, refuse
from robustness_geometry.datasets import mnist5k
from robustness_geometry.models import pretrained
from robustness_geometry.types import Dataset

__all__ = ["main"]

NORM_IMAGES = 200
"""Largest number of digits whose minimum norm is looked for."""
RESULTS = Path(__file__).parent / "results"
NETWORK = "mnist5k_lenet"
TRAINED = ("mnist5k_lenet", "mnist5k_fc500_150_10", "mnist5k_nin")
"""The networks on which a training step is timed."""
UNIVERSAL_IMAGES = 200
"""Training digits of which universal perturbations are made."""
MINIMUM_NORM = "minimum_norm"
PARTS = ("comparisons", *SECTIONS, MINIMUM_NORM)
"""What ``--only`` takes."""


@dataclass(frozen=True)
class Options:
    """The checked options of a run.

    Attributes:
        device: where networks and images are.
        images: number of test digits attacked.
        repeats: number of timed rounds.
        peers: the libraries beside which DeepFool is measured.
    """

    device: torch.device
    images: int
    repeats: int
    peers: Sequence[Peer]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and write them with the raw figures.

    Returns:
        The exit code: 0, or 2 for a wrong option.
    """
    given = _parser().parse_args(arguments)
    try:
        parts = [check_choice("only", part, PARTS) for part in given.only or PARTS]
        options = Options(
            _device(given.device),
            check_count("images", given.images),
            check_count("repeats", given.repeats),
            [peer for peer in PEERS if peer.name in _peers(given.peers)],
        )
        torch.set_num_threads(check_count("threads", given.threads))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    torch.backends.cudnn.allow_tf32 = False  # as the project's attacks run
    machine = describe(options.device)
    speed = [part for part in parts if part != MINIMUM_NORM]
    if speed:
        _write_speed(_measured(speed, options, machine), given.output)
    if MINIMUM_NORM in parts:
        _say("minimum norm against passes")
        found = measure_minimum_norms(
            options.device, images=min(options.images, NORM_IMAGES), small=given.small
        )
        _write_norms({"machine": machine} | found, given.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:<index>")
    add("--images", type=int, default=512, help="test digits attacked (slow peers get fewer)")
    add("--repeats", type=int, default=5, help="timed rounds")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    add("--small", type=int, default=40, help="digits whose exact distance is looked for; 0: none")
    add(
        "--only",
        nargs="+",
        metavar="PART",
        help=f"measure only these, and keep the rest of the results: {', '.join(PARTS)}",
    )
    add("--peers", nargs="+", help="libraries beside which DeepFool is measured; default: all")
    return parser


def _peers(names: Sequence[str] | None) -> Sequence[str]:
    known = tuple(peer.name for peer in PEERS)
    return [check_choice("peers", name, known) for name in (known if names is None else names)]


def _measured(
    parts: Sequence[str], options: Options, machine: dict[str, object]
) -> dict[str, object]:
    """Measure the parts whose results are times."""
    data, model = mnist5k(), _placed(NETWORK, options.device)
    test, repeats = data.test.first(options.images), options.repeats
    subject = Subject.of(model, test.images.to(options.device))
    results: dict[str, object] = {
        "network": NETWORK,
        "machine": machine,
        "repeats": repeats,
        "missing": [peer.name for peer in options.peers if not peer.installed],
    }
    makers: dict[str, Callable[[], dict[str, object]]] = {
        "comparisons": partial(_compared, subject, options),
        "universal": partial(_universal, data, model, options),
        "subspaces": partial(_subspaces, subject, repeats),
        "curvature": partial(measure_curvature, model, subject.images, repeats=repeats),
        "detection": partial(
            measure_detection, model, data.test.images.to(options.device), repeats=repeats
        ),
        "cure": partial(_cure, data, options),
    }
    for part in parts:
        _say(part)
        found = makers[part]()
        results |= found if part == "comparisons" else {part: found}
    return results


def _compared(subject: Subject, options: Options) -> dict[str, object]:
    """DeepFool beside its peers, and beside the bound on its speed."""
    batches, repeats = fastest_batches(subject), options.repeats
    rows = {
        title: compare(subject, batches, clip=clip, repeats=repeats, peers=options.peers)
        for title, clip in (("No clipping", False), ("Clipped to [0, 1]", True))
    }
    return {
        "comparisons": {title: [row.as_dict() for row in found] for title, found in rows.items()},
        "bound": measure_bound(subject, batch=batches[OURS], repeats=repeats),
    }


def _universal(data: Dataset, model: nn.Module, options: Options) -> dict[str, object]:
    chosen = data.train.first(UNIVERSAL_IMAGES).images.to(options.device)
    setting = Setting.of(model, chosen, data.test.images.to(options.device))
    return measure_universal(setting, shufflings=options.repeats)


def _subspaces(subject: Subject, repeats: int) -> dict[str, object]:
    batch = fastest_batches(subject)[OURS]
    return measure_subspaces(subject.model, subject.images, batch=batch, repeats=repeats)


def _cure(data: Dataset, options: Options) -> dict[str, object]:
    trained = {name: _placed(name, options.device) for name in TRAINED}
    images, labels = data.train.images, data.train.labels
    return measure_cure(
        trained, images.to(options.device), labels.to(options.device), repeats=options.repeats
    )


def _placed(name: str, device: torch.device) -> nn.Module:
    """A network of the library as the stages place it: on a CPU with its channels last.

    It is the same for all libraries.
    """
    model = pretrained(name).to(device)
    return model.to(memory_format=torch.channels_last) if device.type == "cpu" else model


def _say(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        refuse("device", text, "cpu, cuda or cuda:<index>")
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and not torch.cuda.is_available()
    ):
        refuse("device", text, "cpu, or cuda on a machine that has it")
    return device


def _write_speed(results: dict[str, object], folder: Path) -> None:
    """Write what was measured over the same parts of the device's file, and print it.

    Where the file has other parts, ``machines`` says on what the new ones were measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    machine: Any = results["machine"]
    target = folder / slug(machine["device"])
    file, parts = target.with_suffix(".json"), {"comparisons", *SECTIONS} & results.keys()
    before = json.loads(file.read_text()) if file.exists() else {}
    if before and len(parts) <= len(SECTIONS):
        machines = before.get("machines", {}) | dict.fromkeys(sorted(parts), machine)
        results = before | results | {"machine": before["machine"], "machines": machines}
    text = markdown(results)
    print(text)
    file.write_text(json.dumps(results, indent=1) + "\n")
    target.with_suffix(".md").write_text(text)
    print(f"written: {target}.json and .md")


def _write_norms(results: dict[str, object], folder: Path) -> None:
    """Write tables, numbers, figure and AttackBench's rows, one a line; print the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "minimum-norm"
    text = "\n".join([*minimum_norm.document(results, f"{target.name}.png"), ""])
    print(text)
    target.with_suffix(".md").write_text(text)
    target.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    lines = [json.dumps(row) for row in minimum_norm.attackbench_rows(results)]
    (folder / f"{target.name}-attackbench.jsonl").write_text("\n".join([*lines, ""]))
    minimum_norm.write_figure(results, target.with_suffix(".png"))
    print(f"written: {target}.json, .md and .png, {target}-attackbench.jsonl")


if __name__ == "__main__":
    sys.exit(main())
