"""What lies in a folder of pictures: its class folders, their pictures, and what is left out."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

from robustness_geometry.checks import refuse
from robustness_geometry.datasets.pictures import FORMATS
from robustness_geometry.datasets.sources import EXTRA
from robustness_geometry.extras import require

__all__ = ["Contents", "check_no_parts", "contents", "is_hidden", "natural_order", "part_of"]

HIDDEN = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__pycache__",
}
"""Names, in lower case, of what operating systems and servers put beside a user's files."""

HELD_OUT = ("holdout", "heldout", "hold out", "held out")
PARTS = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "tests", "testing", "tst", "ts", "te", "eval", "evaluation", *HELD_OUT),
}
"""Part of a data set -> the words that name its folder."""

FILLING = {"set", "sets", "data", "dataset", "image", "images", "img", "imgs", "picture"} | {
    "pictures",
    "pics",
    "photo",
    "photos",
    "part",
    "split",
    "seg",
    "fold",
    "folder",
}
"""Words beside those of PARTS in such names, as in ``training_set`` or ``seg_train``."""

MAPPINGS = ("classes.txt", "classes.json", "class_to_idx.json", "LOC_synset_mapping.txt")
"""Files in the root that name the classes, in the order in which they are looked for."""


@dataclass(frozen=True)
class Contents:
    """What a folder with one subfolder per class holds.

    Attributes:
        root: the folder.
        pictures: class folder -> its pictures in the order of their paths; empty if it has none.
        left_out: kind -> number of files (and of hidden folders) that are not read.
        nested: number of pictures in subfolders of a class folder.
    """

    root: Path
    pictures: dict[str, list[str]]
    left_out: Counter[str]
    nested: int

    @property
    def filled(self) -> list[str]:
        """The class folders that hold pictures."""
        return [name for name, paths in self.pictures.items() if paths]

    def is_empty(self, name: str) -> bool:
        """Whether the class folder ``name`` is absent or has no pictures."""
        return not self.pictures.get(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is one that an operating system made for itself.

    Example:
        >>> from robustness_geometry.datasets.folders import is_hidden
        >>> [is_hidden(name) for name in (".ipynb_checkpoints", "._0.png", "Thumbs.db", "cat")]
        [True, True, True, False]
    """
    return name.startswith(".") or name.casefold() in HIDDEN


def natural_order(names: Iterable[str]) -> list[str]:
    """Names in the order in which people count: numbers by value, and all else as text.

    Example:
        >>> from robustness_geometry.datasets.folders import natural_order
        >>> natural_order(["class10", "class2", "ant"]), natural_order(["10", "-1", "2.5"])
        (['ant', 'class2', 'class10'], ['-1', '2.5', '10'])
    """
    names = list(names)
    if all(re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", name) for name in names):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names, key=lambda name: (_pieces(name), name))


def _pieces(name: str) -> list[str | int]:
    # Texts and numbers alternate, so that two names compare text with text and number with number.
    return [
        int(piece) if index % 2 else piece for index, piece in enumerate(re.split("([0-9]+)", name))
    ]


def part_of(name: str) -> str | None:
    """The part of a data set that a folder's name stands for: train, val, test, or None.

    Example:
        >>> from robustness_geometry.datasets.folders import part_of
        >>> [part_of(name) for name in ("Training", "testSet", "val2017", "hold-out", "trainer")]
        ['train', 'test', 'val', 'test', None]
    """
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    words = re.sub(r"[\W_0-9]+", " ", spaced).casefold().split()
    left = " ".join(word for word in words if word not in FILLING)
    for part, known in PARTS.items():
        glued = {word + filling for word in known for filling in FILLING}
        if left in known or left in glued:
            return part
    return None


def contents(root: Path) -> Contents:
    """List the class folders of ``root`` and their pictures, in the order of their names.

    Pictures are told by the ending of their names, in any case of letters, and by their content
    where a name has no ending. Hidden files and folders, animations and what is no picture are left
    out. Links are followed.

    Raises:
        InputError: a folder that cannot be read, or a package that is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustness_geometry.datasets.folders import contents
        >>> with tempfile.TemporaryDirectory() as root:
        ...     (Path(root) / "cat").mkdir()
        ...     Image.new("RGB", (8, 6)).save(Path(root) / "cat" / "one.PNG")
        ...     (Path(root) / "cat" / "notes.txt").touch()
        ...     found = contents(Path(root))
        >>> found.filled, dict(found.left_out)
        (['cat'], {'.txt': 1})
    """
    pictures: dict[str, list[str]] = {}
    left_out: Counter[str] = Counter()
    nested = 0
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        _unreadable(error)
    for entry in entries:
        if is_hidden(entry.name):
            left_out["hidden"] += 1
        elif entry.is_dir():
            pictures[entry.name], deeper = _pictures(entry, left_out)
            nested += deeper
        elif entry.name not in MAPPINGS:
            left_out["outside the class folders"] += 1
    return Contents(root, pictures, +left_out, nested)


def _pictures(folder: Path, left_out: Counter[str]) -> tuple[list[str], int]:
    """The pictures below a class folder, and how many of them lie deeper than in it."""
    found: list[tuple[str, str]] = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        left_out["hidden"] += sum(map(is_hidden, [*folders, *files]))
        folders[:] = [n for n in folders if not is_hidden(n) and not _is_loop(Path(place, n))]
        for name in files:
            kind = "" if is_hidden(name) else _no_picture(Path(place, name))
            if kind:
                left_out[kind] += 1
            elif not is_hidden(name):
                found.append((place, name))
    deeper = sum(place != str(folder) for place, _ in found)
    return [str(Path(place, name)) for place, name in sorted(found)], deeper


def _is_loop(folder: Path) -> bool:
    """Whether a link leads back to a folder that holds it."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _unreadable(error: OSError) -> NoReturn:
    refuse("dataset.root", error.filename, f"a folder that can be read ({error.strerror})")


def _no_picture(path: Path) -> str:
    """What a file is that is no picture; empty for a picture, also for a damaged one."""
    ending = path.suffix.lower()
    if not path.is_file():  # the picture that a dangling link stood for is missed when it is read
        return "" if path.is_symlink() and ending in _endings() else "no file"
    if ending in (".gif", ".webp", ".apng"):
        return "animated " + ending if _frames(path) > 1 else ""
    if ending in _endings():
        return ""
    if not ending:
        return "" if _frames(path) else "without an ending"
    return ending


def _frames(path: Path) -> int:
    """The number of a picture's frames; 0 where its content is that of no picture."""
    Image = require("PIL.Image", EXTRA)  # noqa: N806 (the name that Pillow gives it)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size too, by which it is refused once read
            with Image.open(path, formats=FORMATS) as picture:
                return getattr(picture, "n_frames", 1)
    except Exception:  # of a damaged file: it is refused by its name once it is read
        return 0


@cache
def _endings() -> frozenset[str]:
    registered = require("PIL.Image", EXTRA).registered_extensions()
    return frozenset(ending for ending, form in registered.items() if form in (*FORMATS, "MPO"))


def check_no_parts(found: Contents) -> None:
    """Check that the subfolders are classes, not the parts of a data set nor one folder around it.

    Raises:
        InputError: they are parts by their names; the text says what to write.
    """
    root, names = found.root, list(found.pictures)
    roles = {name: role for name in names if (role := part_of(name))}
    if roles and _are_parts(found, roles):
        first = {role: name for name, role in reversed(roles.items())}
        train, test = first.get("train"), first.get("test", first.get("val"))
        chosen = f"choose {' or '.join(roles)} in it as dataset.root"
        if train and test:
            chosen += f", or write dataset.train={_quoted(train)} dataset.test={_quoted(test)}"
        else:
            chosen += f", as {_quoted(names[0])} is the only part" * (len(names) == 1)
        chosen += ", or list them in dataset.classes if they are classes"
        refuse("dataset.root", str(root), f"a folder with one subfolder per class: {chosen}")
    if len(names) == 1 and _is_outer(root / names[0]):
        place = f"the classes lie one level deeper: write dataset.root={root / names[0]}"
        refuse("dataset.root", str(root), f"a folder with one subfolder per class; {place}")


def _are_parts(found: Contents, roles: dict[str, str]) -> bool:
    """Whether folders are parts: all or several are named so, or one holds folders of pictures."""
    return (
        len(roles) == len(found.pictures)
        or len(set(roles.values())) > 1
        or any(_is_outer(found.root / name, least=1) for name in roles)
    )


def _is_outer(folder: Path, *, least: int = 2) -> bool:
    """Whether a folder holds folders, at least ``least``, and no picture beside them."""
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    files = [entry for entry in entries if not entry.is_dir() and not _no_picture(entry)]
    return not files and sum(entry.is_dir() for entry in entries) >= least


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name) else repr(name)
