import sys
import textwrap

import pytest
import torch

from robustness_geometry.checks import InputError
from robustness_geometry.models import Normalised, custom, save_weights

SHAPE = {"channels": 1, "size": (8, 8), "classes": 3, "mean": (0.4,), "std": (0.3,)}
SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, units=4):
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(64, units), nn.BatchNorm1d(units), nn.Linear(units, 3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return self.layers(images)

def make(units):
    if units < 1:
        raise ValueError("units must be positive")
    return Net(units)

def wrong():
    return "no network"

constant = 3
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A package that is not ours, importable as ``theirs.nets``."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").touch()
    (tmp_path / "theirs" / "nets.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("theirs", "theirs.nets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("target", "args"), [("theirs.nets.Net", None), ("theirs.nets.make", {"units": 6})]
)
def test_classes_and_functions_are_called(target, args):
    model = custom(**SHAPE, target=target, checkpoint=None, args=args)
    assert not any(module.training for module in model.modules())
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("normalise", "transform"),
    [
        ("none", lambda x: x),
        ("dataset", lambda x: (x - 0.4) / 0.3),
        ([[0.5], [0.25]], lambda x: (x - 0.5) / 0.25),
    ],
)
def test_weights_are_those_of_the_checkpoint_behind_the_chosen_normalisation(
    tmp_path, normalise, transform
):
    saved = custom(**SHAPE, target="theirs.nets.Net", checkpoint=None)
    save_weights(saved, tmp_path / "weights.safetensors")
    model = custom(
        **SHAPE,
        target="theirs.nets.Net",
        checkpoint=str(tmp_path / "weights.safetensors"),
        normalise=normalise,
    )
    images = torch.rand(2, 1, 8, 8)
    assert torch.allclose(model(images), saved(transform(images)), atol=1e-6)
    assert isinstance(model, Normalised) is (normalise != "none")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"target": "theirs.nets.Nothing"},
            r"model.target must be .*no attribute.*; got 'theirs.nets.Nothing'",
        ),
        ({"target": "nowhere.Net"}, r"model.target must be .*No module named.*; got 'nowhere.Net'"),
        ({"target": "Net"}, r"model.target must be package.module.Name.*; got 'Net'"),
        (
            {"target": "theirs.nets.constant"},
            r"model.target must be .*class or a function.*; got 'theirs.nets.constant'",
        ),
        (
            {"target": "theirs.nets.wrong"},
            r"model.target must be .*Module, not str.*; got 'theirs.nets.wrong'",
        ),
        ({"target": "theirs.nets.make"}, r"model.args must be .*missing 1 required.*; got \{\}"),
        (
            {"target": "theirs.nets.make", "args": {"units": 0}},
            r"model.args must be .*units must be positive",
        ),
        (
            {"target": "theirs.nets.Net", "args": {"width": 3}},
            r"model.args must be .*unexpected keyword",
        ),
        (
            {"target": "theirs.nets.Net", "checkpoint": "none.pt"},
            r"model.checkpoint must be .*existing file.*; got 'none.pt'",
        ),
        (
            {"target": "theirs.nets.Net", "normalise": "imagenet"},
            r"model.normalise must be none, dataset.*; got 'imagenet'",
        ),
        (
            {"target": "theirs.nets.Net", "normalise": [[0.1, 0.2], [0.1, 0.2]]},
            r"model.normalise must be .*lists of 1 numbers",
        ),
    ],
)
def test_what_makes_no_network_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        custom(**{**SHAPE, "checkpoint": None, **options})


def test_a_checkpoint_must_be_asked_for_or_declined():
    with pytest.raises(TypeError, match=r"checkpoint"):
        custom(**SHAPE, target="theirs.nets.Net")
