"""MatConvNet files made here, their networks evaluated directly by MatConvNet's definitions."""

import numpy as np
import pytest
import scipy.io
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.models import (
    Normalised,
    caffenet,
    lenet,
    lenet_cifar,
    load_weights,
    save_weights,
    vgg_f,
)
from robustness_geometry.models.matconvnet import KINDS, load_matconvnet

draw = np.random.default_rng(0)


def cell(*arrays):
    made = np.empty((1, len(arrays)), dtype=object)
    for index, array in enumerate(arrays):
        made[0, index] = np.asarray(array, dtype=np.float32)
    return made


def conv(side, before, after, *, pad=0, stride=1, bias=True, name="conv"):
    filters = draw.normal(0, (side * side * before) ** -0.5, (side, side, before, after))
    weights = cell(filters, draw.normal(0, 0.1, (1, after)) if bias else np.empty((0, 0)))
    places = {"pad": np.full((1, 4), float(pad)), "stride": float(stride)}
    return {"type": "conv", "name": name, "weights": weights, **places}


def pool(method, size, stride, pad=(0, 0, 0, 0)):
    sizes = {
        "pool": np.array([[size, size]], float),
        "stride": float(stride),
        "pad": np.array([pad], float),
    }
    return {"type": "pool", "method": method, **sizes}


def bnorm(count):
    moments = np.stack([draw.normal(0, 1, count), draw.uniform(0.5, 2, count)], axis=1)
    weights = cell(draw.uniform(0.5, 2, (count, 1)), draw.normal(0, 1, (count, 1)), moments)
    return {"type": "bnorm", "weights": weights}


RELU = {"type": "relu"}
LRN = {"type": "lrn", "param": np.array([[5, 2, 1e-4, 0.75]])}
SOFTMAX = {"type": "softmaxloss"}


def write(path, layers, average, *, wrap=False, old=False):
    cells = np.empty((1, len(layers)), dtype=object)
    for index, layer in enumerate(layers):
        cells[0, index] = layer
    normalization = {"imageSize": np.array([[8.0, 8.0, 3.0]])}
    if average is not None:
        normalization["averageImage"] = average.astype(np.float32)
    notes = {"normalization": normalization}
    content = {"layers": cells, **(notes if old else {"meta": notes})}
    scipy.io.savemat(path, {"net": content} if wrap else content)


def windows(x, size, stride, pad, fill):
    """The windows of x (H, W, C), padded by [top bottom left right] with fill."""
    top, bottom, left, right = (int(p) for p in np.ravel(pad))
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, size, axis=(0, 1))
    return view[::stride, ::stride]  # (rows, columns, C, height, width)


def evaluate(layers, x):
    """MatConvNet's forward pass on one image (H, W, C)."""
    for layer in layers:
        kind = layer["type"]
        if kind == "conv":
            filters, bias = layer["weights"][0]
            groups = x.shape[2] // filters.shape[2]
            view = windows(x, filters.shape[:2], int(layer["stride"]), layer["pad"], 0.0)
            pairs = zip(
                np.split(view, groups, axis=2), np.split(filters, groups, axis=3), strict=True
            )
            x = np.concatenate([np.einsum("rsckl,klcn->rsn", *pair) for pair in pairs], axis=2)
            x = x + (np.ravel(bias) if np.size(bias) else 0)
        elif kind == "pool":
            size = tuple(int(side) for side in np.ravel(layer["pool"]))
            view = windows(x, size, int(layer["stride"]), layer["pad"], np.nan)
            x = (np.nanmax if layer["method"] == "max" else np.nanmean)(view, axis=(3, 4))
        elif kind == "relu":
            x = np.maximum(x, 0)
        elif kind in ("lrn", "normalize"):
            size, kappa, alpha, beta = np.ravel(layer["param"])
            reach = int(size) // 2
            squares = np.pad(x**2, ((0, 0), (0, 0), (reach, reach)))
            total = sum(squares[:, :, k : k + x.shape[2]] for k in range(int(size)))
            x = x / (kappa + alpha * total) ** beta
        elif kind == "bnorm":
            scale, shift, moments = layer["weights"][0]
            x = scale.ravel() * (x - moments[:, 0]) / moments[:, 1] + shift.ravel()
    return np.ravel(x)


def small():
    """An ImageNet network in small: stride, groups, response normalisation, part windows."""
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2),
        nn.ReLU(),
        nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(6, 4, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 5),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(5, 7),
    )
    layers = [
        conv(3, 3, 6, stride=2),
        RELU,
        LRN,
        pool("max", 3, 2, (0, 1, 0, 1)),
        conv(3, 3, 4, pad=1),
        RELU,
        conv(4, 4, 5),
        RELU,
        {"type": "dropout", "rate": 0.5},
        conv(1, 5, 7),
        SOFTMAX,
    ]
    return Normalised(network, (0.5,) * 3, (0.5,) * 3), layers, (17, 17, 3)


def digits(batch_norm):
    shape = {"channels": 1, "size": (20, 20), "classes": 10, "mean": (0.5,), "std": (0.5,)}
    bias = not batch_norm
    first, second, third = (
        conv(5, 1, 20, bias=bias),
        conv(5, 20, 50, bias=bias),
        conv(2, 50, 500, bias=bias),
    )
    norms = [[bnorm(count)] if batch_norm else [] for count in (20, 50, 500)]
    layers = [
        first,
        *norms[0],
        pool("max", 2, 2),
        second,
        *norms[1],
        pool("max", 2, 2),
        third,
        *norms[2],
    ]
    return (
        lenet(**shape, batch_norm=batch_norm),
        [*layers, RELU, conv(1, 500, 10), SOFTMAX],
        (20, 20, 1),
    )


