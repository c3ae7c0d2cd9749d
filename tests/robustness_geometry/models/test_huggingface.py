"""Tiny made-up networks of transformers, saved to a folder as published ones are."""

import sys

import numpy as np
import pytest
import torch
import transformers

from robustness_geometry.checks import InputError
from robustness_geometry.models import Normalised, huggingface

SHAPE = {"channels": 3, "size": (16, 16), "classes": 3, "mean": (0.4,) * 3, "std": (0.3,) * 3}
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
NAMES = {0: "cat", 1: "dog", 2: "owl"}
CONFIGS = {
    "vit": lambda **o: transformers.ViTConfig(image_size=16, patch_size=8, **SMALL, **o),
    "deit": lambda **o: transformers.DeiTConfig(
        image_size=16, patch_size=4, architectures=["DeiTForImageClassification"], **SMALL, **o
    ),
    "resnet": lambda **o: transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", **o
    ),
    "convnext": lambda **o: transformers.ConvNextConfig(
        hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, patch_size=2, **o
    ),
}


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "vit", "vit", processor=transformers.ViTImageProcessor())


def save(folder, kind, processor=None, **options):
    torch.manual_seed(1)
    config = CONFIGS[kind](
        **{"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}, **options}
    )
    network = transformers.AutoModelForImageClassification.from_config(config)
    for parameter in network.parameters():  # fresh last layers are nearly constant
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return str(folder)


def plain(folder):
    return transformers.AutoModelForImageClassification.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize(
    "options",
    [
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [60.0] * 3},
    ],
)
def test_the_logits_are_those_of_the_network_behind_its_image_processor(tmp_path, kind, options):
    processor = transformers.ViTImageProcessor(do_resize=False, **options)
    folder = save(tmp_path / kind, kind, processor)
    model = huggingface(**SHAPE, name=folder)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = plain(folder)(**processor(list(pixels), return_tensors="pt")).logits
        assert torch.allclose(model(images), expected, rtol=1e-4, atol=1e-5)
    assert model.class_names == ("cat", "dog", "owl")
    assert isinstance(model, Normalised)
    assert not any(module.training for module in model.modules())


def test_channels_are_reversed_where_the_image_processor_reverses_them(tmp_path):
    processor = transformers.MobileViTImageProcessor(do_resize=False, do_center_crop=False)
    folder = save(tmp_path / "resnet", "resnet", processor)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = plain(folder)(images.flip(1)).logits
        assert torch.allclose(huggingface(**SHAPE, name=folder)(images), expected, atol=1e-5)


def test_attention_has_second_derivatives(folder):
    model = huggingface(**SHAPE, name=folder).double()
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(image)

    def slope(point):
        (gradient,) = torch.autograd.grad(model(point)[0, 0], point, create_graph=True)
        return gradient

    (product,) = torch.autograd.grad((slope(image) * direction).sum(), image)
    step = 1e-3  # the softmax is computed in float32
    differences = (slope(image + step * direction) - slope(image - step * direction)) / (2 * step)
    assert torch.allclose(product, differences, rtol=1e-2, atol=1e-5)
    assert product.abs().max() > 1e-4


def test_half_precision_weights_compute_in_single(tmp_path):
    folder = save(tmp_path / "vit", "vit", transformers.ViTImageProcessor())
    plain(folder).to(torch.bfloat16).save_pretrained(folder)
    model = huggingface(**SHAPE, name=folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_fresh_network_has_the_data_set_s_classes(folder):
    shape = {**SHAPE, "classes": 5, "size": (24, 24)}
    model = huggingface(**shape, name=folder, weights=None, args={"image_size": 24})
    assert model(torch.rand(2, 3, 24, 24)).shape == (2, 5)
    assert model.normalise.mean.flatten().tolist() == pytest.approx([0.4] * 3)


@pytest.mark.parametrize(
    ("normalise", "mean"), [("dataset", 0.4), ([[0.1] * 3, [0.2] * 3], 0.1), ("none", None)]
)
def test_another_normalisation_may_be_given(tmp_path, normalise, mean):
    folder = save(tmp_path / "bare", "resnet")
    with pytest.raises(InputError, match=r"^model.normalise must be none, dataset, or two lists"):
        huggingface(**SHAPE, name=folder)
    model = huggingface(**SHAPE, name=folder, normalise=normalise)
    assert isinstance(model, Normalised) is (mean is not None)
    if mean is not None:
        assert model.normalise.mean.flatten().tolist() == pytest.approx([mean] * 3)


@pytest.mark.parametrize(
    ("shape", "options", "text"),
    [
        ({"size": (28, 28)}, {}, r"dataset.size must be 16 for .*model.args=.*; got '28x28'"),
        ({"channels": 1}, {}, r"dataset.channels must be 3, as .* takes; got 1"),
        ({"classes": 2}, {}, r"model.name must be a network of 2 classes; this one has 3; .*owl\]"),
        ({}, {"weights": "V2"}, r"model.weights must be DEFAULT or null; got 'V2'"),
        ({}, {"args": {"side": 3}}, r"model.args must be entries of ViTConfig; got"),
        ({}, {"name": "./none"}, r"model.name must be an existing folder, or a name on the hub"),
        ({}, {"name": "made/up-name"}, r"model.name must be .*or model.download=true"),
    ],
)
def test_networks_that_do_not_fit_are_refused(folder, shape, options, text):
    with pytest.raises(InputError, match=text) as caught:
        huggingface(**{**SHAPE, **shape, "name": folder, **options})
    assert "\n" not in str(caught.value)


def test_a_network_without_a_trained_last_layer_is_refused(folder):
    transformers.ViTModel(CONFIGS["vit"](), add_pooling_layer=False).save_pretrained(folder)
    with pytest.raises(InputError, match=r"model.name must be .*it lacks classifier.bias"):
        huggingface(**{**SHAPE, "classes": 2}, name=folder)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(InputError, match=r"^model.name must be a network of transformers"):
        huggingface(**SHAPE, name=str(tmp_path))
    transformers.BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"^model.name must be an image classifier"):
        huggingface(**SHAPE, name=str(tmp_path))


def test_without_the_package_it_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install robustness-geometry\[huggingface\]"):
        huggingface(**SHAPE, name=folder)
