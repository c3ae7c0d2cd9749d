"""Measuring blocks of rows: a first call of each row, then timed rounds in turns."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.counting import Passes, count_passes
from benchmarks.gpu.networks import Size
from benchmarks.gpu.record import Record, reason
from benchmarks.timing import paired_seconds, ratios, spread

__all__ = ["Block", "Contestant", "average", "run_block"]


@dataclass(frozen=True)
class Contestant:
    """One row.

    Attributes:
        name: what is measured.
        images: number of images or points that it takes.
        run: function that is measured.
        judge: maps what ``run`` returned to ``mean_norm``, ``success`` or ``value``.
        model: the network, where its passes are to be counted.
    """

    name: str
    images: int
    run: Callable[[], Any]
    judge: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    model: nn.Module | None = None


@dataclass(frozen=True)
class Block:
    """Rows that take turns.

    Attributes:
        contestants: the rows.
        references: names of the rows by whose times all times are divided.
        once: whether to stop after the first calls, because more would take too long.
    """

    contestants: Sequence[Contestant]
    references: Sequence[str]
    once: bool = False


def run_block(size: Size, precision: str, make: Callable[[], Block], record: Record) -> None:
    """Measure the block that ``make`` returns."""
    block = make()
    rows: dict[str, dict[str, Any]] = {}
    slowest = 0.0
    for each in block.contestants:
        if record.left < slowest:  # the next may take as long as the slowest before
            record.add("skipped", f"{size.name}, {precision}: {each.name}: out of time")
            continue
        rows[each.name] = {
            "name": each.name,
            "network": size.name,
            "precision": precision,
            "images": each.images,
        }
        rows[each.name] |= _first_call(each)
        slowest = max(slowest, rows[each.name].get("first_seconds", 0.0))
        record.add("rows", rows[each.name])
    able = [each for each in block.contestants if "first_seconds" in rows.get(each.name, {})]
    needed = sum(rows[each.name]["first_seconds"] for each in able)
    if able and not block.once and needed <= record.left:
        _time_rounds(able, rows, block.references, record)


def _first_call(each: Contestant) -> dict[str, Any]:
    """Time, memory, passes and result of a first call; ``failed`` where it raises an error."""
    device = _device()
    on_gpu = device.type == "cuda"
    if on_gpu:
        gc.collect()  # reference cycles left by the rows before would count
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) if on_gpu else None
    start = time.perf_counter()
    try:
        with nullcontext(Passes()) if each.model is None else count_passes(each.model) as passes:
            result = each.run()
        if on_gpu:
            torch.cuda.synchronize(device)
    except Exception as error:  # a missing option, a library that does not import, no memory left
        return {"failed": reason(error)}
    row: dict[str, Any] = {"first_seconds": time.perf_counter() - start}
    if held is not None:
        row["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        row["held_mib"] = held / 2**20
    if each.model is not None:
        row |= {"forward": passes.forward / each.images, "backward": passes.backward / each.images}
    return {**row, **each.judge(result)}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _time_rounds(
    able: Sequence[Contestant],
    rows: Mapping[str, dict[str, Any]],
    references: Sequence[str],
    record: Record,
) -> None:
    """Take as many rounds as there is time for; write their seconds and ratios into ``rows``."""
    runs = {each.name: each.run for each in able}
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    end = time.monotonic() + min(record.limits.block, record.left)
    done = 0
    while not done or (time.monotonic() < end and done < record.limits.rounds):
        shift = done % len(names)
        turned = {name: runs[name] for name in names[shift:] + names[:shift]}
        for name, taken in paired_seconds(turned, 1, _device(), warm=True).items():
            seconds[name] += taken
        done += 1
    for name, taken in seconds.items():
        rows[name]["seconds"], rows[name]["rounds"] = spread(taken), len(taken)
        rows[name]["ratio"] = {
            other: spread(ratios(taken, seconds[other])) for other in references if other in seconds
        }
    record.write()


def average(values: Tensor) -> float | None:
    """The mean of ``values``; None where there are none."""
    return float(values.mean()) if len(values) else None
