import math
from functools import partial

import pytest
import torch

from pipeline.evaluation import held_out
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import InputError
from stages.attack.attack_linf import Settings, attack_linf

SHAPE = (1, 8, 8)


@pytest.fixture
def data(small):
    return small.dataset(SHAPE, 2, 40)


@pytest.fixture
def affine_network(small):
    return small.network({seed: small.affine(1, SHAPE, seed) for seed in (0, 1)})


def distances(model, images):
    """|f(x)| / ||w||_1 of a single-logit affine network, relative to the largest pixel."""
    layer = model[1]
    with torch.no_grad():
        gaps = model(images)[:, 0].abs().double()
    return (
        gaps / layer.weight.detach().double().abs().sum() / images.flatten(1).amax(dim=1).double()
    )


def test_numbers_on_an_affine_network_are_closed_forms(data, affine_network, executor, looked_at):
    found = attack_linf(affine_network, data, Settings(samples=40, resamples=100), executor)
    images = held_out(data, 40).images
    exact = torch.stack([distances(model, images) for model in affine_network.models.values()])
    assert found.numbers["rho_inf_df"].value == pytest.approx(1.02 * float(exact.mean()), rel=1e-4)
    assert (found.numbers["rho_inf_df"].n, found.numbers["rho_inf_df"].seeds) == (40, 2)
    largest = images.flatten(1).amax(dim=1).double()
    # FGSM's direction is optimal here, so its eps is the distance that 90% of the images have at
    # most.
    eps = [(values * largest).sort().values[35] for values in exact]
    rho = torch.stack([value / largest for value in eps]).mean()
    assert found.numbers["rho_inf_fgsm"].value == pytest.approx(float(rho), rel=5e-3)
    ratio = found.numbers["rho_inf_fgsm"].value / found.numbers["rho_inf_df"].value
    assert found.numbers["rho_inf_fgsm / rho_inf_df"].value == pytest.approx(ratio)
    lead = found.numbers["rho_inf_fgsm"].value - found.numbers["rho_inf_df"].value
    assert found.numbers["rho_inf_fgsm - rho_inf_df"].value == pytest.approx(lead)
    # The judge has no overshoot, and both move along the sign of the gradient.
    assert found.numbers["rho_inf_minimum"].value == pytest.approx(float(exact.mean()), rel=1e-3)
    assert found.numbers["rho_inf_df / rho_inf_minimum"].value == pytest.approx(1.02, rel=1e-3)
    for method in ("df", "minimum"):
        assert found.numbers[f"alignment_{method}"].value == pytest.approx(1, abs=1e-5)
    assert "alignment_fgsm" not in found.numbers
    assert looked_at(found) == ["norms"]


def test_the_attack_under_study_keeps_its_own_norm(data, affine_network, executor):
    usual = attack_linf(affine_network, data, Settings(samples=20, resamples=50), executor)
    assert usual.numbers["rho_inf_attack"].value > usual.numbers["rho_inf_df"].value
    settings = Settings(
        attack=partial(deepfool, norm="inf", overshoot=0.1), samples=20, resamples=50
    )
    found = attack_linf(affine_network, data, settings, executor)
    assert found.numbers["rho_inf_attack"] == found.numbers["rho_inf_df"]
    ratio = found.numbers["rho_inf_df"].value / usual.numbers["rho_inf_df"].value
    assert ratio == pytest.approx(1.1 / 1.02, rel=1e-4)


def test_an_eps_out_of_reach_is_left_out(small, data, executor, looked_at):
    model = small.affine(2, SHAPE, 0)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    found = attack_linf(
        small.network({0: model}), data, Settings(samples=10, resamples=50), executor
    )
    assert set(found.numbers) == {
        "share_fooled_df",
        "share_fooled_minimum",
        "share_fooled_attack",
    }
    assert found.numbers["share_fooled_df"].value == 0.0
    assert found.numbers["share_fooled_df"].high > 0.0
    assert any("no eps fools 0.9" in note for note in found.notes)
    looked_at(found)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"samples": 0}, "samples"),
        ({"resamples": 0}, "resamples"),
        ({"fooling_rate": math.nan}, "fooling_rate"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key} must be "):
        Settings(**options)
