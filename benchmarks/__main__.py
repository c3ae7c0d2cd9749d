"""Run the comparison: ``python -m benchmarks [--device cuda]``."""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import nn

from benchmarks.comparison import OURS, Subject, compare, fastest_batches, measure_bound
from benchmarks.cure import measure_cure
from benchmarks.curvature import measure_curvature
from benchmarks.detection import measure_detection
from benchmarks.machine import describe, slug
from benchmarks.peers import PEERS
from benchmarks.report import markdown
from benchmarks.subspace import measure_subspaces
from benchmarks.universal import Setting, measure_universal
from robustness_geometry.checks import InputError, check_count, refuse
from robustness_geometry.datasets import mnist5k
from robustness_geometry.models import pretrained

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results"
NETWORK = "mnist5k_lenet"
TRAINED = ("mnist5k_lenet", "mnist5k_fc500_150_10", "mnist5k_nin")
"""The networks on which a training step is timed."""
UNIVERSAL_IMAGES = 200
"""Training digits of which universal perturbations are made."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and write them with the raw figures.

    Returns:
        The exit code: 0, or 2 for a wrong option.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<index>")
    parser.add_argument(
        "--images", type=int, default=512, help="test digits attacked (slow peers get fewer)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder of <device>.json and .md"
    )
    options = parser.parse_args(arguments)
    try:
        results = _measure(options.device, options.images, options.repeats, options.threads)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    text = markdown(results)
    print(text)
    _write(results, text, options.output)
    return 0


def _measure(device_text: str, images: int, repeats: int, threads: int) -> dict[str, object]:
    device = _device(device_text)
    torch.set_num_threads(check_count("threads", threads))
    torch.backends.cudnn.allow_tf32 = False  # as the project's attacks run
    data, model = mnist5k(), _placed(NETWORK, device)
    test = data.test.first(check_count("images", images))
    subject = Subject.of(model, test.images.to(device))
    machine = describe(device)
    check_count("repeats", repeats)
    _say("batch sizes")
    batches = fastest_batches(subject)
    rows = {}
    for title, clip in (("No clipping", False), ("Clipped to [0, 1]", True)):
        _say(title)
        rows[title] = compare(subject, batches, clip=clip, repeats=repeats)
    _say("universal perturbations")
    chosen = data.train.first(UNIVERSAL_IMAGES).images.to(device)
    universal = measure_universal(
        Setting.of(model, chosen, data.test.images.to(device)), shufflings=repeats
    )
    _say("subspaces")
    subspaces = measure_subspaces(model, subject.images, batch=batches[OURS], repeats=repeats)
    _say("curvature")
    curvature = measure_curvature(model, subject.images, repeats=repeats)
    _say("detection")
    detection = measure_detection(model, data.test.images.to(device), repeats=repeats)
    _say("CURE")
    trained = {name: _placed(name, device) for name in TRAINED}
    cure = measure_cure(
        trained, data.train.images.to(device), data.train.labels.to(device), repeats=repeats
    )
    _say("the bound")
    return {
        "network": NETWORK,
        "machine": machine,
        "repeats": repeats,
        "missing": [peer.name for peer in PEERS if not peer.installed],
        "comparisons": {title: [row.as_dict() for row in found] for title, found in rows.items()},
        "bound": measure_bound(subject, batch=batches[OURS], repeats=repeats),
        "universal": universal,
        "subspaces": subspaces,
        "curvature": curvature,
        "detection": detection,
        "cure": cure,
    }


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


def _write(results: dict[str, object], text: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    device = results["machine"]["device"]  # type: ignore[index]
    target = folder / slug(device)
    target.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    target.with_suffix(".md").write_text(text)
    print(f"written: {target}.json and .md")


if __name__ == "__main__":
    sys.exit(main())
