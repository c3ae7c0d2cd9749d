"""Made-up pictures in the files of published data sets, and the data sets' loaders for them.

The loaders here are those of :mod:`robustness_geometry.datasets`, which read the same files in the
same way, except that they take the files that are there for the published ones: every other loader
refuses files of other checksums. Nothing measured on such pictures means anything.
"""

import csv
import functools
import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray

from robustness_geometry import datasets
from robustness_geometry.datasets import idx as idx_files
from robustness_geometry.datasets.cifar10 import CLASSES
from robustness_geometry.datasets.photographs.folder import MANIFEST, SPLITS
from robustness_geometry.extras import require
from robustness_geometry.types import Dataset

__all__ = [
    "DATASETS",
    "cifar10",
    "encode",
    "fashion_mnist",
    "imagenet",
    "make",
    "md5",
    "mnist",
    "pack",
    "photographs",
    "pickled",
    "pictures",
    "svhn",
    "synsets",
]

BATCHES = "cifar-10-batches-py"
DEVKIT = "ILSVRC2012_devkit_t12"
VALIDATION = "ILSVRC2012_img_val.tar"
Array = NDArray[Any]


def pictures(
    count: int, shape: tuple[int, int, int], classes: int = 10, *, seed: int = 0
) -> tuple[Array, Array]:
    """Smooth patterns, one for each class, in noise: a small network learns them in a few steps.

    Args:
        count: number of pictures; their classes take turns.
        shape: channels, height and width.
        classes: number of classes, at least 1.
        seed: seed of the noise; the patterns are always the same.

    Returns:
        (count, C, H, W) pixels of eight bits, and (count,) labels.

    Example:
        >>> from pipeline.made_up import pictures
        >>> pixels, labels = pictures(12, (1, 28, 28))
        >>> pixels.shape, pixels.dtype.name, labels.tolist()[-3:]
        ((12, 1, 28, 28), 'uint8', [9, 0, 1])
    """
    channels, height, width = shape
    coarse = np.random.default_rng(0).uniform(40, 215, (classes, channels, 4, 4))
    labels = np.arange(count) % classes
    used = torch.from_numpy(coarse[labels])
    smooth = torch.nn.functional.interpolate(used, (height, width), mode="bicubic").numpy()
    smooth += np.random.default_rng(seed + 1).normal(0, 25, (count, channels, height, width))
    return smooth.clip(0, 255).round().astype(np.uint8), labels


def encode(array: Array) -> bytes:
    """The idx format: 0, 0, type 8, number of axes; big-endian lengths; the bytes.

    Example:
        >>> import numpy as np
        >>> from pipeline.made_up import encode
        >>> list(encode(np.array([5, 6])))
        [0, 0, 8, 1, 0, 0, 0, 2, 5, 6]
    """
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


_Pickler: Any = pickle._Pickler


class _Python2Pickler(_Pickler):  # type: ignore[misc]
    """Writes byte strings and flags as Python 2 did: what the published batches consist of."""

    def _save_string(self, value: bytes) -> None:
        size = len(value)
        short, long = pickle.SHORT_BINSTRING, pickle.BINSTRING
        self.write(
            (short + bytes([size]) if size < 256 else long + struct.pack("<i", size)) + value
        )
        self.memoize(value)

    def _save_flag(self, value: bool) -> None:
        self.write(pickle.BININT1 + bytes([value]))

    dispatch = {**_Pickler.dispatch, bytes: _save_string, bool: _save_flag}  # noqa: RUF012


def pickled(value: object) -> bytes:
    """A value as Python 2 pickled it, byte strings and NumPy arrays among it.

    Example:
        >>> import pickle
        >>> from pipeline.made_up import pickled
        >>> pickle.loads(pickled({b"labels": [1, 2]}), encoding="latin1")
        {'labels': [1, 2]}
    """
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


