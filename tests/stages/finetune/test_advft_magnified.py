"""Figures 3.7 and 3.8 on a small network."""

import pytest

from robustness_geometry.checks import InputError
from stages.finetune.advft_magnified import Settings, advft_magnified


@pytest.fixture(scope="module")
def found(network, data, executor):
    settings = Settings(epochs=2, samples=30, resamples=200)
    return advft_magnified(network, data, settings, executor.scope("advft_magnified"))


def test_the_numbers_name_every_alpha_and_the_neighbours_differences(found):
    assert set(found.numbers) == {
        "rho_original",
        "rho_alpha_1",
        "rho_alpha_2",
        "rho_alpha_3",
        "rho_alpha_1 - rho_alpha_2",
        "rho_alpha_2 - rho_alpha_3",
        "alignment_original",
        *(f"alignment_alpha_{alpha}_{epoch}" for alpha in (1, 2, 3) for epoch in (1, 2)),
    }
    difference = found.numbers["rho_alpha_1 - rho_alpha_2"]
    assert difference.value == pytest.approx(
        found.numbers["rho_alpha_1"].value - found.numbers["rho_alpha_2"].value,
        abs=0.01,  # DeepFool may fail on an image
    )
    assert difference.low < difference.value < difference.high


def test_alpha_one_is_the_fine_tuning_of_figure_3_6(found, network, data, executor):
    from stages.finetune.advft_robustness import Settings as Plain
    from stages.finetune.advft_robustness import advft_robustness

    plain = advft_robustness(network, data, Plain(epochs=2, samples=30, resamples=200), executor)
    assert found.numbers["rho_alpha_1"].value == plain.numbers["rho_ft_deepfool_2"].value


def test_the_table_has_every_epoch_of_every_alpha(found):
    table = found.tables["figure_3_7"]
    assert table.groupby("alpha")["epoch"].apply(list).tolist() == [[0, 1, 2]] * 3
    last = table[(table.alpha == 3) & (table.epoch == 2)].rho.item()
    assert last == found.numbers["rho_alpha_3"].value


def test_the_digit_is_a_one_that_becomes_a_seven(found):
    axes = found.figures["figure_3_8"].axes
    captions = [a.get_xlabel() for a in axes if a.get_xlabel()]
    assert captions[0] == "original: “1”"
    assert captions[1] == "alpha = 1: “7”"
    assert len(captions) == 7
    assert "“1”" in found.figures["figure_3_8"].get_suptitle()


@pytest.mark.parametrize("alphas", [(), (2, 1), (0, 1), (1, 1)])
def test_alphas_that_do_not_ascend_are_refused(alphas):
    with pytest.raises(InputError, match=r"^alphas must be "):
        Settings(alphas=alphas)
