"""Folders of pictures as people have them: what is read, left out, guessed and said."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from robustness_geometry import datasets
from robustness_geometry.checks import InputError
from robustness_geometry.datasets.folders import natural_order, part_of

SIDE = 6


def fill(root, classes, n=2, suffix="png"):
    """Pictures whose grey level is 10 times the number of the class, one folder a class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(n):
            pixels = np.full((SIDE, SIDE, 3), (10 * label + index) % 256, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.{suffix}")
    return root


def read(root, **options):
    return datasets.image_folder(root=root, **options)


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "$RECYCLE.BIN", "__pycache__"]
)
@pytest.mark.parametrize("place", [".", "cat"])
def test_hidden_folders_are_no_classes_and_hold_no_pictures(tmp_path, name, place):
    fill(tmp_path, ["cat", "dog"])
    fill(tmp_path / place, [name])
    data = read(tmp_path)
    assert (data.classes, len(data.test)) == (("cat", "dog"), 4)
    assert "left out: 1 hidden" in data.notes[0]


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".0.jpg"])
def test_hidden_files_are_skipped(tmp_path, name):
    fill(tmp_path, ["cat", "dog"])
    (tmp_path / "cat" / name).write_bytes(b"\0\5\x16\7" * 9)
    assert len(read(tmp_path).test) == 4


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["10", "9", "100"], ["9", "10", "100"]),
        (["class10", "class2", "class1"], ["class1", "class2", "class10"]),
        (["v1.10", "v1.9", "other"], ["other", "v1.9", "v1.10"]),
        (["-1", "1", "-10", "0.5"], ["-10", "-1", "0.5", "1"]),
        (["1", "01", "001"], ["001", "01", "1"]),
        (["b", "B", "é", "猫"], ["B", "b", "é", "猫"]),
    ],
)
def test_classes_come_in_natural_order(tmp_path, names, first):
    assert natural_order(names) == first
    data = read(fill(tmp_path, first))
    assert list(data.classes) == first
    for image, label in zip(data.test.images, data.test.labels.tolist(), strict=True):
        assert round(float(image.mean() * 255)) // 10 == label


def test_a_list_gives_the_order_and_words_that_yaml_takes_for_values(tmp_path):
    fill(tmp_path, ["no", "Yes", "null", "7"])
    data = read(tmp_path, classes=[7, None, True, False, "absent"])
    assert data.classes == ("7", "null", "Yes", "no", "absent")
    assert sorted(data.test.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "without pictures: absent" in data.notes[0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"classes": ["cat", "cat", "dog"]}, "classes must be .*different.*; got 'cat' 2 times"),
        ({"classes": ["cat"]}, "classes must be .*dog is missing; got a list of 1"),
        ({"classes": ["cat", "Dog"]}, r"classes must be .*dog is missing \(it has Dog\)"),
        ({"classes": ["cat", "dog", None]}, "classes must be names in quotes.*; got None"),
        ({"classes": ["cat", ["dog"]]}, "classes must be a list of class names, each one a text"),
        ({"classes": "cat"}, "classes must be a list of class names; got 'cat'"),
        ({"classes": 2}, "classes must be a list of class names; got 2"),
        ({"classes": {"cat": 0, "dog": 1}}, "classes must be a list of class names; got {"),
        ({"classes": ["cat"], "labels": "imagenet"}, "classes must be the only one"),
        ({"classes_file": "no.txt"}, "classes_file must be an existing file.*; got 'no.txt'"),
        ({"train": "cat"}, "test must be given beside dataset.train"),
        ({"test": "bird"}, "test must be the name of a subfolder.*; got 'bird'"),
        ({"white": 0}, "white must be a finite number > 0; got 0"),
    ],
)
def test_classes_and_parts_that_do_not_fit_are_refused(tmp_path, options, text):
    with pytest.raises(InputError, match=f"^dataset.{text}"):
        read(fill(tmp_path, ["cat", "dog"]), **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "bird\ndog\n\ncat\n"),
        ("classes.txt", "\ufeff0 bird\n2 cat\n1 dog"),
        ("classes.txt", "1,bird\r\n2,dog\r\n3,cat\r\n"),
        ("names.txt", "cat 2\ndog 1\nbird 0"),
        ("classes.json", json.dumps(["bird", "dog", "cat"])),
        ("class_to_idx.json", json.dumps({"cat": 2, "bird": 0, "dog": 1})),
        ("map.json", json.dumps({"0": "bird", "2": "cat", "1": "dog"})),
    ],
)
def test_a_file_gives_the_order_of_the_classes(tmp_path, name, content):
    fill(tmp_path, ["cat", "dog"])
    (tmp_path / name).write_text(content, encoding="utf-8")
    own = {} if name.startswith("class") else {"classes_file": name}
    data = read(tmp_path, **own)
    assert data.classes == ("bird", "dog", "cat")
    assert sorted(data.test.labels.tolist()) == [1, 1, 2, 2]
    assert f"in the order of {name}" in data.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("classes.json", "{", "a text or JSON file"),
        ("classes.json", '{"cat": 0, "dog": 2}', "labels run from 0 to 1 without a gap"),
        ("classes.json", '{"cat": "x"}', "a list of names, or a mapping"),
        ("classes.txt", "cat\ndog\ncat\n", "different names"),
        ("classes.txt", "cat\n", "dog is missing"),
        ("classes.txt", "\n", "at least one class name"),
    ],
)
def test_a_file_of_classes_that_does_not_fit_is_refused(tmp_path, name, content, text):
    fill(tmp_path, ["cat", "dog"])
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"^dataset.classes_file must be .*{text}"):
        read(tmp_path)


