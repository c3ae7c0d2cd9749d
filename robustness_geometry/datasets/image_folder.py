"""Any folder of pictures with one subfolder per class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from robustness_geometry.checks import Described, check_positive, number, refuse
from robustness_geometry.datasets.assembly import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pixels,
    assemble,
    statistics,
)
from robustness_geometry.datasets.class_names import ClassNames, class_names, plain_name
from robustness_geometry.datasets.folder_notes import folder_note
from robustness_geometry.datasets.folders import Contents, check_no_parts, contents
from robustness_geometry.datasets.pictures import check_crop, read_pictures
from robustness_geometry.datasets.sampling import Limits, stratified_order
from robustness_geometry.types import Dataset

__all__ = ["image_folder"]


@dataclass(frozen=True)
class _Files:
    """Pictures (N) and their labels (N,)."""

    paths: list[str]
    labels: Tensor

    def at(self, chosen: Tensor) -> "_Files":
        return _Files([self.paths[index] for index in chosen.tolist()], self.labels[chosen])


def image_folder(
    *,
    root: str | Path | None = None,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    size: int | None = None,
    resize: int | None = None,
    channels: int = 3,
    white: float | None = None,
    train_share: float = 0.0,
    train: str | None = None,
    test: str | None = None,
    labels: str | Sequence[object] = "folder",
    classes: Sequence[object] | None = None,
    classes_file: str | None = None,
) -> Dataset:
    """Pictures in ``root/<class>/...``, at any depth below the class folder.

    The data set is named after the folder. All images are held out unless a ``train_share`` or a
    folder ``train`` is given; the split is random, stratified and fixed by ``seed``. Mean and
    standard deviation are those of the training images, or ImageNet's constants if there are none
    (for grey pictures the mean of its three channels).

    Hidden files and folders are skipped, and so is what is no picture. Pictures are turned as their
    EXIF orientation says, and transparent ones laid on white. The ``notes`` of the data set say in
    one line what was read, left out and changed.

    Args:
        root: the folder; it has to be given.
        download: has no effect, as there is nothing to download.
        train_limit: number of training images to keep, a stratified random subset; None: all.
        test_limit: number of held-out images to keep, likewise.
        seed: seed of the split and of both subsets.
        size: side of the square cut from the centre; None takes the pictures whole, which must then
            have one shape.
        resize: length of the shorter side before the cut, at least ``size``; None means ``size``.
        channels: 3 for colour, 1 for grey; pictures are converted.
        white: the value of white in grey pictures of more than eight bits, such as 65535, or 1 for
            floating-point TIFF files; None refuses such pictures.
        train_share: share of the images to train on, 0 <= share < 1. Every class has then an image
            in either part.
        train: the subfolder of ``root`` with the training images, one subfolder per class.
        test: the subfolder of ``root`` with the held-out images, likewise.
        labels: ``folder``: the classes are the subfolders, numbers in their names by value;
            ``imagenet``: the 1,000 classes of torchvision's weights, by which the subfolders are
            named (or by their WordNet ids); or a list, as ``classes``.
        classes: class names in the order of a network's outputs, which include the subfolders'
            names; None: as ``labels`` says.
        classes_file: a file that names the classes in this order, see
            :func:`~robustness_geometry.datasets.class_names.class_names`; None takes
            ``classes.txt``, ``classes.json`` or ``class_to_idx.json`` in the root, if there.

    Raises:
        InputError: no such folder, no pictures, a picture that cannot be read, pictures of several
            shapes without a size, subfolders that are no classes, a class that cannot be split, or
            a setting out of range.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustness_geometry.datasets import image_folder
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("cat", "dog"):
        ...         (Path(root) / name).mkdir()
        ...         Image.new("RGB", (8, 6)).save(Path(root) / name / "one.png")
        ...     data = image_folder(root=root)
        >>> data.classes, data.shape, len(data.test)
        (('cat', 'dog'), (3, 6, 8), 2)
    """
    limits = Limits(train_limit, test_limit, seed)
    check_crop(size, resize)
    share = _share(train_share, train)
    if channels not in (1, 3):
        refuse("dataset.channels", channels, "1 (grey) or 3 (colour)")
    top = None if white is None else check_positive("dataset.white", white)
    if root is None or not Path(root).expanduser().is_dir():
        refuse("dataset.root", root, "an existing folder with one subfolder of pictures per class")
    folder = Path(root).expanduser().resolve()
    found = _contents(folder, train, test)
    names = partial(class_names, labels=labels, classes=classes, classes_file=classes_file)
    listed = labels if classes is None else classes
    words = () if isinstance(listed, str) or not isinstance(listed, Sequence) else listed
    known = _known_classes(found, folder, names, set(map(plain_name, words)))
    train_files, test_files = _parts(found, known, share, seed, folder.name)
    seen: Counter[str] = Counter()
    options = {"channels": channels, "size": size, "resize": resize, "white": top, "seen": seen}
    held_out = _read(test_files, limits.test, key="dataset.test_limit", **options)
    trained, constants = held_out.none(), _constants(channels)
    if train_files.paths:
        trained = _read(train_files, limits.train, key="dataset.train_limit", **options)
        constants = statistics(trained.values)
    note = folder_note(folder, known, found, (trained.labels, held_out.labels), seen)
    return assemble(
        folder.name,
        trained,
        held_out,
        known.names,
        f"pictures in {root}",
        constants=constants,
        notes=[note],
    )


def _share(train_share: float, train: str | None) -> float:
    share = number("dataset.train_share", train_share)
    if not 0 <= share < 1:
        refuse("dataset.train_share", train_share, "a share with 0 <= share < 1")
    if share and train is not None:
        refuse("dataset.train_share", train_share, "0 beside dataset.train")
    return share


def _read(files: _Files, limit: int | None, **options: Any) -> Pixels:
    paths, labels = files.paths[:limit], files.labels[:limit]
    return Pixels(read_pictures(paths, upright=True, **options), labels)


def _constants(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)


def _contents(folder: Path, train: str | None, test: str | None) -> dict[str, Contents]:
    """What lies in the folder, or in the parts that were asked for, by the parts' options."""
    if train is None and test is None:
        return {"": contents(folder)}
    if test is None:
        refuse("dataset.test", test, "given beside dataset.train: the folder of held-out images")
    found = {}
    for key, name in (("train", train), ("test", test)):
        if name is not None:
            place = folder / Path(name).expanduser()
            if not place.is_dir():
                wanted = "the name of a subfolder of dataset.root, with one subfolder per class"
                refuse(f"dataset.{key}", name, wanted)
            found[key] = contents(place.resolve())
    if len(found) == 2 and found["train"].root == found["test"].root:
        refuse("dataset.test", test, "another folder than dataset.train")
    return found


