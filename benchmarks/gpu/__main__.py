"""Speed and memory on a GPU, and its agreement with the CPU.

``python -m benchmarks.gpu [--small] [--out FILE.json]``. Nothing is downloaded: the networks have
random weights and the images are random and smooth.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.gpu.about import describe_machine, describe_settings
from benchmarks.gpu.measurement import measure
from benchmarks.gpu.networks import FULL, SMALL
from benchmarks.gpu.record import Limits, Record
from benchmarks.gpu.report import markdown
from benchmarks.machine import slug

__all__ = ["main"]

RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and write them with the raw figures.

    Returns:
        0, or 2 where there is no GPU to measure.
    """
    options = _parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.small:
        print("a GPU is needed; --small runs without one", file=sys.stderr)
        return 2
    sizes, limits = FULL, Limits(options.seconds)
    if options.small:
        sizes, limits = SMALL, Limits(options.seconds, rounds=1, block=0.0)
    about = {"machine": describe_machine(device), "settings": describe_settings(sizes, limits)}
    default = None if options.small else RESULTS / f"{slug(about['machine']['device'])}.json"
    record = Record(options.out or default, limits, about)
    measure(sizes, device, record)
    print(markdown(record.results))
    if record.target is not None:
        print(f"written: {record.target} and .md")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--small", action="store_true", help="tiny sizes, to see that it runs; also without a GPU")
    add("--out", type=Path, help="JSON file; the default is benchmarks/results/<card>.json")
    add(
        "--seconds",
        type=float,
        default=Limits.seconds,
        help="time after which nothing new is started",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
