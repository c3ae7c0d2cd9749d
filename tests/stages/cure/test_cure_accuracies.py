"""Tables 8.2 and 8.3, the ablation and the eps curve: numbers by hand, the same everywhere."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from pipeline.evaluation import correct, held_out
from pipeline.statistics import Estimate
from pipeline.studies import accuracy as _accuracy
from pipeline.studies.cure import TITLES, CureStudy, Tuned, cure_studies
from pipeline.studies.cure_settings import AdversarySettings, TableSettings
from robustness_geometry.attacks import pgd
from robustness_geometry.checks import InputError
from robustness_geometry.randomness import per_image
from robustness_geometry.training import Cure
from robustness_geometry.types import Split
from stages.cure.cure_cifar10 import Settings as Table82
from stages.cure.cure_cifar10 import cure_cifar10
from stages.cure.cure_cost_ablation import Settings as Ablation
from stages.cure.cure_cost_ablation import cure_cost_ablation
from stages.cure.cure_eps_curve import Settings as Curve
from stages.cure.cure_eps_curve import _rise, cure_eps_curve
from stages.cure.cure_svhn import Settings as Table83
from stages.cure.cure_svhn import cure_svhn

SWEEP = ((0.5, 0.0), (0.25, 2.0), (0.5, 2.0))


@pytest.fixture(scope="module")
def table82(network, data, executor, made):
    settings = Table82(**made.with_pgd, autoattack_seeds=0, square_queries=20, sweep=SWEEP)
    return cure_cifar10(network, data, settings, executor.scope("cure_cifar10"))


@pytest.fixture(scope="module")
def ablation(network, data, executor, made):
    settings = Ablation(**made.with_pgd, timed_steps=1, rounds=2)
    return cure_cost_ablation(network, data, settings, executor.scope("cure_cost_ablation"))


@pytest.fixture(scope="module")
def curve(network, data, executor, made):
    settings = Curve(**made.with_pgd, factors=(0.5, 1.0, 2.0, 8.0))
    return cure_eps_curve(network, data, settings, executor.scope("cure_eps_curve"))


def by_hand(network, data, executor, made, name, attack):
    """Accuracy under an attack on the true labels, with the random numbers of the stage."""
    found, test = [], held_out(data, 30)
    for study in cure_studies(network, data, AdversarySettings(**made.with_pgd), executor):
        model, generators = study.tuned(name).model, per_image(study.seed, "shared", range(30))
        result = attack(model, test.images, labels=test.labels, generator=generators)
        found.append(
            correct(model, test.images, test.labels)
            & correct(model, result.adversarial(test.images), test.labels)
        )
    return float(torch.stack(found).double().mean())


def test_clean_and_robust_accuracies(table82, network, data, made):
    test = held_out(data, 30)
    right = [correct(model, test.images, test.labels) for model in network.models.values()]
    numbers = table82.numbers
    assert numbers["clean_original"].value == pytest.approx(
        float(torch.stack(right).double().mean())
    )
    assert numbers["adv_original"].value < numbers["clean_original"].value
    assert numbers["adv_advtrain"].value > numbers["adv_original"].value
    for name in ("cure", "original", "advtrain"):
        assert (numbers[f"adv_{name}"].n, numbers[f"adv_{name}"].seeds) == (30, 2)
    gap = numbers["adv_cure"].value - numbers["adv_original"].value
    assert numbers["adv_cure - adv_original"].value == pytest.approx(gap)
    rows = table82.tables["table_8_2"]
    assert rows["training"].unique().tolist() == ["normal training", "CURE", "PGD training"]
    assert rows["measured_on"].unique().tolist() == [
        "clean images",
        "under attack",
        "under attack, larger ball",
        "under Square",
    ]


def test_every_experiment_gives_a_network_the_same_accuracy(table82, ablation, curve):
    for name in ("original", "cure", "advtrain"):
        for measure, place in (("clean", 0), ("adv", 2)):
            wanted = table82.numbers[f"{measure}_{name}"]
            assert ablation.numbers[f"{measure}_{name}"].value == wanted.value
            assert curve.numbers[f"adv_{name}_{place}"].value == wanted.value


def test_the_larger_ball_has_its_own_radius(table82, network, data, executor, made):
    wanted = by_hand(
        network, data, executor, made, "original", partial(pgd, eps=2 * made.eps, steps=4)
    )
    assert table82.numbers["far_original"].value == pytest.approx(wanted)
    assert "the larger ball has the radius 2 eps" in " ".join(table82.notes)


def test_the_sweep_holds_its_pairs_once_and_marks_the_chosen_one(table82):
    sweep = table82.tables["sweep"]
    assert list(zip(sweep["h"], sweep["lambda"], strict=True)) == list(SWEEP)
    assert sweep["chosen"].tolist() == [False, False, True]
    assert (sweep["seeds"] == 1).all()
    assert (sweep["images"] == 18).all()  # a fifth of the training images


def test_the_sweep_is_judged_on_validation_images(table82, network, data, executor, made):
    study = cure_studies(network, data, AdversarySettings(**made.with_pgd), executor)[0]
    own = study.right(study.tuned("cure").model, study.judge(), study.tried)
    chosen = table82.tables["sweep"].query("chosen").iloc[0]
    assert chosen["adv"] == pytest.approx(float(own.mean()))
    plain = table82.tables["sweep"].query("`lambda` == 0").iloc[0]
    tuned = study.trained(Cure(0.0, 0.5, 2), made.small["training"], "plain").model
    own = study.right(tuned, study.judge(), study.tried)
    assert plain["adv"] == pytest.approx(float(own.mean()))


def test_the_curves_of_the_training_are_those_of_both_terms(table82, network, data, executor, made):
    curves = table82.tables["training"]
    assert curves["epoch"].tolist() == [1, 2, 3, 4]
    total = curves["cross_entropy"] + 2.0 * curves["penalty"]
    assert curves["train_loss"].tolist() == pytest.approx(total.tolist(), rel=1e-5)
    assert curves["penalty_share"].tolist() == pytest.approx(
        (2.0 * curves["penalty"] / total).tolist(), rel=1e-5
    )
    histories = [
        study.tuned("cure").history
        for study in cure_studies(network, data, AdversarySettings(**made.with_pgd), executor)
    ]
    means = [sum(pair) / 2 for pair in zip(*(one["penalty"] for one in histories), strict=True)]
    assert curves["penalty"].tolist() == pytest.approx(means)


def test_autoattack_and_square_get_the_ball_of_the_attack_that_judges(
    network, data, executor, made, monkeypatch
):
    seen = []

    def spy(model, images, *, eps, norm=math.inf, queries=None, labels=None):
        seen.append((eps, norm, len(images), queries))
        return pgd(model, images, eps=eps, norm=norm, steps=1, labels=labels)

    monkeypatch.setattr(_accuracy, "autoattack", spy)
    monkeypatch.setattr(_accuracy, "square", spy)
    monkeypatch.setattr(CureStudy, "tuned", lambda self, name: Tuned(self.model, {}))
    monkeypatch.setattr(
        type(executor),
        "cached",
        lambda self, f, *tensors, randomness: type("M", (), {"value": f(*tensors)}),
    )
    settings = TableSettings(
        **{**made.with_pgd, "attack": partial(pgd, eps=9.0, norm="2"), "eps": "1/10"}
    )
    studies = cure_studies(network, data, settings, executor)[:1]
    found = _accuracy.by_autoattack(studies, 7, 20) | _accuracy.by_square(studies, 11, 20)
    assert seen == [(0.1, 2.0, 7, None)] * 3 + [(0.1, 2.0, 30, 11)] * 3
    for name, count in (("aa_cure", 7), ("square_cure", 30)):
        assert (found[name].n, found[name].seeds) == (count, 1)
    assert _accuracy.by_autoattack([], 7, 20) == {}
    rows = [replace(s, test=Split(s.test.images.flatten(1), s.test.labels)) for s in studies]
    assert _accuracy.by_square(rows, 11, 20) == {}


def test_table_8_3_is_judged_by_its_own_number_of_steps(
    network, data, executor, made, looked_at, monkeypatch
):
    found = cure_svhn(network, data, Table83(**made.with_pgd, steps=1), executor.scope("cure_svhn"))
    for name in ("original", "cure"):
        wanted = by_hand(
            network, data, executor, made, name, partial(pgd, eps=made.eps, norm=math.inf, steps=1)
        )
        assert found.numbers[f"adv_{name}"].value == pytest.approx(wanted)
    assert any("PGD(1)" in note for note in found.notes)
    steps, made_of = [], CureStudy.pgd
    monkeypatch.setattr(
        CureStudy,
        "pgd",
        lambda self, **given: (steps.append(given["steps"]), made_of(self, **given))[1],
    )
    again = cure_svhn(network, data, Table83(**made.with_pgd, steps=1), executor)
    assert {name: e.value for name, e in again.numbers.items()} == {
        name: e.value for name, e in found.numbers.items()
    }
    assert set(steps) == {1, 2}  # 2 of the adversary that is trained on
    assert looked_at(found) == ["table_8_3"]


def test_the_ablation_compares_directions_adversaries_and_costs(ablation, looked_at):
    numbers = ablation.numbers
    apart = numbers["adv_cure_gradient"].value - numbers["adv_cure"].value
    assert numbers["adv_cure_gradient - adv_cure"].value == pytest.approx(apart)
    assert numbers["|adv_cure_gradient - adv_cure|"].value == pytest.approx(abs(apart))
    assert numbers["|adv_cure_gradient - adv_cure|"].low >= 0
    assert numbers["gradients_cure / gradients_advtrain"] == Estimate(
        1.0, 1.0, 1.0, 1
    )  # two steps here
    assert set(ablation.timings) == {f"t_{n}" for n in ("original", "cure", "fgsm", "advtrain")} | {
        f"t_cure / t_{n}" for n in ("original", "fgsm", "advtrain")
    }
    assert all(e.value > 0 and e.n == 2 for e in ablation.timings.values())
    assert not set(ablation.timings) & set(numbers)
    assert len(ablation.tables["ablation"]) == 10
    assert looked_at(ablation) == ["ablation"]
    ticks = ablation.figures["ablation"].axes[0].get_xticklabels()
    renderer = ablation.figures["ablation"].canvas.get_renderer()
    boxes = [tick.get_window_extent(renderer) for tick in ticks]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_the_ablation_leaves_out_the_direction_that_is_not_asked_for(
    network, data, executor, made, ablation
):
    settings = Ablation(**made.with_pgd, along_gradient=False, timed_steps=1, rounds=2)
    found = cure_cost_ablation(network, data, settings, executor.scope("cure_cost_ablation"))
    assert "adv_cure_gradient" not in found.numbers
    assert "|adv_cure_gradient - adv_cure|" not in found.numbers
    assert found.numbers["adv_cure"].value == ablation.numbers["adv_cure"].value
    assert len(found.tables["ablation"]) == 8


def test_accuracy_falls_with_eps(curve, looked_at):
    for name in ("original", "cure", "advtrain"):
        values = curve.curves[f"adv_{name}"]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1]
        assert curve.numbers[f"largest_rise_{name}"].value == pytest.approx(
            max(b - a for a, b in pairwise(values))
        )
    table = curve.tables["figure_8_6"]
    assert table["eps"].tolist() == pytest.approx([f * 0.08 for f in (0, 0.5, 1, 2, 8)] * 3)
    assert looked_at(curve) == ["figure_8_6"]


def test_a_rise_is_seen():
    means = [torch.tensor([value]) for value in (0.9, 0.5, 0.6, 0.1)]
    assert float(_rise(*means)) == pytest.approx(0.1)
    assert float(_rise(means[0], means[1], means[3])) == pytest.approx(-0.4)


def test_figures_of_the_table(table82, looked_at):
    assert looked_at(table82) == ["table_8_2"]
    labels = [t.get_text() for t in table82.figures["table_8_2"].axes[0].get_xticklabels()]
    assert labels == [TITLES[name] for name in ("original", "cure", "advtrain")]


@pytest.mark.parametrize(
    ("settings", "options", "key"),
    [
        (Table82, {"autoattack_samples": 0}, "autoattack_samples must be .*; got 0"),
        (Table82, {"square_queries": 0}, "square_queries must be .*; got 0"),
        (Table82, {"far": 1.0}, "far must be .*; got 1"),
        (Table82, {"far": math.inf}, "far must be .*; got inf"),
        (Table82, {"autoattack_seeds": -1}, "autoattack_seeds must be .*; got -1"),
        (Table82, {"sweep": ((0.0, 4.0),)}, "sweep.h must be .*; got 0"),
        (Table82, {"sweep": ((1.5, -4.0),)}, "sweep.lambda must be .*; got -4"),
        (Table83, {"steps": 0}, "steps must be .*; got 0"),
        (Table83, {"eps": 0}, "eps must be .*; got 0"),
        (Ablation, {"timed_steps": 0}, "timed_steps must be .*; got 0"),
        (Ablation, {"rounds": 1}, "rounds must be .*; got 1"),
        (Curve, {"factors": (1.0,)}, "factors must be"),
        (Curve, {"factors": (1.0, 0.5)}, "factors must be"),
        (Curve, {"factors": (0.0, 1.0)}, "factors must be .*; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        settings(**options)
