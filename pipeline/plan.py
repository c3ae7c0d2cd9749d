"""What a machine needs for a suite: passes, hours, disk and memory, before anything is computed.

``python -m pipeline.plan suite=thesis budget=full`` prints it for each stage and network; further
settings stand as in Hydra, ``networks=a,b`` takes some networks only, and
``rate=cifar10_resnet18:4000`` says how many gradients a second another machine takes on one
network, from which the others follow by their operations.

The passes are counted, not derived: ``python -m stages.counting`` runs every experiment at its real
settings on a few made-up images with a small network, and multiplies. Hours are passes times the
seconds that the networks take here, on the GPU if there is one. All numbers have one or two digits:
how long an attack that stops by itself takes depends on the network, by a factor of a few.
"""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from pipeline.params import ROOT
from robustness_geometry.checks import InputError, one_of, refuse

__all__ = ["Speed", "main", "short", "speeds", "stage_rows", "text"]

DISK = {
    "mnist": 0.06e9,
    "fashion_mnist": 0.06e9,
    "mnist5k": 0.0,
    "cifar10": 0.36e9,
    "svhn": 0.25e9,
    "imagenet": 13e9,
    "photographs": 0.02e9,
}
"""Bytes of a data set's files: archive and what it is unpacked to, ImageNet's validation images."""

COPIES = 4
"""Weights, their gradients, the optimiser's momentum, and a network before fine-tuning."""

HOUR = 3600.0


@dataclass(frozen=True)
class Speed:
    """Seconds that a network takes for one image.

    Attributes:
        forward: for a forward pass.
        gradient: for a forward and a backward pass.
    """

    forward: float
    gradient: float

    def hours(self, forward: float, backward: float) -> float:
        """Hours for so many forward passes, of which ``backward`` are followed by a backward one.

        Example:
            >>> from pipeline.plan import Speed
            >>> Speed(forward=0.1, gradient=0.3).hours(forward=72_000, backward=36_000)
            4.0
        """
        return (backward * self.gradient + max(0.0, forward - backward) * self.forward) / HOUR


def speeds(
    sizes: Mapping[str, Mapping[str, Any]], rate: tuple[str, float] | None
) -> dict[str, Speed]:
    """The speed of every network.

    Args:
        sizes: network -> what :func:`stages.sizes.size_of` says of it.
        rate: a network, and the gradients that a machine takes of it in a second; the others are
            in proportion to their operations. None: as measured here.
    """
    measured = {name: Speed(each["forward"], each["gradient"]) for name, each in sizes.items()}
    if rate is None:
        return measured
    reference, value = rate
    seconds = {
        name: each["flops"] / sizes[reference]["flops"] / value for name, each in sizes.items()
    }
    return {
        name: Speed(seconds[name] * each.forward / each.gradient, seconds[name])
        for name, each in measured.items()
    }


def short(number: float, digits: int = 2) -> str:
    """A number with few digits, and a letter for thousands, millions and so on.

    Example:
        >>> from pipeline.plan import short
        >>> [short(each) for each in (0, 0.0123, 7.04, 96, 1234, 45_678_901)]
        ['0', '0.012', '7', '96', '1.2k', '46M']
    """
    if number == 0:
        return "0"
    rounded = round(number, digits - 1 - floor(log10(abs(number))))
    for letter, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(rounded) >= size:
            return f"{rounded / size:.4g}{letter}"
    return f"{rounded:.4g}"


def stage_rows(
    lines: Iterable[Mapping[str, Any]], speed: Mapping[str, Speed]
) -> list[dict[str, str | float]]:
    """A row for each stage and network: passes, hours, bytes, and experiments not counted in full.

    Args:
        lines: what :mod:`stages.counting` says of experiments.
        speed: network -> its speed; work across networks takes their mean.
    """
    sums: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    open_: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in lines:
        where = line["stage"], line["network"]
        for key in ("forward", "backward", "bytes"):
            sums[where][key] += line[key]
        if line["note"].startswith("at least"):
            open_[where].append(line["experiment"])
    mean = Speed(
        sum(each.forward for each in speed.values()) / max(1, len(speed)),
        sum(each.gradient for each in speed.values()) / max(1, len(speed)),
    )
    return [
        {
            "stage": stage,
            "network": network,
            **found,
            "hours": speed.get(network, mean).hours(found["forward"], found["backward"]),
            "open": ", ".join(open_[stage, network]),
        }
        for (stage, network), found in sums.items()
    ]


