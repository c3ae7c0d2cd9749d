"""Making the folder of photographs from the files of Debian packages."""

import csv
import hashlib
import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustness_geometry.checks import check_count, refuse
from robustness_geometry.datasets.photographs.folder import (
    MANIFEST,
    SPLITS,
    SURE,
    Picture,
    is_as_written,
    read_manifest,
)
from robustness_geometry.datasets.photographs.packages import (
    SOURCES,
    STAMPS,
    originals,
    version_of,
)
from robustness_geometry.datasets.sources import EXTRA
from robustness_geometry.extras import require
from robustness_geometry.outputs import logits_at
from robustness_geometry.types import Classifier, class_logits

__all__ = ["SIDE", "make"]

SIDE = 240
"""Pixels along a side of the pictures."""

MARGIN = 32
"""By how many pixels the shorter side of a photograph is longer before its centre is cut out."""

GROUND, SHARE = 240, 0.85
"""Grey level behind a stamp, and its longer side over that of the picture."""

SMALLEST = 96
"""Length in pixels that the longer side of an original must have."""

HASH_SIDE, SAME_HASH, SAME_COLOUR = 8, 16, 24.0
"""Two pictures are near-duplicates where their hashes of 2 * 8 * 8 bits differ in at most 16 bits,
one of them mirrored or not, and thumbnails of 8 x 8 pixels by at most 24 of 255 (root mean
square)."""

BATCH = 16
"""Pictures that a network looks at together."""


def make(
    folder: Path, *, root: Path = Path("/"), networks: Mapping[str, Classifier], side: int = SIDE
) -> list[Picture]:
    """Write the pictures of the packages below ``root``, and the manifest that describes them.

    Photographs are brought to a shorter side of ``side + 32`` and their centre cut out, as these
    networks are evaluated; stamps, objects without background, are laid on a plain light ground.
    Of near-duplicates, mirrored or not, the first is kept. A scene judges if all networks are sure
    of one of its pictures, which is then the only one of it; else all of it is part of X. The
    same packages and networks give the same files. The folder appears as a whole or not at all.

    Args:
        folder: where to write; absent, empty, or written by this function.
        root: where the packages' files lie; ``dpkg -x`` makes such a tree.
        networks: classifiers of ImageNet's classes whose confidence splits the pictures.
        side: side of the pictures, in pixels.

    Returns:
        The manifest.

    Raises:
        InputError: files of another origin in the folder, no package, or a picture that cannot be
            read.
    """
    check_count("side", side, minimum=32)
    old = _own_files(folder)
    found = list(_found(root, side))
    if not found:
        command = "apt-get install " + " ".join(each.package for each in SOURCES)
        refuse("root", root, f"a tree with photographs of Debian packages: {command}")
    kept = _without_duplicates(found)
    judged = _split([picture for picture, _ in kept], _opinions(networks, [p for _, p in kept]))
    values = {picture.file: pixels for picture, pixels in kept}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        place = Path(beside) / "whole"
        written = [_write(place, picture, values[picture.file]) for picture in judged]
        _write_manifest(place, written)
        for name in sorted(old):
            (folder / name).unlink()
        for inner in (folder / split for split in SPLITS):
            if inner.is_dir():
                inner.rmdir()
        place.chmod(0o755)
        place.replace(folder)  # which has to be absent or empty
    return written


def _write_manifest(folder: Path, pictures: Sequence[Picture]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [each.name for each in fields(Picture)], lineterminator="\n")
    writer.writeheader()
    writer.writerows([vars(picture) for picture in pictures])
    (folder / MANIFEST).write_text(text.getvalue(), encoding="utf-8")


def _own_files(folder: Path) -> set[str]:
    """The files in the folder, all of which have to be as its manifest says."""
    if not folder.exists():
        return set()
    if not folder.is_dir():
        refuse("folder", folder, "a folder; this is a file")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    listed = set()
    if MANIFEST in there:
        listed = {MANIFEST} | {
            picture.file
            for picture in read_manifest(folder)
            if picture.file in there and is_as_written(folder, picture)
        }
    if others := sorted(there - listed):
        refuse("folder", folder, f"empty, or made by this command; it holds {others[0]}")
    return there


def _found(root: Path, side: int) -> list[tuple[Picture, Tensor]]:
    """The pictures of all packages at their size, (3, side, side), with names of their own."""
    result = list[tuple[Picture, Tensor]]()
    for source in SOURCES:
        version = version_of(source.package, root)
        for original in originals(source, root):
            pixels = _at_size(original.content, side, is_stamp=source is STAMPS, path=original.path)
            if pixels is None:
                continue
            file = f"{len(result):03d}_{_stem(original.path)}.jpg"
            scene = _scene(original.path)
            result.append((Picture(file, source.package, version, original.path, scene), pixels))
    return result


