"""Picture files to 8-bit pixels of one size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustness_geometry.checks import check_count, refuse
from robustness_geometry.datasets.sources import EXTRA, first_line
from robustness_geometry.extras import require

__all__ = ["check_crop", "read_pictures"]

WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of more than eight bits per channel: converting them would cut values off."""


def check_crop(size: int | None, resize: int | None) -> None:
    """Check that ``size`` is None or >= 1, and that ``resize`` is None or at least ``size``.

    Raises:
        InputError: one of them is not; the text names it.

    Example:
        >>> from robustness_geometry.datasets.pictures import check_crop
        >>> check_crop(224, resize=256)
    """
    if size is not None:
        check_count("dataset.size", size)
    if resize is not None:
        if size is None:
            refuse("dataset.resize", resize, "None without dataset.size")
        check_count("dataset.resize", resize, minimum=size)


def read_pictures(
    paths: Sequence[str | Path],
    *,
    channels: int = 3,
    size: int | None = None,
    resize: int | None = None,
    key: str = "dataset.test_limit",
) -> Tensor:
    """Read pictures into (N, channels, H, W) 8-bit pixels.

    Args:
        paths: the files, N >= 1.
        channels: 3 for colour, 1 for grey; pictures are converted.
        size: side of the square cut from the centre; None takes every picture whole.
        resize: length to which the shorter side is brought first (bilinear, antialiased); None:
            ``size``.
        key: the setting to name when the images do not fit in memory.

    Raises:
        InputError: a file that is no readable picture of eight bits per channel, or of another
            shape than the first; more pictures than the free memory holds; or a package that is
            not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from robustness_geometry.datasets.pictures import read_pictures
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (4, 2), "red").save(f"{folder}/red.png")
        ...     read_pictures([f"{folder}/red.png"])[0, :, 0, 0]
        tensor([255,   0,   0], dtype=torch.uint8)
    """
    first = _read(paths[0], channels, size, resize)
    _check_memory(key, len(paths), first.numel())
    pixels = first.new_empty((len(paths), *first.shape))
    for index, path in enumerate(paths):
        picture = _read(path, channels, size, resize)
        if picture.shape != first.shape:
            both = f"{_named(paths[0], first)}, {_named(path, picture)}"
            refuse("dataset.size", None, f"a side to crop to, as the pictures differ: {both}")
        pixels[index] = picture
    return pixels


def _check_memory(key: str, count: int, values: int) -> None:
    # One byte as read and four as float32.
    fit = require("psutil", EXTRA).virtual_memory().available // (5 * values)
    if count > fit:
        refuse(
            key, count, f"at most the {fit} images of {values} values that fit in the free memory"
        )


def _read(path: str | Path, channels: int, size: int | None, resize: int | None) -> Tensor:
    Image = require("PIL.Image", EXTRA)  # noqa: N806 (the name that Pillow gives it)
    try:
        with Image.open(path) as picture:
            if picture.mode in WIDE_MODES:
                raise ValueError(f"it has more than eight bits per channel: mode {picture.mode}")
            image = picture.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        refuse("dataset.root", path, f"a picture that can be read ({first_line(error)})")
    if size is not None:
        functional = require("torchvision.transforms.functional", EXTRA)
        image = functional.center_crop(functional.resize(image, [resize or size]), [size, size])
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array[None] if channels == 1 else array.permute(2, 0, 1)


def _named(path: str | Path, picture: Tensor) -> str:
    return f"{Path(path).name} is {picture.shape[1]}x{picture.shape[2]}"
