"""Any folder of pictures with one subfolder per class."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustness_geometry.checks import Described, number, refuse
from robustness_geometry.datasets.assembly import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pixels,
    assemble,
    statistics,
)
from robustness_geometry.datasets.pictures import check_crop, read_pictures
from robustness_geometry.datasets.sampling import Limits, stratified_order
from robustness_geometry.datasets.sources import EXTRA, read_or_refuse
from robustness_geometry.extras import require
from robustness_geometry.types import Dataset

__all__ = ["image_folder"]

PARTS = {"train", "val", "valid", "validation", "test"}


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
    train_share: float = 0.0,
    labels: str | Sequence[str] = "folder",
) -> Dataset:
    """Pictures in ``root/<class>/...``, as torchvision's ImageFolder reads them.

    The data set is named after the folder. All images are held out unless a ``train_share`` is
    given; the split is random, stratified and fixed by ``seed``. Mean and standard deviation are
    those of the training images, or ImageNet's constants if there are none (for grey pictures the
    mean of its three channels).

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
        train_share: share of the images to train on, 0 <= share < 1.
        labels: ``folder``: the classes are the subfolders in alphabetical order; ``imagenet``: the
            1,000 classes of torchvision's weights, by which the subfolders are named; or a list of
            class names in the order of a network's outputs, which includes the subfolders' names.

    Raises:
        InputError: no such folder, no pictures, a picture that cannot be read, pictures of several
            shapes without a size, subfolders that are no classes, or a setting out of range.

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
    share = number("dataset.train_share", train_share)
    if not 0 <= share < 1:
        refuse("dataset.train_share", train_share, "a share with 0 <= share < 1")
    if channels not in (1, 3):
        refuse("dataset.channels", channels, "1 (grey) or 3 (colour)")
    if root is None or not Path(root).expanduser().is_dir():
        refuse("dataset.root", root, "an existing folder with one subfolder of pictures per class")
    folder = Path(root).expanduser().resolve()
    paths, targets, classes = _list(folder, labels)
    order = stratified_order(targets, seed, folder.name, "split")
    cut = min(round(share * len(order)), len(order) - 1)
    read = partial(_read, paths, targets, channels=channels, size=size, resize=resize)
    test = read(order[cut:][: limits.test], key="dataset.test_limit")
    train, constants = test.none(), _constants(channels)
    if cut:
        train = read(order[:cut][: limits.train], key="dataset.train_limit")
        constants = statistics(train.values)
    return assemble(folder.name, train, test, classes, f"pictures in {root}", constants=constants)


def _read(paths: list[str], targets: Tensor, chosen: Tensor, **options: Any) -> Pixels:
    return Pixels(
        read_pictures([paths[index] for index in chosen.tolist()], **options), targets[chosen]
    )


def _constants(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)


def _list(root: Path, labels: str | Sequence[str]) -> tuple[list[str], Tensor, list[str]]:
    """The files, their labels and the class names."""
    source = require("torchvision.datasets", EXTRA).ImageFolder
    data = read_or_refuse(partial(source, str(root)), root, "one subfolder of pictures per class")
    if set(data.classes) <= PARTS:
        parts = " or ".join(data.classes)
        refuse("dataset.root", root, f"a folder with one subfolder per class: choose {parts} in it")
    classes = _classes(labels, data.classes)
    position = {name: index for index, name in enumerate(classes)}
    for name in data.classes:
        if name not in position:
            shown = labels if isinstance(labels, str) else Described(f"a list of {len(classes)}")
            refuse(
                "dataset.labels", shown, f"class names that cover the subfolders; {name} is missing"
            )
    paths = [path for path, _ in data.samples]
    return paths, torch.tensor([position[data.classes[target]] for target in data.targets]), classes


def _classes(labels: str | Sequence[str], folders: list[str]) -> list[str]:
    if labels == "folder":
        return folders
    if labels == "imagenet":
        weights = require("torchvision.models", EXTRA).ResNet50_Weights
        return list(weights.DEFAULT.meta["categories"])
    if isinstance(labels, str) or len(labels) == 0:
        refuse("dataset.labels", labels, "folder, imagenet, or a list of class names")
    return list(labels)
