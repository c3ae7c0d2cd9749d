import pytest
import torch

from robustness_geometry.checks import InputError
from stages.universal.uap_transfer import COMPARISONS, Settings, uap_transfer


@pytest.fixture(scope="module")
def settings(small):
    return Settings(
        attack=small.attack, train_samples=24, orders=2, samples=30, random_vectors=2, resamples=60
    )


@pytest.fixture(scope="module")
def found(small, settings, executor):
    """Two networks that are the same, with one training seed in common, and a third."""
    models = {
        "a": {0: small.affine(4), 1: small.affine(4, 1)},
        "b": {0: small.affine(4)},
        "c": {0: small.affine(4, 2)},
    }
    networks = {name: small.network(each, name) for name, each in models.items()}
    return uap_transfer(
        networks,
        dict.fromkeys(networks, small.dataset(4)),
        settings,
        executor.scope("uap_transfer"),
    )


def test_equal_networks_are_fooled_alike(found):
    table = found.tables["table_4_2"].set_index("from")
    assert table.loc["a", "b"] == table.loc["b", "b"] == table.loc["b", "a"]
    assert found.numbers["fool[s][s] - fool[s][t], smallest"].value <= 0
    assert (found.numbers["fool[a][a]"].seeds, found.numbers["fool[a][b]"].seeds) == (2, 1)
    assert {
        f"{kind}[{s}][{t}]" for kind in ("fool", "random") for s in "abc" for t in "abc"
    } <= set(found.numbers)


def test_comparisons_of_known_matrices():
    fool = torch.tensor([[0.9, 0.5, 0.4], [0.3, 0.8, 0.6], [0.7, 0.55, 0.75]])
    random = torch.tensor([[0.1, 0.2, 0.1], [0.1, 0.1, 0.05], [0.1, 0.1, 0.1]])
    values = [float(function(fool, random)) for function in COMPARISONS.values()]
    assert values == pytest.approx([0.05, 0.2, 0.55, 0.3 / 0.2])
    stacked = torch.stack([fool, fool])
    assert all(function(stacked, stacked).shape == (2,) for function in COMPARISONS.values())


def test_the_figure_and_the_table_of_pairs(found, looked_at):
    assert looked_at(found) == ["table_4_2"]
    assert len(found.tables["pairs"]) == 9
    assert any("6 ordered pairs" in note for note in found.notes)


def test_networks_of_other_shapes_are_refused(small, settings, executor):
    from dataclasses import replace

    data = small.dataset(4)
    wide = replace(data, test=replace(data.test, images=torch.zeros(4, 1, 6, 8)))
    networks = {name: small.network({0: small.affine(4)}, name) for name in ("a", "b")}
    with pytest.raises(InputError, match="images of one shape"):
        uap_transfer(networks, {"a": data, "b": wide}, settings, executor)
    with pytest.raises(InputError, match="two or more"):
        uap_transfer({"a": networks["a"]}, {"a": data}, settings, executor)


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"ball must be .*; got 1\.0"):
        Settings(ball=1.0)
