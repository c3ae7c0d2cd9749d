import dataclasses

import pytest
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.datasets import mnist5k
from robustness_geometry.models import build
from robustness_geometry.models.class_names import named
from robustness_geometry.models.state_dicts import say


@pytest.fixture(scope="module")
def digits():
    return mnist5k(train_limit=10, test_limit=10)


def built(names, data, classes=None):
    def made(*, channels, size, classes, mean, std):
        layers = nn.Sequential(nn.Flatten(), nn.Linear(784, classes)).eval()
        return named(layers, names)

    return build(made, dataclasses.replace(data, classes=tuple(classes or data.classes)))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["tabby cat", "DOG", "tench, Tinca tinca"], ["tabby_cat", "dog", "tench"]),
        (["cat", "dog"], ["Cat", "Dog"]),
        ([], ["cat", "dog"]),
    ],
)
def test_names_in_the_data_set_s_order_are_taken_without_a_word(digits, names, classes, caplog):
    built(names, digits, classes)
    assert not caplog.text


@pytest.mark.parametrize(
    ("names", "classes", "order"),
    [
        (["dog", "cat"], ["cat", "dog"], r"\[dog,cat\]"),
        (["b", "C", "a"], ["a", "b", "c"], r"\[b,c,a\]"),
        ([str(9 - i) for i in range(10)], None, r"\[9,8,7,6,5,4,3,2,1,0\]"),
    ],
)
def test_the_same_names_in_another_order_are_refused(digits, names, classes, order):
    with pytest.raises(InputError, match=rf"^dataset.labels must be {order}, the order of"):
        built(names, digits, classes)


def test_other_names_are_taken_in_order_and_said(digits, caplog):
    say.cache_clear()
    built(["Katze", "dog"], digits, ["cat", "dog"])
    assert "1 of the network's 2 classes" in caplog.text
    assert "'Katze' for 'cat'" in caplog.text