def synsets(wnids: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    """ImageNet's meta.mat: a record for each class, and one above them which is no class.

    Args:
        wnids: the classes' WordNet ids, in the devkit's order.
        words: their names, separated by commas.
    """
    names = ("WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    kinds = [(name, "O") for name in ("ILSVRC2012_ID", *names, "num_train_images")]
    count = len(wnids)
    rows: list[tuple[Any, ...]] = [
        (i + 1, wnids[i], words[i], "a gloss", 0, np.empty(0), 0, 2) for i in range(count)
    ]
    below = np.arange(1, count + 1)
    rows.append((count + 1, "n00001740", "entity", "a gloss", count, below, 1, 0))
    table = np.empty((count + 1, 1), dtype=kinds)
    for index, row in enumerate(rows):
        table[index, 0] = row
    return {"synsets": table}


def pack(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def md5(path: Path) -> str:
    """The checksum by which files of published data sets are known."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _make_idx(folder: Path, train: int, test: int) -> None:
    for part, count, seed in (("train", train, 0), ("t10k", test, 1)):
        pixels, labels = pictures(count, (1, 28, 28), seed=seed)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(encode(pixels[:, 0]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(encode(labels))


def _make_cifar10(folder: Path, train: int, test: int) -> None:
    place = folder / BATCHES
    place.mkdir()
    parts = np.array_split(np.arange(train), 5)
    pixels, labels = pictures(train, (3, 32, 32))
    entries = {f"data_batch_{i}": (pixels[p], labels[p]) for i, p in enumerate(parts, 1)}
    entries["test_batch"] = pictures(test, (3, 32, 32), seed=1)
    for name, (some, their) in entries.items():
        entry = {
            b"batch_label": name.encode(),
            b"labels": their.tolist(),
            b"data": some.reshape(len(some), -1),
            b"filenames": [b"%d.png" % i for i in range(len(some))],
        }
        (place / name).write_bytes(pickled(entry))
    names = [name.encode() for name in CLASSES]
    meta = {b"num_cases_per_batch": len(parts[0]), b"label_names": names, b"num_vis": 3072}
    (place / "batches.meta").write_bytes(pickled(meta))


def _make_svhn(folder: Path, train: int, test: int) -> None:
    for part, count, seed in (("train", train, 0), ("test", test, 1)):
        pixels, labels = pictures(count, (3, 32, 32), seed=seed)
        digits = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        content = {"X": pixels.transpose(2, 3, 1, 0), "y": digits}
        scipy.io.savemat(folder / f"{part}_32x32.mat", content, do_compression=True)


def _make_imagenet(folder: Path, train: int, test: int) -> None:
    words = _imagenet_classes()
    wnids = [f"n{10_000_000 + index}" for index in range(len(words))]
    meta: Any = io.BytesIO()
    scipy.io.savemat(meta, synsets(wnids, words))
    pixels, labels = pictures(test, (3, 260, 300), len(words))
    truth = "".join(f"{label + 1}\n" for label in labels).encode()
    with tarfile.open(folder / f"{DEVKIT}.tar.gz", "w:gz") as archive:
        pack(archive, f"{DEVKIT}/data/meta.mat", meta.getvalue())
        pack(archive, f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt", truth)
    with tarfile.open(folder / VALIDATION, "w") as archive:
        for index, picture in enumerate(pixels, 1):
            pack(archive, f"ILSVRC2012_val_{index:08d}.JPEG", _jpeg(picture))


def _make_photographs(folder: Path, train: int, test: int) -> None:
    rows = []
    for split, count, seed in zip(SPLITS, (train, test), (0, 1), strict=True):
        pixels, labels = pictures(count, (3, 240, 240), 1000, seed=seed)
        (folder / split).mkdir()
        for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
            content, file = _jpeg(picture), f"{split}/{index}.jpg"
            (folder / file).write_bytes(content)
            row: dict[str, object] = {
                "file": file,
                "package": "made-up",
                "version": "1",
                "path": file,
            }
            row |= {"scene": f"{split}{index}", "split": split, "label": int(label)}
            rows.append({**row, "confidence": 0.5, "sha256": hashlib.sha256(content).hexdigest()})
    with (folder / MANIFEST).open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _jpeg(picture: Array) -> bytes:
    buffer = io.BytesIO()
    image = require("PIL.Image", "examples").fromarray(picture.transpose(1, 2, 0))
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _imagenet_classes() -> list[str]:
    return list(require("torchvision.models._meta", "examples")._IMAGENET_CATEGORIES)


@contextmanager
def _instead(owner: Any, name: str, value: object) -> Iterator[None]:
    """``owner.name`` with another value for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _idx_sums(kind: str, folder: Path) -> list[tuple[Any, str, object]]:
    sums = tuple(md5(folder / name) for name in idx_files.FILES)
    return [(idx_files, "CHECKSUMS", {**idx_files.CHECKSUMS, kind: sums})]


def _cifar10_sums(folder: Path) -> list[tuple[Any, str, object]]:
    source, place = require("torchvision.datasets", "examples").CIFAR10, folder / BATCHES
    train = [[name, md5(place / name)] for name, _ in source.train_list]
    meta = {**source.meta, "md5": md5(place / source.meta["filename"])}
    test = [[name, md5(place / name)] for name, _ in source.test_list]
    return [(source, "train_list", train), (source, "test_list", test), (source, "meta", meta)]


def _svhn_sums(folder: Path) -> list[tuple[Any, str, object]]:
    source = require("torchvision.datasets", "examples").SVHN
    table = dict(source.split_list)
    for part in ("train", "test"):
        name = f"{part}_32x32.mat"
        table[part] = ["", name, md5(folder / name)]
    return [(source, "split_list", table)]


def _imagenet_sums(folder: Path) -> list[tuple[Any, str, object]]:
    source = require("torchvision.datasets.imagenet", "examples")
    files = {"devkit": f"{DEVKIT}.tar.gz", "val": VALIDATION}
    table = {part: (name, md5(folder / name)) for part, name in files.items()}
    return [(source, "ARCHIVE_META", {**source.ARCHIVE_META, **table})]


def _accepting(
    loader: Callable[..., Dataset], sums: Callable[[Path], list[tuple[Any, str, object]]]
) -> Callable[..., Dataset]:
    """The loader, which takes the files in its root for the published ones."""

    @functools.wraps(loader)
    def load(*, root: str | Path, **options: Any) -> Dataset:
        with ExitStack() as swapped:
            for owner, name, value in sums(Path(root)):
                swapped.enter_context(_instead(owner, name, value))
            return loader(root=root, **options)

    return load


mnist = _accepting(datasets.mnist, functools.partial(_idx_sums, "MNIST"))
fashion_mnist = _accepting(datasets.fashion_mnist, functools.partial(_idx_sums, "FashionMNIST"))
cifar10 = _accepting(datasets.cifar10, _cifar10_sums)
svhn = _accepting(datasets.svhn, _svhn_sums)
imagenet = _accepting(datasets.imagenet, _imagenet_sums)
photographs = _accepting(datasets.photographs, lambda _: [])

_MAKERS: dict[str, Callable[[Path, int, int], None]] = {
    "mnist": _make_idx,
    "fashion_mnist": _make_idx,
    "cifar10": _make_cifar10,
    "svhn": _make_svhn,
    "imagenet": _make_imagenet,
    "photographs": _make_photographs,
}

DATASETS = tuple(_MAKERS)
"""The data sets whose files can be made up."""


def make(name: str, folder: Path, *, train: int, test: int) -> None:
    """Write the files of a data set, with made-up pictures in them.

    Args:
        name: one of DATASETS.
        folder: an empty folder, or one that is to be made.
        train: number of training images, at least 5; ImageNet has none.
        test: number of held-out images, at least 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _MAKERS[name](folder, train, test)
