import csv
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.datasets import photographs
from robustness_geometry.datasets.photographs import Picture, make
from robustness_geometry.datasets.photographs.folder import MANIFEST
from robustness_geometry.datasets.photographs.packages import SOURCES, STAMPS, originals

STAMP_FOLDER = Path("usr/share/tuxpaint/stamps")
OPENCV_FOLDER = Path("usr/share/doc/opencv-doc/examples/data")
RCC_FOLDER = Path("usr/share/gcompris-qt/rcc")
SIDE = 48


class Redness(nn.Module):
    """Sure of class 7 where the centre of a picture is red, unsure elsewhere."""

    def forward(self, images):
        middle = images[:, :, 16:32, 16:32].mean(dim=(2, 3))
        logits = torch.zeros(len(images), 1000)
        logits[:, 7] = 40 * (middle[:, 0] - middle[:, 1])
        return logits


def texture(seed, *, red=False, size=(120, 100)):
    """A picture of large random patches, unlike that of another seed."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    if red:
        small = np.stack([small[..., 0] // 3 + 170, small[..., 1] // 3, small[..., 2] // 3], axis=2)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def save(root, path, picture):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(root / path)


def resource_file(files):
    """A Qt resource file of format 3: a folder a file deep, every other file deflated."""
    names, data, entries = b"", b"", []
    for index, (name, content) in enumerate(files.items()):
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if index % 2 else content
        entry = struct.pack(">IHHHI", len(names), index % 2, 0, 0, len(data)) + bytes(8)
        entries.append(entry)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        data += struct.pack(">I", len(packed)) + packed
    inner = struct.pack(">IHII", len(names), 2, len(entries), 2) + bytes(8)
    names += struct.pack(">HI", len("fishes"), 0) + "fishes".encode("utf-16-be")
    root = struct.pack(">IHII", 0, 2, 1, 1) + bytes(8)
    tree = root + inner + b"".join(entries)
    header = struct.pack(">4sIIIII", b"qres", 3, 24, 24 + len(tree), 24 + len(tree) + len(data), 0)
    return header + tree + data + names


@pytest.fixture
def root(tmp_path):
    """A tree with stamps, some of them no photographs, and photographs of another package."""
    place = tmp_path / "root"
    for index, name in enumerate(("animals/birds/owl", "animals/birds/hen", "food/fruit/pear")):
        save(place, STAMP_FOLDER / f"{name}.png", texture(index, red=index == 0))
    for index, name in enumerate(
        ("animals/birds/cartoon/owl", "symbols/a", "food/fruit/pear_mirror", "medical/tooth"), 10
    ):
        save(place, STAMP_FOLDER / f"{name}.png", texture(index))
    save(place, STAMP_FOLDER / "food/nuts/almond.png", texture(20, size=(40, 30)))
    for index, name in enumerate(("fruits", "home", "messi5"), 30):
        save(place, OPENCV_FOLDER / f"{name}.jpg", texture(index, red=index != 31, size=(320, 280)))
    save(place, OPENCV_FOLDER / "chessboard.png", texture(40, size=(320, 280)))
    return place


def made(folder, root, networks=None):
    networks = networks or {"redness": Redness().eval()}
    return make(folder, root=root, networks=networks, side=SIDE)


def stems(pictures):
    return {Path(picture.path).stem for picture in pictures}


def test_only_photographs_of_some_size_are_taken(root, tmp_path):
    pictures = made(tmp_path / "out", root)
    assert stems(pictures) == {"owl", "hen", "pear", "fruits", "home", "messi5"}
    assert {picture.package for picture in pictures} == {"tuxpaint-stamps-default", "opencv-doc"}


def test_pictures_judge_that_every_network_is_sure_of(root, tmp_path):
    class Never(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 1000)

    pictures = made(tmp_path / "one", root)
    judge = [picture for picture in pictures if picture.split == "judge"]
    assert stems(judge) == {"owl", "fruits", "messi5"}
    assert {picture.label for picture in judge} == {7}
    assert min(picture.confidence for picture in judge) >= 0.35
    both = {"redness": Redness().eval(), "never": Never().eval()}
    unsure = made(tmp_path / "two", root, both)
    assert {(picture.split, picture.confidence) for picture in unsure} == {("x", 0.001)}


@pytest.mark.parametrize("change", ["same", "mirrored", "smaller", "brighter"])
def test_a_near_duplicate_is_kept_once(root, tmp_path, change):
    original = texture(31, size=(320, 280))
    copies = {
        "same": original,
        "mirrored": original.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "smaller": original.resize((240, 210)),
        "brighter": original.point(lambda value: min(255, value + 8)),
    }
    save(root, OPENCV_FOLDER / "stuff.jpg", copies[change])
    assert stems(made(tmp_path / "out", root)) >= {"fruits", "home", "messi5"}
    assert "stuff" not in stems(made(tmp_path / "out", root))


def test_no_scene_is_in_both_splits(root, tmp_path):
    for index, name in enumerate(("owl-2", "owl-3", "hen-2"), 50):
        save(root, STAMP_FOLDER / f"animals/birds/{name}.png", texture(index, red=name == "owl-3"))
    pictures = made(tmp_path / "out", root)
    splits = {}
    for picture in pictures:
        splits.setdefault(picture.scene, []).append(picture.split)
    assert splits["owl"] == ["judge"], "the surest of a scene that judges, alone"
    assert splits["hen"] == ["x", "x"]
    assert all(len(set(each)) == 1 for each in splits.values())


def test_stamps_are_laid_whole_on_a_plain_light_ground(root, tmp_path):
    transparent = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    transparent.paste(texture(60, size=(300, 100)), (50, 100))
    save(root, STAMP_FOLDER / "hobbies/camera.png", transparent)
    (picture,) = (p for p in made(tmp_path / "out", root) if Path(p.path).stem == "camera")
    pixels = np.asarray(Image.open(tmp_path / "out" / picture.file)).astype(int)
    other = (np.abs(pixels - 240).max(axis=2) > 12).nonzero()
    rows, columns = (int(each.max() - each.min() + 1) for each in other)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert abs(columns - 0.85 * SIDE) <= 2
    assert abs(rows - 0.85 * SIDE / 3) <= 2


def test_the_same_packages_give_the_same_files(root, tmp_path):
    first, second = made(tmp_path / "a", root), made(tmp_path / "b", root)
    assert first == second
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")}
    assert files == {Path(picture.file) for picture in first} | {Path(MANIFEST)}
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_folder_made_before_is_replaced_and_others_are_not_touched(root, tmp_path):
    folder = tmp_path / "out"
    made(folder, root)
    (root / OPENCV_FOLDER / "messi5.jpg").unlink()
    pictures = made(folder, root)
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")}
    assert kept == {picture.file for picture in pictures}
    (folder / "judge" / "mine.jpg").write_text("a holiday")
    with pytest.raises(InputError, match=r"it holds judge/mine\.jpg; got"):
        made(folder, root)
    assert (folder / "judge" / "mine.jpg").read_text() == "a holiday"
    (folder / "judge" / "mine.jpg").unlink()
    retouched = folder / pictures[0].file
    retouched.write_bytes(b"retouched")
    with pytest.raises(InputError, match=f"it holds {pictures[0].file}; got"):
        made(folder, root)
    assert retouched.read_bytes() == b"retouched"
    with pytest.raises(InputError, match="folder must be a folder; this is a file"):
        made(retouched, root)


def test_a_folder_appears_as_a_whole_or_not_at_all(root, tmp_path, monkeypatch):
    place = tmp_path / "place"

    def full_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space left"):
        made(place / "out", root)
    assert list(place.iterdir()) == []


def test_pictures_in_qt_resource_files_are_read(root, tmp_path):
    save(root, "a.png", texture(70, size=(300, 280)))
    save(root, "b.png", texture(71, size=(300, 280)))
    contents = {name: (root / name).read_bytes() for name in ("a.png", "b.png")}
    (root / RCC_FOLDER).mkdir(parents=True)
    for name in ("categorization.rcc", "lang.rcc"):
        (root / RCC_FOLDER / name).write_bytes(resource_file(contents))
    (source,) = (each for each in SOURCES if each.package == "gcompris-qt-data")
    found = {each.path: each.content for each in originals(source, root)}
    inside = f"{RCC_FOLDER}/categorization.rcc/fishes"
    assert found == {f"{inside}/{name}": content for name, content in contents.items()}
    assert {"a", "b"} <= stems(made(tmp_path / "out", root))


@pytest.mark.parametrize(
    ("folder", "lines"),
    [("tuxpaint-stamps-default", "pkg (2022.06.04-1) unstable"), ("opencv-doc", "pkg (1:4.6-2) x")],
)
def test_the_manifest_names_the_version_of_each_package(root, tmp_path, folder, lines):
    import gzip

    path = root / "usr/share/doc" / folder / "changelog.Debian.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode()))
    versions = {picture.package: picture.version for picture in made(tmp_path / "out", root)}
    assert versions.pop(folder) == lines.split("(")[1].split(")")[0]
    assert set(versions.values()) == {"unknown"}


def test_the_data_set_has_the_splits_and_the_networks_own_labels(root, tmp_path):
    pictures = made(tmp_path / "out", root)
    data = photographs(root=tmp_path / "out")
    assert (len(data.test), len(data.train)) == (3, 3)
    assert data.shape == (3, SIDE, SIDE)
    assert data.test.labels.tolist() == [p.label for p in pictures if p.split == "judge"]
    assert len(data.classes) == 1000
    assert "labels are the networks' own" in data.notes[0]
    assert len(photographs(root=tmp_path / "out", test_limit=1).test) == 1


def test_what_cannot_be_used_is_refused(root, tmp_path):
    with pytest.raises(InputError, match="apt-get install tuxpaint-stamps-default"):
        made(tmp_path / "out", tmp_path / "nothing")
    with pytest.raises(InputError, match=r"python -m robustness_geometry\.datasets\.photographs"):
        photographs(root=tmp_path / "out")
    folder = tmp_path / "made"
    first = made(folder, root)[0]
    (folder / first.file).write_bytes(b"other")
    with pytest.raises(InputError, match="a picture as the manifest has it"):
        photographs(root=folder)
    (root / OPENCV_FOLDER / "home.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match="root must be a picture that can be read"):
        made(tmp_path / "again", root)
    assert not (tmp_path / "again").exists()


def test_the_manifest_can_be_read_by_others(root, tmp_path):
    pictures = made(tmp_path / "out", root)
    with (tmp_path / "out" / MANIFEST).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [picture.file for picture in pictures]
    assert set(rows[0]) == set(Picture.__dataclass_fields__)
    assert STAMPS in SOURCES
