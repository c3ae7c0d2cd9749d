"""MNIST's idx format, plain or gzipped, checked against the md5 of the published contents."""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustness_geometry.checks import InputError, refuse
from robustness_geometry.datasets.assembly import Pixels
from robustness_geometry.datasets.sources import (
    EXTRA,
    candidate_folders,
    first_line,
    missing,
    read_or_refuse,
)
from robustness_geometry.extras import require
from robustness_geometry.sizes import check_size

__all__ = ["CHECKSUMS", "FILES", "load_idx", "parse_idx"]

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
LARGEST = 60_000 * 28 * 28 + 16
"""Bytes of the largest of the four files, unpacked."""

CHECKSUMS = {
    "MNIST": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "FashionMNIST": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
"""md5 of the four uncompressed files, since distributions compress them in their own ways."""


def load_idx(kind: str, root: str | Path | None, *, download: bool) -> tuple[Pixels, Pixels, str]:
    """The training and test images of MNIST or Fashion-MNIST.

    Looks in the root, its subfolders ``<kind>/raw`` (torchvision's layout) and ``mnist`` or
    ``fashion-mnist`` (Debian's), for plain or gzipped files.

    Args:
        kind: ``MNIST`` or ``FashionMNIST``.
        root: folder; None looks in :data:`robustness_geometry.datasets.sources.FOLDERS`.
        download: whether torchvision may download what is not there.

    Returns:
        (training pixels, test pixels, folder that they come from).

    Raises:
        InputError: files that are missing and cannot be downloaded, truncated, or not the published
            ones.
    """
    folder = _find(kind, root)
    if folder is None:
        folder = _download(kind, root, allowed=download)
    arrays = [_read(folder, name, md5) for name, md5 in zip(FILES, CHECKSUMS[kind], strict=True)]
    train, test = Pixels(arrays[0][:, None], arrays[1]), Pixels(arrays[2][:, None], arrays[3])
    return train, test, str(folder)


def parse_idx(content: bytes) -> Tensor:
    """The 8-bit array of an idx file.

    The format is two zero bytes, the type 8, the number of axes, big-endian lengths, and the data.

    Raises:
        ValueError: another type, or a length that is not the header's.

    Example:
        >>> from robustness_geometry.datasets.idx import parse_idx
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 6, 7])).tolist()
        [5, 6, 7]
    """
    if len(content) < 8 or content[:3] != b"\0\0\x08" or content[3] == 0:
        raise ValueError("it does not start as an idx file of unsigned bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError("it ends within its header")
    shape = np.frombuffer(content, ">u4", content[3], offset=4).tolist()
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"it holds {len(content) - start} bytes where its header says {math.prod(shape)}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)


def _find(kind: str, root: str | Path | None) -> Path | None:
    debian = "mnist" if kind == "MNIST" else "fashion-mnist"
    for folder in candidate_folders(root):
        for place in (folder, folder / kind / "raw", folder / debian):
            if all((place / name).is_file() or (place / f"{name}.gz").is_file() for name in FILES):
                return place
    return None


def _download(kind: str, root: str | Path | None, *, allowed: bool) -> Path:
    files = f"{kind}'s {FILES[0]}.gz and its three companions"
    if not allowed:
        missing(root, files, "not there, and download=False")
    source = getattr(require("torchvision.datasets", EXTRA), kind)
    target = candidate_folders(root)[0]
    read_or_refuse(lambda: source(target, download=True), root, files)
    return target / kind / "raw"


def _read(folder: Path, name: str, md5: str) -> Tensor:
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST + 1)
        check_size("dataset.root", path, len(content), LARGEST)
        array = parse_idx(content)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        why = first_line(error)
        refuse("dataset.root", path, f"a whole idx file ({why}); delete it to download it again")
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        refuse(
            "dataset.root",
            path,
            f"the published file, of md5 {md5} unpacked; this one has {found}",
        )
    return array
