"""Data sets from files of arrays: spellings, bounds, splits, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robustness_geometry.checks import InputError
from robustness_geometry.datasets import arrays

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(20, 4)), np.arange(20) % 3


def saved(folder, **entries):
    path = folder / "mine.npz"
    np.savez(path, **entries)
    return path


@pytest.mark.parametrize(("x", "y"), [("images", "labels"), ("X", "y"), ("data", "targets")])
def test_one_set_of_inputs_is_split_by_share(tmp_path, x, y):
    path = saved(tmp_path, **{x: X, y: Y})
    data = arrays(path=path, bounds=[-5, 5], train_share=0.6)
    assert (len(data.train), len(data.test), data.shape) == (12, 8, (4,))
    every = torch.cat([data.train.images, data.test.images])
    labels = torch.cat([data.train.labels, data.test.labels])
    rows = [
        int((every == torch.tensor(row, dtype=torch.float32)).all(1).nonzero())
        for row in (X + 5) / 10
    ]
    assert sorted(rows) == list(range(20))
    assert labels[rows].tolist() == Y.tolist()
    assert min(data.train.labels.bincount().tolist()) >= 3
    torch.testing.assert_close(torch.tensor(data.mean), data.train.images.mean(0))
    assert arrays(path=path, bounds=[-5, 5]).train.images.shape == (0, 4)


@pytest.mark.parametrize(
    "names",
    [
        "x_train y_train x_test y_test",
        "train_images train_labels test_images test_labels",
        "X_train Y_train X_test Y_test",
        "trainX trainy testX testy",
    ],
)
def test_two_parts_in_their_usual_spellings(tmp_path, names):
    pixels = RANDOM.integers(0, 256, (20, 6, 5), dtype=np.uint8)
    values = [pixels[:12], Y[:12, None], pixels[12:], Y[12:, None]]
    data = arrays(path=saved(tmp_path, **dict(zip(names.split(), values, strict=True))))
    assert data.shape == (1, 6, 5)
    assert torch.equal((255 * data.test.images[:, 0]).round().byte(), torch.tensor(pixels[12:]))
    assert data.train.labels.tolist() == Y[:12].tolist()


def test_safetensors_hold_the_same_as_npz(tmp_path):
    save_file({"x": torch.tensor(X), "y": torch.tensor(Y)}, tmp_path / "mine.safetensors")
    one = arrays(path=tmp_path / "mine.safetensors", bounds="features")
    other = arrays(path=saved(tmp_path, x=X, y=Y), bounds="features")
    assert torch.equal(one.test.images, other.test.images)
    assert one.test.images.amin(0).tolist() == [0] * 4
    assert one.test.images.amax(0).tolist() == [1] * 4


def test_pictures_with_their_channels_last_and_labels_that_are_texts(tmp_path):
    pixels = RANDOM.integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)
    path = saved(tmp_path, images=pixels, labels=np.array(["dog", "cat", "dog", "cat"]))
    data = arrays(path=path)
    assert (data.shape, data.classes, data.has_pictures) == ((3, 8, 9), ("cat", "dog"), True)
    assert arrays(path=path, pictures=False).shape == (8, 9, 3)


def test_a_feature_that_never_changes_keeps_its_place(tmp_path):
    same = np.column_stack([X, np.full(20, 7.0)])
    data = arrays(path=saved(tmp_path, x=same, y=Y), bounds="features")
    assert data.test.images[:, 4].tolist() == [0] * 20
    assert data.std[4] == 1


REFUSED = {
    "values outside": ({"x": X, "y": Y}, {}, "dataset.bounds must be the lowest .*-2.*; got None"),
    "narrow bounds": (
        {"x": X, "y": Y},
        {"bounds": [0, 1]},
        r"dataset.bounds must .*; got \[0, 1\]",
    ),
    "bounds": ({"x": X, "y": Y}, {"bounds": [1, 0]}, r"dataset.bounds must .*; got \[1, 0\]"),
    "no labels": ({"x": X}, {}, "dataset.labels must be the name .* which holds x; got nothing"),
    "no inputs": ({"y": Y}, {}, "dataset.images must be the name .* which holds y; got nothing"),
    "other name": (
        {"x": X, "y": Y},
        {"images": "z"},
        "dataset.images must be one of x, y; got 'z'",
    ),
    "lengths": ({"x": X, "y": Y[:-1]}, {"bounds": "features"}, "dataset.labels must be .*; got"),
    "floats": ({"x": X, "y": Y + 0.5}, {"bounds": "features"}, "dataset.labels must be whole"),
    "objects": ({"x": X, "y": np.array([{}] * 20)}, {}, "dataset.path must be a file of arrays"),
    "classes": ({"x": X, "y": Y}, {"classes": ["a", "b"]}, "dataset.labels must be .* 0 to 1; got"),
    "NaN": ({"x": X * np.nan, "y": Y}, {"bounds": [0, 1]}, "dataset.images must be finite"),
    "share": ({"x": X, "y": Y}, {"train_share": 1.0}, "dataset.train_share must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_by_its_key(tmp_path, case):
    entries, options, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        arrays(path=saved(tmp_path, **entries), **options)


def test_a_missing_file_is_refused():
    for path in (None, "nowhere.npz", __file__):
        with pytest.raises(InputError, match=r"^dataset.path must be an existing \.npz or"):
            arrays(path=path)
