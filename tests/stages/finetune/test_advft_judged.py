"""Figure 3.9 on a small network, and FGSM's smallest step in closed form."""

import math

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import fgsm_smallest_eps
from stages.finetune.advft_judged import (
    FACTORS,
    Settings,
    advft_judged,
    fooled_pattern,
    smallest_factor,
)


@pytest.fixture(scope="module")
def found(network, data, executor):
    settings = Settings(epochs=2, samples=30, resamples=200)
    return advft_judged(network, data, settings, executor.scope("advft_judged"))


@pytest.fixture
def halfspace():
    """One logit w.x + b with w = (1, ..., 1): a step eps sign(w) moves it by 4 eps."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        model[1].weight.fill_(1.0)
        model[1].bias.zero_()
    return model.eval()


def test_the_pattern_of_a_linear_classifier_is_its_distance(halfspace):
    images = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    pattern = fooled_pattern(
        halfspace, images, eps=(0.05, 0.15, 0.3, 0.5)
    )  # fooled from eps = x on
    assert pattern.tolist() == [0b1110, 0b1100, 0b1000]


def test_the_smallest_factor_lies_between_two_steps_by_their_shares():
    steps = range(len(FACTORS))
    first = (
        torch.arange(10) % 5 + 4
    )  # image i is fooled from step first[i] on: shares 0.2, 0.4 ... from step 4
    pattern = torch.tensor([sum(1 << k for k in steps if k >= f) for f in first]).double()
    assert float(smallest_factor(pattern, 0.4)) == pytest.approx(FACTORS[5])
    assert float(smallest_factor(pattern, 0.5)) == pytest.approx(math.sqrt(FACTORS[5] * FACTORS[6]))
    assert float(smallest_factor(pattern, 1.0)) == pytest.approx(FACTORS[8])


def test_the_ends_of_the_grid_stand_in_where_it_is_left():
    everything = torch.full((7,), float((1 << len(FACTORS)) - 1), dtype=torch.float64)
    assert float(smallest_factor(everything, 0.9)) == FACTORS[0]
    assert float(smallest_factor(torch.zeros(7, dtype=torch.float64), 0.9)) == FACTORS[-1]


def test_an_image_without_a_value_is_left_out():
    always = float((1 << len(FACTORS)) - 1)
    pattern = torch.tensor(
        [[always, math.nan, always], [0.0, math.nan, always]], dtype=torch.float64
    )
    assert smallest_factor(pattern, 0.9).tolist() == [FACTORS[0], FACTORS[-1]]


def test_fgsms_rho_is_that_of_the_smallest_eps(found, network, data):
    from pipeline.evaluation import held_out

    images = held_out(data, 30).images
    wanted = [
        float((fgsm_smallest_eps(model, images).eps * 6 / images.flatten(1).norm(dim=1)).mean())
        for model in network.models.values()
    ]
    assert found.numbers["rho_fgsm_original"].value == pytest.approx(sum(wanted) / 2, rel=0.06)


def test_the_gains_of_both_readings_and_their_difference(found):
    for reading in ("text", "caption"):
        for epoch in (1, 2):
            df, fgsm = (
                found.numbers[f"{reading}: gain_{judge}_{epoch}"].value for judge in ("df", "fgsm")
            )
            excess = found.numbers[f"{reading}: gain_fgsm_{epoch} - gain_df_{epoch}"]
            assert excess.value == pytest.approx(fgsm - df)
            assert excess.low < excess.high
            assert found.numbers[f"{reading}: 1 - gain_df_{epoch}"].value == pytest.approx(1 - df)


def test_the_table_starts_every_curve_at_one(found):
    table = found.tables["figure_3_9"]
    assert len(table) == 12
    assert (table[table.epoch == 0].gain == 1).all()
    assert set(found.figures) == {"figure_3_9_text", "figure_3_9_caption"}


def test_the_learning_rate_is_lowered_by_nine_tenths(found):
    assert "learning rate is 0.005" in found.notes[0]
    assert Settings().judged_factor == 0.1
