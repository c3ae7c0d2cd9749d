"""The folder of photographs: its manifest, and reading it as a data set."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

from robustness_geometry.checks import refuse
from robustness_geometry.datasets.assembly import IMAGENET_MEAN, IMAGENET_STD, Pixels, assemble
from robustness_geometry.datasets.pictures import read_pictures
from robustness_geometry.datasets.sampling import Limits
from robustness_geometry.datasets.sources import EXTRA, FOLDERS
from robustness_geometry.extras import require
from robustness_geometry.types import Dataset

__all__ = [
    "MANIFEST",
    "NETWORKS",
    "SPLITS",
    "SURE",
    "Picture",
    "is_as_written",
    "photographs",
    "read_manifest",
]

MANIFEST = "manifest.csv"

SPLITS = ("x", "judge")
"""What vectors, subspaces and options are made on, and what results are reported on."""

SURE = 0.35
"""Confidence of every network from which a picture is one that judges."""

NETWORKS = ("lite1", "lite2")
"""The networks whose confidence decides."""


@dataclass(frozen=True)
class Picture:
    """One line of the manifest.

    Attributes:
        file: the picture, below the folder.
        package: the Debian package that it is from.
        version: the package's version.
        path: where the package keeps it; inside a Qt resource file, after the file's name.
        scene: pictures of one scene have the same; only one split has it.
        split: ``x``: vectors, subspaces and options are made on it; ``judge``: results are.
        label: the class that the surest network gives it; nobody has labelled these pictures.
        confidence: the smallest confidence among the networks, each in its own label, in (0, 1].
        sha256: digest of the file.
    """

    file: str
    package: str
    version: str
    path: str
    scene: str
    split: str = ""
    label: int = -1
    confidence: float = 0.0
    sha256: str = ""


def photographs(
    *,
    root: str | Path | None = None,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The photographs of a folder that :func:`make` wrote, (3, 240, 240).

    The test images are those of which all networks of the suite are sure. The training images,
    of other scenes, are the rest: universal vectors and subspaces are made of them. No one has
    labelled them: their labels are the surest network's own, so that an error rate on them means
    nothing, and networks should not be trained on them.

    Args:
        root: the folder; None looks for ``photographs`` in ``data``, ``/usr/share/datasets`` and
            ``/usr/local/share/datasets``.
        download: has no effect, as the pictures are made from installed packages.
        train_limit: number of training images to keep, a stratified random subset; None: all.
        test_limit: number of test images to keep, likewise.
        seed: seed of both subsets.

    Raises:
        InputError: no such folder, or a picture that is missing or not as the manifest says.
    """
    limits = Limits(train_limit, test_limit, seed)
    places = [Path(place) / "photographs" for place in FOLDERS]
    if root is not None:
        places = [Path(root).expanduser()]
    folder = next((place for place in places if (place / MANIFEST).is_file()), places[0])
    pictures = read_manifest(folder)
    train, test = (_pixels(folder, pictures, split) for split in SPLITS)
    packages = len({each.package for each in pictures})
    note = (
        f"{len(pictures)} photographs from {packages} Debian packages, {len(test.labels)} of them "
        f"with a confidence of at least {SURE} of {' and '.join(NETWORKS)} judge, "
        f"{len(train.labels)} others are what vectors and subspaces are made of; labels "
        "are the networks' own."
    )
    names = require("torchvision.models._meta", EXTRA)._IMAGENET_CATEGORIES
    return assemble(
        "photographs",
        train,
        test,
        names,
        f"photographs of Debian packages in {folder}",
        limits,
        constants=(IMAGENET_MEAN, IMAGENET_STD),
        notes=[note],
    )


def read_manifest(folder: Path) -> list[Picture]:
    """The lines of the manifest in a folder of photographs.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        command = f"python -m robustness_geometry.datasets.photographs {folder}"
        refuse("dataset.root", folder, f"a folder that was made by `{command}`")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        types: dict[str, Any] = {"label": int, "confidence": float}
        found = [Picture(**{key: types.get(key, str)(row[key]) for key in row}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        refuse("dataset.root", path, f"a manifest that was not edited ({error})")
    for each in found:
        name = PurePath(each.file)
        if name.is_absolute() or ".." in name.parts:
            wanted = f"a manifest whose pictures lie in its folder; it names {each.file!r}"
            refuse("dataset.root", path, wanted)
    return found


def is_as_written(folder: Path, picture: Picture) -> bool:
    """Whether the picture's file is there and has the manifest's digest."""
    path = folder / picture.file
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == picture.sha256


def _pixels(folder: Path, pictures: Sequence[Picture], split: str) -> Pixels:
    chosen = [picture for picture in pictures if picture.split == split]
    for picture in chosen:
        if not is_as_written(folder, picture):
            path = folder / picture.file
            refuse("dataset.root", path, "a picture as the manifest has it; make the folder anew")
    if not chosen:
        refuse("dataset.root", folder, f"a folder with pictures of the split {split!r}")
    values = read_pictures([folder / picture.file for picture in chosen])
    return Pixels(values, torch.tensor([picture.label for picture in chosen]))
