import json

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from pipeline.findings import Findings
from pipeline.statistics import Estimate
from stages.results import figure_files, write_results


def findings(value):
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1])
    return Findings(
        numbers={"rho": Estimate(value, 0.1, 0.3, n=10, seeds=3)},
        timings={"t": Estimate(1.0, 1.0, 1.0, n=10)},
        curves={"loss": [1.0, float("nan")]},
        tables={"main": pd.DataFrame({"a": [1.0]})},
        figures={"rho / eps": figure},
        tensors={"r": torch.ones(2)},
        notes=["ten images"],
    )


HEADER = {"network": "net", "dataset": "data", "seeds": [0]}


def test_layout_and_nan_as_null(tmp_path):
    write_results(tmp_path, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    found = metrics["experiments"]["attack_l2"]
    assert found["section"] == "Table 3.1"
    assert found["numbers"]["rho"] == {
        "value": 0.2,
        "low": 0.1,
        "high": 0.3,
        "n": 10,
        "std": None,
        "seeds": 3,
    }
    assert found["curves"]["loss"] == [1.0, None]
    assert "t" not in found["numbers"]
    assert (
        json.loads((tmp_path / "timings.json").read_text())["experiments"]["attack_l2"]["numbers"][
            "t"
        ]["value"]
        == 1
    )
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    assert names == [
        "figures/attack_l2_rho_eps.png",
        "metrics.json",
        "tables/attack_l2_main.csv",
        "tensors/attack_l2.safetensors",
        "timings.json",
    ]


def test_same_findings_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_results(
            tmp_path / name, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"}
        )
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert (
            path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        ), path.name


def test_a_failure_leaves_the_old_results_whole(tmp_path):
    write_results(tmp_path, HEADER, {"attack_l2": findings(0.2)}, {"attack_l2": "Table 3.1"})
    before = (tmp_path / "metrics.json").read_bytes()
    broken = findings(0.5)
    broken.tables["bad"] = None
    with pytest.raises(AttributeError):
        write_results(tmp_path, HEADER, {"attack_l2": broken}, {"attack_l2": "Table 3.1"})
    assert (tmp_path / "metrics.json").read_bytes() == before
    assert not list(tmp_path.glob(".writing-*"))


def test_figures_drawn_by_others_are_the_same_and_a_lost_one_is_drawn_here(tmp_path):
    drawn = []

    def only_even(count, work):
        for index in range(0, count, 2):
            drawn.append(index)
            work(index)

    two = findings(0.2)
    two.figures["again"] = two.figures["rho / eps"]
    for folder, share in (("alone", None), ("shared", only_even)):
        write_results(
            tmp_path / folder, HEADER, {"attack_l2": two}, {"attack_l2": "Table 3.1"}, share
        )
    assert drawn == [0]
    files = figure_files(tmp_path / "alone", "attack_l2", two)
    assert sorted(files) == ["again", "rho / eps"]
    for path in files.values():
        assert path.read_bytes() == (tmp_path / "shared" / "figures" / path.name).read_bytes()
    assert not list(tmp_path.rglob("*.part"))
