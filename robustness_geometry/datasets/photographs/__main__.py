"""Command line of the maker: ``python -m robustness_geometry.datasets.photographs FOLDER``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustness_geometry.checks import InputError
from robustness_geometry.datasets.assembly import IMAGENET_MEAN, IMAGENET_STD
from robustness_geometry.datasets.photographs.folder import NETWORKS
from robustness_geometry.datasets.photographs.making import SIDE, make
from robustness_geometry.datasets.photographs.packages import SOURCES
from robustness_geometry.models import efficientnet_lite

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: make a folder, and say what was found and what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m robustness_geometry.datasets.photographs",
        description="Make a folder of photographs from installed Debian packages.",
    )
    parser.add_argument("folder", type=Path, help="where to write; absent, empty, or made before")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="where the packages' files lie"
    )
    options = parser.parse_args(arguments)
    try:
        shape: dict[str, Any] = {"channels": 3, "size": (SIDE, SIDE), "classes": 1000}
        shape |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        networks = {name: efficientnet_lite(**shape, name=name) for name in NETWORKS}
        made = make(options.folder, root=options.root, networks=networks)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    counts = {source.package: 0 for source in SOURCES}
    for picture in made:
        counts[picture.package] += 1
    if missing := [package for package, count in counts.items() if not count]:
        print(f"not there: {', '.join(missing)}: apt-get install {' '.join(missing)}")
    print(", ".join(f"{package}: {count}" for package, count in counts.items() if count))
    judge = sum(picture.split == "judge" for picture in made)
    print(f"{len(made)} photographs in {options.folder}: {judge} judge, {len(made) - judge} are X")
    return 0


if __name__ == "__main__":
    sys.exit(main())
