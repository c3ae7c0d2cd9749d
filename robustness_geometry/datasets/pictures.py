"""Picture files to 8-bit pixels of one size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor

from robustness_geometry.checks import check_count, refuse
from robustness_geometry.datasets.sources import first_line

__all__ = ["check_crop", "read_pictures"]

WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of more than eight bits a channel; converting them would cut values off silently."""


def check_crop(size: int | None, resize: int | None) -> None:
    """Hold that ``size`` is None or >= 1 and that ``resize`` is None or at least ``size``.

    Raises:
        InputError: naming ``dataset.size`` or ``dataset.resize``.
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
        InputError: a file that is no readable picture of eight bits a channel, or of another shape
            than the first's; more pictures than the free memory holds.
    """
    first = _read(paths[0], channels, size, resize)
    _check_memory(key, len(paths), first.numel())
    pixels = first.new_empty((len(paths), *first.shape))
    for index, path in enumerate(paths):
        picture = _read(path, channels, size, resize)
        if picture.shape != first.shape:
            both = f"{_named(paths[0], first)}, {_named(path, picture)}"
            refuse("dataset.size", "None", f"a side to crop to, as the pictures differ: {both}")
        pixels[index] = picture
    return pixels


def _check_memory(key: str, count: int, values: int) -> None:
    # One byte as read and four as float32.
    fit = psutil.virtual_memory().available // (5 * values)
    if count > fit:
        refuse(
            key, count, f"at most the {fit} images of {values} values that fit in the free memory"
        )


def _read(path: str | Path, channels: int, size: int | None, resize: int | None) -> Tensor:
    try:
        with Image.open(path) as picture:
            if picture.mode in WIDE_MODES:
                raise ValueError(f"it has more than eight bits a channel: mode {picture.mode}")
            image = picture.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        refuse("dataset.root", str(path), f"a picture that can be read ({first_line(error)})")
    if size is not None:
        from torchvision.transforms import functional  # here, because it takes seconds

        image = functional.center_crop(functional.resize(image, [resize or size]), [size, size])
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array[None] if channels == 1 else array.permute(2, 0, 1)


def _named(path: str | Path, picture: Tensor) -> str:
    return f"{Path(path).name} is {picture.shape[1]}x{picture.shape[2]}"
