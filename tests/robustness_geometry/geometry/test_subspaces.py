import math

import pytest
import torch
from scipy.fft import dctn

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import (
    band_count,
    band_dimension,
    block_side,
    dct_band,
    expected_beta,
    orthonormalise,
    project_onto_band,
    random_subspace,
)

SHAPES = [((1, 28, 28), 2), ((3, 9, 13), 4), ((2, 12, 12), 5)]


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_dct_bands_hold_one_block_of_frequencies_each(shape, block):
    for band in range(band_count(*shape[1:], block)):
        basis = dct_band(shape, band, block, dtype=torch.float64)
        assert basis.shape == (band_dimension(shape, band, block), math.prod(shape))
        spectra = dctn(basis.view(-1, *shape).numpy(), axes=(2, 3), norm="ortho")
        inside = slice(band * block, (band + 1) * block)
        # Each basis vector is one frequency of one channel, and that frequency lies in the block.
        assert abs(spectra).max(axis=(1, 2, 3)) == pytest.approx(1.0, abs=1e-12)
        assert (spectra[:, :, inside, inside] ** 2).sum(axis=(1, 2, 3)) == pytest.approx(
            1.0, abs=1e-12
        )


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_projection_without_a_basis_agrees_with_the_basis(shape, block):
    vectors = torch.randn(
        5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    for band in range(band_count(*shape[1:], block)):
        basis = dct_band(shape, band, block, dtype=torch.float64)
        expected = (vectors.flatten(1) @ basis.T @ basis).view_as(vectors)
        torch.testing.assert_close(project_onto_band(vectors, band=band, block=block), expected)


def test_thesis_bands_at_224_pixels():
    assert block_side(224, 224) == 10
    assert band_count(224, 224, 10) == 23
    assert band_dimension((3, 224, 224), 0, 10) == 300
    assert band_dimension((3, 224, 224), 22, 10) == 3 * 4 * 4
    assert block_side(28, 28) == 2
    assert block_side(64, 64) == 3


@pytest.mark.parametrize("band", [-1, 14, 100])
def test_absent_band_is_refused(band):
    with pytest.raises(InputError, match="band must be"):
        dct_band((1, 28, 28), band, 2)


def test_random_subspaces_are_orthonormal_and_depend_on_the_generator():
    first = random_subspace(50, 7, torch.Generator().manual_seed(1), dtype=torch.float64)
    again = random_subspace(50, 7, torch.Generator().manual_seed(1), dtype=torch.float64)
    other = random_subspace(50, 7, torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(first @ first.T, torch.eye(7, dtype=torch.float64))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("m", [0, 51])
def test_random_subspace_refuses_an_impossible_dimension(m):
    with pytest.raises(InputError, match="m must be"):
        random_subspace(50, m)


def test_random_subspaces_follow_the_beta_law():
    generator = torch.Generator().manual_seed(0)
    normal = torch.zeros(40, dtype=torch.float64)
    normal[3] = 1.0
    drawn = [random_subspace(40, 10, generator, dtype=torch.float64) @ normal for _ in range(2000)]
    betas = math.sqrt(10 / 40) / torch.stack(drawn).norm(dim=1)
    error = float(betas.std()) / math.sqrt(2000)
    assert float(betas.mean()) == pytest.approx(expected_beta(40, 10), abs=4 * error)


@pytest.mark.parametrize(("m", "expected"), [(196, 1.003), (49, 1.015), (8, 1.107)])
def test_expected_beta_at_784_dimensions(m, expected):
    assert expected_beta(784, m) == pytest.approx(expected, abs=5e-4)


def test_expected_beta_at_the_ends():
    assert expected_beta(30, 30) == pytest.approx(1.0)
    assert expected_beta(30, 1) == math.inf


def test_orthonormalise_drops_dependent_rows_and_keeps_the_span():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 20, dtype=torch.float64, generator=generator)
    dependent = [rows[:1] + 2 * rows[1:2], torch.zeros(1, 20, dtype=torch.float64)]
    basis = orthonormalise(torch.cat([rows, *dependent]))
    assert basis.shape == (3, 20)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(rows @ basis.T @ basis, rows)


@pytest.mark.parametrize("rows", [torch.zeros(4, 6), torch.zeros(0, 6)])
def test_orthonormalise_of_nothing_is_empty(rows):
    assert orthonormalise(rows).shape == (0, 6)
