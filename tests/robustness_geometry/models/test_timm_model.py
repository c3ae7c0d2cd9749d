import sys

import pytest
import timm
import torch

from robustness_geometry.checks import InputError
from robustness_geometry.models import timm_model

SMALL = {"channels": 1, "size": (32, 32), "classes": 4, "mean": (0.4,), "std": (0.3,)}
IMAGENET = {"channels": 3, "size": (64, 64), "classes": 1000, "mean": (0.4,) * 3, "std": (0.3,) * 3}


@pytest.fixture
def published(monkeypatch):
    """Published weights are the initial ones: nothing is downloaded."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name))


def test_a_fresh_network_suits_the_data():
    model = timm_model(**SMALL, name="resnet10t", weights=None)
    images = torch.rand(2, 1, 32, 32, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, 4)
    assert not model.training
    assert model.normalise.mean.item() == pytest.approx(0.4)
    assert torch.isfinite(torch.autograd.grad(logits.sum(), images)[0]).all()


def test_published_weights_bring_their_normalisation(published):
    model = timm_model(**IMAGENET, name="mobilenetv3_small_050")
    config = timm.data.resolve_model_data_config(model.network)
    assert model.normalise.mean.flatten().tolist() == pytest.approx(config["mean"])
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def test_published_weights_that_do_not_suit_are_refused(published):
    with pytest.raises(
        InputError, match=r"model.weights must be null .*3 channels .* has 1 and 4.*; got 'DEFAULT'"
    ):
        timm_model(**SMALL, name="mobilenetv3_small_050")


def test_weights_out_of_reach_are_one_line(monkeypatch):
    def create(name, pretrained):
        raise OSError("no network\nand more")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(InputError, match=r"model.weights must be .*\(no network\); got 'DEFAULT'$"):
        timm_model(**IMAGENET, name="mobilenetv3_small_050")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"name": "resnet19x"},
            r"model.name must be a name of timm.list_models.*; got 'resnet19x'",
        ),
        (
            {"name": "resnet10t", "weights": "V2"},
            r"model.weights must be DEFAULT or null.*; got 'V2'",
        ),
    ],
)
def test_unknown_names_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        timm_model(**SMALL, **options)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        InputError, match=r"^package timm must be .*pip install robustness-geometry\[timm\]"
    ):
        timm_model(**SMALL, name="resnet10t", weights=None)


@pytest.mark.parametrize("weights", ["DEFAULT", None])
def test_a_checkpoint_takes_the_place_of_published_weights(tmp_path, weights):
    saved = timm.create_model("resnet10t", num_classes=4).eval()
    content = {f"module.{name}": value for name, value in saved.state_dict().items()}
    torch.save({"state_dict": content, "epoch": 3}, tmp_path / "a.pth.tar")
    shape = {**SMALL, "channels": 3, "mean": (0.4,) * 3, "std": (0.3,) * 3}
    path = str(tmp_path / "a.pth.tar")
    model = timm_model(**shape, name="resnet10t", weights=weights, checkpoint=path)
    own = saved.default_cfg["mean"] if weights else (0.4,) * 3
    assert model.normalise.mean.flatten().tolist() == pytest.approx(own)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = saved((images - model.normalise.mean) / model.normalise.std)
        assert torch.allclose(model(images), expected, atol=1e-5)


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    saved = timm.create_model("resnet10t", num_classes=7, in_chans=1)
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"trained for 7 classes, and the network has 4"):
        timm_model(**SMALL, name="resnet10t", weights=None, checkpoint=str(tmp_path / "a.pth"))


def test_a_transformer_of_another_size_is_refused_or_built_for_it():
    options = {"name": "vit_tiny_patch16_224", "weights": None}
    with pytest.raises(InputError, match=r"dataset.size must be 224x224 .*img_size: \[32, 32\]"):
        timm_model(**SMALL, **options)
    model = timm_model(**SMALL, **options, args={"img_size": [32, 32], "depth": 1})
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 4)
    with pytest.raises(InputError, match=r"model.args must be arguments that vit_tiny"):
        timm_model(**SMALL, **options, args={"nothing": 1})
