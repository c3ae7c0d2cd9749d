import json
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import contenders
from benchmarks.__main__ import _write_speed, main
from benchmarks.comparison import Subject
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.minimum_norm import (
    Task,
    attackbench_rows,
    document,
    measure_task,
    optimality,
    write_figure,
)
from robustness_geometry.attacks import deepfool, nearest
from robustness_geometry.certify import exact_distance

CLASSES, PIXELS = 3, 16


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES)).eval()
    return Subject.of(model, 0.3 + 0.4 * torch.rand(6, 1, 4, 4))


def own(attack, model, images, labels, box, options):
    return attack(model, images, labels=labels, clip=box, **options).adversarial(images)


def steps(model, images, labels, box, options):
    """A peer that takes ``steps`` gradients, and then the step of an affine network, so much longer
    as ``stretch`` says; it fails on the first ``failures`` images."""
    for _ in range(options["steps"]):
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)
    hit = deepfool(model, images, labels=labels, overshoot=1e-5).perturbations
    hit[: options.get("failures", 0)] = 0
    return images + options["stretch"] * hit


FAKE = Contender("fake", None, steps, {10: {"steps": 3, "stretch": 1.5}})
OWN = Contender("nearest", None, partial(own, nearest), {30: {}})


def only(found, name):
    (row,) = [row for row in found["rows"] if row["attack"] == name]
    return row


def test_gaps_and_passes_on_an_affine_network_are_those_by_hand(subject):
    exact = exact_distance(subject.model, subject.images).upper
    found = measure_task(Task("affine", subject, None, exact, 6), [OWN, FAKE], [])
    assert found["reference"] == "exact"
    near, fake = only(found, "nearest"), only(found, "fake")
    assert near["gap"]["value"] == pytest.approx(0, abs=1e-4)
    assert near["optimality"]["value"] == pytest.approx(1, abs=1e-3)
    assert fake["gap"]["value"] == pytest.approx(0.5, abs=1e-3)
    assert fake["gap"]["low"] == pytest.approx(0.5, abs=1e-3)
    assert fake["mean_norm"] == pytest.approx(1.5 * exact.mean().item(), rel=1e-3)
    assert near["ASR"]["value"] == fake["ASR"]["value"] == 1
    # DeepFool on an affine network: one gradient of each difference, and looks before and after.
    with_none = measure_task(
        Task("affine", subject, None, exact, 6),
        [Contender("fake", None, steps, {10: {"steps": 0, "stretch": 1.5}})],
        [],
    )["rows"][0]
    assert fake["forward"] - with_none["forward"] == 3
    assert fake["backward"] - with_none["backward"] == 3


def test_the_best_known_comes_from_judged_attacks_and_long_runs(subject):
    exact = exact_distance(subject.model, subject.images).upper
    task = Task("affine", subject, None)
    alone = measure_task(task, [FAKE], [])
    assert alone["reference"] == "best known"
    assert alone["rows"][0]["gap"]["value"] == 0
    long = measure_task(task, [FAKE], [OWN])
    assert long["mean_reference"] == pytest.approx(exact.mean().item(), rel=1e-3)
    assert long["rows"][0]["gap"]["value"] == pytest.approx(0.5, abs=1e-3)
    unjudged = Contender("nearest", None, OWN.attack, OWN.options, judged=False)
    assert measure_task(task, [FAKE, unjudged], [])["rows"][0]["gap"]["value"] == 0


def test_a_failure_counts_in_optimality_and_not_in_the_gap(subject):
    failing = Contender("fake", None, steps, {10: {"steps": 1, "stretch": 1.5, "failures": 2}})
    exact = exact_distance(subject.model, subject.images).upper
    row = measure_task(Task("affine", subject, None, exact, 6), [failing], [])["rows"][0]
    assert row["ASR"]["value"] == pytest.approx(4 / 6)
    assert row["gap"]["value"] == pytest.approx(0.5, abs=1e-3)
    capped = (1.5 * exact).clamp_max(exact.max())
    capped[:2] = exact.max()
    expected = 1 - (capped.mean() - exact.mean()) / (exact.max() - exact.mean())
    assert row["optimality"]["value"] == pytest.approx(expected.item(), abs=1e-3)
    distances = torch.cat([torch.full((2,), torch.inf), 1.5 * exact[2:]])
    assert optimality(distances, exact) == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("distances", "expected"),
    [([1.0, 2.0, 3.0], 1.0), ([torch.inf] * 3, 0.0), ([2.0, 3.0, 9.0], 1 / 3)],
)
def test_optimality_is_one_for_the_best_and_zero_for_nothing(distances, expected):
    best = torch.tensor([1.0, 2.0, 3.0])
    assert optimality(torch.tensor(distances), best) == pytest.approx(expected)