def text(
    rows: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, Mapping[str, Any]],
    speed: Mapping[str, Speed],
    machine: str,
) -> str:
    """The tables, and what they assume.

    Args:
        rows: see :func:`stage_rows`.
        sizes: network -> its size.
        speed: network -> its speed.
        machine: what the hours are hours of.
    """
    head = ("stage", "network", "forward", "gradients", "hours", "results", "")
    body = [
        (
            row["stage"],
            row["network"],
            *(short(row[key]) for key in ("forward", "backward")),
            short(row["hours"]),
            f"{short(row['bytes'])}B",
            f"at least; not counted to its end: {row['open']}" if row["open"] else "",
        )
        for row in rows
    ]
    networks = [
        (
            name,
            short(1 / speed[name].gradient),
            f"{short(each['parameters'])}B",
            f"{short(_memory(each))}B",
            f"{short(_memory(each, images=1))}B",
        )
        for name, each in sizes.items()
    ]
    titles = ("network", "gradients/s", "weights", "memory", "at least")
    parts = [_columns(head, body), _columns(titles, networks), *_totals(rows, sizes, machine)]
    return "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:])


def _memory(size: Mapping[str, Any], images: int | None = None) -> float:
    """Bytes of a device's memory for a chunk of images, or for so many."""
    count = size["chunk"] if images is None else images
    return float(COPIES * size["parameters"] + count * size["activations"])


def _totals(
    rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, Mapping[str, Any]], machine: str
) -> list[str]:
    sets = {each["dataset"]: float(each["pictures"]) for each in sizes.values()}
    disk = {
        "data": sum(DISK.get(name, 0.0) for name in sets),
        "weights": sum(each["parameters"] * each["seeds"] for each in sizes.values()),
        "results": sum(row["bytes"] for row in rows),
    }
    shown = ", ".join(f"{name} {short(each)}B" for name, each in disk.items())
    chunk = max(each["chunk"] for each in sizes.values())
    least = "at least " if any(row["open"] for row in rows) else ""
    return [
        f"hours: {least}{short(sum(row['hours'] for row in rows))} in all, {machine}",
        f"disk: {short(sum(disk.values()))}B ({shown}, which are finished chunks under work/)",
        f"host memory: {short(2 * max(sets.values(), default=0.0))}B for the largest data set, "
        "and results of the largest experiment beside it",
        f"memory: for chunks of {chunk} images, which are halved where it does not suffice; "
        "`at least` is for one image",
        "assumed: passes as counted on a small network; one image's cost that of a gradient with "
        "respect to it; no work but passes",
    ]


def _columns(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(str(row[i])) for row in [head, *body]) for i in range(len(head))]
    left = {i for i, name in enumerate(head) if name in ("stage", "network", "")}
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if i in left else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *body]
    )


def _read_rate(given: str, known: Iterable[str]) -> tuple[str, float]:
    """The network and the gradients a second in ``cifar10_resnet18:4000``."""
    name, _, value = given.partition(":")
    names = list(known)
    if name not in names:
        refuse("rate", given, f"NETWORK:GRADIENTS_A_SECOND, the network {one_of(names)}")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        refuse("rate", given, "NETWORK:GRADIENTS_A_SECOND, such as cifar10_resnet18:4000")
    return name, number


def _counted(arguments: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The lines of :mod:`stages.counting`, and its exit code."""
    command = [sys.executable, "-m", "stages.counting", *arguments]
    found = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            found.append(json.loads(line))
            last = found[-1]
            if "stage" in last:
                words = f"{last['stage']} {last['network']} {last['experiment']}"
                print(f"counting: {words} {last['seconds']:.0f} s {last['note']}", file=sys.stderr)
    return found, running.returncode


def main(arguments: Sequence[str]) -> int:
    """Count and print; returns the exit code."""
    given = [word.partition("=")[2] for word in arguments if word.startswith("rate=")]
    lines, code = _counted([word for word in arguments if not word.startswith("rate=")])
    if code:
        return code
    sizes = {line["network"]: line for line in lines if "flops" in line}
    try:
        rate = _read_rate(given[-1], sizes) if given else None
    except InputError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    speed = speeds(sizes, rate)
    device = next(iter(sizes.values()))["device"]
    machine = (
        f"on a machine that takes {short(rate[1])} gradients/s of {rate[0]}"
        if rate is not None
        else f"on this machine's {device}, one device at a time"
        + (": a GPU is 10 to 100 times as fast, say which by rate=" if device == "cpu" else "")
    )
    rows = stage_rows([line for line in lines if "stage" in line], speed)
    print(text(rows, sizes, speed, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
