"""Figures inside the page: as small as they can be without a visible difference."""

import base64
from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageChops, ImageStat

__all__ = ["data_uri"]

COLOURS = 256
"""Colours that a drawing is reduced to; its edges then stay sharp, and its file small."""

VISIBLE = 2.0
"""Mean difference of pixels, of 255, from which a picture is no drawing of few colours."""

QUALITY = 85
"""WebP's quality for pictures that have more colours."""


@lru_cache(maxsize=512)
def data_uri(content: bytes) -> str:
    """A PNG file as a data URI: as WebP where that is at most half as large.

    Args:
        content: the bytes of a PNG file. One that cannot be decoded is embedded as it is.

    Example:
        >>> from pipeline.report.embedding import data_uri
        >>> data_uri(b"no picture")
        'data:image/png;base64,bm8gcGljdHVyZQ=='
    """
    try:
        smaller = _webp(content)
    except (OSError, SyntaxError, ValueError):  # Pillow's errors about files that are broken
        smaller = content
    kind, chosen = ("webp", smaller) if 2 * len(smaller) <= len(content) else ("png", content)
    return f"data:image/{kind};base64,{base64.b64encode(chosen).decode()}"


def _webp(content: bytes) -> bytes:
    """The picture as WebP: with few colours and without loss, or else as a photograph."""
    with Image.open(BytesIO(content)) as opened:
        picture = opened.convert("RGB")
    drawn = picture.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    reduced = drawn.convert("RGB")
    difference = sum(ImageStat.Stat(ImageChops.difference(picture, reduced)).mean) / 3
    file = BytesIO()
    if difference < VISIBLE:
        reduced.save(file, "WEBP", lossless=True, quality=30, method=1)
    else:
        picture.save(file, "WEBP", quality=QUALITY, method=2)
    return file.getvalue()
