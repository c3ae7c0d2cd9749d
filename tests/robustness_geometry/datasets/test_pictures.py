"""Pixels of every kind of picture file, in [0, 1], or a refusal that names the file."""

import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from robustness_geometry.checks import InputError
from robustness_geometry.datasets import image_folder
from robustness_geometry.datasets.pictures import read_pictures

COLOURS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
GREY = COLOURS[..., 0]
DEEP = np.array([[0, 65535, 257], [300, 32768, 1]], np.uint16)


def save(path, array, mode=None, **options):
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def pixels(path, **options):
    return read_pictures([path], **options)[0].numpy()


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm"])
def test_eight_bits_are_read_as_they_are(tmp_path, ending):
    path = save(tmp_path / f"a.{ending}", COLOURS)
    assert np.array_equal(pixels(path), COLOURS.transpose(2, 0, 1))
    path = save(tmp_path / f"b.{ending}", GREY)
    assert np.array_equal(pixels(path, channels=1)[0], GREY)
    assert np.array_equal(pixels(path)[2], GREY)


@pytest.mark.parametrize(
    ("name", "array", "white", "options"),
    [
        ("a.png", DEEP, 65535, {}),
        ("a.tif", DEEP, 65535, {}),
        ("a.tif", DEEP.astype(">u2"), 65535, {}),
        ("a.tif", DEEP, 65535, {"compression": "tiff_lzw"}),
        ("a.png", DEEP // 16, 4095, {}),
        ("a.tif", DEEP.astype(np.float32) / 65535, 1, {}),
        ("a.tif", DEEP.astype(np.int32), 65535, {}),
    ],
)
def test_grey_of_more_than_eight_bits_keeps_its_values_given_white(
    tmp_path, name, array, white, options
):
    path = save(tmp_path / name, array, **options)
    found = pixels(path, white=white, channels=1)
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(array.astype(np.float64) / white, abs=1e-7)
    with pytest.raises(InputError, match=r"more than eight bits.*dataset.white.*; got .*/a\."):
        pixels(path)
    with pytest.raises(InputError, match=r"its values run from 0 to "):
        pixels(path, white=white / 2)


def test_white_leaves_pictures_of_eight_bits_alone(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "deep.png", DEEP)
        save(tmp_path / name / "eight.png", GREY)
    data = image_folder(root=tmp_path, white=65535, channels=1, train_share=0.5)
    expected = sorted([float((DEEP / 65535).max()), float(GREY.max() / 255)])
    both = np.concatenate([data.train.images.numpy(), data.test.images.numpy()])
    assert sorted(set(both.max(axis=(1, 2, 3)).tolist())) == pytest.approx(expected, abs=1e-6)
    train = data.train.images.double()
    assert (data.mean[0], data.std[0]) == pytest.approx(
        (float(train.mean()), float(train.std(correction=0))), abs=1e-6
    )
    resized = image_folder(root=tmp_path, white=65535, channels=3, size=2)
    assert resized.test.images.shape == (4, 3, 2, 2)


def png16(kind, channels):
    """A PNG of one pixel with sixteen bits per channel, which Pillow reads as eight."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 16, kind, 0, 0, 0)
    row = b"\0" + struct.pack(f">{channels}H", *[300] * channels)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", png16(2, 3)),
        ("a.png", png16(4, 2)),
        ("a.ppm", b"P6 1 1 65535\n" + b"\1\2" * 3),
        ("a.ppm", b"P3 1 1 1000\n0 500 1000\n"),
    ],
)
def test_colour_of_more_than_eight_bits_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"more than eight bits.*convert it to eight.*; got .*/a"):
        pixels(tmp_path / name, white=65535)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_what_is_transparent_shows_white(tmp_path, name):
    alpha = np.array([[255, 0, 255], [255, 255, 102]], np.uint8)
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    save(tmp_path / name, np.dstack([COLOURS, alpha]), **options)
    seen = Counter()
    found = pixels(tmp_path / name, seen=seen)
    share = alpha[..., None] / 255
    expected = COLOURS * share + 255 * (1 - share)
    assert found.transpose(1, 2, 0) == pytest.approx(expected, abs=1)
    assert seen["transparent"] == 1


def test_palettes_and_grey_with_transparency_show_white_too(tmp_path):
    palette = Image.fromarray(COLOURS).quantize(6)
    hole = palette.getpixel((0, 0))
    for name in ("a.png", "a.gif"):
        palette.save(tmp_path / name, transparency=hole)
        assert pixels(tmp_path / name)[:, 0, 0].tolist() == [255] * 3
        assert pixels(tmp_path / name)[:, 1, 2].tolist() != [255] * 3
    alpha = np.array([[0, 255, 255], [255, 255, 255]], np.uint8)
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]).save(tmp_path / "b.png")
    found = pixels(tmp_path / "b.png", channels=1)[0]
    assert found.tolist() == [[255, *GREY[0, 1:].tolist()], GREY[1].tolist()]
    opaque = save(tmp_path / "c.png", COLOURS, "RGBA")
    seen = Counter()
    assert np.array_equal(pixels(opaque, seen=seen), COLOURS.transpose(2, 0, 1))
    assert not seen["transparent"]


def test_one_bit_and_cmyk_are_converted(tmp_path):
    path = save(tmp_path / "a.png", (GREY > 100).astype(np.uint8) * 255, "1")
    assert np.array_equal(pixels(path, channels=1)[0], (GREY > 100) * 255)
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "b.jpg")
    seen = Counter()
    found = pixels(tmp_path / "b.jpg", seen=seen)
    assert found[:, 0, 0] == pytest.approx([255, 0, 0], abs=3)
    assert seen["cmyk"] == 1


TURNS = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 5: lambda a: a.swapaxes(0, 1)} | {
    6: lambda a: np.rot90(a, -1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "deep.tif", "small.tif"])
def test_pictures_are_turned_upright(tmp_path, orientation, name):
    array = DEEP if name == "deep.tif" else GREY
    exif = Image.Exif()
    exif[274] = orientation
    how = {"exif": exif} if name == "a.png" else {"tiffinfo": {274: orientation}}
    how |= {"compression": "tiff_lzw"} if name == "small.tif" else {}
    save(tmp_path / name, array, **how)
    seen = Counter()
    found = pixels(tmp_path / name, channels=1, white=65535, upright=True, seen=seen)[0]
    assert found == pytest.approx(TURNS[orientation](array) / np.iinfo(array.dtype).max, abs=1e-6)
    assert seen["turned"] == 1


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    save(tmp_path / "a.jpg", COLOURS, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    seen = Counter()
    assert pixels(tmp_path / "a.jpg", upright=True, seen=seen).shape == (3, 2, 3)
    assert not seen["turned"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.gif", "a.webp", "a.ppm"])
@pytest.mark.parametrize("keep", [0, 0.4, 0.8])
def test_a_damaged_file_is_refused_by_its_name(tmp_path, name, keep):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    content = save(tmp_path / name, noise).read_bytes()
    (tmp_path / name).write_bytes(content[: int(keep * len(content))])
    why = "the file is empty" if not keep else ""
    with pytest.raises(
        InputError,
        match=rf"^dataset.root must be a picture that can be read \({why}.*; got .*/{name}",
    ):
        pixels(tmp_path / name, upright=True)


def test_a_dangling_link_is_refused_by_its_name(tmp_path):
    (tmp_path / "cat").mkdir()
    save(tmp_path / "cat" / "a.png", COLOURS)
    (tmp_path / "cat" / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"a picture that can be read.*; got .*cat/b.png"):
        image_folder(root=tmp_path)


@pytest.mark.parametrize("factor", [1.5, 3])
def test_a_picture_bomb_is_not_decoded(tmp_path, monkeypatch, factor):
    path = save(tmp_path / "bomb.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(GREY.size / factor))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", None)
    with pytest.raises(InputError, match=r"decompression bomb.*; got .*bomb.png"):
        pixels(path)
