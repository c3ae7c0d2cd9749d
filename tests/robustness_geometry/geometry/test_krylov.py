import math

import pytest
import torch

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import boundary_points, mean_hessian, principal_curvatures
from robustness_geometry.geometry.krylov import extreme_curvatures, mean_hessian_ends, ritz_pairs


def symmetric(d, seed, rank=None):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    values = torch.randn(d, generator=generator, dtype=torch.float64)
    values[rank or d :] = 0
    return basis @ torch.diag(values) @ basis.T


def applied(matrices):
    return lambda vectors: torch.einsum("nij,nj->ni", matrices, vectors)


def test_all_steps_give_the_whole_spectrum():
    matrices = torch.stack([symmetric(12, seed) for seed in range(3)])
    found = ritz_pairs(applied(matrices), torch.ones(3, 12, dtype=torch.float64), 12)
    assert torch.allclose(found.values, torch.linalg.eigvalsh(matrices).flip(1), atol=1e-10)
    assert found.residuals.max() < 1e-8
    assert torch.allclose(
        found.vectors @ found.vectors.mT, torch.eye(12, dtype=torch.float64).expand(3, -1, -1)
    )


def test_few_steps_give_both_ends():
    matrix = torch.diag(
        torch.cat([torch.tensor([9.0, 7.0, -6.0, -8.0]), 0.1 * torch.linspace(-1, 1, 96)])
    ).double()
    found = ritz_pairs(applied(matrix[None]), torch.ones(1, 100, dtype=torch.float64), 12)
    assert found.values[0, :2].tolist() == pytest.approx([9.0, 7.0], abs=1e-6)
    assert found.values[0, -2:].tolist() == pytest.approx([-6.0, -8.0], abs=1e-6)
    assert found.by_size(3).values[0].tolist() == pytest.approx([9.0, -8.0, 7.0], abs=1e-6)
    assert found.by_size(1).vectors[0, 0, 0].abs() == pytest.approx(1.0, abs=1e-6)


def test_a_space_that_ends_early_is_left_by_a_random_vector():
    matrices = torch.stack([symmetric(10, 0, rank=2), torch.zeros(10, 10, dtype=torch.float64)])
    found = ritz_pairs(applied(matrices), torch.ones(2, 10, dtype=torch.float64), 8)
    assert torch.isfinite(found.values).all()
    assert torch.allclose(found.values[1], torch.zeros(8, dtype=torch.float64))
    truth = torch.linalg.eigvalsh(matrices[0])
    nonzero = truth[truth.abs() > 1e-9]
    assert found.by_size(2).values[0].sort().values.tolist() == pytest.approx(
        nonzero.tolist(), abs=1e-9
    )
    assert torch.allclose(
        found.vectors @ found.vectors.mT, torch.eye(8, dtype=torch.float64).expand(2, -1, -1)
    )


def test_operators_do_not_touch_each_other():
    matrices = torch.stack([symmetric(30, seed) for seed in range(3)])
    start = torch.randn(3, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = ritz_pairs(applied(matrices), start, 8)
    alone = ritz_pairs(applied(matrices[1:2]), start[1:2], 8)
    assert torch.allclose(together.values[1:2], alone.values)


def test_a_quadrics_principal_curvatures(quadric, image, pair):
    model = quadric([1.0, 4.0, 0.25, -2.0, 0.0, 0.0])
    points = image(1, 0, 0, 0, 0, 0)
    found = extreme_curvatures(model, points, steps=5, **pair())
    assert found.values[0].tolist() == pytest.approx([4.0, 0.25, 0.0, 0.0, -2.0], abs=1e-6)
    assert found.vectors[0, 0, 1].abs() == pytest.approx(1.0, abs=1e-6)
    assert found.vectors[0][:, 0].abs().max() < 1e-9


def test_a_sphere_is_positive_from_inside_and_negative_from_outside(quadric, image, pair):
    radius = 2.0
    points = image(radius, 0, 0, 0)
    inside = extreme_curvatures(quadric([1.0] * 4, radius**2), points, steps=3, **pair())
    assert inside.values.tolist()[0] == pytest.approx([1 / radius] * 3, abs=1e-6)
    classes = {
        "labels": torch.ones(1, dtype=torch.int64),
        "targets": torch.zeros(1, dtype=torch.int64),
    }
    outside = extreme_curvatures(quadric([1.0] * 4, radius**2), points, steps=3, **classes)
    assert outside.values.tolist()[0] == pytest.approx([-1 / radius] * 3, abs=1e-6)


def test_a_smooth_network_has_the_spectrum_of_the_full_matrix(smooth, pictures):
    near = boundary_points(smooth, pictures).found()
    options = {"labels": near.labels, "targets": near.targets, "exact": True}
    full = principal_curvatures(smooth, near.points, **options)
    found = extreme_curvatures(smooth, near.points, steps=40, **options)
    assert torch.allclose(found.values[:, :3], full.values[:, :3], rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.values[:, -3:], full.values[:, -3:], rtol=1e-4, atol=1e-6)
    mean = mean_hessian_ends(smooth, near.points, steps=64, **options)
    matrix = mean_hessian(smooth, near.points, **options)
    assert torch.allclose(mean.values[0], torch.linalg.eigvalsh(matrix).flip(0), atol=1e-7)


def test_on_a_network_of_relus_differences_see_what_autodiff_does_not(jagged, pictures):
    near = boundary_points(jagged, pictures).found()
    options = {"labels": near.labels, "targets": near.targets}
    assert (
        extreme_curvatures(jagged, near.points, steps=5, exact=True, **options).values.abs().max()
        < 1e-12
    )
    found = extreme_curvatures(jagged, near.points, steps=20, h=0.1, **options)
    assert (found.values[:, 0] > 0).all()
    assert (found.values[:, -1] < 0).all()
    assert found.residuals.max() > 0


def test_the_mean_weighs_curvatures_where_asked_to(quadric, image, pair):
    model = quadric([1.0, 3.0, 0.5])
    points = torch.cat([image(1, 0, 0), image(0, 1 / math.sqrt(3), 0)])
    plain = mean_hessian_ends(model, points, steps=3, **pair(2))
    weighed = mean_hessian_ends(model, points, steps=3, normalised=True, **pair(2))
    # H = diag(2, 6, 1) with the first or the second axis projected out; ||grad F|| is 2 and 2
    # sqrt(3).
    assert plain.values[0].tolist() == pytest.approx([3.0, 1.0, 1.0], abs=1e-6)
    root = math.sqrt(3)
    expected = [6 / 4, (1 / 2 + 1 / (2 * root)) / 2, 2 / (4 * root)]
    assert weighed.values[0].sort(descending=True).values.tolist() == pytest.approx(
        sorted(expected, reverse=True), abs=1e-6
    )


@pytest.mark.parametrize("steps", [0, 4])
def test_steps_out_of_range_are_refused(quadric, image, pair, steps):
    with pytest.raises(InputError, match="steps must be"):
        extreme_curvatures(quadric([1.0] * 4), image(1, 0, 0, 0), steps=steps, **pair())
    with pytest.raises(InputError, match="steps must be"):
        ritz_pairs(torch.clone, torch.ones(1, 4), 5 if steps else 0)
