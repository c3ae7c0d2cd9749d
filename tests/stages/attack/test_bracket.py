import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from pipeline.evaluation import held_out
from robustness_geometry.certify import bound_cost
from robustness_geometry.checks import InputError
from robustness_geometry.types import Split
from stages.attack.bracket import Settings, bracket

SHAPE = (1, 6, 6)
QUICK = Settings(samples=12, exact_samples=4, nodes=500, exact_linf=False, epochs=2, resamples=50)


@pytest.fixture
def data(small):
    return small.dataset(SHAPE, 3, 30)


@pytest.fixture
def trainable(small, data):
    train = small.dataset(SHAPE, 3, 120, seed=1).test
    return replace(data, train=Split(train.images, train.labels))


def test_on_an_affine_network_both_ends_are_the_closed_form(small, data, executor, looked_at):
    network = small.network({seed: small.affine(3, SHAPE, seed) for seed in (0, 1)})
    found = bracket(network, data, replace(QUICK, evaluations=12), executor)
    images = held_out(data, 12).images
    exact = torch.stack([small.closed_form(model, images) for model in network.models.values()])
    numbers = found.numbers
    assert numbers["distance_nearest (l2)"].value == pytest.approx(float(exact.mean()), rel=1e-3)
    for norm in ("l2", "linf"):
        assert 0.97 < numbers[f"lower / nearest ({norm})"].value <= 1
        assert 1 <= numbers[f"df / nearest ({norm})"].value < 1.03
        assert numbers[f"alignment_nearest ({norm})"].value == pytest.approx(1, abs=1e-4)
    assert (numbers["lower / nearest (l2)"].n, numbers["lower / nearest (l2)"].seeds) == (12, 2)
    assert any("no training images" in note for note in found.notes)
    assert looked_at(found) == ["distances"]


def test_small_networks_close_the_bracket(small, trainable, executor, looked_at):
    network = small.network({0: small.affine(3, SHAPE, 0)})
    found = bracket(network, trainable, replace(QUICK, exact_linf=True), executor)
    table = found.tables["exact"]
    assert table["network"].tolist() == ["24-24", "24-24", "50-50", "50-50"]
    assert (table["exact"].map(float).gt(0)).all()
    counts = found.tables["exact"][["images closed", "images in a bracket", "images unresolved"]]
    assert counts.sum(axis=1).tolist() == [4] * 4
    for each in ("24-24, l2", "24-24, linf", "50-50, l2", "50-50, linf"):
        ratios = [found.numbers[f"{name} / exact ({each})"] for name in ("lower", "nearest", "df")]
        assert ratios[0].value <= 1 <= ratios[1].value * (1 + 1e-6)
        assert ratios[1].value <= ratios[2].value * 1.01
    rows = found.tables["images"]
    closed = rows[rows["exact"].notna()]
    assert (closed["lower bound"] <= closed["exact"] * (1 + 1e-6)).all()
    assert (closed["exact"] <= closed["nearest"] * (1 + 1e-6)).all()
    assert looked_at(found) == ["distances", "exact"]


def test_two_runs_agree_to_the_last_bit(small, trainable, executor, tmp_path):
    network = small.network({0: small.curved(3, 1, 0)})
    wide = replace(trainable, test=small.dataset((1, 12, 12), 3, 8).test)
    wide = replace(wide, train=small.dataset((1, 12, 12), 3, 60, seed=2).test)
    settings = replace(QUICK, samples=4, exact_samples=2, nodes=130)
    first = bracket(network, wide, settings, executor)
    executor._work = tmp_path / "again"
    second = bracket(network, wide, settings, executor)
    assert first.numbers == second.numbers
    pd.testing.assert_frame_equal(first.tables["images"], second.tables["images"])


def test_a_layer_that_cannot_be_certified_is_named_and_the_rest_goes_on(small, data, executor):
    # Sigmoids keep the order of the logits.
    model = nn.Sequential(small.affine(3, SHAPE, 0), nn.Sigmoid()).eval()
    found = bracket(small.network({0: model}), data, QUICK, executor)
    reasons = found.tables["distances"]["not certified because"]
    assert reasons.str.contains("layer '1' of type Sigmoid").all()
    assert found.tables["distances"]["certified"].tolist() == [0, 0]
    assert found.numbers["distance_nearest (l2)"].n > 0
    assert "lower / nearest (l2)" not in found.numbers


@pytest.mark.parametrize(
    ("cuts", "share", "certified", "used"), [(0, 0.5, 0, 40), (0, 1.5, 1, 0), (40, 3.0, 3, 40)]
)
def test_the_cost_decides_how_many_images_are_certified(
    small, data, executor, cuts, share, certified, used
):
    model = small.affine(3, SHAPE, 0)
    options = {"steps": QUICK.steps, "evaluations": QUICK.evaluations}
    work = share * bound_cost(model, SHAPE, cuts=cuts, **options)
    found = bracket(small.network({0: model}), data, replace(QUICK, work=work), executor)
    table = found.tables["distances"]
    assert table["certified"].tolist() == [certified] * 2
    said = table["not certified because"].str.contains("multiply-adds")
    assert said.tolist() == [certified == 0] * 2
    assert any(f"{certified} of 12, with {used} parts" in note for note in found.notes)


def test_images_too_large_for_the_small_networks_are_said_to_be(small, executor):
    data = small.dataset((3, 40, 40), 2, 6)
    data = replace(data, train=data.test)
    network = small.network({0: small.affine(2, (3, 40, 40), 0)})
    found = bracket(network, data, QUICK, executor)
    assert any("4800 entries" in note for note in found.notes)
    assert "exact" not in found.tables


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"samples": 0}, "samples"),
        ({"nodes": 0}, "nodes"),
        ({"steps": -1}, "steps"),
        ({"work": math.nan}, "work"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key} must be "):
        Settings(**options)
