"""The adapter, with a made-up package of robustbench's form: its own is not needed."""

import sys
import textwrap

import pytest
import torch

from robustness_geometry.checks import InputError
from robustness_geometry.models import robustbench

SHAPE = {"channels": 3, "size": (8, 8), "classes": 4, "mean": (0.4,) * 3, "std": (0.3,) * 3}
UTILS = """
import pathlib
import torch
from torch import nn

def load_model(model_name, model_dir, dataset, threat_model):
    torch.manual_seed(len(model_name))
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
    path = pathlib.Path(model_dir) / dataset / threat_model / f"{model_name}.pt"
    network.load_state_dict(torch.load(path, weights_only=True))
    return network
"""
ZOO = """
import enum

class Data(enum.Enum):
    cifar_10 = "cifar10"
    imagenet = "imagenet"

class Threat(enum.Enum):
    Linf = "Linf"
    L2 = "L2"

model_dicts = {Data.cifar_10: {Threat.Linf: {"Standard": {}, "Made2026Up": {}}, Threat.L2: {}}}
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    place = tmp_path / "packages" / "robustbench"
    place.mkdir(parents=True)
    (place / "__init__.py").touch()
    (place / "utils.py").write_text(textwrap.dedent(UTILS))
    (place / "model_zoo.py").write_text(textwrap.dedent(ZOO))
    monkeypatch.syspath_prepend(place.parent)
    yield
    for name in ("robustbench", "robustbench.utils", "robustbench.model_zoo"):
        sys.modules.pop(name, None)


@pytest.fixture
def weights(tmp_path):
    layer = torch.nn.Linear(192, 4)
    file = tmp_path / "models" / "cifar10" / "Linf" / "Standard.pt"
    file.parent.mkdir(parents=True)
    torch.save({f"2.{name}": value for name, value in layer.state_dict().items()}, file)
    return tmp_path / "models", layer


@pytest.mark.parametrize("download", [False, True])
def test_published_networks_take_pixels_and_are_in_evaluation_mode(weights, download):
    folder, layer = weights
    model = robustbench(**SHAPE, name="Standard", folder=str(folder), download=download)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(images), layer(images.flatten(1)))
    assert not model.training


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "Madry"}, r"model.name must be one of Standard, Made2026Up; got 'Madry'"),
        ({"data": "mnist"}, r"model.data must be one of cifar10, .*; got 'mnist'"),
        ({"threat_model": "L1"}, r"model.threat_model must be one of Linf, .*; got 'L1'"),
        ({"threat_model": "L2"}, r"model.name must be .*none for L2; got 'Standard'"),
        ({"weights": None}, r"model.weights must be DEFAULT, .*; got None"),
        ({"name": "Made2026Up"}, r"model.folder must be .*Made2026Up.pt, or model.download=true"),
        ({"name": "Made2026Up", "download": True}, r"model.name must be .*can be had \(.*\)"),
    ],
)
def test_what_cannot_be_had_is_refused(weights, options, text):
    given = {"name": "Standard", "folder": str(weights[0]), **options}
    with pytest.raises(InputError, match=text):
        robustbench(**SHAPE, **given)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench.utils", None)
    with pytest.raises(InputError, match=r"pip install robustness-geometry\[robustbench\]"):
        robustbench(**SHAPE, name="Standard")
