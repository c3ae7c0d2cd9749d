import math
from functools import partial

import pytest
import torch
from scipy.stats import spearmanr

from pipeline.bootstrap import paired_bootstrap
from pipeline.evaluation import held_out
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import dct_band, expected_beta
from robustness_geometry.types import Network
from stages.attack.dct_bands import Bands, Settings, dct_bands, in_random_subspace

SHAPE = (1, 16, 16)


@pytest.fixture
def affine_network(small) -> Network:
    return small.network({seed: small.affine(2, SHAPE, seed) for seed in (0, 1)})


def onto(basis, normals):
    return normals @ basis.T @ basis


def test_beta_of_an_affine_network_is_its_closed_form(small, affine_network, executor, looked_at):
    data = small.dataset(SHAPE, 2, 60)
    found = dct_bands(
        affine_network, data, Settings(samples=40, random_samples=40, resamples=200), executor
    )
    images = held_out(data, 40).images
    sizes = images.flatten(1).norm(dim=1).double()
    models = affine_network.models.values()
    rho = torch.stack([small.closed_form(model, images) / sizes for model in models]).mean()
    for band in range(8):
        basis = dct_band(SHAPE, band, 2, dtype=torch.float64)
        project = partial(onto, basis)
        inside = torch.stack(
            [small.closed_form(model, images, project) / sizes for model in models]
        )
        beta = math.sqrt(4 / 256) * float(inside.mean() / rho)
        assert found.numbers[f"beta_{band}"].value == pytest.approx(beta, rel=1e-3)
        # Inside the band, r is along the normal's projection: no smaller one exists there.
        assert found.numbers[f"alignment_{band}"].value == pytest.approx(1, abs=1e-5)
        assert (found.numbers[f"beta_{band}"].n, found.numbers[f"beta_{band}"].seeds) == (40, 2)
    assert "beta_8" not in found.numbers
    assert found.numbers["rho"].value == pytest.approx(1.02 * float(rho), rel=1e-3)
    assert found.curves["beta"] == [found.numbers[f"beta_{band}"].value for band in range(8)]
    assert found.tables["beta"]["share_infeasible"].tolist() == [0.0] * 8
    assert found.tensors["rho_bands"].shape == (2, 8, 40)
    assert looked_at(found) == ["figure_3_10", "figure_3_11"]


def test_random_subspaces_of_an_affine_network_follow_the_beta_law(small, executor):
    nets = small.network({seed: small.affine(2, SHAPE, seed) for seed in range(3)})
    found = dct_bands(
        nets, small.dataset(SHAPE, 2, 100), Settings(samples=100, resamples=200), executor
    )
    wide = found.numbers["beta_random_wide"]
    assert wide.value == pytest.approx(expected_beta(256, 16), abs=0.05)
    assert wide.low < expected_beta(256, 16) < wide.high
    assert found.numbers["beta_random"].value == pytest.approx(expected_beta(256, 4), rel=0.2)
    assert any("m = 4" in note and "m = 16" in note for note in found.notes)


def test_each_image_has_a_subspace_of_its_own(small):
    model, images = small.affine(2, SHAPE, 0), small.dataset(SHAPE, 2, 5).test.images
    images = images[:1].expand(5, -1, -1, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1, 2, 3, 0)]
    result = in_random_subspace(partial(deepfool), 4, model, images, generator=generators)
    norms = result.perturbations.flatten(1).norm(dim=1)
    assert result.success.all()
    assert norms[0] == pytest.approx(float(norms[4]), rel=1e-5)
    assert norms[:4].unique().numel() == 4
    empty = in_random_subspace(partial(deepfool), 4, model, images[:0], generator=[])
    assert empty.perturbations.shape == (0, *SHAPE)


def low_pass_network(small) -> Network:
    """Looks at the mean pixel alone, so that only the lowest band holds a perturbation."""
    model = small.affine(2, SHAPE, 0)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 256))
        model[1].bias.copy_(torch.tensor([-128.0, 128.0]))
    return small.network({0: model})


def test_an_image_without_a_perturbation_counts_with_the_largest_norm_found():
    from stages.attack.dct_bands import _bounded

    assert _bounded(torch.tensor([2.0, math.nan, 5.0, math.nan])).tolist() == [2.0, 5.0, 5.0, 5.0]
    assert _bounded(torch.tensor([1.0, 3.0])).tolist() == [1.0, 3.0]
    assert bool(_bounded(torch.full((3,), math.nan)).isnan().all())


def test_bands_without_a_perturbation_are_counted_and_left_out(small, executor, looked_at):
    found = dct_bands(
        low_pass_network(small),
        small.dataset(SHAPE, 2, 20),
        Settings(samples=20, resamples=50),
        executor,
    )
    assert found.numbers["beta_0"].value == pytest.approx(math.sqrt(4 / 256), rel=1e-3)
    assert not any(name.startswith("beta_1") for name in found.numbers)
    assert "beta_last - beta_first" not in found.numbers
    table = found.tables["beta"]
    assert table["share_infeasible"].tolist() == [0.0] + [1.0] * 7
    assert table["median_norm"][7] == math.inf
    assert any(f"In {7 * 20} of {8 * 20} cases" in note for note in found.notes)
    looked_at(found)


def test_rank_correlation_of_bands():
    from stages.attack.dct_bands import _statistics

    bands = Bands((1, 16, 16), 2)
    ones = torch.ones(1, 30, dtype=torch.float64)
    samples = {"full": ones, "random": ones, "random wide": ones}
    samples |= {f"norm {band}": ones for band in range(8)}
    statistic = {"s": _statistics(bands)["spearman_q_beta"]}

    def correlation(betas):
        values = {f"band {band}": beta * ones for band, beta in enumerate(betas)}
        return paired_bootstrap({**samples, **values}, statistic, resamples=10)["s"].value

    assert correlation([1, 2, 3, 4, 5, 6, 7, 8]) == pytest.approx(1, abs=1e-12)
    assert correlation([8, 7, 6, 5, 4, 3, 2, 1]) == pytest.approx(-1, abs=1e-12)
    assert correlation([2, 1, 3, 4, 5, 6, 7, 8]) == pytest.approx(1 - 6 * 2 / (8 * 63))
    assert correlation([1, 2, 3, 4, 5, 6, 7, math.nan]) == pytest.approx(1, abs=1e-12)
    # Bands without a value come last together, at their mean rank.
    beta = [1, 2, 3, 4, 5, 6, math.nan, math.nan]
    assert correlation(beta) == pytest.approx(spearmanr(range(8), [*range(6), 7, 7]).statistic)


def test_colour_images_of_a_curved_network(small, executor, looked_at):
    data = small.dataset((3, 12, 12), 4, 12)
    settings = Settings(samples=12, random_samples=6, block=4, resamples=50)
    found = dct_bands(small.network({0: small.curved(4, 3, 0)}), data, settings, executor)
    assert found.tables["beta"]["m"].tolist() == [48, 48, 48]
    assert set(found.tables["beta"]["last_frequency"]) == {3, 7, 11}
    assert found.numbers["beta_0"].value > 0
    looked_at(found)


def test_too_few_bands_are_refused(small):
    with pytest.raises(InputError, match=r"^block must be at most 7, for three bands.*; got 8"):
        Settings(block=8).check(small.dataset(SHAPE, 2, 4))
    Settings(block=7).check(small.dataset(SHAPE, 2, 4))


@pytest.mark.parametrize("name", ["samples", "random_samples", "steps", "block", "resamples"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(InputError, match=f"^{name} must be a whole number >= 1; got 0"):
        Settings(**{name: 0})
