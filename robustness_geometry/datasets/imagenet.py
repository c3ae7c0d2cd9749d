"""ImageNet (ILSVRC 2012): read from the files of the challenge, never downloaded."""

from functools import partial
from pathlib import Path

import torch

from robustness_geometry.checks import check_count
from robustness_geometry.datasets.assembly import IMAGENET_MEAN, IMAGENET_STD, Pixels, assemble
from robustness_geometry.datasets.pictures import check_crop, read_pictures
from robustness_geometry.datasets.sampling import check_limits, stratified_order
from robustness_geometry.datasets.sources import FOLDERS, read_or_refuse
from robustness_geometry.types import Dataset

__all__ = ["imagenet"]

FILES = (
    "ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_val.tar of image-net.org, or the meta.bin and "
    "folder "
    "val that torchvision makes of them (and train likewise for a train_limit); ImageNet is never "
    "downloaded"
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
    """ImageNet's validation images as the test split, (3, size, size); no training images unless asked for.

    torchvision's ``ImageNet`` finds (and at the first use unpacks) the files; the shorter side is
    brought to ``resize`` and the centre is cut out. Labels are 0 to 999 in the order of the WordNet
    ids, which is that of pretrained networks; mean and standard deviation are the constants of
    torchvision's weights.

    Args:
        root: folder with the archives, or with ``meta.bin``, ``val`` and ``train``; None looks for
            ``imagenet`` in ``data``, ``/usr/share/datasets`` and ``/usr/local/share/datasets``.
        download: whether the network may be used; ImageNet asks for an account, so it never is.
        train_limit: read a stratified random subset of that many training images; None reads none.
        test_limit: read a stratified random subset of that many validation images; None reads all
            50,000, which take 30 GB.
        seed: of these subsets.
        size: side of the images.
        resize: length of the shorter side before the cut, at least ``size``.

    Raises:
        InputError: files that are missing or damaged, a limit below 1, or more images than fit in
            memory.
    """
    check_limits(train_limit, test_limit, seed)
    check_count("dataset.size", size)
    check_crop(size, resize)
    places = (
        [Path(place) / "imagenet" for place in FOLDERS]
        if root is None
        else [Path(root).expanduser()]
    )
    folder = next((place for place in places if place.is_dir()), places[0])
    read = partial(_read, folder, seed=seed, size=size, resize=resize)
    test, classes = read("val", test_limit, key="dataset.test_limit")
    train = Pixels(test.values[:0], test.labels[:0])
    if train_limit is not None:
        train, _ = read("train", train_limit, key="dataset.train_limit")
    constants = (IMAGENET_MEAN, IMAGENET_STD)
    return assemble(
        "imagenet", train, test, classes, f"ILSVRC 2012 in {folder}", constants=constants
    )


def _read(
    folder: Path, part: str, limit: int | None, *, seed: int, size: int, resize: int, key: str
) -> tuple[Pixels, list[str]]:
    from torchvision.datasets import ImageNet  # here, because it takes seconds

    data = read_or_refuse(partial(ImageNet, folder, split=part), folder, FILES)
    labels = torch.tensor(data.targets)
    chosen = stratified_order(labels, seed, "imagenet", part)[:limit]
    paths = [data.samples[index][0] for index in chosen.tolist()]
    values = read_pictures(paths, size=size, resize=resize, key=key)
    return Pixels(values, labels[chosen]), [names[0] for names in data.classes]
