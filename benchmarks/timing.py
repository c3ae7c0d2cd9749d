"""Paired timings: contestants take turns, so that a busy or hot machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["paired_seconds", "ratios", "spread"]


def paired_seconds(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    *,
    warm: bool = False,
) -> dict[str, list[float]]:
    """Time every contestant once per round, after one round that is thrown away.

    The order rotates from round to round, so that no contestant always begins.

    Args:
        contestants: name -> function to time.
        repeats: number of timed rounds.
        device: device whose work is waited for before and after each.
        warm: whether every contestant has run before, so that no round needs to be thrown away.

    Returns:
        Name -> seconds, one entry per round.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(0 if warm else -1, repeats):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = _seconds(contestants[name], device)
            if round_ >= 0:
                seconds[name].append(elapsed)
    return seconds


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """The ratio of each round's two times."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    function()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
