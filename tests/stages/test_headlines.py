"""The table that a direct run prints."""

import json
import math

import pytest

from pipeline.findings import Findings
from pipeline.statistics import Estimate
from stages.headlines import headlines

ENDS = ("value", "low", "high")


def numbers(*names, value=0.25):
    return Findings(numbers={name: Estimate(value, 0.2, 0.3, n=500) for name in names})


def test_values_intervals_and_n_stand_below_each_other():
    found = {"attack_l2": numbers("rho_df", "share_fooled_df"), "b": numbers("x", value=1234.56)}
    assert headlines(found) == "\n".join(
        [
            "                            value  95% interval    n",
            "attack_l2  rho_df            0.25  [0.2, 0.3]    500",
            "           share_fooled_df   0.25  [0.2, 0.3]    500",
            "b          x                 1235  [0.2, 0.3]    500",
        ]
    )


def test_comparisons_come_last_and_the_attack_that_was_asked_for_first():
    found = {f"e{index}": numbers("a - b", "a", "rho_attack") for index in range(5)}
    lines = headlines(found).splitlines()[1:]
    assert [line[4:].split()[0] for line in lines] == ["rho_attack", "a"] * 5


def test_what_was_not_measured_says_so():
    found = {
        "a": Findings(notes=["Not measured on net: photos has no training images. " + "x" * 80]),
        "b": Findings(numbers={"rho": Estimate(math.nan, math.nan, math.nan, n=0)}),
        "c": Findings(numbers={"k": Estimate(3, math.nan, math.nan, n=1)}),
    }
    lines = headlines(found).splitlines()
    assert lines[1].startswith("a  Not measured on net: photos has no training images. ")
    assert lines[2].split() == ["b", "rho", "none", "0"]
    assert lines[3].split() == ["c", "k", "3", "1"]
    assert headlines({"a": found["a"]}) == headlines({}) == ""


@pytest.mark.parametrize("stage", ["attack", "curvature", "cure", "universal_transfer", "train"])
def test_the_committed_results_fit_a_terminal(root, stage):
    folder = next((root / "results" / "embedded" / stage).iterdir())
    metrics = json.loads((folder / "metrics.json").read_text())["experiments"]
    found = {
        name: Findings(
            numbers={
                key: Estimate(*(math.nan if e[k] is None else e[k] for k in ENDS), e["n"])
                for key, e in each["numbers"].items()
            }
        )
        for name, each in metrics.items()
    }
    lines = headlines(found).splitlines()
    assert 2 <= len(lines) <= 13
    assert max(map(len, lines)) <= 80
    assert headlines(found).isascii()
