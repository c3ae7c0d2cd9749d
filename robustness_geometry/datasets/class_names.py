"""The classes of a folder of pictures: their names and order, by the folders, a list or a file."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustness_geometry.checks import Described, refuse
from robustness_geometry.datasets.folders import MAPPINGS, natural_order
from robustness_geometry.datasets.sources import EXTRA
from robustness_geometry.extras import require

__all__ = ["ClassNames", "class_names", "plain_name"]

SYNSET = re.compile(r"n[0-9]{8}")
"""A WordNet id, by which ImageNet's folders are named."""

NUMBERED = (
    r"(?P<index>[0-9]+)[\s,;:=]+(?P<name>.+)",
    r"(?P<name>.+?)[\s,;:=]+(?P<index>[0-9]+)",
)
"""Lines that hold a label beside a name."""

WORDS = {False: ("no", "off", "false", "n"), True: ("yes", "on", "true", "y")} | {
    None: ("null", "none", "nil", "")
}
"""What a YAML file may have said where it was read as a value, not as text."""


@dataclass(frozen=True)
class ClassNames:
    """The classes in the order of a network's outputs.

    Attributes:
        names: what they are called, one for each label.
        folders: what the folder of each class is called.
        origin: what fixes their order, in words.
        listed: whether more than the folders says which classes there are.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    origin: str
    listed: bool = True

    def label(self, folder: str) -> int:
        """The label of the pictures in ``folder``."""
        return self.folders.index(plain_name(folder))


def class_names(
    folders: Sequence[str],
    root: Path,
    *,
    labels: str | Sequence[object] = "folder",
    classes: Sequence[object] | None = None,
    classes_file: str | Path | None = None,
) -> ClassNames:
    """The classes of a folder of pictures.

    Args:
        folders: the class folders that hold pictures.
        root: where the file of the classes is looked for: ``classes.txt``, ``classes.json``,
            ``class_to_idx.json`` or ``LOC_synset_mapping.txt``.
        labels: ``folder``, ``imagenet`` or a list, as in ``image_folder``.
        classes: the names in the order of the labels; None: as ``labels`` says.
        classes_file: a file with the names instead. It holds one name a line, lines such as
            ``0 cat``, ``cat 0`` or ``n02084071 dog, domestic dog``, a JSON list of names, or a JSON
            mapping from names to labels or from labels to names.

    Raises:
        InputError: classes that are given twice or in no known form, or that do not cover the
            folders.

    Example:
        >>> from pathlib import Path
        >>> from robustness_geometry.datasets.class_names import class_names
        >>> class_names(["10", "9"], Path("nowhere")).names
        ('9', '10')
        >>> class_names(["cat", "no"], Path("nowhere"), classes=[False, "cat"]).names
        ('no', 'cat')
    """
    given = [labels != "folder", classes is not None, classes_file is not None]
    if sum(given) > 1:
        refuse(
            "dataset.classes",
            Described("another option beside it"),
            "the only one of classes, classes_file and labels that is given",
        )
    present = [plain_name(name) for name in folders]
    if classes is not None or not isinstance(labels, str):
        key = "dataset.labels" if classes is None else "dataset.classes"
        return _listed(key, labels if classes is None else classes, present)
    if labels == "imagenet":
        return _imagenet(present)
    if labels != "folder":
        refuse("dataset.labels", labels, "folder, imagenet, or a list of class names")
    path = _mapping_file(root, classes_file)
    return _by_folder(present) if path is None else _from_file(path, present)


def plain_name(value: object) -> str:
    """A name as text, without blanks around it, in the way in which keyboards write it.

    macOS takes letters with accents apart in the names of its files.

    Example:
        >>> from robustness_geometry.datasets.class_names import plain_name
        >>> plain_name(7), len(plain_name("a\u0308pfel "))
        ('7', 5)
    """
    return unicodedata.normalize("NFC", str(value)).strip()


def _by_folder(present: Sequence[str]) -> ClassNames:
    names = tuple(natural_order(present))
    if list(names) == sorted(names):
        return ClassNames(names, names, "the folders' names", listed=False)
    origin = "the folders' names, numbers by value (10 after 2, unlike in torchvision)"
    return ClassNames(names, names, origin, listed=False)


def _listed(key: str, given: Sequence[object], present: Sequence[str]) -> ClassNames:
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) == 0:
        others = "" if key == "dataset.classes" else "folder, imagenet, or "
        refuse(key, given, f"{others}a list of class names")
    names = [_entry(key, value, present) for value in given]
    _check_different(key, names, "a list of different class names")
    _check_covered(key, Described(f"a list of {len(names)}"), names, present)
    return ClassNames(tuple(names), tuple(names), key)


def _entry(key: str, value: object, present: Sequence[str]) -> str:
    """One name of a list; where YAML read a word as a value, the folder tells which word."""
    if value is None or isinstance(value, bool):
        words = [name for name in present if name.casefold() in WORDS[value]]
        if len(words) == 1:
            return words[0]
        refuse(
            key, value, "names in quotes, as YAML takes words such as no, on and null for values"
        )
    if not isinstance(value, str | int | float) or not plain_name(value):
        refuse(key, value, "a list of class names, each one a text")
    return plain_name(value)


def _check_different(key: str, names: Sequence[str], allowed: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            refuse(key, Described(f"{name!r} {count} times"), allowed)


def _check_covered(key: str, shown: object, names: Iterable[str], present: Sequence[str]) -> None:
    known = set(names)
    missing = [name for name in present if name not in known]
    if not missing:
        return
    if len(missing) == 1:
        text = f"{missing[0]} is missing"
        alike = [name for name in known if name.casefold() == missing[0].casefold()]
        text += f" (it has {alike[0]})" if alike else ""
    else:
        more = len(missing) - 3
        text = ", ".join(missing[:3]) + (f" and {more} more" if more > 0 else "") + " are missing"
    refuse(key, shown, f"class names that cover the subfolders; {text}")


def _imagenet(present: Sequence[str]) -> ClassNames:
    """ImageNet's 1,000 classes, by which the folders are named, or by their WordNet ids."""
    weights = require("torchvision.models", EXTRA).ResNet50_Weights
    names = tuple(weights.DEFAULT.meta["categories"])
    if present and all(map(SYNSET.fullmatch, present)):
        whole = len(present) == len(names)
        synsets = tuple(sorted(present)) if whole else _synsets()
        _check_covered("dataset.labels", "imagenet", synsets, present)
        return ClassNames(names, synsets, "ImageNet's WordNet ids")
    _check_covered("dataset.labels", "imagenet", names, present)
    return ClassNames(names, names, "ImageNet's names")


