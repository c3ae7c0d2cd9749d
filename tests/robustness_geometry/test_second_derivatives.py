"""Second derivatives of networks with attention, and networks that have none."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import hessian_vector_products
from robustness_geometry.second_derivatives import (
    check_second_derivatives,
    twice_differentiable,
)
from robustness_geometry.training import cure_penalty


def by_hand(q, k, v):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v


class Attending(nn.Module):
    """One head of attention over the rows of a 4x4 image."""

    def __init__(self, attention):
        super().__init__()
        torch.manual_seed(0)
        self.attention = attention
        self.into, self.out = nn.Linear(4, 24), nn.Linear(32, 3)
        self.double()

    def forward(self, images):
        q, k, v = self.into(3 * images).chunk(3, dim=-1)  # (N, 1, 4, 8)
        return self.out(self.attention(q, k, v).flatten(1))


class Encoder(nn.Module):
    """PyTorch's own layer, which has a fast path in evaluation mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, images):
        return self.out(self.layer(images[:, 0]).flatten(1))


class Cube(torch.autograd.Function):
    """z^3, whose gradient leaves the graph."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z**3

    @staticmethod
    def backward(ctx, gradient):
        return (3 * ctx.saved_tensors[0] ** 2 * gradient).detach()


class OnceCube(Cube):
    """z^3, which says that it can be differentiated once."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Layers(nn.Module):
    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.last = nn.Linear(16, 20), between, nn.Linear(20, 3)

    def forward(self, images):
        return self.last(self.between(self.first(images.flatten(1))))


@pytest.fixture
def images():
    return torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))


LABELS, TARGETS = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])


def test_products_through_attention_are_those_of_attention_written_out(images):
    vectors = torch.eye(16).view(16, 1, 4, 4).double()
    found, wanted = (
        hessian_vector_products(
            Attending(attention).eval(),
            images.double(),
            vectors,
            labels=LABELS,
            targets=TARGETS,
            exact=True,
        )
        for attention in (scaled_dot_product_attention, by_hand)
    )
    assert float(wanted.norm()) > 0.1
    torch.testing.assert_close(found, wanted)


def test_cure_trains_attention_as_attention_written_out(images):
    gradients = []
    for attention in (scaled_dot_product_attention, by_hand):
        model = Attending(attention).eval()
        cure_penalty(model, images.double(), LABELS, h=0.5).backward()
        gradients.append(model.into.weight.grad)
    assert float(gradients[1].norm()) > 1e-4
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pytorchs_encoder_layer_has_products_like_their_differences(images, dtype):
    model, given = Encoder().eval().to(dtype), images.to(dtype)
    vectors = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=dtype)
    options = {"labels": LABELS, "targets": TARGETS}
    exact = hessian_vector_products(model, given, vectors, exact=True, **options)
    differences = hessian_vector_products(model, given, vectors, h=1e-3, **options)
    assert float(exact.norm()) > 0.1
    torch.testing.assert_close(exact, differences, rtol=0.05, atol=0.02)


def test_the_fast_path_is_as_it_was_afterwards():
    before = torch.backends.mha.get_fastpath_enabled()
    with twice_differentiable():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == before


@pytest.mark.parametrize(
    "between", [torch.relu, torch.tanh, nn.GELU(), lambda z: z**3, nn.LeakyReLU()]
)
def test_right_second_derivatives_pass(images, between):
    check_second_derivatives(Layers(between).eval(), images)


def test_ties_of_max_pooling_are_no_second_derivatives():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    check_second_derivatives(nn.Sequential(*layers).eval(), torch.zeros(2, 1, 14, 14))


@pytest.mark.parametrize("function", [Cube, OnceCube])
@pytest.mark.parametrize("beside", [0.0, 1.0])
def test_second_derivatives_that_are_lost_are_refused(images, function, beside):
    """Also where another path through the network has some."""
    model = Layers(lambda z: function.apply(z) + beside * torch.tanh(z)).eval()
    with pytest.raises(InputError, match=r"model must be .* differentiated twice"):
        check_second_derivatives(model, images)
    with pytest.raises(InputError, match=r"model must be .* differentiated twice"):
        cure_penalty(model, images, LABELS, h=0.5)
    with pytest.raises(InputError, match=r"model must be .* differentiated twice"):
        hessian_vector_products(
            model, images, images[:1], labels=LABELS, targets=TARGETS, exact=True
        )


def test_a_kernel_that_the_network_insists_on_is_refused_in_one_line(images):
    def fast(q, k, v):
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(q, k, v)

    with pytest.raises(InputError, match=r"model must be .* without a second derivative") as caught:
        check_second_derivatives(Attending(fast).float().eval(), images)
    assert "\n" not in str(caught.value)
