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
    settings = Settings(samples=count, ratios=(2, 4, 8), resamples=200)
    found = beta_semirandom(network, made.dataset(count), settings, executor)
    for ratio, m in ((2, 32), (4, 16), (8, 8)):
        error = beta_spread(64, m) / math.sqrt(2 * count)
        assert found.numbers[f"beta_{ratio}"].value == pytest.approx(
            expected_beta(64, m), abs=3.5 * error
        )
        assert found.numbers[f"std_{ratio}"].value == pytest.approx(beta_spread(64, m), rel=0.25)
        assert found.numbers[f"beta_{ratio}"].n == count
    betas = [found.numbers[f"beta_{ratio}"].value for ratio in (2, 4, 8)]
    assert found.numbers["largest |beta - 1|"].value == pytest.approx(
        max(abs(beta - 1) for beta in betas)
    )
    assert (found.numbers["smallest beta"].value, found.numbers["largest beta"].value) == (
        min(betas),
        max(betas),
    )
    assert found.numbers["std_8 - std_4"].low > 0
    table = found.tables["table_5_1"]
    assert table["m"].tolist() == [32, 16, 8]
    assert table["failed"].tolist() == [0, 0, 0]
    assert found.tensors["beta_4"].shape == (2, count)
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
    settings = Settings(samples=12, ratios=(2, 4), resamples=50)
    found = beta_semirandom(made.network(FirstHalf().eval()), data, settings, executor)
    assert found.tables["table_5_1"]["failed"].min() >= lost
    assert found.numbers["beta_2"].n <= 12 - lost
    assert any("cases no perturbation was found" in note for note in found.notes)
    looked_at(found)


@pytest.mark.parametrize("ratios", [(4,), (4, 2), (4, 4), (0, 2)])
def test_settings_out_of_range_are_refused(ratios):
    with pytest.raises(InputError, match=r"^ratios must be two or more rising whole numbers >= 1"):
        Settings(ratios=ratios)


def test_too_small_subspaces_are_refused_before_any_work(made):
    experiment = Experiment("beta_semirandom", SECTION, beta_semirandom, Settings(ratios=(4, 64)))
    with pytest.raises(InputError, match=r"^ratios must be at most 32.*got 64"):
        experiment.check("small", made.dataset(4))
    Settings(ratios=(4, 32)).check(made.dataset(4))
