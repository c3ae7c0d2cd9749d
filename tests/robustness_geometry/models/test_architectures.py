"""What holds for every architecture: counts in closed form, adaptation, gradients."""

import pytest
import torch
from torch import nn

from robustness_geometry import models
from robustness_geometry.checks import InputError
from robustness_geometry.models import architectures

FACTORIES = architectures()


def conv(before, after, kernel, *, bias=True):
    return kernel * kernel * before * after + (after if bias else 0)


def dense(before, after):
    return (before + 1) * after


def make(name, channels=1, side=28, classes=10, **options):
    torch.manual_seed(0)
    shape = {"channels": channels, "size": (side, side) if isinstance(side, int) else side}
    return FACTORIES[name](
        **shape, classes=classes, mean=(0.4,) * channels, std=(0.3,) * channels, **options
    )


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def lenet_count(channels, left, *, norm=False):
    weights = (
        conv(channels, 20, 5, bias=not norm)
        + conv(20, 50, 5, bias=not norm)
        + 50 * left * left * 500
    )
    return weights + (2 * (20 + 50 + 500) if norm else 500) + dense(500, 10)


def nin_count(channels, w, *, norm=False, classes=10):
    middle, narrow = round(w * 160 / 192), w // 2
    layers = [
        (channels, w, 5),
        (w, middle, 1),
        (middle, narrow, 1),
        (narrow, w, 5),
        (w, w, 1),
        (w, w, 1),
        (w, w, 3),
        (w, w, 1),
    ]
    inner = sum(conv(*layer, bias=not norm) + (2 * layer[1] if norm else 0) for layer in layers)
    return inner + conv(w, classes, 1)


def resnet_count(channels, w):
    total, before = conv(channels, w, 3, bias=False) + 2 * w, w
    for stage in range(4):
        after = w * 2**stage
        total += (
            conv(before, after, 3, bias=False) + 3 * conv(after, after, 3, bias=False) + 8 * after
        )
        total += conv(before, after, 1, bias=False) + 2 * after if before != after else 0
        before = after
    return total + dense(before, 10)


