import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipeline.evaluation import held_out
from pipeline.studies.detector import POINTS, Option, detector_studies, moved
from pipeline.studies.detector_options import choose
from robustness_geometry.attacks import fgsm
from robustness_geometry.checks import InputError
from robustness_geometry.detection import confidence, curvature_score
from stages.detect.detect_roc import Settings, detect_roc

SMALL = Settings(
    calibration_samples=14, samples=18, directions=3, h_factors=(0.3, 3.0), resamples=60
)


@pytest.fixture(scope="module")
def found(network, data, executor):
    return detect_roc(network, data, SMALL, executor.scope("detect_roc"))


def test_numbers_are_those_of_the_scores(found, network, data, executor):
    study = detector_studies(network, data, SMALL, executor)[1]
    option = choose(detector_studies(network, data, SMALL, executor)[0]).option
    images = held_out(data, 32).images
    report = study.test.images
    assert torch.equal(torch.cat([study.train.images, report]), images)
    assert torch.equal(
        torch.cat([study.train.labels, study.test.labels]), held_out(data, 32).labels
    )
    attacked = study.perturbed(report, "closest")
    perturbed = moved(report, attacked)
    scores = [study.score(each, option).scores for each in (report, perturbed)]
    clean, changed = found.tensors["score_clean"][1], found.tensors["score_perturbed"][1]
    torch.testing.assert_close(clean, scores[0].float())
    kept = attacked.success
    torch.testing.assert_close(changed[kept], scores[1][kept].float())
    areas = [
        roc_auc_score([0] * len(a) + [1] * len(b), torch.cat([a, b]))
        for a, b in zip(found.tensors["score_clean"], found.tensors["score_perturbed"], strict=True)
    ]
    assert found.numbers["auc_curvature"].value == pytest.approx(sum(areas) / 2)
    sure = [confidence(study.model, each).scores for each in (report, perturbed)]
    torch.testing.assert_close(study.confidence(perturbed).scores, sure[1])
    exact = curvature_score(
        study.model,
        report,
        h=option.h,
        output=option.output,
        normalise=option.normalise,
        directions=3,
    )
    assert torch.equal(exact.labels, study.score(report, option).labels)
    beside = study.attacked(report)
    scores = study.score(moved(report, beside), option).scores[beside.success]
    kept = found.tensors["score_perturbed_crossing"][1][beside.success]
    torch.testing.assert_close(kept, scores.float())


def test_the_sweep_holds_every_option_and_says_which_was_chosen(found):
    table = found.tables["options"]
    assert len(table) == 2 * 2 * 2
    assert set(table["output"]) == {"softmax", "logits"}
    judged = table[table["chosen for"].str.contains("judged")]
    assert len(judged) == 1
    assert judged["auc"].iloc[0] == table["auc"].max()
    assert (table["low"] <= table["auc"]).all()
    assert (table["images"] == 14).all()
    for name, divided in (("normalised", True), ("undivided", False)):
        of_one_kind = table[table["divided by gradient norm"] == divided]
        chosen = of_one_kind[of_one_kind["chosen for"].str.startswith(name)]
        assert chosen["auc"].tolist() == [of_one_kind["auc"].max()]
    assert all(
        f"{column}{end}" in table
        for column in ("auc", "label recovered at 0")
        for end in POINTS.values()
    )


def test_both_scores_are_reported_and_the_judged_one_has_the_plain_names(found):
    numbers, table = found.numbers, found.tables["detectors"]
    judged = table[table["judged"] == "yes"]
    assert judged["point"].tolist() == ["closest"]
    assert judged["auc"].iloc[0] == numbers["auc_curvature"].value
    pair = numbers["auc_normalised"], numbers["auc_undivided"]
    assert numbers["auc_curvature"] in pair
    for end in POINTS.values():
        assert numbers[f"accuracy_best_curvature{end}"] in (
            numbers[f"accuracy_best_normalised{end}"],
            numbers[f"accuracy_best_undivided{end}"],
        )
        assert -1 <= numbers[f"pearson(kappa_z, kappa_x){end}"].value <= 1
    assert numbers["alignment"].value > 0.999
    assert numbers["alignment"].value >= numbers["alignment (crossing)"].value
    text = " ".join(found.notes)
    assert "Claims are judged by it, in the recovery of labels too" in text
    assert "the perturbed image is x + 1.02 r" in text


def test_every_number_has_its_images_and_baseline(found, looked_at):
    numbers = found.numbers
    assert (numbers["auc_curvature"].n, numbers["auc_curvature"].seeds) == (18, 2)
    for detector in ("curvature", "confidence", "both"):
        assert (
            numbers[f"auc_{detector}"].low
            <= numbers[f"auc_{detector}"].value
            <= numbers[f"auc_{detector}"].high
        )
        assert numbers[f"accuracy_best_{detector}"].value >= 0.5
        assert 0 <= numbers[f"share_flagged_clean_{detector}"].value <= 1
    gap = numbers["auc_curvature"].value - numbers["auc_confidence"].value
    assert numbers["auc_curvature - auc_confidence"].value == pytest.approx(gap)
    assert -1 <= numbers["pearson(kappa_z, kappa_x)"].value <= 1
    assert found.tables["detectors"]["images"].tolist() == 8 * [18]
    assert any("for the curvature" in note and "for both together" in note for note in found.notes)
    assert looked_at(found) == ["figure_7_9_left", "options", "scores"]


def test_failed_attacks_are_left_out_and_counted(network, data, executor):
    weak = replace(SMALL, attack=partial(fgsm, eps=0.15))
    found = detect_roc(network, data, weak, executor.scope("detect_roc"))
    missing = int(found.tensors["score_perturbed_crossing"].isnan().sum())
    assert 0 < missing < 36
    assert any(f"left out: 0 and {missing} of 36" in note for note in found.notes)
    assert found.numbers["auc_curvature (crossing)"].n < 18
    assert found.numbers["auc_curvature"].n == 18


def test_an_attack_that_fools_nothing_is_refused(network, data, executor):
    with pytest.raises(InputError, match=r"attack must be an attack that fools some.*; got 'fgsm'"):
        detect_roc(network, data, replace(SMALL, attack=partial(fgsm, eps=1e-9)), executor)


def test_an_affine_network_has_no_curvature_of_the_logits_and_some_of_the_softmax(
    affine, data, executor
):
    study = detector_studies(affine, data, SMALL, executor)[0]
    choice = choose(study)
    logits = [trial for trial in choice.trials if trial.option.output == "logits"]
    assert all(trial.resolved < 0.5 for trial in logits)
    assert {option.output for option in choice.options.values()} == {"softmax"}


def test_steps_at_which_nothing_bends_are_refused(affine, data, executor):
    with pytest.raises(InputError, match=r"h_factors must be steps at which the network bends"):
        detect_roc(affine, data, replace(SMALL, h_factors=(1e-5,)), executor)


def test_options_say_what_they_are():
    assert str(Option("softmax", 0.5, True)) == "softmax, h = 0.5, divided by the gradient's norm"
    assert str(Option("logits", 0.123456, False)).startswith("logits, h = 0.123, not divided")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"candidates": 1}, "candidates must be .*; got 1"),
        ({"false_positive_rate": 0.0}, "false_positive_rate must be .*; got 0"),
        ({"false_positive_rate": 1.0}, "false_positive_rate must be .*; got 1"),
        ({"false_positive_rate": math.nan}, "false_positive_rate must be .*; got nan"),
        ({"samples": 1}, "samples must be .*; got 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        replace(SMALL, **options)
