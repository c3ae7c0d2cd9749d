"""One sentence for every input that cannot be used."""

import pickle
import sys
from pathlib import Path

import pytest
import torch

from robustness_geometry.attacks import autoattack
from robustness_geometry.checks import NOTHING, Described, InputError, one_of, refuse

SENTENCES = [
    ("two", "norm must be 2 or inf; got 'two'"),
    (3.0, "norm must be 2 or inf; got 3.0"),
    ((1, 2), "norm must be 2 or inf; got (1, 2)"),
    (None, "norm must be 2 or inf; got None"),
    (Path("a") / "b", "norm must be 2 or inf; got 'a/b'"),
    (Described("NaN values"), "norm must be 2 or inf; got NaN values"),
    (NOTHING, "norm must be 2 or inf; got nothing"),
]


@pytest.mark.parametrize(("value", "sentence"), SENTENCES)
def test_the_sentence(value, sentence):
    with pytest.raises(InputError) as caught:
        refuse("norm", value, "2 or inf")
    assert str(caught.value) == sentence
    assert caught.value.key == "norm"


def test_errors_survive_the_way_between_processes():
    again = pickle.loads(pickle.dumps(InputError("norm must be 2; got 3", "norm")))
    assert (str(again), again.key) == ("norm must be 2; got 3", "norm")


def test_names_to_choose_from():
    assert one_of(("sgd", "adam")) == "one of sgd, adam"


def test_autoattack_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    with pytest.raises(InputError, match=r"robustness-geometry\[autoattack\]"):
        autoattack(model, torch.rand(2, 1, 2, 2), eps=0.1)
