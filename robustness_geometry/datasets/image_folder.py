"""Any folder of pictures with one subfolder a class."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustness_geometry.checks import number, refuse
from robustness_geometry.datasets.assembly import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pixels,
    assemble,
    statistics,
)
from robustness_geometry.datasets.pictures import check_crop, read_pictures
from robustness_geometry.datasets.sampling import check_limits, stratified_order
from robustness_geometry.datasets.sources import read_or_refuse
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
    """Pictures in ``root/<class>/...``, as torchvision's ImageFolder takes them; named after the folder.

    Everything is held out unless a ``train_share`` is given; the split is random, stratified and
    fixed by ``seed``. Mean and standard deviation are those of the training images, or ImageNet's
    constants when there are none (for grey pictures the mean of its three channels).

    Args:
        root: the folder; it has to be given.
        download: whether the network may be used; there is nothing to download here.
        train_limit: keep a stratified random subset of that many training images.
        test_limit: the same for held-out images.
        seed: of split and subsets.
        size: side of the square cut from the centre; None takes the pictures whole: they must have
            one shape.
        resize: length of the shorter side before the cut, at least ``size``; None means ``size``.
        channels: 3 for colour, 1 for grey; pictures are converted.
        train_share: share of the images to train on, 0 <= share < 1.
        labels: ``folder``: the classes are the subfolders in alphabetical order; ``imagenet``: the
            1,000 classes of torchvision's weights, whose names the subfolders bear; or a list of
            class names in the order of a network's outputs, some of which the subfolders bear.

    Raises:
        InputError: no such folder, no pictures, a picture that cannot be read, pictures of several
            shapes without a size, subfolders that are no classes, or a setting out of range.
    """
    check_limits(train_limit, test_limit, seed)
    check_crop(size, resize)
    share = number("dataset.train_share", train_share)
    if not 0 <= share < 1:
        refuse("dataset.train_share", train_share, "a share with 0 <= share < 1")
    if channels not in (1, 3):
        refuse("dataset.channels", channels, "1 (grey) or 3 (colour)")
    if root is None or not Path(root).expanduser().is_dir():
        refuse(
            "dataset.root", str(root), "an existing folder with one subfolder of pictures a class"
        )
    folder = Path(root).expanduser().resolve()
    paths, targets, classes = _list(folder, labels)
    order = stratified_order(targets, seed, folder.name, "split")
    cut = min(round(share * len(order)), len(order) - 1)
    read = partial(_read, paths, targets, channels=channels, size=size, resize=resize)
    test = read(order[cut:][:test_limit], key="dataset.test_limit")
    train, constants = Pixels(test.values[:0], test.labels[:0]), _constants(channels)
    if cut:
        train = read(order[:cut][:train_limit], key="dataset.train_limit")
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
    from torchvision.datasets import ImageFolder  # here, because it takes seconds

    data = read_or_refuse(
        partial(ImageFolder, str(root)), root, "one subfolder of pictures a class"
    )
    if set(data.classes) <= PARTS:
        parts = " or ".join(data.classes)
        refuse(
            "dataset.root", str(root), f"a folder with one subfolder a class: choose {parts} in it"
        )
    classes = _classes(labels, data.classes)
    position = {name: index for index, name in enumerate(classes)}
    for name in data.classes:
        if name not in position:
            shown = labels if isinstance(labels, str) else f"a list of {len(classes)}"
            refuse("dataset.labels", shown, f"names that cover the subfolders; {name} is missing")
    paths = [path for path, _ in data.samples]
    return paths, torch.tensor([position[data.classes[target]] for target in data.targets]), classes


def _classes(labels: str | Sequence[str], folders: list[str]) -> list[str]:
    if labels == "folder":
        return folders
    if labels == "imagenet":
        from torchvision.models import ResNet50_Weights  # here, because it takes seconds

        return list(ResNet50_Weights.DEFAULT.meta["categories"])
    if isinstance(labels, str) or len(labels) == 0:
        refuse("dataset.labels", str(labels), "folder, imagenet, or a list of class names")
    return list(labels)
