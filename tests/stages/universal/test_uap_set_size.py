import sys

import pytest

from robustness_geometry.checks import InputError
from stages.universal.uap_set_size import Settings, uap_set_size

uap_set_size_module = sys.modules["stages.universal.uap_set_size"]


@pytest.fixture(scope="module")
def found(small, executor):
    settings = Settings(
        attack=small.attack,
        gradient=small.gradient,
        train_samples=40,
        orders=2,
        samples=30,
        sizes=(10, 25, 500),
        draws=2,
        resamples=50,
    )
    network = small.network({0: small.affine(4), 1: small.affine(4, 1)})
    return uap_set_size(network, small.dataset(4), settings, executor.scope("uap_set_size"))


def test_sizes_run_from_half_the_classes_to_x(found):
    table = found.tables["figure_4_6"]
    for maker in ("gradient", "Algorithm 4"):
        assert list(table[table.maker == maker].images_in_X) == [2, 10, 25, 40]
    assert found.numbers["fool_val_half"] == found.numbers["fool_val_2"]
    assert found.numbers["fool_val_40"].n == 30
    assert -1 <= found.numbers["spearman"].value <= 1


def test_the_figure_and_the_notes(found, looked_at):
    assert looked_at(found) == ["figure_4_6"]
    assert any("2, 10, 25, 40" in note for note in found.notes)
    assert "Left out, as X has 40 images: 500 images." in found.notes


def test_choices_of_a_size_do_not_overlap():
    from stages.universal.uap_set_size import _choices

    chosen = [each for size in (10, 25) for each in _choices(40, size, 3)]
    assert [len(each) for each in chosen] == [10, 10, 10, 25]
    assert [int(each[0]) for each in chosen] == [0, 10, 20, 0]


@pytest.mark.parametrize("classes", [4, 1000])
def test_sizes_that_x_does_not_have_are_left_out_with_a_note(small, executor, classes):
    """As on ImageNet with few images: not even half as many images as classes."""
    from dataclasses import replace

    settings = Settings(
        attack=small.attack,
        gradient=small.gradient,
        train_samples=20,
        algorithm_samples=10,
        orders=2,
        samples=10,
    )
    settings = replace(settings, sizes=(5, 10, 40), resamples=10)
    data = small.dataset(4)
    names = tuple(str(label) for label in range(classes))
    network = small.network({0: small.affine(4)})
    found = uap_set_size(
        network, replace(data, classes=names), settings, executor.scope(f"few {classes}")
    )
    sizes = [2, 5, 10, 20] if classes == 4 else [5, 10, 20]
    table = found.tables["figure_4_6"]
    assert list(table[table.maker == "gradient"].images_in_X) == sizes
    assert set(table[table.maker == "Algorithm 4"].images_in_X) <= set(sizes[:-1])
    assert ("fool_val_half" in found.numbers) == (classes == 4)
    assert any("Left out, as X has 20 images: 40" in note for note in found.notes)


@pytest.mark.parametrize(("options", "key"), [({"sizes": (1,)}, "sizes"), ({"draws": 0}, "draws")])
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"{key} must be"):
        Settings(**options)


def test_a_size_that_makes_no_vector_is_left_out(small, executor, monkeypatch):
    """As where the classifier gives one label to all images of each choice."""
    left_out = ("fool_val_2", "fool_val_half")
    monkeypatch.setattr(
        uap_set_size_module,
        "measured",
        lambda numbers: {name: v for name, v in numbers.items() if name not in left_out},
    )
    settings = Settings(
        attack=small.attack,
        gradient=small.gradient,
        train_samples=20,
        samples=10,
        sizes=(10,),
        draws=1,
        resamples=20,
    )
    network = small.network({0: small.affine(4)})
    found = uap_set_size(network, small.dataset(4), settings, executor.scope("left out"))
    table = found.tables["figure_4_6"]
    assert list(table[table.maker == "gradient"].images_in_X) == [10, 20]
    assert set(found.figures) == {"figure_4_6"}
