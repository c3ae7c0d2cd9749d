"""Weights as other tools save them, and files that hold none."""

import argparse
import io
import json
import pickle
import tarfile
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from robustness_geometry.checks import InputError
from robustness_geometry.models import Normalised, custom, load_weights
from robustness_geometry.models.state_dicts import say


class Shared(nn.Module):
    """Two layers of one weight matrix."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.last = nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight


@pytest.fixture(autouse=True)
def unsaid():
    """Each test hears what is said once in a process."""
    say.cache_clear()


def network(seed=0, classes=3):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, classes)]
    return nn.Sequential(OrderedDict(zip(("conv", "norm", "flat", "fc"), layers, strict=True)))


def named(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def other(state):
    return {name: value + 1 for name, value in state.items()}


def same(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[n], state[n]) for n in own)


def loads(path, content, model=None, **options):
    """Save ``content``, load it, and return whether the weights are those of network(1)."""
    torch.save(content, path)
    model = model or network(2)
    load_weights(model, path, **options)
    return same(model, network(1).state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: named("_orig_mod.", state),
        lambda state: named("module._orig_mod.module.", state),
        lambda state: {"state_dict": named("model._orig_mod.", state), "epoch": 2},
        lambda state: {"net": named("module.", state), "acc": 93.1},
        lambda state: {"checkpoint": {"model_state": named("network.", state)}},
        lambda state: {"weights": named("anything.goes.", state)},
        lambda state: {"state_dict": {**named("model.", state), "criterion.weight": torch.ones(3)}},
        lambda state: {
            "state_dict": {**named("backbone.", state), "train_acc.correct": torch.tensor(7)}
        },
        lambda state: {n: v for n, v in state.items() if "num_batches" not in n},
        lambda state: {**state, "total_ops": torch.zeros(1), "conv.total_params": torch.ones(1)},
        lambda state: {"norm._extra_state": None, "epoch": 3, **state},
        lambda state: {n.replace("conv.", "conv.module."): v for n, v in state.items()},
        lambda state: {
            n: nn.Parameter(v) if v.is_floating_point() else v for n, v in state.items()
        },
        lambda state: {"generator": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"state_dict": state, "best": np.float64(0.93), "seen": np.arange(3)},
        lambda state: {"model": state, "log": defaultdict(list, loss=[1.0])},
        lambda state: {  # as MadryLab's robustness saves it
            "model": {
                **named("module.model.", state),
                **named("module.attacker.model.", state),
                "module.normalizer.new_mean": torch.zeros(3, 1, 1),
            }
        },
    ],
)
def test_weights_load_however_the_usual_tools_saved_them(tmp_path, wrap):
    state = network(1).state_dict()
    assert loads(tmp_path / "a.pth", wrap(state))
    torch.save(wrap(state), tmp_path / "old", _use_new_zipfile_serialization=False)
    behind = Normalised(network(3), (0.5,), (0.5,))
    load_weights(behind, tmp_path / "old")
    assert same(behind.network, state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": other(state), "state_dict_ema": state},
        lambda state: {"model": other(state), "model_ema": {**named("module.", state)}},
        lambda state: {"ema": {"model": state}, "model": other(state)},
        lambda state: {"state_dict": {**named("model.", other(state)), **named("ema.", state)}},
    ],
)
def test_an_average_of_the_weights_is_taken_and_said(tmp_path, wrap, caplog):
    content = wrap(network(1).state_dict())
    assert loads(tmp_path / "a.ckpt", content)
    assert "several sets of weights" in caplog.text
    raw = next(key for key in ("model", "state_dict") if "ema" not in key and key in content)
    if raw == "state_dict" and "state_dict_ema" not in content:
        raw = "model"
    assert not loads(tmp_path / "a.ckpt", content, weights_key=raw)


def test_an_averaged_model_of_torch_loads(tmp_path):
    averaged = AveragedModel(nn.DataParallel(network(1)))
    assert loads(tmp_path / "a.pt", {"model_ema": averaged.state_dict()})


def test_several_sets_of_unknown_names_are_refused_until_one_is_named(tmp_path):
    state = network(1).state_dict()
    content = {"teacher": state, "student": other(state)}
    with pytest.raises(InputError, match=r"^model.weights_key must be one of teacher, student"):
        loads(tmp_path / "a.pt", content)
    assert loads(tmp_path / "a.pt", content, weights_key="teacher")
    with pytest.raises(InputError, match=r"one of teacher, student; got 'tutor'"):
        loads(tmp_path / "a.pt", content, weights_key="tutor")


def test_the_weights_of_a_bare_network_fill_one_inside_another(tmp_path):
    outer = nn.Sequential(OrderedDict(inner=network(2)))
    torch.save(named("backbone.", network(1).state_dict()), tmp_path / "a.pt")
    load_weights(outer, tmp_path / "a.pt")
    assert same(outer.inner, network(1).state_dict())


def test_a_layer_of_another_network_is_not_taken_for_the_network(tmp_path):
    mlp = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    torch.save(mlp.state_dict(), tmp_path / "a.pt")
    for model in (nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))):
        with pytest.raises(InputError, match=r"unknown"):
            load_weights(model, tmp_path / "a.pt")


def test_what_is_left_out_is_named(tmp_path, caplog):
    content = {**named("model.", network(1).state_dict()), "loss_fn.scale": torch.ones(1)}
    assert loads(tmp_path / "a.pt", content)
    assert "loss_fn.scale belong to no layer" in caplog.text


def test_one_name_is_enough_for_tied_weights(tmp_path):
    source, model = Shared(), Shared()
    safetensors.torch.save_model(source, str(tmp_path / "tied.safetensors"))
    load_weights(model, tmp_path / "tied.safetensors")
    assert torch.equal(model.last.weight, source.first.weight)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "epoch=3.ckpt", "weights", "a.pth"])
def test_safetensors_are_known_by_their_content(tmp_path, name):
    safetensors.torch.save_file(network(1).state_dict(), tmp_path / name)
    model = network(2)
    load_weights(model, tmp_path / name)
    assert same(model, network(1).state_dict())


def test_torch_files_are_known_by_their_content(tmp_path):
    assert loads(tmp_path / "a.safetensors", network(1).state_dict())


def test_an_index_of_several_files_loads(tmp_path):
    state = network(1).state_dict()
    parts = {"one.safetensors": list(state)[:3], "two.safetensors": list(state)[3:]}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, ns in parts.items() for n in ns}}))
    for file, names in parts.items():
        with pytest.raises(InputError, match=rf"{file} is missing"):
            load_weights(network(2), index)
        safetensors.torch.save_file({name: state[name] for name in names}, tmp_path / file)
    model = network(2)
    load_weights(model, index)
    assert same(model, state)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_are_converted_and_said(tmp_path, kind, caplog):
    full = network(1).state_dict()
    state = {n: v.to(kind) if v.is_floating_point() else v for n, v in full.items()}
    torch.save(state, tmp_path / "a.pt")
    model = network(2)
    load_weights(model, tmp_path / "a.pt")
    assert torch.equal(model.fc.weight, state["fc.weight"].float())
    assert "computes in float32" in caplog.text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: {**s, "fc.weight": s["fc.weight"].to_sparse()}, "fc.weight is sparse"),
        (lambda s: {**s, "fc.weight": s["fc.weight"].to("meta")}, "fc.weight is without data"),
        (lambda s: {**s, "fc.weight": (9 * s["fc.weight"]).to(torch.int8)}, "fc.weight is int8"),
        (lambda s: {**s, "fc.bias": s["fc.bias"].bool()}, "fc.bias is bool"),
        (lambda s: {**s, "fc.weight": s["fc.weight"].double() + 1e300}, "NaN or infinite"),
        (lambda s: network(1, classes=5).state_dict(), "trained for 5 classes, .* network has 3"),
        (lambda s: {"optimizer": {"state": {}, "param_groups": []}, "epoch": 1}, "an optimiser"),
        (lambda s: {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "an optimiser"),
        (lambda s: {"model": network(1)}, "model is a pickled .*Sequential"),
        (lambda s: network(1), "this is a pickled torch.nn.modules.container.Sequential"),
        (lambda s: {**s, "module.fc.bias": s["fc.bias"] + 1}, "module.fc.bias has two different"),
        (lambda s: {"a": 1, "b": 2}, "this one holds a, b"),
    ],
)
def test_weights_that_cannot_be_used_are_named(tmp_path, change, text):
    torch.save(change(network(1).state_dict()), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", text)


@pytest.mark.filterwarnings("ignore")  # torch says that it will drop such tensors
def test_quantised_weights_are_named(tmp_path):
    state = network(1).state_dict()
    state["fc.weight"] = torch.quantize_per_tensor(state["fc.weight"], 0.1, 0, torch.qint8)
    torch.save(state, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "fc.weight is quantised")


def refused(path, text):
    model = network(2)
    with pytest.raises(InputError, match=text) as caught:
        load_weights(model, path)
    assert str(caught.value).startswith("model.checkpoint must be ")
    assert "\n" not in str(caught.value)
    assert same(model, network(2).state_dict())


def archive(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, value in files.items():
            file.writestr(name.replace("__", "/").replace("_dot_", "."), value)
    return content.getvalue()


def tape():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.pt"), io.BytesIO())
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "this one is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "Git LFS"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"\n  <html>404</html>", "a web page"),
        (b"Entry not found", "a text: 'Entry not found'"),
        (b'{"error": "Repository not found"}', "no index of weight files"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.6.0", "ONNX"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite"),
        (b"\x1f\x8b\x08" + bytes(64), "compressed by gzip"),
        (tape(), "a tar archive"),
        (archive(readme_dot_txt="hello"), "a zip archive with readme.txt in it"),
        (archive(model_dot_weights_dot_h5="", config_dot_json="{}"), "a Keras file"),
        (archive(arr_0_dot_npy=""), "NumPy arrays"),
        (archive(net__constants_dot_pkl="", net__data_dot_pkl=""), "a TorchScript archive"),
        (b"\x08\x01 saved_model", "TensorFlow"),
        (bytes(range(256)), "a whole file of weights"),
        (pickle.dumps({"weight": np.ones(3)}), "a whole file of weights|pickled code"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_files_of_another_kind_are_told_by_their_content(tmp_path, content, text, name):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, text)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_network_is_told(tmp_path):
    torch.jit.save(torch.jit.trace(network(1).eval(), torch.ones(1, 1, 4, 4)), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "a TorchScript archive: torch.jit.load it")


def test_a_folder_is_refused_with_the_file_in_it(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    refused(tmp_path, "not a folder, such as .*model.safetensors")


def test_no_code_of_a_file_is_run(tmp_path, capsys):
    class Loud:
        def __reduce__(self):
            return print, ("code was run",)

    assert loads(tmp_path / "a.pt", {"state_dict": network(1).state_dict(), "note": Loud()})
    assert "code was run" not in capsys.readouterr().out


def test_a_network_of_one_s_own_takes_the_entry_that_is_named(tmp_path):
    state = nn.Linear(4, 2).state_dict()
    torch.save({"a": state, "b": other(state)}, tmp_path / "a.pt")
    shape = {"channels": 1, "size": (1, 4), "classes": 2, "mean": (0.0,), "std": (1.0,)}
    args = {"in_features": 4, "out_features": 2}
    options = {"target": "torch.nn.Linear", "args": args, "checkpoint": str(tmp_path / "a.pt")}
    model = custom(**shape, **options, weights_key="b")
    assert same(model, other(state))


def test_files_of_another_network_are_refused_by_their_weights(tmp_path):
    content = {"a.conv.weight": torch.ones(1), "b.conv.weight": torch.zeros(1)}
    torch.save({"state_dict": content}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "it lacks conv.weight and 7 more; it has the unknown a.conv.w")


def test_a_prefix_may_be_named(tmp_path):
    state = network(1).state_dict()
    content = {**named("student.", state), **named("teacher.", other(state))}
    with pytest.raises(InputError, match=r"unknown student"):
        loads(tmp_path / "a.pt", content)
    assert loads(tmp_path / "a.pt", content, weights_key="student")