def test_what_leaves_the_box_is_clipped_before_it_is_judged(subject):
    far = Contender("fake", None, steps, {10: {"steps": 0, "stretch": 1e4}})
    row = measure_task(Task("affine", subject, (0.0, 1.0)), [far], [])["rows"][0]
    assert row["mean_norm"] <= PIXELS**0.5


def test_results_go_to_tables_figure_and_attackbench_rows(subject, tmp_path):
    two = Contender("fake", None, steps, {10: {"steps": 1, "stretch": 3.0}, 30: FAKE.options[10]})
    tasks = [measure_task(Task("affine", subject, None), [OWN, two], [])]
    machine = {"device": "x", "threads": 1, "cpus": 2, "torch": "2", "load_average": [0.0]}
    results = {"machine": machine, "networks": tasks, "missing": [], "batch": 100, "seconds": 1.0}
    rows = attackbench_rows(results)
    assert len(rows) == 3
    fields = {"dataset", "attack", "library", "model", "threat_model", "ASR", "optimality"}
    assert fields | {"n_forwards", "n_backwards", "time"} <= rows[0].keys()
    assert json.loads(json.dumps(rows)) == rows
    assert json.loads(json.dumps(results)) == results
    lines = document(results, "figure.png")
    assert "![Gap and optimality against passes](figure.png)" in lines
    assert len([line for line in lines if line.startswith("| fake | this project |")]) == 2
    write_figure(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_same_run_gives_the_same_numbers(subject):
    first, second = (measure_task(Task("affine", subject, None), [OWN, FAKE], []) for _ in "ab")
    for found in (first, second):
        for row in found["rows"]:
            del row["seconds"]
    assert first == second


def test_without_a_box_a_peer_that_clips_works_in_a_wider_one(subject):
    seen = []

    def run(model, images, labels, unit, options):
        seen.append((images.min(), images.max(), unit))
        return model.inputs(torch.full_like(images, 1.5))

    found = contenders._in_box(run, subject.model, subject.images, subject.labels, None, {})
    torch.testing.assert_close(found, torch.full_like(found, 1.5))
    assert seen[0][2] == 3
    assert 1 / 3 <= seen[0][0] <= seen[0][1] <= 2 / 3


def test_every_installed_contender_fools_at_its_largest_budget(subject):
    for each in CONTENDERS:
        if each.installed and each.judged and each.distribution is None:
            row = measure_task(Task("affine", subject, (0.0, 1.0)), [each], [])["rows"][-1]
            assert row["ASR"]["value"] == 1
            assert row["forward"] > 0 < row["backward"]


def test_a_part_takes_the_place_of_the_old_one_and_names_its_machine(tmp_path):
    machine = {"device": "X 1", "cpus": 2, "threads": 2, "python": "3", "torch": "2"}
    before, after = (machine | {"load_average": [load]} for load in (1.0, 2.0))
    old = {"network": "n", "machine": before, "missing": [], "cure": {}, "subspaces": "kept"}
    (tmp_path / "x-1.json").write_text(json.dumps(old))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.__main__.markdown", lambda results: str(results["machines"]))
        _write_speed({"network": "n", "machine": after, "missing": [], "cure": {"a": 1}}, tmp_path)
    found = json.loads((tmp_path / "x-1.json").read_text())
    assert (found["cure"], found["subspaces"]) == ({"a": 1}, "kept")
    assert (found["machine"], found["machines"]) == (before, {"cure": after})


@pytest.mark.parametrize("option", ["only", "peers"])
def test_a_part_or_library_that_does_not_exist_is_named(option, capsys):
    assert main([f"--{option}", "norms"]) == 2
    assert f"{option} must be" in capsys.readouterr().err
