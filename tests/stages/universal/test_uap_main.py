import math
from functools import partial

import pytest
import torch

from robustness_geometry.attacks.universal import universal_perturbation
from robustness_geometry.checks import InputError
from stages.universal.uap_main import Settings, _statistics, uap_main

COMMON = {"train_samples": 24, "orders": 2, "samples": 40, "resamples": 100}


@pytest.fixture(scope="module")
def found(small, executor):
    """A binary affine classifier, balanced, with a radius that is far enough for all."""
    attack = partial(universal_perturbation, norm=2, radius=3.0, passes=1)
    settings = Settings(
        attack=attack,
        gradient=small.gradient,
        factors=(0.5, 1.0),
        anew=(1.5,),
        curve_samples=20,
        shown=3,
        **COMMON,
    )
    network = small.network({0: small.affine(1), 1: small.affine(1, 1)})
    return uap_main(network, small.dataset(2), settings, executor.scope("uap_main"))


def test_a_vector_fools_one_side_of_a_binary_affine_classifier(found, small):
    data = small.dataset(2)
    signs = torch.cat(
        [small.affine(1, seed)(data.test.images).detach()[:40] > 0 for seed in (0, 1)], dim=1
    )
    sides = [
        min(float(column.double().mean()), 1 - float(column.double().mean())) for column in signs.T
    ]
    assert found.numbers["fool_val_l2"].value <= 1 - sum(sides) / 2 + 0.05
    assert 0.25 <= found.numbers["fool_val_l2"].value <= 0.75
    assert found.numbers["fool_val_l2"].n == 40
    assert found.numbers["fool_X_l2"].n == found.numbers["fool_X_l2 (Algorithm 4)"].n == 24
    assert found.numbers["fool_X_l2"].seeds == 2


def test_the_numbers_of_both_norms_agree_with_each_other(found):
    for name in ("l2", "linf"):
        fool_x, fool_val = (found.numbers[f"fool_{part}_{name}"].value for part in ("X", "val"))
        distance = found.numbers[f"fool_X_{name} - fool_val_{name}, absolute"].value
        assert distance == pytest.approx(abs(fool_x - fool_val))
        relative = found.numbers[f"xi_{name}"].value / found.numbers[f"image_norm_{name}"].value
        assert found.numbers[f"xi_{name} / image_norm"].value == pytest.approx(relative)
    both = [found.numbers[f"fool_X_{name}"].value for name in ("l2", "linf")]
    assert found.numbers["fool_X_smallest"].value == pytest.approx(min(both))
    for name in ("l2", "linf"):
        by = [
            found.numbers[f"fool_X_{name} ({maker})"].value for maker in ("Algorithm 4", "gradient")
        ]
        assert found.numbers[f"fool_X_{name}"].value >= max(by) - 1e-9
    assert found.numbers["xi_l2"].value == 3.0


def test_a_variant_of_algorithm_4_says_nothing_of_its_convergence(found):
    settings = Settings(
        attack=partial(universal_perturbation, norm=2, radius=3.0, batch_size=2), **COMMON
    )
    assert "fool_X_smallest (Algorithm 4)" in found.numbers
    names = set(_statistics(settings))
    assert "fool_X_smallest (Algorithm 4), variant" in names
    assert "fool_X_smallest (Algorithm 4)" not in names
    assert found.numbers["image_norm_l2_255"].value == pytest.approx(
        255 * found.numbers["image_norm_l2"].value
    )


def test_the_small_vector_fools_no_more_than_the_large_one(found):
    assert found.numbers["fool_val_l2_at_4%"].value <= found.numbers["fool_val_l2"].value


def test_tables_curves_and_figures(found, looked_at):
    assert list(found.tables["table_4_1"].norm) == ["l2"] * 3 + ["linf"] * 3
    assert list(found.tables["table_4_1"].maker[:3]) == [
        "the better on X",
        "Algorithm 4",
        "gradient",
    ]
    by_seed = found.tables["by_seed"]
    assert len(by_seed) == 2 * (2 + 1 + 2 + 2)  # seeds; Algorithm 4 makes one order of linf
    assert by_seed.groupby(["seed", "norm"]).best_on_X.sum().eq(1).all()
    curve = found.tables["curve"]
    assert set(curve.vector) == {"scaled", "scaled, clipped to [0, 1]", "random", "made anew"}
    at_xi = curve[(curve.norm == "l2") & (curve.vector == "scaled") & (curve.norm_over_xi == 1)]
    assert at_xi.images.item() == 20
    assert looked_at(found) == ["curve_l2", "curve_linf", "figure_4_3", "figure_4_4"]
    assert found.tensors["v_l2"].shape == (2, 1, 6, 6)
    assert len(found.curves) == 4


def test_the_norm_of_the_attack_is_measured_once():
    attack = partial(universal_perturbation, norm="inf", radius=0.1)
    assert Settings(attack=attack).balls == [2.0, math.inf]
    assert Settings(attack=partial(universal_perturbation, norm=1, radius=2.0)).balls == [
        2.0,
        math.inf,
        1.0,
    ]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"factors": (0.0,)}, "factors"),
        ({"anew": (-1.0,)}, "anew"),
        ({"curve_samples": 0}, "curve_samples"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"{key} must be"):
        Settings(**options)