def wrn_count(channels, depth, k):
    total, before = conv(channels, 16, 3, bias=False), 16
    for stage in range(3):
        after = 16 * k * 2**stage
        for _ in range((depth - 4) // 6):
            total += 2 * before + conv(before, after, 3, bias=False)
            total += 2 * after + conv(after, after, 3, bias=False)
            total += conv(before, after, 1, bias=False) if before != after else 0
            before = after
    return total + 2 * before + dense(before, 10)


CAFFENET = (
    conv(3, 96, 11)
    + conv(48, 256, 5)
    + conv(256, 384, 3)
    + conv(192, 384, 3)
    + conv(192, 256, 3)
    + dense(256 * 36, 4096)
    + dense(4096, 4096)
    + dense(4096, 1000)
)
VGG_F = (
    conv(3, 64, 11)
    + conv(64, 256, 5)
    + 3 * conv(256, 256, 3)
    + dense(256 * 36, 4096)
    + dense(4096, 4096)
    + dense(4096, 1000)
)


def cnn_count(channels, *widths):
    """3x3 convolutions without biases, a scale and a shift per channel, and one layer."""
    pairs = zip((channels, *widths), widths, strict=False)
    return sum(9 * before * after + 2 * after for before, after in pairs) + dense(widths[-1], 10)


COUNTS = [
    ("lenet", {}, lenet_count(1, 4)),
    ("lenet", {"channels": 3, "side": 32}, lenet_count(3, 5)),
    ("lenet", {"batch_norm": True}, lenet_count(1, 4, norm=True)),
    ("fc500_150_10", {}, dense(784, 500) + dense(500, 150) + dense(150, 10)),
    ("fc500_150_10", {"hidden": (7,)}, dense(784, 7) + dense(7, 10)),
    (
        "lenet_cifar",
        {"channels": 3, "side": 32},
        conv(3, 32, 5) + conv(32, 32, 5) + conv(32, 64, 5) + conv(64, 64, 4) + dense(64, 10),
    ),
    (
        "lenet5",
        {"channels": 3, "side": 32},
        conv(3, 6, 5) + conv(6, 16, 5) + dense(400, 120) + dense(120, 84) + dense(84, 10),
    ),
    ("cnn", {}, cnn_count(1, 16, 32, 32, 64)),
    ("cnn", {"channels": 3, "side": (17, 40), "widths": (5,)}, cnn_count(3, 5)),
    ("nin", {"channels": 3, "side": 32}, nin_count(3, 192)),
    ("nin", {"width": 32}, nin_count(1, 32)),
    ("nin", {"width": 32, "batch_norm": True}, nin_count(1, 32, norm=True)),
    ("resnet18", {"channels": 3, "side": 32}, 11_173_962),
    ("resnet18", {"width": 16}, resnet_count(1, 16)),
    ("wrn28_10", {"channels": 3, "side": 32}, 36_479_194),
    ("wrn28_10", {"depth": 16, "widen": 2}, wrn_count(1, 16, 2)),
    ("caffenet", {"channels": 3, "side": 227, "classes": 1000}, CAFFENET),
    ("caffenet", {"channels": 3, "side": 224, "classes": 1000}, 60_965_224),
    ("vgg_f", {"channels": 3, "side": 224, "classes": 1000}, VGG_F),
]
SMALL = {
    "lenet": {},
    "fc500_150_10": {},
    "lenet_cifar": {},
    "lenet5": {},
    "cnn": {"widths": (8, 8, 12)},
    "nin": {"width": 32, "batch_norm": True},
    "resnet18": {"width": 8},
    "wrn28_10": {"depth": 10, "widen": 1, "dropout": 0.3},
}
LARGE = ("caffenet", "vgg_f")


def test_closed_forms_of_the_residual_networks_agree_with_the_published_counts():
    assert resnet_count(3, 64) == 11_173_962
    assert wrn_count(3, 28, 10) == 36_479_194


@pytest.mark.parametrize(("name", "options", "expected"), COUNTS)
def test_weights_are_counted_in_closed_form(name, options, expected):
    assert count(make(name, **options)) == expected


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (2, (30, 36))])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_network_adapts_to_the_images(name, channels, side):
    model = make(name, channels, side, classes=7, **SMALL[name])
    images = torch.rand(3, channels, *extent(side))
    assert model(images).shape == (3, 7)
    assert torch.isfinite(model(images)).all()
    assert make(name, channels, side, classes=1, **SMALL[name])(images).shape == (3, 1)


def extent(side):
    return (side, side) if isinstance(side, int) else side


@pytest.mark.parametrize("name", LARGE)
def test_imagenet_networks_take_their_native_images(name):
    model = make(name, 3, 224, classes=20)
    images = torch.rand(2, 3, 224, 224, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, 20)
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    with pytest.raises(
        InputError, match=rf"dataset.size must be at least 39x39 pixels for {name}.*; got '28x28'"
    ):
        make(name)


@pytest.mark.parametrize(
    ("name", "least"), [("lenet", 16), ("lenet5", 16), ("lenet_cifar", 8), ("nin", 7)]
)
def test_images_that_are_too_small_are_refused_and_the_smallest_work(name, least):
    assert make(name, 1, least, **SMALL[name])(torch.rand(2, 1, least, least)).shape == (2, 10)
    with pytest.raises(
        InputError,
        match=rf"dataset.size must be .* {least}x{least} pixels.*; got '?{least}x{least - 1}",
    ):
        make(name, 1, (least, least - 1))


