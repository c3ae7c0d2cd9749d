import types

import numpy as np
import pytest
import torch
from PIL import Image

from robustness_geometry import datasets
from robustness_geometry.checks import InputError
from robustness_geometry.datasets.assembly import IMAGENET_MEAN, IMAGENET_STD


def picture(seed, shape=(20, 24, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    """Three classes of ten PNG pictures, 24 wide and 20 high."""
    folder = tmp_path / "animals"
    for label, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(picture(100 * label + index)).save(folder / name / f"{index}.png")
    return folder


def test_everything_is_held_out_by_default(root):
    data = datasets.image_folder(root=root)
    assert (data.name, data.shape, data.classes) == ("animals", (3, 20, 24), ("ant", "bee", "cat"))
    assert (len(data.train), len(data.test)) == (0, 30)
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    expected = {
        (label, picture(100 * label + index).tobytes()) for label in range(3) for index in range(10)
    }
    found = {
        (int(label), image.mul(255).round().byte().permute(1, 2, 0).numpy().tobytes())
        for image, label in zip(data.test.images, data.test.labels, strict=True)
    }
    assert found == expected


def test_a_train_share_splits_every_class(root):
    data = datasets.image_folder(root=root, train_share=0.8, seed=3)
    assert torch.bincount(data.train.labels).tolist() == [8, 8, 8]
    assert torch.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert data.mean == pytest.approx(data.train.images.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    pairs = {image.numpy().tobytes() for image in data.train.images}
    assert not pairs & {image.numpy().tobytes() for image in data.test.images}
    again = datasets.image_folder(root=root, train_share=0.8, seed=3)
    assert torch.equal(again.test.images, data.test.images)
    assert not torch.equal(
        datasets.image_folder(root=root, train_share=0.8).test.images, data.test.images
    )


def test_limits_are_stratified(root):
    data = datasets.image_folder(root=root, train_share=0.5, train_limit=6, test_limit=3)
    assert torch.bincount(data.train.labels).tolist() == [2, 2, 2]
    assert torch.bincount(data.test.labels).tolist() == [1, 1, 1]


def test_size_resizes_and_crops_and_grey_is_one_channel(root):
    Image.fromarray(picture(1, (40, 30, 3))).save(root / "ant" / "tall.png")
    Image.fromarray(picture(1, (20, 24))).save(root / "bee" / "grey.png")
    assert datasets.image_folder(root=root, size=16, resize=18).shape == (3, 16, 16)
    data = datasets.image_folder(root=root, size=16, channels=1)
    assert data.shape == (1, 16, 16)
    assert data.mean == pytest.approx([0.449], abs=1e-3)


def test_labels_may_be_those_of_a_network(root):
    names = ["dog", "cat", "bee", "ant"]
    data = datasets.image_folder(root=root, labels=names)
    assert data.classes == tuple(names)
    assert set(data.test.labels.tolist()) == {1, 2, 3}
    (root / "cat").rename(root / "tabby")
    with pytest.raises(
        InputError, match=r"dataset.labels must be .*tabby is missing.*; got '?a list of 4"
    ):
        datasets.image_folder(root=root, labels=names)
    data = datasets.image_folder(root=root, labels="imagenet")
    assert (len(data.classes), data.test.labels.unique().tolist()) == (1000, [281, 309, 310])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"train_share": 1}, "dataset.train_share must be .*; got 1$"),
        ({"train_share": -0.1}, "dataset.train_share must be .*; got -0.1"),
        ({"channels": 4}, "dataset.channels must be .*; got 4"),
        ({"size": 0}, "dataset.size must be .*; got 0"),
        ({"test_limit": 0}, "dataset.test_limit must be .*; got 0"),
        ({"resize": 30}, "dataset.resize must be None.*; got 30"),
        ({"size": 32, "resize": 30}, "dataset.resize must be .*; got 30"),
        ({"labels": "wnid"}, "dataset.labels must be .*; got 'wnid'"),
        ({"labels": []}, "dataset.labels must be"),
    ],
)
def test_options_out_of_range_are_refused(root, options, text):
    with pytest.raises(InputError, match=text):
        datasets.image_folder(root=root, **options)


@pytest.mark.parametrize("given", [None, "nowhere"])
def test_a_missing_root_is_refused(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=rf"^dataset.root must be an existing folder.*; got '?{given}"
    ):
        datasets.image_folder(root=given)


def test_folders_without_pictures_or_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"dataset.root must be .*class folder"):
        datasets.image_folder(root=tmp_path)
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    with pytest.raises(
        InputError, match=r"dataset.root must be .*no valid file for the classes ant"
    ):
        datasets.image_folder(root=tmp_path)


def test_a_folder_of_splits_is_not_taken_for_classes(root, tmp_path):
    for part in ("train", "val"):
        (tmp_path / "split" / part).mkdir(parents=True)
        Image.fromarray(picture(0)).save(tmp_path / "split" / part / "0.png")
    with pytest.raises(InputError, match=r"dataset.root must be .*choose train or val in it"):
        datasets.image_folder(root=tmp_path / "split")


def test_pictures_of_several_shapes_need_a_size(root):
    Image.fromarray(picture(1, (40, 30, 3))).save(root / "bee" / "tall.png")
    with pytest.raises(
        InputError,
        match=r"dataset.size must be .* pictures differ: .*tall.png is 40x30.*; got '?None",
    ):
        datasets.image_folder(root=root)


@pytest.mark.parametrize("content", [b"", b"no picture", "cut"])
def test_a_damaged_picture_is_named(root, content):
    path = root / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:400] if content == "cut" else content)
    with pytest.raises(
        InputError, match=r"dataset.root must be a picture that can be read.*; got .*bee/3.png"
    ):
        datasets.image_folder(root=root)


def test_pictures_of_more_than_eight_bits_are_refused(root):
    Image.fromarray(np.full((20, 24), 40000, dtype=np.uint16)).save(root / "bee" / "3.png")
    with pytest.raises(InputError, match=r"must be .*more than eight bits.*; got .*3.png"):
        datasets.image_folder(root=root)


def test_more_pictures_than_memory_are_refused(root, monkeypatch):
    free = types.SimpleNamespace(available=5 * 20 * 24 * 3 * 12)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(
        InputError, match=r"dataset.test_limit must be at most the 12 images.*; got 30"
    ):
        datasets.image_folder(root=root)
    assert len(datasets.image_folder(root=root, test_limit=12).test) == 12