def _stem(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", Path(path).stem.casefold()).strip("_")


def _scene(path: str) -> str:
    """The name of the scene: that of the file without the number behind a dash, in small letters.

    A monument's or an animal's pictures in several places are one scene.
    """
    if Path(path).parent.name == "images":  # wallpapers, named after their sizes
        return Path(path).parts[-4].casefold()
    return (
        re.sub(
            r"([-_]\d+|[-_](stand|sitting|baby|profile|whole|flying|eating|open|closed))+$",
            "",
            Path(path).stem.casefold(),
        )
        .replace("_", "")
        .replace("-", "")
    )


def _at_size(content: bytes, side: int, *, is_stamp: bool, path: str) -> Tensor | None:
    """The picture (3, side, side) in eight bits; None for one that is too small."""
    image_module = require("PIL.Image", EXTRA)
    try:
        with image_module.open(io.BytesIO(content)) as opened:
            opened.draft("RGB", (4 * side, 4 * side))  # JPEG files are decoded at a smaller size
            picture = require("PIL.ImageOps", EXTRA).exif_transpose(opened).convert("RGBA")
    except Exception as error:  # there is no end to what Pillow raises at a damaged file
        refuse("root", path, f"a picture that can be read ({type(error).__name__})")
    if max(picture.size) < SMALLEST:
        return None
    if is_stamp:
        box = picture.getchannel("A").getbbox()
        picture = picture.crop(box) if box else picture
    scale = SHARE * side / max(picture.size) if is_stamp else (side + MARGIN) / min(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    picture = picture.resize((width, height), image_module.Resampling.BICUBIC)
    square = image_module.new("RGBA", (side, side), (GROUND, GROUND, GROUND, 255))
    square.alpha_composite(
        picture.crop(_centre(width, height, side)),
        (max(0, (side - width) // 2), max(0, (side - height) // 2)),
    )
    return torch.from_numpy(np.array(square.convert("RGB"))).permute(2, 0, 1)


def _centre(width: int, height: int, side: int) -> tuple[int, int, int, int]:
    left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
    return left, top, left + min(side, width), top + min(side, height)


def _without_duplicates(
    found: Sequence[tuple[Picture, Tensor]],
) -> list[tuple[Picture, Tensor]]:
    """The pictures without near-duplicates of earlier ones."""
    kept, hashes, colours = [], list[Tensor](), list[Tensor]()
    for picture, pixels in found:
        own = [_hash(each) for each in (pixels, pixels.flip(-1))]
        thumbnails = [_thumbnail(each, HASH_SIDE) for each in (pixels, pixels.flip(-1))]
        if not any(
            int((mine ^ other).sum()) <= SAME_HASH
            and float((thumbnail - colour).pow(2).mean().sqrt()) <= SAME_COLOUR
            for mine, thumbnail in zip(own, thumbnails, strict=True)
            for other, colour in zip(hashes, colours, strict=True)
        ):
            kept.append((picture, pixels))
            hashes.append(own[0])
            colours.append(thumbnails[0])
    return kept


def _thumbnail(pixels: Tensor, side: int) -> Tensor:
    return torch.nn.functional.interpolate(pixels[None].float(), size=(side, side), mode="area")[0]


def _hash(pixels: Tensor) -> Tensor:
    """Difference hash: whether each of 9 x 9 grey pixels is darker than its right and lower one."""
    grey = _thumbnail(pixels, HASH_SIDE + 1).mean(dim=0)
    right, below = grey[:-1, :-1] < grey[:-1, 1:], grey[:-1, :-1] < grey[1:, :-1]
    return torch.cat([right.flatten(), below.flatten()])


def _opinions(networks: Mapping[str, Classifier], pictures: Sequence[Tensor]) -> Tensor:
    """(networks, pictures, 2) the confidence of each network and the label that it is in."""
    rows = []
    with torch.no_grad():
        for model in networks.values():
            parts = [
                class_logits(logits_at(model, part.float() / 255))
                for part in torch.stack(tuple(pictures)).split(BATCH)
            ]
            top = torch.cat(parts).double().softmax(dim=1).max(dim=1)
            rows.append(torch.stack([top.values, top.indices.double()], dim=1))
    return torch.stack(rows)


def _split(pictures: Sequence[Picture], opinions: Tensor) -> list[Picture]:
    """The pictures with split, label and confidence; of a scene that judges, only the surest."""
    least, surest = opinions[..., 0].min(dim=0).values, opinions[..., 0].argmax(dim=0)
    described = [
        replace(
            picture,
            label=int(opinions[surest[index], index, 1]),
            confidence=round(float(least[index]), 4),
        )
        for index, picture in enumerate(pictures)
    ]
    best: dict[str, Picture] = {}
    for picture in described:
        if picture.scene not in best or picture.confidence > best[picture.scene].confidence:
            best[picture.scene] = picture
    result = []
    for picture in described:
        if best[picture.scene].confidence < SURE:
            result.append(replace(picture, split=SPLITS[0]))
        elif best[picture.scene] is picture:
            result.append(replace(picture, split=SPLITS[1]))
    return result


def _write(folder: Path, picture: Picture, pixels: Tensor) -> Picture:
    image = require("PIL.Image", EXTRA).fromarray(pixels.permute(1, 2, 0).numpy())
    file = f"{picture.split}/{picture.file}"
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=95, subsampling=0)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content.getvalue())
    return replace(picture, file=file, sha256=hashlib.sha256(content.getvalue()).hexdigest())
