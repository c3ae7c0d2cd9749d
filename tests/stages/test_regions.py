"""Colours of the classes in a picture of decision regions."""

import pytest

from pipeline.studies.regions import OWN, _colours


@pytest.mark.parametrize("others", [[2, 9], [0, 7], [1, 2, 4, 5, 8, 9], [0, 1, 2, 4, 5, 6, 8]])
def test_classes_of_one_picture_have_colours_of_their_own(others):
    colours = _colours([3, *others], 3)
    assert colours[0] == OWN
    assert len(set(colours)) == len(colours)


def test_a_class_keeps_its_colour_where_it_can():
    assert _colours([3, 2], 3)[1] == _colours([5, 2, 4], 5)[1]