def _known_classes(
    found: dict[str, Contents], folder: Path, names: "partial[ClassNames]", listed: set[str]
) -> ClassNames:
    """The classes of all parts, after a check that every folder is one and holds pictures."""
    if "" in found and not set(map(plain_name, found[""].pictures)) <= listed:
        check_no_parts(found[""])
    for key, part in found.items():
        if not part.filled:
            _no_pictures(f"dataset.{key or 'root'}", part)
    present = sorted({plain_name(name) for part in found.values() for name in part.pictures})
    filled = sorted({plain_name(name) for part in found.values() for name in part.filled})
    known = names(filled, folder)
    empty = [name for name in present if name not in filled]
    if empty and not known.listed:
        shown = ", ".join(empty[:5])
        hint = f"dataset.classes=[{','.join(present)}]" if len(present) <= 20 else "dataset.classes"
        refuse(
            "dataset.root",
            str(folder),
            f"a folder with a picture in each subfolder; there is none in {shown}: remove it, or "
            f"list the classes with {hint}",
        )
    return known


def _no_pictures(key: str, part: Contents) -> NoReturn:
    wanted = "a folder with one subfolder of pictures per class"
    if not part.pictures:
        refuse(key, str(part.root), f"{wanted}; there is no class folder in it")
    names = ", ".join(list(part.pictures)[:5])
    refuse(key, str(part.root), f"{wanted}; there is no valid file for the classes {names}")


def _parts(
    found: dict[str, Contents], known: ClassNames, share: float, seed: int, name: str
) -> tuple[_Files, _Files]:
    """The files to train on and the held-out ones, both in a stratified random order."""
    if "" not in found:
        parts = [
            _ordered(_files(found[key], known), seed, name, key)
            if key in found
            else _Files([], torch.tensor([], dtype=torch.long))
            for key in ("train", "test")
        ]
        return parts[0], parts[1]
    files = _ordered(_files(found[""], known), seed, name, "split")
    is_train = _split(files.labels, share, known)
    indices = torch.arange(len(files.paths))
    return files.at(indices[is_train]), files.at(indices[~is_train])


def _files(part: Contents, known: ClassNames) -> _Files:
    pairs = sorted((known.label(name), name) for name in part.filled)
    paths = [path for _, name in pairs for path in part.pictures[name]]
    labels = [label for label, name in pairs for _ in part.pictures[name]]
    return _Files(paths, torch.tensor(labels))


def _ordered(files: _Files, seed: int, name: str, purpose: str) -> _Files:
    return files.at(stratified_order(files.labels, seed, name, purpose))


def _split(labels: Tensor, share: float, known: ClassNames) -> Tensor:
    """Which images (N,) in a stratified order are trained on, some of every class and not all."""
    count = min(round(share * len(labels)), len(labels) - 1)
    is_train = torch.arange(len(labels)) < count
    if not share:
        return is_train
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            text = "0, as a class of a single picture cannot be split"
            name = known.names[label]
            refuse("dataset.train_share", Described(f"{share:g} with class {name!r}"), text)
        is_train[members[0]] = True
        is_train[members[-1]] = False
    return is_train
