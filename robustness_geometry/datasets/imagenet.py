"""ImageNet (ILSVRC 2012): read from the files of the challenge, never downloaded."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from robustness_geometry.checks import check_count
from robustness_geometry.datasets.assembly import IMAGENET_MEAN, IMAGENET_STD, Pixels, assemble
from robustness_geometry.datasets.folders import is_hidden
from robustness_geometry.datasets.pictures import check_crop, read_pictures
from robustness_geometry.datasets.sampling import Limits, stratified_order
from robustness_geometry.datasets.sources import EXTRA, FOLDERS, read_or_refuse
from robustness_geometry.extras import require
from robustness_geometry.types import Dataset

__all__ = ["imagenet"]

FILES = (
    "ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_val.tar of image-net.org, or the meta.bin and "
    "folder val that torchvision makes of them (and train likewise for a train_limit); ImageNet is "
    "never downloaded"
)


def imagenet(
    *,
    root: str | Path | None = None,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    size: int = 224,
    resize: int = 256,
) -> Dataset:
    """ImageNet's validation images as the test split, (3, size, size).

    There are training images only with a ``train_limit``. torchvision's ``ImageNet`` finds the
    files, and unpacks them at the first use; the shorter side is brought to ``resize``, and the
    centre is cut out. Labels are 0 to 999 in the order of the WordNet ids, which is that of
    pretrained networks, also where the folders of some classes are absent; hidden files and folders
    are skipped. Pictures are not turned by their EXIF data, as torchvision's weights were judged
    without. Mean and standard deviation are the constants of torchvision's weights.

    Args:
        root: folder with the archives, or with ``meta.bin``, ``val`` and ``train``; None looks for
            ``imagenet`` in ``data``, ``/usr/share/datasets`` and ``/usr/local/share/datasets``.
        download: has no effect, as ImageNet asks for an account.
        train_limit: number of training images to read, a stratified random subset; None: none.
        test_limit: number of validation images to read, likewise; None: all 50,000, which take
            30 GB.
        seed: seed of both subsets.
        size: side of the images.
        resize: length of the shorter side before the cut, at least ``size``.

    Raises:
        InputError: files that are missing or damaged, a limit below 1, or more images than fit in
            memory.

    References:
        O. Russakovsky et al., "ImageNet large scale visual recognition challenge", IJCV 2015,
        arXiv:1409.0575.
    """
    limits = Limits(train_limit, test_limit, seed)
    check_count("dataset.size", size)
    check_crop(size, resize)
    places = (
        [Path(place) / "imagenet" for place in FOLDERS]
        if root is None
        else [Path(root).expanduser()]
    )
    folder = next((place for place in places if place.is_dir()), places[0])
    read = partial(_read, folder, seed=seed, size=size, resize=resize)
    test, classes = read("val", limits.test, key="dataset.test_limit")
    train = test.none()
    if limits.train is not None:
        train, _ = read("train", limits.train, key="dataset.train_limit")
    constants = (IMAGENET_MEAN, IMAGENET_STD)
    return assemble(
        "imagenet", train, test, classes, f"ILSVRC 2012 in {folder}", constants=constants
    )


def _read(
    folder: Path, part: str, limit: int | None, *, seed: int, size: int, resize: int, key: str
) -> tuple[Pixels, list[str]]:
    data = read_or_refuse(partial(_listed, folder, part), folder, FILES)
    meta = require("torchvision.datasets.imagenet", EXTRA).load_meta_file
    names = read_or_refuse(partial(meta, folder), folder, FILES)[0]
    label = {wnid: index for index, wnid in enumerate(sorted(names))}  # also of absent classes
    labels = torch.tensor([label[data.wnids[target]] for target in data.targets])
    chosen = stratified_order(labels, seed, "imagenet", part)[:limit]
    paths = [data.samples[index][0] for index in chosen.tolist()]
    values = read_pictures(paths, size=size, resize=resize, key=key)
    return Pixels(values, labels[chosen]), [names[wnid][0] for wnid in label]


def _listed(folder: Path, part: str) -> Any:
    """The pictures of a part, as torchvision finds them, without hidden files and folders."""
    source = require("torchvision.datasets", EXTRA).ImageNet
    is_picture = require("torchvision.datasets.folder", EXTRA).is_image_file

    class Visible(source):  # type: ignore[misc, valid-type]
        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = [name for name in super().find_classes(directory)[0] if not is_hidden(name)]
            return names, {name: index for index, name in enumerate(names)}

    def is_valid(path: str) -> bool:
        inner = Path(path).relative_to(folder).parts
        return is_picture(path) and not any(map(is_hidden, inner))

    return Visible(folder, split=part, is_valid_file=is_valid)
