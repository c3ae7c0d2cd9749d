"""Names of folders lead nowhere else, and weights of an earlier stage are those that it wrote."""

import pytest

from pipeline.ledger import digest, write_list
from robustness_geometry.checks import InputError
from stages.command_line import _missing
from stages.networks import check_as_written
from stages.refusals import plain_name

BAD = [
    "",
    "..",
    "../..",
    "a/b",
    "/etc",
    "~",
    ".hidden",
    "a b",
    "a\nb",
    "a;b",
    "$HOME",
    "-x",
    "x" * 101,
]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_no_plain_one_is_refused(name):
    with pytest.raises(
        InputError, match=r"^networks must be a plain name of at most 100"
    ) as caught:
        plain_name("networks", name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["mnist5k_lenet", "efficientnet-lite1", "resnet18.v2", "7", "größe"]
)
def test_plain_names_pass(name):
    plain_name("networks", name)


def test_weights_that_were_changed_since_are_refused(tmp_path):
    path = tmp_path / "tensors" / "seed0.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    check_as_written(path)  # no list: a fresh checkout
    write_list(tmp_path, {"tensors/seed0.safetensors": digest(path)})
    check_as_written(path)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="the file that the stage train wrote; it was changed"):
        check_as_written(path)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", "suite, networks, seeds, executor, tracking"),
        ("[1, 2]", "keys"),
        ("suite: {}\nnetworks: {}\n", "seeds, executor, tracking"),
        ("defaults: [base]\n", ""),
    ],
)
def test_a_composed_configuration_that_was_cut_short_is_noticed(tmp_path, text, missing):
    path = tmp_path / "params.yaml"
    assert _missing(path) == ""
    path.write_text(text)
    assert _missing(path) == missing
