import math

import pytest
import torch

from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import (
    RandomSubspaces,
    beta_spread,
    expected_beta,
    random_directions,
)
from robustness_geometry.geometry import random_subspaces as module
from robustness_geometry.randomness import per_image


@pytest.fixture(params=["dense", "cosine"])
def kind(request, monkeypatch):
    monkeypatch.setattr(module, "DENSE", 10**9 if request.param == "dense" else 0)
    return request.param


def draw(shape, m, count, dtype=torch.float64):
    return RandomSubspaces(
        shape, m, per_image(0, "subspaces", range(count)), like=torch.empty(0, dtype=dtype)
    )


@pytest.mark.parametrize("shape", [(1, 6, 7), (3, 4, 5)])
def test_projections_agree_with_the_bases(kind, shape):
    subspaces = draw(shape, 9, 4)
    vectors = torch.randn(
        3, 2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    indices = torch.tensor([2, 0, 3])
    projected = subspaces.project(vectors, indices)
    for row, index in enumerate(indices.tolist()):
        basis = subspaces.basis(index)
        torch.testing.assert_close(basis @ basis.T, torch.eye(9, dtype=torch.float64))
        torch.testing.assert_close(
            projected[row].flatten(1), vectors[row].flatten(1) @ basis.T @ basis
        )
    assert not torch.allclose(subspaces.basis(0), subspaces.basis(1))


@pytest.mark.parametrize("m", [8, 49, 196])
@pytest.mark.parametrize("pixels", [784, 20])
def test_ratios_follow_the_beta_law(kind, m, pixels):
    """At an affine boundary beta = sqrt(m / d) / ||P_S n||, also for normals on few pixels."""
    count = 1500
    unit = torch.zeros(784, dtype=torch.float64)
    unit[:pixels] = torch.randn(
        pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    unit = (unit / unit.norm()).view(1, 1, 1, 28, 28).expand(count, -1, -1, -1, -1)
    projected = draw((1, 28, 28), m, count).project(unit, torch.arange(count))
    beta = math.sqrt(m / 784) / projected.flatten(1).norm(dim=1)
    error = float(beta.std()) / math.sqrt(count)
    assert float(beta.mean()) == pytest.approx(expected_beta(784, m), abs=3 * error)
    fourth = float((beta - beta.mean()).pow(4).mean()) - float(beta.var()) ** 2
    assert float(beta.var()) == pytest.approx(
        beta_spread(784, m) ** 2, abs=3 * math.sqrt(fourth / count)
    )


@pytest.mark.parametrize(
    ("m", "mean", "spread"), [(196, 1.003, 0.044), (49, 1.015, 0.102), (8, 1.107, 0.324)]
)
def test_known_values_of_the_beta_law(m, mean, spread):
    assert expected_beta(784, m) == pytest.approx(mean, abs=1e-3)
    assert beta_spread(784, m) == pytest.approx(spread, abs=1e-3)


def test_spread_of_the_beta_law_at_its_ends():
    assert beta_spread(10, 2) == math.inf
    assert beta_spread(10, 10) == 0.0


def test_deepfool_inside_an_own_subspace(kind):
    weight = torch.randn(3, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(30, 3, dtype=torch.float64)
    ).eval()
    with torch.no_grad():
        model[1].weight.copy_(weight)
    images = torch.rand(5, 1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    subspaces = draw((1, 5, 6), 6, 5)
    result = deepfool(model, images, subspace=subspaces)
    bases = torch.stack([subspaces.basis(index) for index in range(5)])
    expected = deepfool(model, images, subspace=bases)
    assert result.success.all()
    torch.testing.assert_close(result.perturbations, expected.perturbations)


def test_wrong_subspaces_are_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 3)).eval()
    with pytest.raises(InputError, match="subspaces of 4 images"):
        deepfool(model, torch.rand(5, 1, 5, 6), subspace=draw((1, 5, 6), 6, 4, torch.float32))
    with pytest.raises(InputError, match=r"m must be .*; got 31"):
        draw((1, 5, 6), 31, 1)

    class Stretching:
        def __len__(self):
            return 5

        def project(self, vectors, indices):
            return 2 * vectors

    with pytest.raises(InputError, match="not an orthogonal projection"):
        deepfool(model, torch.rand(5, 1, 5, 6), subspace=Stretching())


def test_no_images_have_no_subspaces():
    empty = draw((1, 5, 6), 6, 0)
    assert len(empty) == 0
    none = torch.zeros(0, dtype=torch.int64)
    assert empty.project(torch.zeros(0, 2, 1, 5, 6).double(), none).shape == (0, 2, 1, 5, 6)


def test_random_directions_are_unit_and_lie_where_they_should():
    like = torch.zeros(50, 1, 4, 5, dtype=torch.float64)
    generators = per_image(0, "directions", range(50))
    free = random_directions(like, generators)
    torch.testing.assert_close(free.flatten(1).norm(dim=1), torch.ones(50, dtype=torch.float64))
    basis = torch.eye(20, dtype=torch.float64)[:3]
    inside = random_directions(like, generators, basis=basis)
    assert inside.flatten(1)[:, 3:].abs().max() == 0
    torch.testing.assert_close(inside.flatten(1).norm(dim=1), torch.ones(50, dtype=torch.float64))
    tangent = random_directions(like, generators, normals=7 * free)
    assert (tangent * free).flatten(1).sum(dim=1).abs().max() < 1e-14
    assert free.flatten(1).mean(dim=0).abs().max() < 4 / math.sqrt(50 * 20)
    assert random_directions(like[:0], []).shape == (0, 1, 4, 5)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"basis": torch.eye(20), "normals": torch.ones(2, 1, 4, 5)}, "normals must be"),
        ({"basis": torch.eye(19)}, "basis.shape must be"),
        ({"normals": torch.zeros(2, 1, 4, 5)}, "normals must be"),
    ],
)
def test_directions_that_cannot_be_drawn_are_refused(options, key):
    with pytest.raises(InputError, match=key):
        random_directions(torch.zeros(2, 1, 4, 5), **options)