def _synsets() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's classes, in the order of their labels."""
    known = require("timm.data", "timm").ImageNetInfo("imagenet-1k")
    return tuple(known.index_to_label_name(index) for index in range(known.num_classes()))


def _mapping_file(root: Path, given: str | Path | None) -> Path | None:
    if given is None:
        return next((root / name for name in MAPPINGS if (root / name).is_file()), None)
    path = Path(given).expanduser()
    place = next((each for each in (path, root / path) if each.is_file()), None)
    if place is None:
        refuse("dataset.classes_file", given, "an existing file, as seen from here or in the root")
    return place


def _from_file(path: Path, present: Sequence[str]) -> ClassNames:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else None
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        refuse("dataset.classes_file", str(path), f"a text or JSON file of class names ({why})")
    rows = _json_rows(content, path) if content is not None else _text_rows(text, present)
    folders = [plain_name(folder) for folder, _ in rows]
    if not folders:
        refuse("dataset.classes_file", str(path), "a file with at least one class name")
    _check_different("dataset.classes_file", folders, f"a file of different names ({path.name})")
    _check_covered("dataset.classes_file", str(path), folders, present)
    return ClassNames(tuple(plain_name(name) for _, name in rows), tuple(folders), path.name)


def _json_rows(content: object, path: Path) -> list[tuple[str, str]]:
    """Folder and name of each class, in the order of the labels."""
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(name, name) for name in content]
    pairs = list(content.items()) if isinstance(content, dict) else []
    if pairs and all(isinstance(index, int) for _, index in pairs):
        return _ordered([(index, name, name) for name, index in pairs], path)
    if pairs and all(re.fullmatch("[0-9]+", key) for key, _ in pairs):
        values = [(int(key), value) for key, value in pairs]
        if all(isinstance(value, str) for _, value in values):
            return _ordered([(index, value, value) for index, value in values], path)
        if all(isinstance(value, list) and len(value) == 2 for _, value in values):
            return _ordered(
                [(index, str(value[0]), str(value[1])) for index, value in values], path
            )
    wanted = "a list of names, or a mapping from names to labels or from labels to names"
    return refuse("dataset.classes_file", str(path), wanted)


def _text_rows(text: str, present: Sequence[str]) -> list[tuple[str, str]]:
    """Folder and name of each class; lines are names unless all of them are seen to hold more."""
    lines = [plain_name(line) for line in text.splitlines() if line.strip()]
    plain = [(line, line) for line in lines]
    if set(present) <= set(lines):
        return plain
    if lines and all(SYNSET.match(line) and SYNSET.fullmatch(line.split()[0]) for line in lines):
        halves = [(line.split(maxsplit=1) * 2)[:2] for line in lines]
        return [(synset, words.split(",")[0]) for synset, words in halves]
    for pattern in NUMBERED:
        found = [re.fullmatch(pattern, line) for line in lines]
        rows = [(int(m["index"]), _bare(m["name"]), _bare(m["name"])) for m in found if m]
        if len(rows) == len(lines) and _are_labels([index for index, *_ in rows]):
            return [(folder, name) for _, folder, name in sorted(rows)]
    return plain


def _bare(name: str) -> str:
    return name.strip().strip("\"'")


def _are_labels(indices: Sequence[int]) -> bool:
    """Whether numbers count from 0, or from 1, without a gap."""
    return bool(indices) and sorted(indices) in (
        list(range(len(indices))),
        list(range(1, len(indices) + 1)),
    )


def _ordered(rows: list[tuple[int, str, str]], path: Path) -> list[tuple[str, str]]:
    if not _are_labels([index for index, *_ in rows]):
        wanted = f"a file whose labels run from 0 to {len(rows) - 1} without a gap"
        refuse("dataset.classes_file", str(path), wanted)
    return [(folder, name) for _, folder, name in sorted(rows)]
