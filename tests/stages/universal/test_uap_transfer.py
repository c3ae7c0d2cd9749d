import math
from itertools import permutations

import pytest
import torch

from pipeline.studies.universal import universal_study
from robustness_geometry.checks import InputError
from stages.universal.uap_transfer import COMPARISONS, Settings, _alike, _radii, uap_transfer

KINDS = ("fool", "random", "signs")


@pytest.fixture(scope="module")
def settings(small):
    return Settings(
        attack=small.attack,
        gradient=small.gradient,
        train_samples=24,
        orders=2,
        samples=30,
        random_vectors=2,
        resamples=60,
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
    assert table.loc["b", "b"] == table.loc["b", "a"]
    assert (found.numbers["fool[a][a]"].seeds, found.numbers["fool[a][b]"].seeds) == (2, 1)
    assert found.numbers["fool[b][b] - fool[b][t], smallest"].value <= 0
    every = [f"{kind}[{s}][{t}]" for kind in KINDS for s in "abc" for t in "abc"]
    assert set(every) <= set(found.numbers)


def test_each_pair_is_judged_by_its_own_numbers(found):
    value = {name: estimate.value for name, estimate in found.numbers.items()}
    for s, t in permutations("abc", 2):
        margin = value[f"fool[{s}][{t}]"] - value[f"random[{s}][{t}]"]
        assert value[f"fool[{s}][{t}] - random[{s}][{t}]"] == pytest.approx(margin)
        lead = value[f"fool[{s}][{s}]"] - value[f"fool[{s}][{t}]"]
        assert value[f"fool[{s}][{s}] - fool[{s}][{t}]"] == pytest.approx(lead)


def test_comparisons_of_known_matrices():
    fool = torch.tensor([[0.9, 0.5, 0.4], [0.3, 0.8, 0.6], [0.7, 0.55, 0.75]])
    random = torch.tensor([[0.1, 0.2, 0.1], [0.1, 0.1, 0.05], [0.1, 0.1, 0.1]])
    apart = ~torch.eye(3, dtype=torch.bool)
    first = torch.zeros(3, 3, dtype=torch.bool)
    first[0, 1] = first[1, 0] = True
    for pairs, wanted in ((apart, [0.2, 0.55, 0.3 / 0.2]), (first, [0.2, 0.5, 0.3 / 0.2])):
        found = [float(function(fool, random, pairs)) for function in COMPARISONS.values()]
        assert found == pytest.approx(wanted)
        both = (torch.stack([fool, fool]), torch.stack([random, random]), pairs)
        assert all(function(*both).shape == (2,) for function in COMPARISONS.values())


def test_networks_are_alike_within_a_factor_of_noise():
    assert _alike(1.0, 2.0)
    assert not _alike(4.4, 20.5)
    assert _alike(3.0, 3.0)


def test_the_radius_is_the_median_of_the_networks(found, small, settings, executor):
    studies = [
        universal_study(small.affine(4, k), 0, small.dataset(4), settings, executor)
        for k in (0, 1, 2)
    ]
    every = sorted(study.xi(math.inf) for study in studies)
    named = dict(zip("abc", ([study] for study in studies), strict=True))
    assert _radii(named, settings) == {0: every[1]}
    named.pop("c")
    assert _radii(named, settings)[0] == min(study.xi(math.inf) for study in studies[:2])


def test_the_figure_and_the_table_of_pairs(found, looked_at):
    assert looked_at(found) == ["table_4_2"]
    table = found.tables["pairs"]
    assert len(table) == 9
    assert table[table["from"] == table.to].like_noise.all()
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
