import pytest
import torch

from pipeline.studies.detector import detector_studies, moved
from pipeline.studies.detector_options import choose
from stages.detect.label_recovery import Settings, label_recovery

SMALL = Settings(
    calibration_samples=14, samples=18, directions=3, h_factors=(0.3, 3.0), resamples=60
)


def test_recovered_labels_are_counted_against_the_runner_up(network, data, executor, looked_at):
    found = label_recovery(network, data, SMALL, executor.scope("label_recovery"))
    made = detector_studies(network, data, SMALL, executor)
    choice = choose(made[0])
    option = choice.option
    shares, second = [], []
    for study in made:
        attacked = study.perturbed(study.test.images, "closest")
        points = moved(study.test.images, attacked)
        scored = study.score(points, option)
        right = (scored.recovered == attacked.labels) & (scored.scores >= 0)
        shares.append(right[attacked.success].double().mean())
        with torch.no_grad():
            order = study.model(points).topk(2, dim=1).indices
        second.append((order[:, 1] == attacked.labels)[attacked.success].double().mean())
    assert found.numbers["share_recovered"].value == pytest.approx(float(sum(shares) / 2), abs=0.02)
    assert found.numbers["share_recovered_runner_up"].value == pytest.approx(
        float(sum(second) / 2), abs=0.02
    )
    gap = found.numbers["share_recovered"].value - found.numbers["share_recovered_runner_up"].value
    assert found.numbers["share_recovered - share_recovered_runner_up"].value == pytest.approx(gap)
    assert found.numbers["share_recovered"].value <= found.numbers["share_recovered_named"].value
    assert (found.numbers["share_recovered"].n, found.numbers["share_recovered"].seeds) == (18, 2)
    assert 0 <= found.numbers["share_clean_relabelled"].value <= 1
    assert found.numbers["share_recovered"] == found.numbers[f"share_recovered_{choice.judged}"]
    assert found.tables["rules"]["point"].tolist() == 6 * ["closest"] + 6 * ["crossing"]
    beside = made[0].attacked(made[0].test.images)
    points = moved(made[0].test.images, beside)
    scored = made[0].scores(points, choice.options)["normalised"]
    right = ((scored.recovered == beside.labels) & (scored.scores >= 0))[beside.success]
    row = found.tables["rules"].query("point == 'crossing'").iloc[3]
    assert "Algorithm 6" in row["rule"]
    kept = found.numbers["share_recovered_normalised (crossing)"]
    assert row["share recovered"] == kept.value
    assert float(right.double().mean()) == pytest.approx(2 * kept.value - _other(made[1], choice))
    assert any("runner-up class, which is right for" in note for note in found.notes)
    assert any("guessing among the other classes would give 0.50" in note for note in found.notes)
    assert looked_at(found) == ["rules"]


def _other(study, choice):
    """The share of labels that the normalised score recovers for one training seed."""
    attacked = study.attacked(study.test.images)
    scored = study.scores(moved(study.test.images, attacked), choice.options)["normalised"]
    right = (scored.recovered == attacked.labels) & (scored.scores >= 0)
    return float(right[attacked.success].double().mean())
