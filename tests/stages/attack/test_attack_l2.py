import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from pipeline.evaluation import held_out
from pipeline.studies.attacking import fooled_at
from robustness_geometry.attacks import deepfool, fgsm, pgd
from robustness_geometry.checks import InputError
from stages.attack.attack_l2 import EPS, Settings, attack_l2

SHAPE = (1, 8, 8)
SMALL = {"lbfgs_samples": 2, "judge_samples": 5, "curve_samples": 10, "resamples": 100}
QUICK = {**SMALL, "lbfgs": partial(fgsm, eps=0.2), "judge": partial(deepfool)}


@pytest.fixture
def data(small):
    return small.dataset(SHAPE, 3, 40)


@pytest.fixture
def affine_network(small):
    return small.network({seed: small.affine(3, SHAPE, seed) for seed in (0, 1)})


class Blind(nn.Module):
    """Sees how far the mean pixel is above one half; below that it has no gradient."""

    def forward(self, images):
        excess = torch.relu(images.flatten(1).mean(dim=1, keepdim=True) - 0.5)
        return torch.cat([torch.full_like(excess, 0.01), excess], dim=1)


def test_numbers_on_an_affine_network_are_closed_forms(
    small, data, affine_network, executor, looked_at
):
    found = attack_l2(affine_network, data, Settings(samples=40, **SMALL), executor)
    images = held_out(data, 40).images
    sizes = images.flatten(1).norm(dim=1).double()
    exact = torch.stack(
        [small.closed_form(model, images) / sizes for model in affine_network.models.values()]
    )
    numbers = found.numbers
    assert numbers["rho_df"].value == pytest.approx(1.02 * float(exact.mean()), rel=1e-4)
    assert numbers["rho_df"].low < numbers["rho_df"].value < numbers["rho_df"].high
    assert (numbers["rho_df"].n, numbers["rho_df"].seeds) == (40, 2)
    assert numbers["rho_df"].std == pytest.approx(1.02 * float(exact.std()), rel=1e-3)
    assert numbers["steps_df"].value == 1
    assert numbers["rho_attack"] == numbers["rho_df"]
    # On an affine network nothing is smaller than DeepFool without its overshoot, and these come
    # close to it.
    few = 1.02 * exact[:, :5].mean() / exact[:, :5].mean()
    assert numbers["rho_df / rho_minimum"].value == pytest.approx(float(few), rel=1e-3)
    for method in ("df", "minimum"):
        assert numbers[f"alignment_{method}"].value == pytest.approx(1, abs=1e-5)
    assert numbers["alignment_lbfgs"].value == pytest.approx(1, abs=0.02)
    assert "alignment_fgsm" not in numbers
    assert numbers["rho_lbfgs / rho_df"].value == pytest.approx(1 / 1.02, rel=0.05)
    assert numbers["rho_lbfgs / rho_df"].n == 2
    torch.testing.assert_close(found.tensors["rho_df"].double(), 1.02 * exact, rtol=1e-4, atol=0)
    assert found.tensors["rho_lbfgs"].isnan().sum(dim=1).tolist() == [38, 38]
    assert looked_at(found) == ["figure_3_5", "fooling_fgsm", "norms"]


def test_fgsm_uses_the_one_eps_that_fools_nine_in_ten(small, data, affine_network, executor):
    found = attack_l2(affine_network, data, Settings(samples=40, **QUICK), executor)
    table = found.tables["by_seed"].set_index(["seed", "method"])
    images = held_out(data, 40).images
    for seed, model in affine_network.models.items():
        fooled = fooled_at(model, images, eps=(table.loc[(seed, "FGSM"), "eps"],))
        assert float(fooled.double().mean()) >= 0.9
        less = fooled_at(model, images, eps=(0.99 * table.loc[(seed, "FGSM"), "eps"],))
        assert float(less.double().mean()) < 0.9
        # Every pixel moves by eps, whether the image is fooled or not.
        rho = table.loc[(seed, "FGSM"), "eps"] * 8 / images.flatten(1).norm(dim=1).double()
        assert table.loc[(seed, "FGSM"), "rho"] == pytest.approx(float(rho.mean()), rel=1e-4)
    numbers = found.numbers
    assert numbers["share_fooled_fgsm"].value == pytest.approx(0.9, abs=0.03)
    ratio = numbers["rho_fgsm"].value / numbers["rho_df"].value
    assert numbers["rho_fgsm / rho_df"].value == pytest.approx(ratio)
    assert numbers["share_df_below_fgsm"].value > 0.8


def test_the_fooling_curve_rises_to_all_images(data, affine_network, executor):
    found = attack_l2(affine_network, data, Settings(samples=40, **QUICK), executor)
    curve = found.curves["fooling_fgsm"]
    assert len(curve) == len(EPS)
    assert curve[-1] == 1.0
    assert all(later >= earlier for earlier, later in pairwise(curve))
    assert found.numbers["fooling_limit_fgsm"].value == 1.0
    assert found.numbers["fooling_limit_fgsm"].low < 1.0
    assert found.numbers["fooling_limit_fgsm"].n == 10


