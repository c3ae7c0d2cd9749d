"""Second derivatives that are cheaper than the library's, and the same."""

import pytest
import torch
from torch import nn

from robustness_geometry.training.second_order import SecondOrder

LAYERS = {
    "one channel": (nn.Conv2d(1, 6, 5), (1, 10, 10)),
    "one channel, padding": (nn.Conv2d(1, 6, 3, padding=(1, 2)), (1, 7, 8)),
    "covers the image": (nn.Conv2d(9, 5, 4), (9, 4, 4)),
    "pointwise": (nn.Conv2d(6, 5, 1, bias=False), (6, 5, 4)),
    "wide": (nn.Conv2d(16, 4, 3, padding=1), (16, 6, 6)),
    "wide, stride": (nn.Conv2d(16, 4, 3, stride=2), (16, 7, 7)),
    "dilation": (nn.Conv2d(8, 4, 3, dilation=2), (8, 7, 7)),
    "groups": (nn.Conv2d(8, 4, 3, groups=4), (8, 6, 6)),
    "padding by name": (nn.Conv2d(2, 4, 3, padding="same"), (2, 6, 6)),
    "normalisation": (nn.BatchNorm2d(3), (3, 4, 4)),
    "normalisation without weights": (nn.BatchNorm2d(3, affine=False), (3, 4, 4)),
}


def settled(layer):
    """The layer in float64 and evaluation mode, with random weights and statistics."""
    generator = torch.Generator().manual_seed(0)
    layer = layer.double().eval().requires_grad_(True)
    with torch.no_grad():
        for value in (*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64))
    return layer


def derivatives(layer, shape, mode):
    """The image's gradient of a curved loss, and the weights' of its squared norm plus the loss."""
    before = nn.Conv2d(shape[0], shape[0], 1).double()
    with torch.no_grad():
        before.weight.copy_(torch.eye(shape[0])[:, :, None, None] * 1.5)
        before.bias.fill_(0.1)
    images = torch.rand(
        3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    if mode is None:
        loss = (layer(before(images)) / 10).sin().square().sum()
        gradient = torch.autograd.grad(loss, images, create_graph=True)[0]
    else:
        with mode:
            loss = (layer(before(images)) / 10).sin().square().sum()
        gradient = mode.gradient(loss, images)
    weights = [*layer.parameters(), *before.parameters()]
    total = gradient.square().sum() + 0.3 * loss
    return [loss, gradient, *torch.autograd.grad(total, weights, allow_unused=True)]


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_both_derivatives_are_those_of_autograd(layer, shape):
    layer = settled(layer)
    found, wanted = derivatives(layer, shape, SecondOrder()), derivatives(layer, shape, None)
    assert any(part is not None and bool(part.abs().sum() > 0) for part in wanted[2:])
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)


def test_a_plain_backward_pass_gives_every_gradient():
    layer, images = settled(nn.Conv2d(8, 4, 3)), torch.rand(2, 8, 6, 6, dtype=torch.float64)
    with SecondOrder():
        found = torch.autograd.grad(layer(images).square().sum(), [*layer.parameters()])
    wanted = torch.autograd.grad(layer(images).square().sum(), [*layer.parameters()])
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, its)


def test_the_weights_get_no_gradient_on_the_way_to_the_image(monkeypatch):
    layer, images = (
        settled(nn.Conv2d(8, 4, 3)),
        torch.rand(2, 8, 6, 6, dtype=torch.float64).requires_grad_(),
    )
    with SecondOrder() as mode:
        loss = layer(images).square().sum()
    masks = []
    monkeypatch.setattr(
        "robustness_geometry.training.second_order._backward",
        lambda *args: masks.append(args[-1]) or _library(*args),
    )
    mode.gradient(loss, images)
    assert masks == [[True, False, False]]


def _library(gradient, images, weight, biases, geometry, mask):
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        gradient, images, weight, biases, stride, padding, dilation, False, [0, 0], groups, mask
    )
