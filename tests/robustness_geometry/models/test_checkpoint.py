import hashlib
import pickle

import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.models import (
    Normalised,
    fc500_150_10,
    lenet5,
    load_weights,
    read_metadata,
    save_weights,
)

SHAPE = {"channels": 1, "size": (16, 16), "classes": 3, "mean": (0.4,), "std": (0.3,)}


def network(seed=0, **options):
    torch.manual_seed(seed)
    return fc500_150_10(**{**SHAPE, "hidden": (6,), **options})


def same(one, other):
    return all(
        torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in one.state_dict()
    )


def test_weights_and_metadata_come_back(tmp_path):
    saved, loaded = network(1), network(2)
    path = tmp_path / "new" / "weights.safetensors"
    save_weights(saved, path, {"dataset": "made", "epochs": "3"})
    assert not same(saved, loaded)
    load_weights(loaded, path)
    assert same(saved, loaded)
    assert read_metadata(path) == {"dataset": "made", "epochs": "3"}
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_equal_content_gives_equal_bytes(tmp_path):
    digests = set()
    for index in range(5):
        path = tmp_path / f"{index}.safetensors"
        save_weights(network(1), path, {str(key): "value" for key in range(8)})
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_weights(network(1), path)
    before = path.read_bytes()

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr("robustness_geometry.files.os.fsync", full)
    with pytest.raises(OSError, match=r"disk full"):
        save_weights(network(2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {
            "model_state_dict": {f"module.{name}": value for name, value in state.items()}
        },
        lambda state: {f"module.{name}": value for name, value in state.items()},
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_checkpoints_of_other_makers_load(tmp_path, wrap, inner):
    saved, loaded = network(1), network(2)
    torch.save(wrap((saved.network if inner else saved).state_dict()), tmp_path / "checkpoint.pt")
    load_weights(loaded, tmp_path / "checkpoint.pt")
    assert same(saved, loaded)


def test_an_average_image_comes_back(tmp_path):
    saved, loaded = network(1), network(2)
    saved.normalise.replace(torch.rand(1, 1, 16, 16), torch.full((1, 1, 1, 1), 0.1))
    save_weights(saved, tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors")
    assert same(saved, loaded)
    assert loaded.normalise.mean.shape == (1, 1, 16, 16)


def test_plain_modules_load_as_well(tmp_path):
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(one, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    assert same(one, other)


class Intruder:
    def __reduce__(self):
        return print, ("code was run",)


def refused(model, path, text):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=text) as caught:
        load_weights(model, path)
    assert str(caught.value).startswith("model.checkpoint must be ")
    assert str(caught.value).endswith(f"; got {str(path)!r}")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_missing_file_is_refused(tmp_path):
    refused(network(), tmp_path / "none.safetensors", r"an existing file")
    refused(network(), tmp_path, r"an existing file")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0, 5, 200, -30])
def test_a_truncated_file_is_refused(tmp_path, suffix, keep):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(network(1).state_dict(), path)
    else:
        save_weights(network(1), path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(network(2), path, r"a whole file of weights")


def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"state_dict": Intruder()}, tmp_path / "code.pt")
    torch.save(network(1), tmp_path / "module.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Intruder()))
    for name in ("code.pt", "module.pt", "plain.pkl"):
        refused(network(2), tmp_path / name, r"weights alone|a whole file of weights")
    assert "code was run" not in capsys.readouterr().out


def test_other_architectures_are_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(network(1, hidden=(7,)), path)
    refused(network(2), path, r"network.1.weight is \(7, 256\) instead of \(6, 256\)")
    save_weights(network(1, hidden=(6, 6)), path)
    refused(
        network(2),
        path,
        r"unknown network.5.bias and 1 more; network.3.weight is \(6, 6\) instead of",
    )
    save_weights(lenet5(**SHAPE), path)
    refused(
        network(2),
        path,
        r"this architecture's weights: it lacks network.1.weight and 1 more; it has the unknown",
    )
    save_weights(network(1, channels=2, mean=(0.1, 0.2), std=(0.1, 0.1)), path)
    refused(network(2), path, r"normalise.mean is \(1, 2, 1, 1\) instead of \(1, 1, 1, 1\)")


@pytest.mark.parametrize(
    "content", [3, [1, 2], {"epoch": 3}, {"state_dict": {"weight": "text"}}, {}]
)
def test_files_without_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    refused(network(), tmp_path / "odd.pt", r"a state dict|it lacks")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = network(1)
    with torch.no_grad():
        model.network[1].bias[2] = float("nan")
    save_weights(model, tmp_path / "weights.safetensors")
    refused(network(2), tmp_path / "weights.safetensors", r"network.1.bias holds NaN")


def test_metadata_of_foreign_files_is_refused(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "foreign.safetensors")
    for path in (tmp_path / "foreign.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(InputError, match=r"model.checkpoint must be"):
            read_metadata(path)


def test_models_of_this_package_are_of_one_form():
    assert isinstance(network(), Normalised)
