"""MNIST and Fashion-MNIST from small idx files whose md5 replace the published ones."""

import gzip
import hashlib
import re

import numpy as np
import pytest
import torch
import torchvision.datasets

from pipeline.made_up import encode
from robustness_geometry import datasets
from robustness_geometry.checks import InputError
from robustness_geometry.datasets import idx

KINDS = {
    "mnist": ("MNIST", datasets.mnist),
    "fashion_mnist": ("FashionMNIST", datasets.fashion_mnist),
}


@pytest.fixture
def contents():
    draw = np.random.default_rng(0)
    made = {}
    for part, count in (("train", 30), ("t10k", 20)):
        pixels = draw.integers(0, 256, (count, 28, 28))
        made[f"{part}-images-idx3-ubyte"] = encode(pixels)
        made[f"{part}-labels-idx1-ubyte"] = encode(np.arange(len(pixels)) % 10)
    return made


@pytest.fixture(params=sorted(KINDS))
def kind(request, contents, monkeypatch, tmp_path):
    """torchvision's class name and the loader, with the md5 of the small files."""
    name, loader = KINDS[request.param]
    sums = tuple(hashlib.md5(contents[file]).hexdigest() for file in idx.FILES)
    monkeypatch.setitem(idx.CHECKSUMS, name, sums)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "robustness_geometry.datasets.sources.FOLDERS", ("data", str(tmp_path / "system"))
    )
    return name, loader


def write(folder, contents, *, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["", "raw", "debian"])
def test_files_are_read_wherever_they_may_lie(kind, contents, tmp_path, packed, place):
    name, loader = kind
    debian = "mnist" if name == "MNIST" else "fashion-mnist"
    root = tmp_path / "own"
    write(
        {"": root, "raw": root / name / "raw", "debian": root / debian}[place],
        contents,
        packed=packed,
    )
    data = loader(root=root, download=False)
    expected = np.frombuffer(contents["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(
        20, 1, 28, 28
    )
    assert np.array_equal(data.test.images.mul(255).round().byte().numpy(), expected)
    assert data.train.labels.tolist() == [i % 10 for i in range(30)]
    assert data.name == loader.__name__
    assert (len(data.classes), data.shape) == (10, (1, 28, 28))


@pytest.mark.parametrize("folder", ["data", "system"])
def test_without_a_root_the_standard_folders_are_searched(kind, contents, tmp_path, folder):
    name, loader = kind
    write(tmp_path / folder / name / "raw", contents)
    assert len(loader(download=False).train) == 30
    assert len(loader(download=False, train_limit=10, test_limit=500).train) == 10


def test_torchvision_downloads_what_is_missing(kind, contents, tmp_path, monkeypatch, mirror):
    name, loader = kind
    folder, address = mirror
    write(folder, contents, packed=True)
    files = [f"{file}.gz" for file in idx.FILES]
    sums = [(file, hashlib.md5((folder / file).read_bytes()).hexdigest()) for file in files]
    source = getattr(torchvision.datasets, name)
    monkeypatch.setattr(source, "mirrors", [address])
    monkeypatch.setattr(source, "resources", sums)
    assert len(loader().test) == 20
    assert (tmp_path / "data" / name / "raw" / idx.FILES[0]).is_file()
    assert torch.equal(loader(download=False).test.images, loader().test.images)


def test_out_of_reach_says_what_to_put_where(kind, monkeypatch):
    name, loader = kind
    monkeypatch.setattr(getattr(torchvision.datasets, name), "mirrors", ["http://127.0.0.1:1/"])
    with pytest.raises(InputError) as caught:
        loader()
    text = str(caught.value)
    assert text.startswith(
        f"dataset.root must be a folder with {name}'s train-images-idx3-ubyte.gz"
    )
    assert re.search(r"; got '?None'?$", text)
    assert "\n" not in text


def test_absent_files_without_permission_to_download(kind, tmp_path):
    with pytest.raises(InputError, match=r"download=False"):
        kind[1](root=tmp_path / "empty", download=False)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda c: c[:-5], "it holds 15675 bytes where its header says 15680"),
        (lambda c: c[:6], "does not start"),
        (lambda c: b"", "does not start"),
        (lambda c: c[:12], "within its header"),
        (lambda c: b"\0\0\x0d" + c[3:], "unsigned bytes"),
        (lambda c: c[:-1] + b"\1", "the published file"),
    ],
)
def test_damaged_files_are_refused(kind, contents, tmp_path, damage, text):
    contents["t10k-images-idx3-ubyte"] = damage(contents["t10k-images-idx3-ubyte"][:-1] + b"\0")
    write(tmp_path / "own", contents)
    with pytest.raises(
        InputError, match=rf"dataset.root must be .*{text}.*; got .*t10k-images-idx3-ubyte"
    ):
        kind[1](root=tmp_path / "own")


def test_a_truncated_gz_is_refused(kind, contents, tmp_path):
    write(tmp_path / "own", contents, packed=True)
    path = tmp_path / "own" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        InputError, match=r"must be a whole idx file.*; got .*train-labels-idx1-ubyte.gz"
    ):
        kind[1](root=tmp_path / "own")


def test_limits_are_checked_before_anything_is_read(kind):
    with pytest.raises(InputError, match=r"dataset.train_limit must be .*; got 0"):
        kind[1](root="nowhere", train_limit=0)
