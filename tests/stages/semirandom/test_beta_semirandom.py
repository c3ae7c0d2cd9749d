import math

import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import beta_spread, expected_beta
from stages.experiments import Experiment
from stages.semirandom.beta_semirandom import SECTION, Settings, beta_semirandom


def test_beta_of_affine_networks_follows_the_beta_law(made, executor, looked_at):
    count = 150
    network = made.network(made.affine(0), made.affine(1))
    settings = Settings(samples=count, ratios=(2, 4, 8), lines=2, resamples=200)
    found = beta_semirandom(network, made.dataset(count), settings, executor)
    for ratio, m in ((2, 32), (4, 16), (8, 8)):
        error = beta_spread(64, m) / math.sqrt(2 * count)
        assert found.numbers[f"beta_{ratio}"].value == pytest.approx(
            expected_beta(64, m), abs=3.5 * error
        )
        assert found.numbers[f"std_{ratio}"].value == pytest.approx(beta_spread(64, m), rel=0.25)
        assert found.numbers[f"beta_{ratio}"].n == count
        # Both overshoot by the same share: of hyperplanes DeepFool finds the exact ratio, too.
        for name in ("beta", "std", "median"):
            assert found.numbers[f"{name}_{ratio} (DeepFool)"].value == pytest.approx(
                found.numbers[f"{name}_{ratio}"].value, rel=1e-3
            )
        assert found.numbers[f"beta_flat_{ratio}"].value == pytest.approx(
            expected_beta(64, m), abs=0.1 * beta_spread(64, m)
        )
        assert found.numbers[f"std_flat_{ratio}"].value == pytest.approx(
            beta_spread(64, m), rel=0.1
        )
        assert found.numbers[f"share_within_theorem1_{ratio}"].value > 0.95
        assert found.numbers[f"alignment_inside_{ratio}"].value == pytest.approx(1, abs=1e-6)
    betas = [found.numbers[f"beta_{ratio}"].value for ratio in (2, 4, 8)]
    assert found.numbers["largest |beta - 1|"].value == pytest.approx(
        max(abs(beta - 1) for beta in betas)
    )
    assert (found.numbers["smallest beta"].value, found.numbers["largest beta"].value) == (
        min(betas),
        max(betas),
    )
    wider = beta_spread(64, 8) - beta_spread(64, 16)
    assert found.numbers["std_8 - std_4"].value == pytest.approx(wider, rel=0.3)
    table = found.tables["table_5_1"]
    assert table["m"].tolist() == [32, 32, 16, 16, 8, 8]
    assert table["search"].tolist() == ["closest", "DeepFool"] * 3
    assert table["failed"].tolist() == [0] * 6
    assert table["cos(r*, n)"].tolist() == pytest.approx([1] * 6)
    assert found.tensors["beta_4"].shape == found.tensors["beta_4_deepfool"].shape == (2, count)
    assert looked_at(found) == ["table_5_1"]


class FirstHalf(nn.Module):
    """Has a boundary for half of the images only: the others lie where the logits do not change."""

    def forward(self, images):
        first = images.flatten(1)[:, :1]
        return torch.where(
            first < 0.5, images.flatten(1).sum(dim=1, keepdim=True) - 40, torch.ones_like(first)
        )


def test_images_without_a_perturbation_are_counted_and_left_out(made, executor, looked_at):
    data = made.dataset(12)
    lost = int((data.test.images[:, 0, 0, 0] >= 0.5).sum())
    assert 0 < lost < 11
    settings = Settings(samples=12, ratios=(2, 4), lines=2, resamples=50)
    found = beta_semirandom(made.network(FirstHalf().eval()), data, settings, executor)
    assert found.tables["table_5_1"]["failed"].min() >= lost
    assert found.numbers["beta_2"].n <= 12 - lost
    assert any("no perturbation was found. The means leave" in note for note in found.notes)
    looked_at(found)


@pytest.mark.parametrize("name", ["lines", "flat_draws"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(InputError, match=f"^{name} must be .*got 0"):
        Settings(**{name: 0})


@pytest.mark.parametrize("ratios", [(4,), (4, 2), (4, 4), (0, 2)])
def test_settings_out_of_range_are_refused(ratios):
    with pytest.raises(InputError, match=r"^ratios must be two or more rising whole numbers >= 1"):
        Settings(ratios=ratios)


def test_too_small_subspaces_are_refused_before_any_work(made):
    experiment = Experiment("beta_semirandom", SECTION, beta_semirandom, Settings(ratios=(4, 64)))
    with pytest.raises(InputError, match=r"^ratios must be at most 32.*got 64"):
        experiment.check("small", made.dataset(4))
    Settings(ratios=(4, 32)).check(made.dataset(4))


class Shell(nn.Module):
    """Class 0 within a distance of 2.5 from the centre, class 1 outside."""

    def forward(self, images):
        return 6.25 - (images - 0.5).flatten(1).square().sum(dim=1, keepdim=True)


def test_subspaces_that_miss_the_region_are_infinite_in_the_median(made, executor):
    """Seen from outside, a subspace of two dimensions hardly ever meets the ball."""
    data = made.dataset(8)
    far = type(data.test)(data.test.images + 1, data.test.labels)
    moved = type(data)(data.name, data.train, far, data.classes, data.mean, data.std)
    settings = Settings(samples=8, ratios=(2, 32), lines=2, resamples=50)
    found = beta_semirandom(made.network(Shell().eval()), moved, settings, executor)
    assert found.tables["table_5_1"]["failed"].min() > 4
    assert found.tables["table_5_1"]["images"].max() < 4
    assert found.numbers["median_32"].value == math.inf
    assert found.numbers["share_within_theorem1_32"].value < 0.5
