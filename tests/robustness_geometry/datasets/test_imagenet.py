"""ImageNet's layout in small: a devkit of the real structure, and pictures by WordNet id."""

import hashlib
import io
import tarfile

import pytest
import scipy.io
import torch
import torchvision.datasets.imagenet
from PIL import Image

from pipeline.made_up import pack, synsets
from robustness_geometry import datasets
from robustness_geometry.checks import InputError
from robustness_geometry.datasets.assembly import IMAGENET_MEAN, IMAGENET_STD

WORDS = ("dog, domestic dog", "tench, Tinca tinca", "goldfish")
WNIDS = ("n02084071", "n01440764", "n01443537")  # the devkit's order, not the alphabet's


def jpeg(colour, size=(300, 260)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with the devkit archive, val (two pictures a class) and train (three)."""
    meta = io.BytesIO()
    scipy.io.savemat(meta, synsets(WNIDS, WORDS))
    name = "ILSVRC2012_devkit_t12"
    with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
        pack(archive, f"{name}/data/meta.mat", meta.getvalue())
        pack(archive, f"{name}/data/ILSVRC2012_validation_ground_truth.txt", b"1\n2\n3\n2\n1\n3\n")
    for part, count in (("val", 2), ("train", 3)):
        for index, wnid in enumerate(sorted(WNIDS)):
            (tmp_path / part / wnid).mkdir(parents=True)
            for picture in range(count):
                content = jpeg((80 * index, 200, 10 * picture))
                (tmp_path / part / wnid / f"{part}_{picture}.JPEG").write_bytes(content)
    table = dict(torchvision.datasets.imagenet.ARCHIVE_META)
    digest = hashlib.md5((tmp_path / f"{name}.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setitem(table, "devkit", (f"{name}.tar.gz", digest))
    monkeypatch.setattr(torchvision.datasets.imagenet, "ARCHIVE_META", table)
    return tmp_path


def test_validation_images_are_the_test_split(root):
    data = datasets.imagenet(root=root)
    assert data.test.images.shape == (6, 3, 224, 224)
    assert data.classes == ("tench", "goldfish", "dog")
    assert len(data.train) == 0
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    for image, label in zip(data.test.images, data.test.labels, strict=True):
        assert image[:, 100, 100].tolist()[:2] == pytest.approx(
            [80 * int(label) / 255, 200 / 255], abs=0.02
        )


def test_training_images_only_when_asked_for(root):
    data = datasets.imagenet(root=root, train_limit=3, test_limit=3, size=32, resize=40, seed=1)
    assert data.train.images.shape == data.test.images.shape == (3, 3, 32, 32)
    assert sorted(data.train.labels.tolist()) == [0, 1, 2]


def test_the_crop_is_torchvisions(root):
    from torchvision.transforms import functional

    data = datasets.imagenet(root=root, size=20, resize=25)
    picture = Image.open(next((root / "val" / "n01440764").iterdir())).convert("RGB")
    expected = functional.pil_to_tensor(
        functional.center_crop(functional.resize(picture, [25]), [20, 20])
    )
    assert any(torch.equal(image, expected / 255) for image in data.test.images)


def test_the_validation_archive_is_unpacked_at_the_first_use(root, monkeypatch):
    for path in sorted((root / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "val").rmdir()
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for index in range(6):
            pack(archive, f"ILSVRC2012_val_0000000{index + 1}.JPEG", jpeg((40 * index, 0, 0)))
    digest = hashlib.md5((root / "ILSVRC2012_img_val.tar").read_bytes()).hexdigest()
    monkeypatch.setitem(
        torchvision.datasets.imagenet.ARCHIVE_META, "val", ("ILSVRC2012_img_val.tar", digest)
    )
    data = datasets.imagenet(root=root, size=16, resize=16)
    reds = {
        round(float(image[0, 8, 8]) * 255 / 40): int(label)
        for image, label in zip(data.test.images, data.test.labels, strict=True)
    }
    assert reds == {
        0: 2,
        1: 0,
        2: 1,
        3: 0,
        4: 2,
        5: 1,
    }  # the ground truth's ids as places in the alphabet


@pytest.mark.parametrize("place", [".ipynb_checkpoints", "n01443537/.ipynb_checkpoints"])
def test_hidden_files_and_folders_are_skipped(root, place):
    (root / "val" / place).mkdir()
    (root / "val" / place / "copy.JPEG").write_bytes(jpeg((0, 0, 0)))
    (root / "val" / "n01443537" / "._val_0.JPEG").write_bytes(b"Mac OS X")
    data = datasets.imagenet(root=root, size=16, resize=16)
    assert data.test.labels.bincount().tolist() == [2, 2, 2]


def test_labels_stay_where_folders_of_classes_are_absent(root):
    for path in (root / "val" / "n01440764").iterdir():
        path.unlink()
    (root / "val" / "n01440764").rmdir()
    data = datasets.imagenet(root=root, size=16, resize=16)
    assert data.classes == ("tench", "goldfish", "dog")
    assert data.test.labels.bincount().tolist() == [0, 2, 2]


def test_missing_files_say_what_to_get(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for given in (None, "here", "nowhere"):
        with pytest.raises(
            InputError, match=r"^dataset.root must be .*ILSVRC2012_devkit_t12.*never downloaded"
        ):
            datasets.imagenet(root=given)


def test_a_damaged_picture_is_named(root):
    path = root / "val" / "n01443537" / "val_1.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        InputError, match=r"dataset.root must be a picture.*; got .*n01443537/val_1.JPEG"
    ):
        datasets.imagenet(root=root)


def test_a_truncated_devkit_is_refused(root):
    path = root / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"dataset.root must be .*corrupted"):
        datasets.imagenet(root=root)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"size": 0}, "dataset.size must be .*; got 0"),
        ({"resize": 100}, "dataset.resize must be .*; got 100"),
        ({"test_limit": 0}, "dataset.test_limit must be .*; got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=key):
        datasets.imagenet(root="nowhere", **options)