def cifar():
    shape = {"channels": 3, "size": (20, 20), "classes": 10, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    part = (0, 1, 0, 1)
    layers = [
        conv(5, 3, 32, pad=2),
        pool("max", 3, 2, part),
        RELU,
        conv(5, 32, 32, pad=2),
        RELU,
        pool("avg", 3, 2, part),
        conv(5, 32, 64, pad=2),
        RELU,
        pool("avg", 3, 2, part),
        conv(2, 64, 64),
        RELU,
        conv(1, 64, 10),
        SOFTMAX,
    ]
    return lenet_cifar(**shape), layers, (20, 20, 3)


CASES = {
    "imagenet": small,
    "lenet": lambda: digits(False),
    "lenet with batch norm": lambda: digits(True),
    "cifar": cifar,
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", sorted(CASES))
def test_logits_are_those_of_matconvnet(name, whole, tmp_path):
    model, layers, shape = CASES[name]()
    average = draw.uniform(90, 160, shape if whole else (1, 1, shape[2])).astype(np.float32)
    write(tmp_path / "net.mat", layers, average)
    load_weights(model, tmp_path / "net.mat")
    images = draw.uniform(0, 255, (2, *shape))
    expected = np.stack([evaluate(layers, image - average) for image in images])
    given = torch.from_numpy(images / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert model.double()(given).numpy() == pytest.approx(
            expected, abs=1e-4 * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    ("factory", "start"),
    [
        (caffenet, "conv relu pool lrn conv relu pool lrn"),
        (vgg_f, "conv relu lrn pool conv relu lrn pool"),
    ],
)
def test_imagenet_networks_have_the_layers_of_the_published_files(factory, start):
    model = factory(channels=3, size=(63, 63), classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    kinds = [KINDS[type(module)] for module in model.network.modules() if type(module) in KINDS]
    rest = "conv relu conv relu conv relu pool conv relu conv relu conv"
    assert " ".join(kinds) == f"{start} {rest}"


@pytest.mark.parametrize("options", [{"wrap": True}, {"old": True}])
def test_files_of_all_years_are_read(options, tmp_path):
    model, layers, _ = small()
    layers[2] = {**LRN, "type": "normalize"}
    if "old" in options:
        for layer in layers:
            if layer["type"] == "conv":
                layer["filters"], layer["biases"] = layer.pop("weights")[0]
    average = np.full((3, 1) if "old" in options else (1, 1, 3), 120.0)
    write(tmp_path / "net.mat", layers, average, **options)
    load_matconvnet(model, tmp_path / "net.mat")
    assert model.normalise.mean.flatten().tolist() == pytest.approx([120 / 255] * 3)
    assert model.normalise.std.flatten()[0] == pytest.approx(1 / 255)


def test_loaded_weights_survive_a_checkpoint(tmp_path):
    model, layers, shape = small()
    write(tmp_path / "net.mat", layers, draw.uniform(90, 160, shape))
    load_matconvnet(model, tmp_path / "net.mat")
    save_weights(model, tmp_path / "net.safetensors")
    other = small()[0]
    load_weights(other, tmp_path / "net.safetensors")
    images = torch.rand(2, 3, 17, 17)
    assert torch.equal(model(images), other(images))


def refused(path, text, model=None):
    model = model or small()[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=text) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "net.mat"
    _, layers, _ = small()
    average = np.full((1, 1, 3), 100.0)
    write(path, [*layers[:2], layers[3], layers[2], *layers[4:]], average)
    refused(path, r"the layers conv relu lrn pool .*; this one has conv relu pool lrn")
    write(path, [conv(3, 3, 5, stride=2, name="conv1"), *layers[1:]], average)
    refused(
        path,
        r"weight \(6, 3, 3, 3\), bias \(6,\) in layer conv1; this one has weight \(5, 3, 3, 3\)",
    )
    write(path, [conv(3, 3, 6, bias=False), *layers[1:]], average)
    refused(path, r"in layer conv; this one has weight \(6, 3, 3, 3\); got")
    write(
        path, [*layers[:2], {**LRN, "param": np.array([[5, 1, 1e-4, 0.75]])}, *layers[3:]], average
    )
    refused(path, r"response normalisation \(5, 2.0, 0.0001, 0.75\); this one has \(5.0, 1.0")
    write(path, layers, None)
    refused(path, r"meta.normalization.averageImage of 3 channels")
    write(path, layers, np.full((17, 17), 100.0))
    refused(path, r"meta.normalization.averageImage of 3 channels")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    path = tmp_path / "net.mat"
    refused(path, r"an existing file")
    model, layers, _ = digits(True)
    layers[1]["weights"] = layers[1]["weights"][:, :2]
    write(path, layers, np.full((1, 1, 1), 100.0))
    refused(path, r"a file whose batch normalisation has its moments", model)
    whole = path.read_bytes()
    newer = b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\0\2IM" + b"\0" * 400
    for content in (b"", b"no matlab", whole[:-5000], whole[:130], newer):
        path.write_bytes(content)
        refused(path, r"a whole .mat file of version 7 or older")
    scipy.io.savemat(path, {"layers": np.ones((2, 2))})
    refused(path, r"a SimpleNN file of MatConvNet")
    scipy.io.savemat(path, {"vars": {"name": "input"}})
    refused(path, r"a SimpleNN file of MatConvNet")
    with pytest.raises(InputError, match=r"a MatConvNet file is for this package's networks"):
        load_weights(nn.Linear(2, 2), path)
