"""Gradients against plain autograd."""

import pytest
import torch
from torch import nn

from robustness_geometry.attacks.convolutions import FastInputGradients
from robustness_geometry.attacks.gradients import (
    class_gradients,
    difference_gradients,
    linearise,
    loss_weights,
)
from robustness_geometry.checks import InputError


def plain(model, images, weights):
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad((model(leaf) * weights).sum(), leaf)[0]


def test_class_gradients_are_those_of_autograd(network, pictures):
    classes = torch.stack([torch.arange(12) % 5, (torch.arange(12) + 2) % 5], dim=1)
    logits, gradients = class_gradients(network, pictures, classes)
    with torch.no_grad():
        torch.testing.assert_close(logits, network(pictures))
    assert gradients.shape == (12, 2, 1, 12, 12)
    for column in range(2):
        weights = nn.functional.one_hot(classes[:, column], 5)
        torch.testing.assert_close(
            gradients[:, column], plain(network, pictures, weights), rtol=1e-4, atol=1e-6
        )


def test_differences_are_differences_of_class_gradients(network, pictures):
    _, pull = linearise(network, pictures)
    plus, minus = torch.full((12, 1), 3), torch.full((12, 1), 1)
    _, gradients = class_gradients(network, pictures, torch.cat([plus, minus], dim=1))
    found = difference_gradients(pull, 5, plus, minus)
    torch.testing.assert_close(found[:, 0], gradients[:, 0] - gradients[:, 1], rtol=1e-4, atol=1e-6)


def test_gradients_are_not_divided_by_the_size_of_the_batch(network, pictures):
    classes = torch.zeros(12, 1, dtype=torch.int64)
    _, together = class_gradients(network, pictures, classes)
    _, alone = class_gradients(network, pictures[:1], classes[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-6)


def test_loss_weights_point_along_the_gradient_of_the_cross_entropy(network, pictures):
    labels = torch.arange(12) % 5
    leaf = pictures.clone().requires_grad_()
    loss = nn.functional.cross_entropy(network(leaf), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, leaf)
    logits, pull = linearise(network, pictures)
    found = pull(loss_weights(logits, labels))
    share = 1 - logits.softmax(dim=1).gather(1, labels[:, None])
    torch.testing.assert_close(found * share[..., None, None], expected, rtol=1e-3, atol=1e-6)


def test_loss_weights_do_not_vanish_where_the_softmax_saturates():
    weights = loss_weights(torch.tensor([[500.0, 0.0, -1.0]]), torch.tensor([0]))
    torch.testing.assert_close(weights, torch.tensor([[-1.0, 0.7310586, 0.2689414]]))


def test_logits_that_are_no_matrix_are_refused(table, points):
    with pytest.raises(InputError, match=r"logits\.shape"):
        linearise(table(lambda x: x.sum(dim=1)), points())


CONVOLUTIONS = {
    "one channel": (nn.Conv2d(1, 6, 5), (1, 12, 12)),
    "one channel, stride and padding": (nn.Conv2d(1, 6, 3, stride=2, padding=1), (1, 11, 13)),
    "colours, dilation": (nn.Conv2d(3, 4, 3, dilation=2, bias=False), (3, 12, 12)),
    "covers the image": (nn.Conv2d(7, 5, 4), (7, 4, 4)),
    "covers the image, oblong": (nn.Conv2d(7, 5, (3, 4)), (7, 3, 4)),
    "wide": (nn.Conv2d(16, 4, 3, padding=1), (16, 6, 6)),
    "pointwise": (nn.Conv2d(8, 5, 1), (8, 6, 5)),
    "pointwise, stride": (nn.Conv2d(8, 5, 1, stride=2), (8, 7, 6)),
    "groups": (nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
    "padding by name": (nn.Conv2d(1, 4, 3, padding="same"), (1, 6, 6)),
    "reflected": (nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), (1, 6, 6)),
}


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("frozen", [True, False])
def test_convolutions_have_the_gradients_of_autograd(layer, shape, frozen, monkeypatch):
    monkeypatch.setattr(
        "robustness_geometry.attacks.convolutions.ELEMENTS", 500
    )  # several parts a batch
    layer = layer.double().requires_grad_(not frozen)
    images = torch.rand(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = images.clone().requires_grad_()
    with FastInputGradients():
        output = layer(leaf)
    weights = torch.rand(
        output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    (found,) = torch.autograd.grad(output, leaf, weights)
    torch.testing.assert_close(output, layer(images))
    torch.testing.assert_close(found, plain(layer, images, weights), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_batch_normalisation_has_the_gradients_of_autograd(training):
    layer = nn.BatchNorm2d(3).double()
    layer(
        torch.randn(20, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * 2
        + 1
    )
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    layer.train(training)
    images = torch.rand(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(
        5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    leaf = images.clone().requires_grad_()
    with FastInputGradients():
        output = layer(leaf)
    (found,) = torch.autograd.grad(output, leaf, weights)
    torch.testing.assert_close(output, layer(images))
    torch.testing.assert_close(found, plain(layer, images, weights), rtol=1e-10, atol=1e-12)


def test_autocast_goes_the_usual_way():
    layer = nn.Conv2d(7, 5, 4)
    leaf = torch.rand(2, 7, 4, 4).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16), FastInputGradients():
        output = layer(leaf)
    assert output.dtype == torch.bfloat16
    assert torch.autograd.grad(output.sum(), leaf)[0].dtype == torch.float32