@pytest.mark.parametrize("name", sorted(SMALL))
def test_evaluation_mode_treats_every_image_alone(name):
    model = make(name, **SMALL[name])
    assert not any(module.training for module in model.modules())
    # float64, as the order of additions in float32 depends on the batch
    model = model.double()
    images = torch.rand(5, 1, 28, 28, dtype=torch.float64)
    together = model(images)
    assert torch.allclose(together, torch.cat([model(image[None]) for image in images]), atol=1e-12)
    assert torch.allclose(model(images.flip(0)).flip(0), together, atol=1e-12)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_gradients_reach_the_pixels(name):
    model = make(name, **SMALL[name])
    images = torch.rand(2, 1, 28, 28, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_normalisation_comes_first(name):
    model = make(name, **SMALL[name])
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(model(images), model.network((images - 0.4) / 0.3))


def test_lenet_has_one_relu_and_pools_otherwise():
    for options in ({}, {"batch_norm": True}):
        model = make("lenet", **options)
        assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 1


def test_first_layers_of_lenet_commute_with_scaling():
    # Without a ReLU before the third layer, max pooling alone is positively homogeneous up to the
    # biases.
    network = make("lenet").network
    with torch.no_grad():
        network.conv1.bias.zero_()
        network.conv2.bias.zero_()
    head = network[:4]
    images = torch.randn(2, 1, 28, 28)
    assert torch.allclose(head(3 * images), 3 * head(images), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("nin", {"width": 1}, "model.width must be .*; got 1"),
        ("nin", {"dropout": 1.0}, "model.dropout must be .*; got 1.0"),
        ("resnet18", {"width": 0}, "model.width must be .*; got 0"),
        ("wrn28_10", {"depth": 12}, "model.depth must be .*; got 12"),
        ("wrn28_10", {"depth": 4}, "model.depth must be .*; got 4"),
        ("wrn28_10", {"widen": 0}, "model.widen must be .*; got 0"),
        ("wrn28_10", {"dropout": -1}, "model.dropout must be .*; got -1"),
        ("fc500_150_10", {"hidden": (5, 0)}, "model.hidden must be .*; got 0"),
        ("cnn", {"widths": ()}, "model.widths must be"),
        ("cnn", {"widths": (8, 0)}, "model.widths must be .*; got 0"),
        ("lenet5", {"filters": (6,)}, "model.filters must be"),
        ("lenet5", {"hidden": (6, 0)}, "model.hidden must be .*; got 0"),
    ],
)
def test_options_out_of_range_are_refused(name, options, key):
    with pytest.raises(InputError, match=key):
        make(name, **options)


def test_every_second_convolution_of_the_cnn_halves_the_image():
    network = make("cnn", 1, 28, widths=(2, 3, 4, 5, 6)).network
    images, sizes = torch.rand(1, 1, 28, 28), []
    for layer in network[:-3]:
        images = layer(images)
        if isinstance(layer, nn.Conv2d):
            sizes.append(tuple(images.shape[1:]))
    assert sizes == [(2, 14, 14), (3, 14, 14), (4, 7, 7), (5, 7, 7), (6, 4, 4)]


def test_dropout_acts_in_training_only():
    model = make("nin", width=8, dropout=0.5)
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_residual_blocks_add_their_shortcut():
    # With every inner convolution at zero a pre-activation block is the identity, a basic block a
    # ReLU.
    for name, options in (("wrn28_10", {"depth": 10, "widen": 1}), ("resnet18", {"width": 4})):
        model = make(name, **options)
        block = next(m for m in model.network if type(m).__name__ == "_Block")
        with torch.no_grad():
            for module in block.body:
                if isinstance(module, nn.Conv2d):
                    module.weight.zero_()
        features = torch.rand(2, 16 if name == "wrn28_10" else 4, 6, 6)
        assert torch.allclose(block(features), features, atol=1e-6)


def test_the_thesis_architectures_are_counted_and_tried():
    assert {name for name, _, _ in COUNTS} == SMALL.keys() | set(LARGE)
    assert SMALL.keys() | set(LARGE) <= FACTORIES.keys()
    assert len(SMALL.keys() | set(LARGE)) >= 9


def test_only_networks_that_need_no_more_than_a_data_set_are_architectures():
    others = {"build", "custom", "load_weights", "pretrained", "timm_model", "torchvision_model"}
    assert others <= set(models.__all__)
    assert not others & FACTORIES.keys()


def test_factories_keep_their_names():
    assert all(factory.__name__ == name for name, factory in FACTORIES.items())
