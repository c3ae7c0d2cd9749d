import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import convex_mixtures, stays_in_region
from robustness_geometry.randomness import per_image


class Ring(nn.Module):
    """Class 1 within a ring around the origin, class 0 elsewhere."""

    def forward(self, images):
        radius = images.flatten(1).norm(dim=1)
        inside = 0.3 - (radius - 1).abs()
        return torch.stack([-inside, inside], dim=1)


def test_weights_are_uniform_on_the_simplex():
    images = torch.eye(3).view(1, 3, 1, 1, 3).expand(20_000, -1, -1, -1, -1)
    weights = convex_mixtures(images, torch.Generator().manual_seed(0)).flatten(1).double()
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20_000).double(), atol=1e-6, rtol=0)
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18, covariance -1/36.
    torch.testing.assert_close(
        weights.mean(dim=0), torch.full((3,), 1 / 3).double(), atol=0.01, rtol=0
    )
    covariance = torch.full((3, 3), -1 / 36).double() + torch.eye(3).double() / 12
    torch.testing.assert_close(weights.T.cov(), covariance, atol=0.002, rtol=0)


def test_one_image_is_its_own_mixture():
    images = torch.rand(4, 1, 2, 3, 3)
    torch.testing.assert_close(convex_mixtures(images), images[:, 0])


def test_mixtures_of_opposite_points_leave_a_ring():
    near = torch.tensor([[1.0, 0.0], [0.995, 0.1]]).view(1, 2, 1, 1, 2)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).view(1, 2, 1, 1, 2)
    labels = torch.ones(200, dtype=torch.int64)
    generators = per_image(0, "mixing", range(200))
    model = Ring().eval()
    assert bool(stays_in_region(model, near.expand(200, -1, -1, -1, -1), labels, generators).all())
    stays = stays_in_region(model, opposite.expand(200, -1, -1, -1, -1), labels, generators)
    # |2 w - 1| > 0.7 for w uniform on [0, 1].
    assert float(stays.double().mean()) == pytest.approx(0.3, abs=0.1)


def test_groups_that_cannot_be_mixed_are_refused():
    with pytest.raises(InputError, match="images must be"):
        stays_in_region(Ring().eval(), torch.full((1, 2, 1, 1, 2), torch.nan), torch.tensor([1]))
    with pytest.raises(InputError, match="labels must be"):
        stays_in_region(Ring().eval(), torch.zeros(1, 2, 1, 1, 2), torch.tensor([1.0]))
    with pytest.raises(InputError, match=r"images.shape"):
        convex_mixtures(torch.zeros(2, 0, 1, 2, 2))


def test_no_groups():
    assert stays_in_region(
        Ring().eval(), torch.zeros(0, 2, 1, 1, 2), torch.zeros(0, dtype=torch.int64)
    ).shape == (0,)
