"""The text that a message tells one to type is taken by shell and Hydra, and means the value."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from stages.mistakes import quoted

VALUES = [
    "/data/a=b",
    "/w/epoch=3-step=10.ckpt",
    "a.b(c=1)",
    "/my pictures (1)",
    "/it's",
    'the "best"',
    "/x{y}",
    "/ä#&;!@",
    "C:\\data=1\\",
    'a\\"=b',
    "[a",
    "a,b=c",
]


def taken(typed):
    (word,) = shlex.split(typed)
    return OverridesParser.create().parse_override(word)


@pytest.mark.parametrize("value", VALUES)
def test_what_is_to_be_typed_means_the_value(value):
    override = taken(quoted("dataset.root", value))
    assert override.key_or_group == "dataset.root"
    assert override.value() == value


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("{a: b=c, n: 3}", {"a": "b=c", "n": 3}),
        ("[/w/a=1.ckpt,/w/b=2.ckpt]", ["/w/a=1.ckpt", "/w/b=2.ckpt"]),
        ("~/a=b", f"{Path.home()}/a=b"),
    ],
)
def test_lists_mappings_and_the_home_folder_keep_their_meaning(value, meant):
    assert taken(quoted("key", value)).value() == meant


def test_in_a_sweep_each_value_is_quoted():
    override = taken(quoted("model.checkpoint", "/w/epoch=1.ckpt,/w/epoch=2.ckpt", each=True))
    assert override.is_sweep_override()
    assert list(override.sweep_string_iterator()) == ['"/w/epoch=1.ckpt"', '"/w/epoch=2.ckpt"']
