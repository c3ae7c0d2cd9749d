"""Files that people bring: none runs code, fills the memory or leads out of its folder."""

import gzip
import io
import json
import pickle
import struct
import sys
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from robustness_geometry import sizes
from robustness_geometry.checks import InputError
from robustness_geometry.datasets import arrays, fashion_mnist, image_folder, mnist5k
from robustness_geometry.datasets.photographs.folder import MANIFEST, Picture, read_manifest
from robustness_geometry.models import lenet, load_weights, torchvision_model
from robustness_geometry.training.checkpoints import Checkpoint

SHAPE = {"channels": 3, "size": (8, 8), "classes": 1000, "mean": (0.5,) * 3, "std": (0.5,) * 3}


def one_line(caught, key, path):
    text = str(caught.value)
    assert text.startswith(f"{key} must be ")
    assert str(path) in text
    assert "\n" not in text
    return text


class Intruder:
    """Leaves a file behind where a loader unpickles it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def npz_of(path, size):
    """An archive that declares an array of ``size`` bytes and is some bytes long."""
    head = io.BytesIO()
    array = {"descr": "|u1", "fortran_order": False, "shape": (size // 64, 8, 8)}
    np.lib.format.write_array_header_1_0(head, array)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", head.getvalue() + bytes(1000))
    content = path.read_bytes()
    true = struct.pack("<I", len(head.getvalue()) + 1000)
    assert content.count(true) == 2
    path.write_bytes(content.replace(true, struct.pack("<I", size)))
    return path


@pytest.mark.parametrize("size", [2**31, 2**32 - 64])
def test_an_archive_of_arrays_is_refused_by_its_size_before_it_is_read(tmp_path, monkeypatch, size):
    path = npz_of(tmp_path / "bomb.npz", size)
    monkeypatch.setattr(sizes, "LARGEST", 2**30)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(InputError) as caught:
        arrays(path=path)
    text = one_line(caught, "dataset.path", path)
    limit = min(2**30, sizes.largest())
    assert f"at most {2**30:,} bytes" in text or limit < 2**30
    assert f"these take {size:,} or more" in text


def test_an_archive_that_understates_its_arrays_is_refused(tmp_path):
    path = npz_of(tmp_path / "lying.npz", 2**31)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 2**31), struct.pack("<I", 1128)))
    with pytest.raises(InputError) as caught:
        arrays(path=path)
    one_line(caught, "dataset.path", path)


@pytest.mark.parametrize("name", ["encrypted", "huge header", "no zip"])
def test_arrays_that_numpy_cannot_read_are_one_line(tmp_path, name):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((4, 2)), y=np.arange(4))
    content = bytearray(path.read_bytes())
    if name == "encrypted":
        content[content.rindex(b"PK\1\2") + 8] |= 1
        content[content.index(b"PK\1\2") + 8] |= 1
    elif name == "huge header":
        content = content.replace(b"(4, 2), }", b"(9" + b"9" * 3 + b",), }")
    path.write_bytes(b"PK" if name == "no zip" else content)
    with pytest.raises(InputError) as caught:
        arrays(path=path)
    one_line(caught, "dataset.path", path)


def test_a_checkpoint_is_refused_by_the_size_that_it_declares(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pt"
    torch.save({"weight": torch.zeros(2**18)}, path)
    with zipfile.ZipFile(path) as stored:
        entries = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    assert path.stat().st_size < 2**14
    monkeypatch.setattr(sizes, "LARGEST", 2**20)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(InputError) as caught:
        load_weights(nn.Linear(2**18, 1), path)
    one_line(caught, "model.checkpoint", path)


def test_a_matlab_file_is_refused_by_the_size_that_it_declares(tmp_path, monkeypatch):
    scipy = pytest.importorskip("scipy.io")
    path = tmp_path / "bomb.mat"
    scipy.savemat(path, {"layers": np.zeros(2**18)}, do_compression=True)
    assert path.stat().st_size < 2**14
    monkeypatch.setattr(sizes, "LARGEST", 2**20)
    monkeypatch.setattr(scipy, "loadmat", None)
    with pytest.raises(InputError) as caught:
        load_weights(lenet(channels=1, size=(16, 16), classes=2, mean=(0.0,), std=(1.0,)), path)
    assert "these take 2,097," in one_line(caught, "model.checkpoint", path)


@pytest.mark.parametrize("load", [mnist5k, fashion_mnist])
def test_a_gzip_bomb_is_read_no_further_than_the_published_file_is_long(tmp_path, load):
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    content = b"".join(packer.compress(bytes(2**20)) for _ in range(60)) + packer.flush()
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
    names += ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    for name in ("mnist_5k.csv", *names):
        (tmp_path / f"{name}.gz").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(root=tmp_path)
    text = one_line(caught, "dataset.root", tmp_path)
    assert "a file whose contents take at most " in text


def png(width, height):
    def part(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(bytes(99))) + part(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(100_000, 100_000), (10_000, 10_000), (2**31 - 1, 1)])
@pytest.mark.parametrize("name", ["huge.png", "huge"])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path, recwarn, size, name):
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / name
    path.write_bytes(png(*size))
    with pytest.raises(InputError) as caught:
        image_folder(root=tmp_path, size=8)
    one_line(caught, "dataset.root", path if path.suffix else tmp_path)
    assert not recwarn.list


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("wrapped", [False, True])
def test_no_loader_of_weights_runs_what_a_file_pickles(tmp_path, protocol, wrapped):
    trace, path = tmp_path / "trace", tmp_path / "net.pt"
    path.write_bytes(pickle.dumps({"state_dict": Intruder(trace)}, protocol=protocol))
    if wrapped:
        torch.save({"state_dict": Intruder(trace)}, path, pickle_protocol=max(protocol, 2))
    with pytest.raises(InputError) as caught:
        load_weights(nn.Linear(2, 1), path)
    one_line(caught, "model.checkpoint", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of other protocols than its own
        with pytest.raises(pickle.UnpicklingError):
            Checkpoint(tmp_path / "net", "").load()
    assert not trace.exists()


def test_published_weights_in_the_cache_are_read_without_running_code(tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(Intruder(trace), folder / "resnet18-f37072fd.pth")
    with pytest.raises(InputError, match=r"model.weights must be weights that can be"):
        torchvision_model(**SHAPE, name="resnet18", weights="IMAGENET1K_V1")
    assert not trace.exists()


@pytest.mark.parametrize("entry", ["config.json", "pytorch_model.bin"])
def test_code_beside_the_weights_of_a_folder_is_not_run(tmp_path, entry, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from robustness_geometry.models import huggingface

    trace = tmp_path / "trace"
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # somebody who says yes to everything
    config = transformers.ResNetConfig(embedding_sizes=4, hidden_sizes=[4], depths=[1])
    config.save_pretrained(tmp_path)
    if entry == "config.json":
        made = {"model_type": "own", "auto_map": {"AutoConfig": "code.Own"}}
        (tmp_path / "config.json").write_text(json.dumps(made))
        (tmp_path / "code.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    else:
        torch.save(Intruder(trace), tmp_path / entry)
    with pytest.raises(InputError, match=r"^model.name must be "):
        huggingface(**SHAPE, name=str(tmp_path))
    assert not trace.exists()


@pytest.mark.parametrize("inside", ["itself", "nested"])
def test_an_index_without_end_is_refused(tmp_path, inside):
    path = tmp_path / "model.safetensors.index.json"
    text = json.dumps({"weight_map": {"weight": path.name}})
    path.write_text(text if inside == "itself" else '{"weight_map":' * 100_000)
    with pytest.raises(InputError) as caught:
        load_weights(nn.Linear(2, 1), path)
    one_line(caught, "model.checkpoint", path)


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "pictures/../../secret"])
def test_an_index_and_a_manifest_name_no_file_elsewhere(tmp_path, name):
    (tmp_path / "secret").write_text("")
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"weight": name}}))
    with pytest.raises(InputError, match="whose files lie beside it"):
        load_weights(nn.Linear(2, 1), path)
    fields = vars(Picture(name, "package", "1", "path", "scene"))
    lines = [",".join(fields), ",".join(map(str, fields.values()))]
    (folder / MANIFEST).write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="whose pictures lie in its folder") as caught:
        read_manifest(folder)
    one_line(caught, "dataset.root", folder / MANIFEST)


def test_a_compressed_text_is_no_way_around_the_limit(tmp_path):
    path = tmp_path / "weights.pt.gz"
    path.write_bytes(gzip.compress(bytes(100)))
    with pytest.raises(InputError, match="compressed by gzip: unpack it first"):
        load_weights(nn.Linear(2, 1), path)
