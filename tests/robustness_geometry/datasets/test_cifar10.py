"""CIFAR-10 from small batches as Python 2 pickled them, with their md5 in torchvision's tables."""

import tarfile

import numpy as np
import pytest
import torchvision.datasets

from pipeline.made_up import md5, pickled
from robustness_geometry import datasets
from robustness_geometry.checks import InputError
from robustness_geometry.datasets.cifar10 import CLASSES

FOLDER = "cifar-10-batches-py"


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """A root with five training batches of 20 images, a test batch of 10 and the list of names."""
    folder = tmp_path / "root" / FOLDER
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    counts = {**{f"data_batch_{i}": 20 for i in range(1, 6)}, "test_batch": 10}
    for name, count in counts.items():
        entry = {
            b"batch_label": name.encode(),
            b"labels": [i % 10 for i in range(count)],
            b"data": draw.integers(0, 256, (count, 3072), dtype=np.uint8),
            b"filenames": [b"%d.png" % i for i in range(count)],
        }
        (folder / name).write_bytes(pickled(entry))
    meta = {
        b"num_cases_per_batch": 20,
        b"label_names": [name.encode() for name in CLASSES],
        b"num_vis": 3072,
    }
    (folder / "batches.meta").write_bytes(pickled(meta))
    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(
        source, "train_list", [[name, md5(folder / name)] for name in list(counts)[:5]]
    )
    monkeypatch.setattr(source, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(folder / "batches.meta")})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "root"


def test_batches_are_read_plane_by_plane(batches):
    data = datasets.cifar10(root=batches, download=False)
    draw = np.random.default_rng(0)
    expected = [
        draw.integers(0, 256, (count, 3072), dtype=np.uint8) for count in (20, 20, 20, 20, 20, 10)
    ]
    expected = expected[-1].reshape(-1, 3, 32, 32)
    assert np.array_equal(data.test.images.mul(255).round().byte().numpy(), expected)
    assert data.test.labels.tolist() == list(range(10))
    assert (len(data.train), data.shape, data.classes) == (100, (3, 32, 32), CLASSES)


def test_data_is_the_first_standard_folder(batches, tmp_path):
    batches.rename(tmp_path / "data")
    assert len(datasets.cifar10(train_limit=10, test_limit=5).train) == 10


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_or_missing_batch_is_refused(batches, name):
    path = batches / FOLDER / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(
        InputError, match=r"dataset.root must be .*cifar-10-batches-py, or .*corrupted"
    ):
        datasets.cifar10(root=batches, download=False)
    path.unlink()
    with pytest.raises(InputError, match=r"dataset.root must be .*not found"):
        datasets.cifar10(root=batches, download=False)


def test_a_batch_of_other_contents_is_never_unpickled(batches):
    (batches / FOLDER / "data_batch_1").write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(InputError, match=r"dataset.root"):
        datasets.cifar10(root=batches, download=False)


def test_the_archive_is_downloaded_and_unpacked(batches, monkeypatch, mirror):
    folder, address = mirror
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(batches / FOLDER, FOLDER)
    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(source, "url", address + "cifar-10-python.tar.gz")
    monkeypatch.setattr(source, "tgz_md5", md5(folder / "cifar-10-python.tar.gz"))
    assert len(datasets.cifar10(root=batches.parent / "new").test) == 10


def test_out_of_reach_is_one_line(batches, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:1/cifar.tar.gz")
    with pytest.raises(
        InputError,
        match=r"^dataset.root must be .* folder with cifar-10-batches-py.*refused.*; got .*new",
    ):
        datasets.cifar10(root=batches.parent / "new")
