"""Picture files to pixels of one size."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustness_geometry.checks import check_count, refuse
from robustness_geometry.datasets.sources import EXTRA, first_line
from robustness_geometry.extras import require

__all__ = ["FORMATS", "check_crop", "read_pictures"]

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "PPM", "WEBP")
"""Pillow's names of the formats that are read; its JPEG reader hands over to MPO's."""

WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of more than eight bits per channel: converting them would cut values off."""

ORIENTATION, PHOTOMETRIC = 274, 262
"""Tags of EXIF and TIFF."""

TURNED = range(2, 9)
"""Values of the orientation other than upright."""


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
    white: float | None = None,
    upright: bool = False,
    seen: Counter[str] | None = None,
    key: str = "dataset.test_limit",
) -> Tensor:
    """Read pictures into (N, channels, H, W) pixels: of eight bits, or float32 with ``white``.

    What is transparent shows the white behind it; CMYK becomes RGB. Of several pages of a TIFF file
    the first is read.

    Args:
        paths: the files, N >= 1.
        channels: 3 for colour, 1 for grey; pictures are converted.
        size: side of the square cut from the centre; None takes every picture whole.
        resize: length to which the shorter side is brought first (bilinear, antialiased); None:
            ``size``.
        white: the value of white in grey pictures of more than eight bits per channel, such as
            65535; pixels are then float32 in [0, 1]. None refuses such pictures.
        upright: turn pictures as their EXIF orientation says.
        seen: counts, by kind, the pictures that were not taken as they are.
        key: the setting to name when the images do not fit in memory.

    Raises:
        InputError: a file that is no readable picture of eight bits per channel (nor, with
            ``white``, a grey one of more), or of another shape than the first; more pictures than
            the free memory holds; or a package that is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from robustness_geometry.datasets.pictures import read_pictures
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (4, 2), "red").save(f"{folder}/red.png")
        ...     read_pictures([f"{folder}/red.png"])[0, :, 0, 0]
        tensor([255,   0,   0], dtype=torch.uint8)
    """
    how: dict[str, Any] = {"channels": channels, "size": size, "resize": resize}
    how |= {"white": white, "upright": upright}
    first = _read(paths[0], Counter(), **how)
    _check_memory(key, len(paths), first)
    pixels = first.new_empty((len(paths), *first.shape))
    for index, path in enumerate(paths):
        picture = _read(path, Counter() if seen is None else seen, **how)
        if picture.shape != first.shape:
            both = f"{_named(paths[0], first)}, {_named(path, picture)}"
            refuse("dataset.size", None, f"a side to crop to, as the pictures differ: {both}")
        pixels[index] = picture
    return pixels


def _check_memory(key: str, count: int, first: Tensor) -> None:
    # The pixels as read, and as float32.
    values = first.numel()
    bytes_each = (first.element_size() + 4) * values
    fit = require("psutil", EXTRA).virtual_memory().available // bytes_each
    if count > fit:
        refuse(
            key, count, f"at most the {fit} images of {values} values that fit in the free memory"
        )


def _read(
    path: str | Path,
    seen: Counter[str],
    *,
    channels: int,
    size: int | None,
    resize: int | None,
    white: float | None,
    upright: bool,
) -> Tensor:
    Image = require("PIL.Image", EXTRA)  # noqa: N806 (the name that Pillow gives it)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Given a path, Pillow maps a TIFF file into memory, and garbles it where it is turned.
            with Path(path).open("rb") as file, Image.open(file, formats=FORMATS) as picture:
                image = _eight_bits(picture, channels, white, upright, seen)
    except Exception as error:  # there is no end to what Pillow raises at a damaged file
        why = _reason(path, error, Image.UnidentifiedImageError)
        refuse(
            "dataset.root", path, f"a picture that can be read ({why}); mend or remove this file"
        )
    if size is not None:
        functional = require("torchvision.transforms.functional", EXTRA)
        image = functional.center_crop(functional.resize(image, [resize or size]), [size, size])
    array = np.array(image)
    if white is not None:
        array = array.astype(np.float32) / np.float32(1 if image.mode == "F" else 255)
        array = array.clip(0, 1)  # resizing rounds
    values = torch.from_numpy(array)
    if values.ndim == 2:
        return values[None].expand(channels, -1, -1)
    return values.permute(2, 0, 1)


def _reason(path: str | Path, error: Exception, unidentified: type[Exception]) -> str:
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        return "the file is empty"
    return "its format is not known" if isinstance(error, unidentified) else first_line(error)


def _eight_bits(
    picture: Any, channels: int, white: float | None, upright: bool, seen: Counter[str]
) -> Any:
    """The picture in mode L or RGB, or in mode F and [0, 1] where it has more than eight bits."""
    wide = _bits(picture)
    if wide and (white is None or picture.mode not in WIDE_MODES):
        advice = "convert it to eight"
        if picture.mode in WIDE_MODES:
            advice += ", or give the value of white, such as dataset.white=65535"
        raise ValueError(f"it has more than eight bits per channel: {wide}; {advice}")
    if wide and getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        raise ValueError("its largest value is black: convert it")
    if picture.format == "TIFF" and picture.n_frames > 1:
        seen["pages"] += 1
    if upright:
        picture = _upright(picture, seen)
    if wide:
        return _scaled(picture, white or 1.0)
    mode = "L" if channels == 1 else "RGB"
    if picture.has_transparency_data:
        return _on_white(picture, seen).convert(mode)
    if picture.mode == "CMYK":
        seen["cmyk"] += 1
    return picture.convert(mode)


def _bits(picture: Any) -> str:
    """The mode of a picture that has more than eight bits per channel; else empty.

    Pillow cuts colours of sixteen bits to eight as it decodes, which its mode does not tell.
    """
    if picture.mode in WIDE_MODES:
        return f"mode {picture.mode}"
    for tile in picture.tile:
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for argument in arguments:
            if isinstance(argument, str) and ";16" in argument:
                return f"mode {argument}"
        if picture.format == "PPM" and isinstance(arguments[-1], int) and arguments[-1] > 255:
            return f"values up to {arguments[-1]}"
    return ""


def _upright(picture: Any, seen: Counter[str]) -> Any:
    """The picture turned as its orientation says; one that cannot be read is none."""
    turned = getattr(picture, "tag_v2", {}).get(ORIENTATION, 1) in TURNED
    picture.load()  # which turns a TIFF file's picture, and finds damage
    if picture.format != "TIFF":
        try:
            turned = picture.getexif().get(ORIENTATION, 1) in TURNED
        except Exception:  # of damaged EXIF data beside whole pixels
            return picture
    seen["turned"] += turned
    if turned and picture.format != "TIFF":
        return require("PIL.ImageOps", EXTRA).exif_transpose(picture)
    return picture


def _on_white(picture: Any, seen: Counter[str]) -> Any:
    Image = require("PIL.Image", EXTRA)  # noqa: N806
    colours = picture.convert("RGBA")
    if colours.getchannel("A").getextrema()[0] < 255:
        seen["transparent"] += 1
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)


def _scaled(picture: Any, white: float) -> Any:
    """A grey picture of more than eight bits in mode F and [0, 1]."""
    values = np.array(picture, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= white:
        raise ValueError(f"its values run from {low:g} to {high:g}, not from 0 to {white:g}")
    return require("PIL.Image", EXTRA).fromarray((values / white).astype(np.float32))


def _named(path: str | Path, picture: Tensor) -> str:
    return f"{Path(path).name} is {picture.shape[1]}x{picture.shape[2]}"
