import urllib.error

import pytest
import torch
import torchvision.models
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.models import load_weights, torchvision_model

SMALL = {"channels": 3, "size": (64, 64), "classes": 5, "mean": (0.4,) * 3, "std": (0.3,) * 3}
IMAGENET = {**SMALL, "size": (224, 224), "classes": 1000}


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Published weights come from a folder that holds each network's initial weights."""

    def load(self, progress=True, check_hash=False):
        torch.manual_seed(7)
        name = type(self).__name__.removesuffix("_Weights").lower()
        return torchvision.models.get_model(name, weights=None).state_dict()

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", load)


@pytest.mark.parametrize(
    ("name", "channels"), [("googlenet", 3), ("squeezenet1_1", 3), ("shufflenet_v2_x0_5", 1)]
)
def test_a_fresh_network_suits_the_data(name, channels):
    shape = {**SMALL, "channels": channels, "mean": (0.4,) * channels, "std": (0.3,) * channels}
    model = torchvision_model(**shape, name=name, weights=None)
    images = torch.rand(2, channels, 64, 64, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, 5)
    assert not model.training
    assert torch.isfinite(torch.autograd.grad(logits.sum(), images)[0]).all()
    model.train()
    assert isinstance(model(torch.rand(2, channels, 64, 64)), torch.Tensor)


def test_published_weights_bring_their_normalisation(published):
    model = torchvision_model(**IMAGENET, name="squeezenet1_1")
    assert model.normalise.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model.normalise.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    torch.manual_seed(7)
    plain = torchvision.models.squeezenet1_1(weights=None).eval()
    picture = torch.rand(1, 3, 224, 224)
    preset = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        expected = plain(
            torchvision.transforms.functional.normalize(picture, preset.mean, preset.std)
        )
        assert torch.allclose(model(picture), expected, atol=1e-5)
    assert not model.training


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "resnet19"}, r"model.name must be one of .*resnet18.*; got 'resnet19'"),
        (
            {"name": "resnet18", "weights": "V9"},
            r"model.weights must be one of IMAGENET1K_V1, DEFAULT, null; got 'V9'",
        ),
        (
            {"name": "resnet18"},
            r"model.weights must be null for .*: .*resnet18 .*1000 classes.*; got 'DEFAULT'",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        torchvision_model(**SMALL, **options)


def test_grey_images_do_not_suit_published_weights():
    shape = {**IMAGENET, "channels": 1, "mean": (0.4,), "std": (0.3,)}
    with pytest.raises(
        InputError,
        match=r"model.weights must be .* take 3 channels .* has 1 and 1000.*; got 'DEFAULT'",
    ):
        torchvision_model(**shape, name="resnet18")


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("invalid hash value\nmore")]
)
def test_weights_out_of_reach_are_one_line(monkeypatch, error):
    def load(self, progress=True, check_hash=False):
        raise error

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", load)
    with pytest.raises(
        InputError, match=r"model.weights must be .*put https://.*\.pth into.*; got 'IMAGENET1K_V1'"
    ) as caught:
        torchvision_model(**IMAGENET, name="resnet18")
    assert "\n" not in str(caught.value)


def test_a_bare_state_dict_of_torchvision_loads(tmp_path):
    plain = torchvision.models.squeezenet1_1(weights=None, num_classes=5)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = torchvision_model(**SMALL, name="squeezenet1_1", weights=None)
    load_weights(model, tmp_path / "plain.pth")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(images), plain.eval()((images - 0.4) / 0.3), atol=1e-5)
    assert isinstance(model.network, nn.Module)


@pytest.mark.parametrize("weights", ["DEFAULT", None])
def test_a_checkpoint_takes_the_place_of_published_weights(tmp_path, weights):
    saved = torchvision.models.squeezenet1_1(weights=None, num_classes=5).eval()
    raw = {name: value + 1 for name, value in saved.state_dict().items()}
    averaged = {f"module.{name}": value for name, value in saved.state_dict().items()}
    torch.save({"model": raw, "model_ema": averaged}, tmp_path / "a.pth")
    options = {"name": "squeezenet1_1", "weights": weights, "checkpoint": str(tmp_path / "a.pth")}
    model = torchvision_model(**SMALL, **options)
    own = (0.485, 0.456, 0.406) if weights else (0.4,) * 3
    assert model.normalise.mean.flatten().tolist() == pytest.approx(own)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = saved((images - model.normalise.mean) / model.normalise.std)
        assert torch.allclose(model(images), expected, atol=1e-5)
    other = torchvision_model(**SMALL, **options, weights_key="model")
    assert torch.equal(other.network.classifier[1].bias, raw["classifier.1.bias"])


def test_published_weights_of_auxiliary_heads_load_from_a_file(tmp_path):
    saved = torchvision.models.googlenet(weights=None, num_classes=5, init_weights=False)
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    options = {"name": "googlenet", "weights": None, "checkpoint": str(tmp_path / "a.pth")}
    model = torchvision_model(**SMALL, **options)
    assert torch.equal(model.network.fc.bias, saved.fc.bias)


def test_published_networks_name_their_classes(published):
    names = torchvision_model(**IMAGENET, name="squeezenet1_1").class_names
    assert names[0] == "tench"
    assert len(names) == 1000


def test_a_transformer_of_another_size_is_refused_or_built_for_it():
    options = {"name": "vit_b_32", "weights": None}
    with pytest.raises(InputError, match=r"dataset.size must be 224 for .*image_size: \[64, 64\]"):
        torchvision_model(**SMALL, **options)
    model = torchvision_model(**SMALL, **options, args={"image_size": 64})
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 5)