def test_synsets_get_names_from_a_mapping_and_places_among_imagenets_classes(tmp_path):
    fill(tmp_path, ["n02084071", "n01443537", "n01440764"])
    mapping = "n01440764 tench, Tinca tinca\nn01443537 goldfish\nn02084071 dog, domestic dog\n"
    (tmp_path / "LOC_synset_mapping.txt").write_text(mapping)
    assert read(tmp_path).classes == ("tench", "goldfish", "dog")
    other = fill(tmp_path / "own", ["n01443537", "n02123045"])
    pytest.importorskip("timm")
    data = read(other, labels="imagenet")
    assert data.test.labels.unique().tolist() == [1, 281]
    assert [data.classes[label] for label in (1, 281)] == ["goldfish", "tabby"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"),
        ("TRAIN", "train"),
        ("Training_Set", "train"),
        ("seg_train", "train"),
        ("trainImages", "train"),
        ("train2017", "train"),
        ("valid", "val"),
        ("Validation Data", "val"),
        ("devset", "val"),
        ("dev", "val"),
        ("Testing", "test"),
        ("hold-out", "test"),
        ("eval", "test"),
        ("trainer", None),
        ("test tube", None),
        ("validator", None),
        ("deviation", None),
    ],
)
def test_parts_are_told_by_their_names(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("Training", "Testing"), "dataset.train=Training dataset.test=Testing"),
        (("TRAIN", "dev"), "dataset.train=TRAIN dataset.test=dev"),
        (("train", "val", "test"), "dataset.train=train dataset.test=test"),
        (("Train Set", "holdout"), "dataset.train='Train Set' dataset.test=holdout"),
        (("test",), "choose test in it as dataset.root, as test is the only part"),
        (("train", "extra"), "choose train in it"),
        (("inner",), "dataset.root=.*/inner"),
    ],
)
def test_parts_are_not_taken_for_classes(tmp_path, parts, text):
    fill(tmp_path, [f"{part}/{name}" for part in parts for name in ("cat", "dog")])
    with pytest.raises(InputError, match=f"^dataset.root must be .*subfolder per class.*{text}"):
        read(tmp_path)
    with pytest.raises(InputError, match=text):
        read(tmp_path, classes=["cat", "dog"])
    with pytest.raises(InputError, match=text):
        read(tmp_path, labels="imagenet")


def test_a_class_may_be_called_like_a_part(tmp_path):
    assert read(fill(tmp_path / "a", ["bus", "train"])).classes == ("bus", "train")
    pair = fill(tmp_path / "b", ["test", "train"])
    assert read(pair, classes=["train", "test"]).classes == ("train", "test")


def test_parts_that_are_asked_for_are_read_with_the_classes_of_both(tmp_path):
    fill(tmp_path / "Training", ["a10", "a9", "b"], n=3)
    fill(tmp_path / "Testing", ["a9", "c"], n=2)
    fill(tmp_path / "rest", ["a9"])
    data = read(tmp_path, train="Training", test="Testing")
    assert data.classes == ("a9", "a10", "b", "c")
    assert torch.bincount(data.train.labels).tolist() == [3, 3, 3]
    assert data.test.labels.bincount().tolist() == [2, 0, 0, 2]
    note = data.notes[0]
    assert "9 to train on, 4 held out" in note
    assert "without training pictures: c" in note
    assert "without held-out pictures: a10, b" in note
    assert "folders not read: rest" in note
    alone = read(tmp_path, test="Testing")
    assert (len(alone.train), len(alone.test)) == (0, 4)
    with pytest.raises(InputError, match=r"^dataset.train_share must be 0 beside dataset.train"):
        read(tmp_path, train="Training", test="Testing", train_share=0.5)
    with pytest.raises(InputError, match=r"^dataset.test must be another folder"):
        read(tmp_path, train="Testing", test="Testing")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_every_class_is_split_and_has_a_picture_in_either_part(tmp_path, share):
    fill(tmp_path, ["a", "b"], n=2)
    fill(tmp_path, ["c"], n=30)
    data = read(tmp_path, train_share=share)
    train, test = data.train.labels.bincount(minlength=3), data.test.labels.bincount(minlength=3)
    assert (train + test).tolist() == [2, 2, 30]
    assert min(train.min(), test.min()) >= 1
    assert abs(int(train[2]) - 30 * share) <= 2