def test_timings_are_apart_from_the_numbers(data, affine_network, executor):
    found = attack_l2(affine_network, data, Settings(samples=10, **QUICK), executor)
    assert set(found.timings) == {
        "t_df",
        "t_fgsm",
        "t_lbfgs",
        "t_minimum",
        "t_attack",
        "t_df - t_fgsm",
        "t_lbfgs - t_df",
        "t_lbfgs / t_df",
    }
    assert not any(name.startswith("t_") for name in found.numbers)
    assert found.timings["t_df"].value > 0
    for table in found.tables.values():
        assert not any("second" in column for column in table.columns)


def test_a_second_run_takes_up_everything_alike(data, affine_network, executor):
    settings = Settings(samples=10, **QUICK)
    first = attack_l2(affine_network, data, settings, executor)
    again = attack_l2(affine_network, data, settings, executor)
    assert first.numbers == again.numbers
    assert first.timings == again.timings


def test_failures_are_counted_and_an_eps_out_of_reach_is_said(small, executor, looked_at):
    data = small.dataset(SHAPE, 2, 30)
    seen = held_out(data, 30).images.flatten(1).mean(dim=1) > 0.5
    found = attack_l2(
        small.network({0: Blind().eval()}), data, Settings(samples=30, **QUICK), executor
    )
    assert 0 < int(seen.sum()) < 27
    assert found.numbers["rho_df"].n == int(seen.sum())
    assert found.numbers["share_fooled_df"].value == pytest.approx(float(seen.double().mean()))
    assert found.numbers["fooling_limit_fgsm"].value < 0.9
    assert not any("rho_fgsm" in name for name in found.numbers)
    assert "share_df_below_fgsm" not in found.numbers
    assert "t_fgsm" not in found.timings
    assert any(f"failed in {int((~seen).sum())} of 30 cases" in note for note in found.notes)
    assert any("no eps fools 0.9" in note for note in found.notes)
    looked_at(found)


def test_another_attack_under_study_is_reported_beside_deepfool(data, affine_network, executor):
    settings = Settings(attack=partial(fgsm, eps=0.05), samples=20, **QUICK)
    found = attack_l2(affine_network, data, settings, executor)
    default = attack_l2(affine_network, data, Settings(samples=20, **QUICK), executor)
    images = held_out(data, 20).images
    assert found.numbers["rho_df"] == default.numbers["rho_df"]
    fooled = torch.stack(
        [fooled_at(m, images, eps=(0.05,))[:, 0] for m in affine_network.models.values()]
    )
    assert found.numbers["share_fooled_attack"].value == pytest.approx(
        float(fooled.double().mean())
    )
    assert found.numbers["rho_attack"].n == int(fooled.sum()) // 2
    assert any("Attack under study: fgsm (eps=0.05)" in note for note in found.notes)


def test_a_random_attack_is_given_its_randomness(data, affine_network, executor):
    settings = Settings(attack=partial(pgd, eps=0.3, steps=3), samples=10, **QUICK)
    runs = [attack_l2(affine_network, data, settings, executor) for _ in range(2)]
    assert runs[0].numbers["rho_attack"] == runs[1].numbers["rho_attack"]
    assert runs[0].numbers["share_fooled_attack"].value > 0.5


def test_the_options_of_a_deepfool_under_study_are_used(data, affine_network, executor):
    usual = attack_l2(affine_network, data, Settings(samples=10, **QUICK), executor)
    settings = Settings(attack=partial(deepfool, overshoot=0.5, norm="inf"), samples=10, **QUICK)
    found = attack_l2(affine_network, data, settings, executor)
    assert found.numbers["rho_df"].value == pytest.approx(
        usual.numbers["rho_df"].value * 1.5 / 1.02, rel=1e-4
    )
    assert found.numbers["rho_attack"].value > found.numbers["rho_df"].value


def test_colour_images_and_a_single_logit(small, executor, looked_at):
    data = small.dataset((3, 12, 12), 2, 8)
    found = attack_l2(
        small.network({0: small.curved(1, 3, 0)}), data, Settings(samples=8, **QUICK), executor
    )
    assert found.numbers["share_fooled_df"].value > 0.8
    assert found.tables["table_3_1"]["rho_mean_subtracted"][0] > found.tables["table_3_1"]["rho"][0]
    looked_at(found)


@pytest.mark.parametrize(
    "name", ["samples", "lbfgs_samples", "judge_samples", "curve_samples", "resamples"]
)
def test_counts_out_of_range_are_refused(name):
    with pytest.raises(InputError, match=f"^{name} must be a whole number >= 1; got 0"):
        Settings(**{name: 0})


@pytest.mark.parametrize("rate", [0, 1.1, math.nan])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(InputError, match=r"^fooling_rate must be a share"):
        Settings(fooling_rate=rate)
