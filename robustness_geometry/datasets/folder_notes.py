"""What is said of a folder of pictures: one line on what was read, left out and changed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from robustness_geometry.datasets.class_names import ClassNames, plain_name
from robustness_geometry.datasets.folders import Contents, is_hidden

__all__ = ["folder_note"]

SHOWN = 20
"""Largest number of names that the line lists."""

CHANGES = {
    "transparent": "with transparency laid on white",
    "turned": "turned upright by EXIF",
    "cmyk": "in CMYK converted",
    "pages": "of several pages, the first read",
}
"""Kind of ``read_pictures`` -> words after the number of pictures."""


def folder_note(
    root: Path,
    known: ClassNames,
    found: Mapping[str, Contents],
    labels: tuple[Tensor, Tensor],
    seen: Counter[str],
) -> str:
    """One line about a folder of pictures that was read.

    Args:
        root: the folder.
        known: its classes.
        found: its contents under "", or those of its parts under "train" and "test".
        labels: those of the training images and of the held-out images that were read.
        seen: kind -> number of pictures that were not taken as they are.
    """
    train, test = (label.tolist() for label in labels)
    counts, sizes = Counter(train + test), f"{len(train)} to train on, {len(test)} held out"
    classes = [f"{index} {name} ({counts[index]})" for index, name in enumerate(known.names)]
    parts = [
        f"{root.name}: {len(train) + len(test)} pictures read ({sizes}) of {len(classes)} classes, "
        f"in the order of {known.origin}: {_list(classes)}"
    ]
    parts += _absent(known, train, test)
    parts += _not_read(root, found)
    if nested := sum(part.nested for part in found.values()):
        parts.append(f"{nested} in subfolders count for their class")
    parts += [f"{seen[kind]} {words}" for kind, words in CHANGES.items() if seen[kind]]
    return "; ".join(parts) + "."


def _absent(known: ClassNames, train: list[int], test: list[int]) -> list[str]:
    """Classes without pictures, or in one part alone."""
    there = set(train) | set(test)
    missing = {"without pictures": set(range(len(known.names))) - there}
    if train:
        missing |= {
            "without training pictures": there - set(train),
            "without held-out pictures": there - set(test),
        }
    return [
        f"{words}: {_list(known.names[label] for label in sorted(those))}"
        for words, those in missing.items()
        if those
    ]


def _not_read(root: Path, found: Mapping[str, Contents]) -> list[str]:
    """What lies in the folder and is not read, by kind."""
    kinds: Counter[str] = Counter()
    for part in found.values():
        kinds.update(part.left_out)
    files = [f"{number} {kind}" for kind, number in sorted(kinds.items()) if number]
    said = [f"left out: {_list(files)}"] if files else []
    if "" not in found:
        used = {part.root for part in found.values()}
        others = [p.name for p in sorted(root.iterdir()) if p.is_dir() and not is_hidden(p.name)]
        others = [name for name in others if (root / name).resolve() not in used]
        said += [f"folders not read: {_list(others)}"] if others else []
    return said


def _list(names: Iterable[str]) -> str:
    every = [plain_name(" ".join(name.split())) for name in names]
    more = len(every) - SHOWN
    return ", ".join(every[:SHOWN]) + (f" and {more} more" if more > 0 else "")
