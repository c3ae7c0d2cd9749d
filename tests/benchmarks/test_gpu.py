import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import curvature, measurement
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.measurement import measure, measure_blocks, prepare
from benchmarks.gpu.networks import SMALL, network, smooth_images
from benchmarks.gpu.record import Limits, Record
from benchmarks.gpu.report import markdown
from robustness_geometry.models import resnet18

CPU = torch.device("cpu")
ONE = replace(
    SMALL[0],
    name="one",
    build=partial(resnet18, width=4),
    images=2,
    compared=1,
    trained=2,
    curved=1,
    leading=1,
)
MANY = replace(ONE, name="many", classes=12, candidates=10, few=1, profile=False)


def test_every_row_is_measured_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "SMALL", (ONE, MANY))
    out = tmp_path / "deep" / "card.json"
    assert main(["--small", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert results["skipped"] == []
    rows = {(row["network"], row["name"]): row for row in results["rows"] if row.get("rounds")}
    for name in (
        "deepfool, prune=2",
        "deepfool, prune=None",
        "boundary_points",
        "nearest",
        "CURE step",
        "PGD(10) step",
    ):
        for place in ("one", "many"):
            assert rows[place, name]["seconds"]["min"] > 0
    every = rows["one", "deepfool, prune=None"]
    assert every["success"] == 1
    assert every["backward"] % 9 == 0
    assert every["mean_norm"] == pytest.approx(
        rows["one", "deepfool, prune=2"]["mean_norm"], rel=1e-3
    )
    assert rows["one", "principal_curvatures"]["backward"] == 2 * 192 + 1
    assert rows["one", "CURE step"]["ratio"].keys() == {"plain step", "PGD(10) step"}
    once = [row for row in results["rows"] if row["network"] == "many" and "seconds" not in row]
    assert {"deepfool, prune=2", "deepfool, prune=None"} < {row["name"] for row in once}
    assert {row["name"] for row in results["agreement"]} == {
        "deepfool, unclipped, prune=2",
        "boundary_points",
        "nearest",
    }
    for place in ("one", "many"):
        found = rows[place, "nearest"]
        assert found["success"] == 1
        assert found["forward"] > 0 < found["backward"]
        assert found["mean_norm"] <= rows[place, "deepfool, unclipped, prune=2"]["mean_norm"]
    assert all(row["max"] == 0 and row["agree"] == 1 for row in results["agreement"])
    text = out.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert "## one, fp32" in text
    assert not list(out.parent.glob("*.part"))


def test_what_there_is_no_time_for_is_named(tmp_path):
    record = Record(
        tmp_path / "card.json",
        Limits(seconds=0.0),
        {"machine": {"device": "x", "torch": "2", "python": "3"}},
    )
    measure((MANY,), CPU, record)
    assert record.results["rows"] == []
    assert record.results["skipped"] == [
        "many: network, and all that is measured on it: out of time"
    ]
    assert "- many: network, and all" in markdown(json.loads((tmp_path / "card.json").read_text()))


def test_rows_that_come_too_late_are_named():
    record = Record(
        None, Limits(rounds=1, block=0.0), {"machine": {"device": "x", "torch": "2", "python": "3"}}
    )
    base = prepare(MANY, CPU)
    record.limits = Limits(seconds=0.0)
    measure_blocks(base, "fp32", record)
    assert record.results["skipped"] == [
        f"many, fp32: {name}: out of time"
        for name in ("DeepFool", "boundary", "training", "curvature")
    ]


def test_a_failure_costs_its_own_row_only(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such kernel\nat line 1")

    for name in ("deepfool_block", "boundary_block", "training_block"):
        monkeypatch.setattr(measurement, name, broken)
    monkeypatch.setattr(curvature, "principal_curvatures", broken)
    record = Record(
        None, Limits(rounds=1, block=0.0), {"machine": {"device": "x", "torch": "2", "python": "3"}}
    )
    measure((ONE,), CPU, record)
    names = ("DeepFool", "boundary", "training")
    assert record.results["skipped"] == [
        f"one, fp32: {name}: no such kernel (RuntimeError)" for name in names
    ]
    rows = {row["name"]: row for row in record.results["rows"]}
    assert [name for name, row in rows.items() if "failed" in row] == ["principal_curvatures"]
    assert rows["leading_curvatures, count=1"]["rounds"] == 1
    assert "failed: no such kernel (RuntimeError)" in markdown(record.results)


def test_networks_and_images_are_fixed_and_labels_differ():
    images = smooth_images(32, 8, CPU, seed=1)
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    first, second = (network(ONE, CPU)(images) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first.argmax(dim=1).unique()) > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_full_run_needs_a_gpu(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err == "a GPU is needed; --small runs without one\n"
