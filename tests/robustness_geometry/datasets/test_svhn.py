"""SVHN from small .mat files in the exact format, with their md5 in torchvision's table."""

import hashlib

import numpy as np
import pytest
import scipy.io
import torchvision.datasets

from robustness_geometry import datasets
from robustness_geometry.checks import InputError


def register(monkeypatch, folder, **changes):
    table = dict(torchvision.datasets.SVHN.split_list)
    for part in ("train", "test"):
        name = f"{part}_32x32.mat"
        digest = hashlib.md5((folder / name).read_bytes()).hexdigest()
        table[part] = [changes.get("address", "http://127.0.0.1:1/") + name, name, digest]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", table)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """X is (32, 32, 3, N), y is (N, 1) with 10 for the digit 0."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        content = {
            "X": draw.integers(0, 256, (32, 32, 3, count), dtype=np.uint8),
            "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None],
        }
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", content, do_compression=True)
    register(monkeypatch, tmp_path)
    return tmp_path


def test_images_and_labels_are_those_of_the_files(folder):
    data = datasets.svhn(root=folder, download=False)
    content = scipy.io.loadmat(folder / "test_32x32.mat")
    for index in (0, 9, 19):
        image = data.test.images[index].mul(255).round().byte().numpy()
        assert np.array_equal(image, content["X"][:, :, :, index].transpose(2, 0, 1))
    assert data.test.labels.tolist()[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert (len(data.train), data.shape) == (40, (3, 32, 32))


def test_a_truncated_file_is_refused(folder):
    path = folder / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        InputError, match=r"dataset.root must be .*train_32x32.mat and test_32x32.mat .*corrupted"
    ):
        datasets.svhn(root=folder, download=False)


def test_a_truncated_file_of_the_right_md5_is_refused(folder, monkeypatch):
    path = folder / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-100])
    register(monkeypatch, folder)
    with pytest.raises(InputError, match=r"dataset.root must be"):
        datasets.svhn(root=folder, download=False)


def test_a_missing_file_is_downloaded_or_refused(folder, tmp_path, monkeypatch, mirror):
    served, address = mirror
    for part in ("train", "test"):
        (served / f"{part}_32x32.mat").write_bytes((folder / f"{part}_32x32.mat").read_bytes())
    with pytest.raises(InputError, match=r"dataset.root must be .*refused"):
        datasets.svhn(root=tmp_path / "new")
    register(monkeypatch, folder, address=address)
    assert len(datasets.svhn(root=tmp_path / "new", test_limit=10).test) == 10
