import math
from dataclasses import replace

import pytest
import torch

from pipeline.studies.detector import Option
from pipeline.studies.evasion import evade
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import InputError
from robustness_geometry.detection import curvature_score
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import predict
from stages.detect.detect_scaled import Settings, detect_scaled

SMALL = Settings(
    calibration_samples=12,
    samples=14,
    directions=3,
    h_factors=(0.3, 3.0),
    resamples=60,
    alphas=(1.0, 4.0),
    knowing_steps=3,
)


@pytest.fixture(scope="module")
def found(network, data, executor):
    return detect_scaled(network, data, SMALL, executor.scope("detect_scaled"))


def test_every_factor_and_attack_has_its_baseline(found, looked_at):
    numbers = found.numbers
    for name in ("alpha_1", "alpha_4", "linf_deepfool", "pgd", "knowing"):
        gap = numbers[f"auc_{name}"].value - numbers[f"auc_confidence_{name}"].value
        assert numbers[f"auc_{name} - auc_confidence_{name}"].value == pytest.approx(gap)
    assert numbers["auc_alpha_1 - auc_alpha_4"].value == pytest.approx(
        numbers["auc_alpha_1"].value - numbers["auc_alpha_4"].value
    )
    assert (numbers["auc_alpha_4"].n, numbers["auc_alpha_4"].seeds) == (14, 2)
    assert (numbers["auc_linf_deepfool"].n, numbers["auc_linf_deepfool"].seeds) == (14, 1)
    assert numbers["share_wrong_alpha_1"].value == numbers["share_wrong_as_it_is"].value == 1.0
    assert found.tables["scaled"]["alpha"].tolist() == 2 * [1.0, 4.0]
    assert found.tables["scaled"]["point"].tolist() == 2 * ["closest"] + 2 * ["crossing"]
    assert (numbers["auc_alpha_4 (crossing)"].n, numbers["auc_alpha_4 (crossing)"].seeds) == (14, 2)
    assert len(found.tables["attacks"]) == 4
    assert len(found.tables["evasions"]) == 3
    assert looked_at(found) == ["attacks", "detectors", "figure_7_9_right"]


def test_other_attacks_are_tried_on_the_first_images(network, data, executor):
    few = replace(SMALL, unforeseen_samples=5)
    found = detect_scaled(network, data, few, executor.scope("detect_scaled"))
    assert (found.numbers["auc_knowing"].n, found.numbers["auc_alpha_1"].n) == (5, 14)
    assert any("the first 5 images" in note for note in found.notes)


def test_evasion_counts_wrong_labels_that_pass(found):
    numbers = found.numbers
    for name in ("as_it_is", "scaled", "knowing"):
        both = numbers[f"share_evading_both_{name}"].value
        for detector in ("curvature", "confidence"):
            assert (
                both
                <= numbers[f"share_evading_{detector}_{name}"].value
                <= numbers[f"share_wrong_{name}"].value
            )
    assert numbers["norm_knowing / norm_attack"].value <= 2.0 + 1e-3
    text = " ".join(found.notes)
    assert "Wrong labels that are not flagged" in text
    assert (
        numbers["share_evading_zero_knowing"].value
        >= numbers["share_evading_zero_scaled"].value - 0.2
    )
    assert "Curvature against 1 − the largest probability" in text


@pytest.mark.parametrize("option", [Option("softmax", 0.3, True), Option("softmax", 0.3, False)])
def test_the_attack_on_the_detector_lowers_the_score_and_keeps_the_wrong_label(
    network, data, option
):
    model, images = network.model, data.test.images[:8]
    start = deepfool(model, images)
    assert bool(start.success.all())
    before = [p.clone() for p in model.parameters()]
    result = evade(
        model,
        images,
        start.perturbations,
        option=option,
        candidates=None,
        directions=20,
        scale=3.0,
        steps=10,
        generator=seeded("attacker"),
    )
    assert bool(result.success.all())
    assert bool((predict(model, result.adversarial(images)) != start.labels).all())
    assert bool(
        (norms(result.perturbations) <= 3.0 * norms(start.perturbations) * (1 + 1e-4)).all()
    )
    judge = {
        "h": option.h,
        "output": option.output,
        "normalise": option.normalise,
        "directions": 50,
    }
    scores = [
        curvature_score(model, images + r.perturbations, **judge, generator=seeded("judge")).scores
        for r in (start, result)
    ]
    assert float((scores[1] - scores[0]).mean()) < 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_where_the_attack_failed_nothing_is_changed(network, data):
    images = data.test.images[:3]
    result = evade(
        network.model,
        images,
        torch.zeros_like(images),
        option=Option("logits", 0.3, False),
        candidates=2,
        directions=2,
        scale=2.0,
        steps=2,
    )
    assert not bool(result.success.any())
    assert float(result.perturbations.abs().max()) == 0.0


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"alphas": ()}, "alphas must be"),
        ({"alphas": (2.0, 1.0)}, "alphas must be"),
        ({"alphas": (0.0, 1.0)}, "alphas must be .*; got 0"),
        ({"unforeseen_seeds": 0}, "unforeseen_seeds must be .*; got 0"),
        ({"unforeseen_samples": 1}, "unforeseen_samples must be .*; got 1"),
        ({"knowing_steps": 0}, "knowing_steps must be .*; got 0"),
        ({"knowing_radius": 0.5}, "knowing_radius must be .*; got 0.5"),
        ({"knowing_radius": math.inf}, "knowing_radius must be .*; got inf"),
        ({"eps_factor": 0.0}, "eps_factor must be .*; got 0"),
        ({"directions": 0}, "directions must be .*; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        replace(SMALL, **options)