def test_the_split_does_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    fill(tmp_path, ["a", "b"], n=7)
    before = read(tmp_path, train_share=0.5)
    walk = os.walk

    def backwards(*args, **options):
        for place, folders, files in walk(*args, **options):
            yield place, folders, files[::-1]

    monkeypatch.setattr("os.walk", backwards)
    after = read(tmp_path, train_share=0.5)
    assert torch.equal(before.train.images, after.train.images)


def test_a_class_of_one_picture_cannot_be_split(tmp_path):
    fill(tmp_path, ["a", "b"], n=4)
    fill(tmp_path, ["rare"], n=1)
    with pytest.raises(InputError, match=r"^dataset.train_share must be 0.*; got 0.5 with.*'rare'"):
        read(tmp_path, train_share=0.5)


@pytest.mark.parametrize("inside", [None, "notes.txt", "clip.mp4"])
def test_a_class_without_pictures_is_refused_unless_it_is_listed(tmp_path, inside):
    fill(tmp_path, ["cat", "dog"])
    (tmp_path / "empty").mkdir()
    if inside:
        (tmp_path / "empty" / inside).write_text("no picture")
    with pytest.raises(InputError, match=r"none in empty: .*dataset.classes=\[cat,dog,empty\]"):
        read(tmp_path)
    data = read(tmp_path, classes=["empty", "cat", "dog"])
    assert data.classes == ("empty", "cat", "dog")
    assert read(tmp_path, classes=["cat", "dog"]).classes == ("cat", "dog")


def test_what_is_no_picture_is_left_out_and_counted(tmp_path):
    fill(tmp_path, ["cat", "dog"])
    frames = [Image.new("L", (SIDE, SIDE), value) for value in (0, 200)]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / "cat" / name, save_all=True, append_images=frames[1:])
    for name in ("a.txt", "B.TXT", "c.png.crdownload", "clip.MP4", "LICENCE"):
        (tmp_path / "dog" / name).write_text("no picture")
    (tmp_path / "README.md").write_text("outside")
    data = read(tmp_path)
    assert len(data.test) == 4
    expected = (
        "left out: 1 .crdownload, 1 .mp4, 2 .txt, 1 animated .gif, 1 animated .webp, "
        "1 outside the class folders, 1 without an ending"
    )
    assert expected in data.notes[0]


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.PNG", "a.Jpeg", "a.webp", "a.BMP", "a.tif", "a.TIFF", "a.ppm", "a.gif"]
)
def test_endings_of_pictures_may_be_written_in_any_case(tmp_path, name):
    fill(tmp_path, ["cat", "dog"])
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "cat" / name)
    assert len(read(tmp_path).test) == 5


def test_a_name_without_an_ending_is_judged_by_what_the_file_holds(tmp_path):
    fill(tmp_path, ["cat", "dog"])
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "cat" / "photo", "PNG")
    assert len(read(tmp_path).test) == 5


def test_subfolders_links_blanks_and_scripts_within_classes(tmp_path):
    fill(tmp_path, ["black cat", "собака", "Äpfel"])
    fill(tmp_path / "black cat", ["indoors", "out/of/doors"])
    (tmp_path / "black cat" / "loop").symlink_to(tmp_path / "black cat")
    fill(tmp_path / "elsewhere" / "x", ["."], n=3)
    (tmp_path / "собака" / "more").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "elsewhere").rename(tmp_path / ".elsewhere")
    (tmp_path / "собака" / "more").unlink()
    (tmp_path / "собака" / "more").symlink_to(tmp_path / ".elsewhere" / "x")
    data = read(tmp_path)
    assert data.classes == ("black cat", "Äpfel", "собака")
    assert data.test.labels.bincount().tolist() == [6, 2, 5]
    assert "7 in subfolders count for their class" in data.notes[0]


def test_names_are_the_same_however_their_letters_are_composed(tmp_path):
    fill(tmp_path, ["A\u0308pfel", "birne"])
    assert read(tmp_path, classes=["birne", "\u00c4pfel"]).classes == ("birne", "\u00c4pfel")


def test_the_note_is_one_line_with_the_order_and_the_counts(tmp_path):
    fill(tmp_path / "photos", ["c10", "c9", "new\nline"], n=3)
    note = read(tmp_path / "photos", train_share=0.5).notes[0]
    assert note.startswith("photos: 9 pictures read (4 to train on, 5 held out) of 3 classes, ")
    assert "numbers by value" in note
    assert "0 c9 (3), 1 c10 (3), 2 new line (3)" in note
    assert "\n" not in note
    many = read(fill(tmp_path / "many", [f"k{index}" for index in range(30)], n=1)).notes[0]
    assert "19 k19 (1) and 10 more." in many
