"""The loss's Hessian: closed forms of linear logits and quadratic losses, and ReLU networks."""

import math

import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import loss_curvature, loss_gradients, loss_hessian_products


class Quadratic(nn.Module):
    """Two logits whose cross-entropy at label 0 is x.A x / 2 + b.x + c."""

    def __init__(self, matrix, slope, offset):
        super().__init__()
        self.matrix, self.slope, self.offset = matrix, slope, offset
        self.eval()

    def forward(self, images):
        x = images.flatten(1)
        loss = 0.5 * ((x @ self.matrix) * x).sum(dim=1) + x @ self.slope + self.offset
        return torch.stack([torch.zeros_like(loss), loss.expm1().log()], dim=1)


@pytest.fixture
def quadratic():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    matrix = (root + root.T) / 4
    slope = torch.randn(9, generator=generator, dtype=torch.float64)
    return Quadratic(matrix, slope, 12.0)


@pytest.fixture
def images():
    return torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


LABELS = torch.zeros(3, dtype=torch.long)
schemes = pytest.mark.parametrize("scheme", ["forward", "central"])


@schemes
@pytest.mark.parametrize("h", [0.05, 0.7])
def test_a_quadratic_loss_has_the_spectrum_of_its_matrix(quadratic, images, scheme, h):
    found = loss_curvature(quadratic, images, LABELS, h=h, scheme=scheme, at_once=4)
    values, vectors = torch.linalg.eigh(quadratic.matrix)
    torch.testing.assert_close(found.eigenvalues, values.flip(0).expand(3, 9), rtol=1e-6, atol=1e-7)
    cosines = (found.leading.flatten(1) @ vectors[:, -1]).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=1e-6, atol=0)
    gradients = images.flatten(1) @ quadratic.matrix + quadratic.slope
    torch.testing.assert_close(found.gradients.flatten(1), gradients, rtol=1e-7, atol=1e-9)
    wanted = (gradients @ vectors[:, -1]).abs() / gradients.norm(dim=1)
    torch.testing.assert_close(found.alignments, wanted, rtol=1e-6, atol=1e-8)
    losses = 0.5 * ((images.flatten(1) @ quadratic.matrix) * images.flatten(1)).sum(dim=1)
    torch.testing.assert_close(found.losses, losses + images.flatten(1) @ quadratic.slope + 12)


@schemes
def test_products_are_linear_in_the_length_of_the_vector(quadratic, images, scheme):
    vectors = torch.randn(
        3, 4, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    vectors[0, 0] = 0
    found = loss_hessian_products(
        quadratic, images, LABELS, vectors, h=0.3, scheme=scheme, at_once=5
    )
    torch.testing.assert_close(
        found.flatten(2), vectors.flatten(2) @ quadratic.matrix, rtol=1e-6, atol=1e-7
    )


def test_linear_logits_have_the_covariance_of_their_rows(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).double().eval()
    labels = torch.tensor([0, 3, 1])
    found = loss_curvature(model, images, labels, h=1e-4, scheme="central")
    weight = model[1].weight.detach()
    probabilities = model(images).detach().softmax(dim=1)
    for row, p in enumerate(probabilities):
        matrix = weight.T @ (torch.diag(p) - torch.outer(p, p)) @ weight
        values = torch.linalg.eigvalsh(matrix).flip(0)
        torch.testing.assert_close(found.eigenvalues[row], values, rtol=1e-5, atol=1e-7)
    # At most three directions of four classes bend the loss, and none of them downwards.
    assert bool((found.eigenvalues > -1e-7).all())
    assert int((found.eigenvalues[0] > 1e-6).sum()) == 3


def test_gradients_are_those_of_autograd_where_the_network_is_sure(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).double().eval()
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor([60.0, 0, 0, 0], dtype=torch.float64)
    model[1].weight.data[2] = 1.0
    _, gradients = loss_gradients(model, images, LABELS)
    wanted = (images.flatten(1).sum(dim=1) - 60).exp()
    torch.testing.assert_close(gradients[:, 0, 0, 0], wanted, rtol=1e-9, atol=0)
    assert float(wanted.max()) < torch.finfo(torch.float64).eps  # 1 - p_y would be rounded to 0


def test_a_relu_network_bends_over_a_length_only():
    # One unit with a kink at x_1 = 0.5; in each half the logits are linear, and equal on the left.
    class Kink(nn.Module):
        def forward(self, images):
            unit = (images.flatten(1)[:, :1] - 0.5).relu()
            return torch.cat([-unit, unit], dim=1)

    point, label = torch.full((1, 1, 1, 2), 0.4, dtype=torch.float64), LABELS[:1]
    model = Kink().eval()
    near = loss_curvature(model, point, label, h=0.05)
    far = loss_curvature(model, point, label, h=0.3)
    assert float(near.eigenvalues.abs().max()) == 0
    assert float(far.eigenvalues[0, 0]) > 1
    assert math.isnan(float(near.alignments))  # no gradient there


def test_images_do_not_depend_on_each_other_and_none_is_fine(quadratic, images):
    whole = loss_curvature(quadratic, images, LABELS, h=0.3)
    alone = loss_curvature(quadratic, images[1:2], LABELS[:1], h=0.3)
    torch.testing.assert_close(whole.eigenvalues[1:2], alone.eigenvalues)
    none = loss_curvature(quadratic, images[:0], LABELS[:0])
    assert none.eigenvalues.shape == (0, 9)
    assert none.leading.shape == (0, 1, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h": 0}, "h must be .*; got 0"),
        ({"h": -0.5}, r"h must be .*; got -0\.5"),
        ({"scheme": "backward"}, "scheme must be one of forward.*; got 'backward'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(quadratic, images, options, message):
    with pytest.raises(InputError, match=message):
        loss_curvature(quadratic, images, LABELS, **options)


def test_labels_that_are_no_classes_are_refused(quadratic, images):
    with pytest.raises(InputError, match=r"labels must be .*; got \[2\]"):
        loss_curvature(quadratic, images, LABELS + 2)
