"""Figures 8.7 and 8.11: whether masked gradients would be told, and what fools each network."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pipeline.evaluation import held_out
from pipeline.studies.cure import CureStudy, Tuned, cure_studies
from pipeline.studies.cure_settings import CureSettings
from robustness_geometry.attacks import deepfool, fgsm, pgd, spsa, square
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from robustness_geometry.types import Network, predict
from stages.cure import cure_strong_attacks as strong_module
from stages.cure.cure_cifar10 import Settings as Table82
from stages.cure.cure_cifar10 import cure_cifar10
from stages.cure.cure_strong_attacks import Settings as Strong
from stages.cure.cure_strong_attacks import _pearson_over_all, cure_strong_attacks, outcome
from stages.cure.cure_visual import Settings as Visual
from stages.cure.cure_visual import _figures, _one_a_class, cure_visual


@pytest.fixture(scope="module")
def settings(made):
    given = {
        "spsa": partial(spsa, eps=9.0, steps=6, directions=8),
        "square": partial(square, eps=9.0, queries=60),
    }
    return Strong(**made.small, steps=(4, 8), restarts=2, wide=6.0, spsa_samples=12, **given)


@pytest.fixture(scope="module")
def strong(network, data, executor, settings):
    return cure_strong_attacks(network, data, settings, executor.scope("cure_strong_attacks"))


def test_accuracies_of_cure_under_each_attack(strong, network, data, executor, made, looked_at):
    numbers = strong.numbers
    plain = cure_cifar10(
        network, data, Table82(**made.with_pgd, autoattack_seeds=0), executor
    ).numbers["adv_cure"]
    assert numbers["adv_cure_pgd4"].value == plain.value
    assert numbers["adv_cure_restarts"].value <= numbers["adv_cure_pgd4"].value
    assert numbers["adv_cure_wide"].value < numbers["adv_cure_pgd4"].value
    for first, second in (("pgd4", "pgd8"), ("pgd4", "restarts"), ("fgsm", "pgd4")):
        gap = numbers[f"adv_cure_{first}"].value - numbers[f"adv_cure_{second}"].value
        assert numbers[f"adv_cure_{first} - adv_cure_{second}"].value == pytest.approx(gap)
    assert (
        numbers["adv_cure_pgd4"].n,
        numbers["adv_cure_spsa"].n,
        numbers["adv_cure_spsa"].seeds,
    ) == (30, 12, 2)
    assert "steps = 6, directions = 8" in " ".join(strong.notes)
    assert looked_at(strong) == ["figure_8_7"]


def test_losses_of_the_two_attacks_are_set_beside_each_other(strong):
    pgd_, spsa_ = strong.tensors["margin_pgd"].double(), strong.tensors["margin_spsa"].double()
    assert pgd_.shape == (2, 12)
    wanted = torch.corrcoef(torch.stack([pgd_.flatten(), spsa_.flatten()]))[0, 1]
    assert strong.numbers["pearson_spsa_pgd"].value == pytest.approx(float(wanted), rel=1e-4)
    below = (spsa_ < pgd_).double().mean()
    assert strong.numbers["share_spsa_below_pgd"].value == pytest.approx(float(below))
    right = (pgd_ > 0).double()
    assert torch.equal(strong.tensors["right_pgd"].double(), right)


def test_what_both_attacks_without_gradients_leave(strong):
    left = strong.tensors["right_spsa"] * strong.tensors["right_square"]
    numbers = strong.numbers
    assert numbers["adv_cure_without_gradients"].value == pytest.approx(float(left.mean()))
    gap = float((left - strong.tensors["right_pgd"]).double().mean())
    found = numbers["adv_cure_without_gradients - adv_cure_pgd8"].value
    assert found == pytest.approx(gap, abs=1e-6)
    for one in ("spsa", "square"):
        assert numbers["adv_cure_without_gradients"].value <= numbers[f"adv_cure_{one}"].value


def test_the_correlation_is_over_seeds_and_images():
    a, b = torch.rand(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
    assert float(_pearson_over_all(a, b)) == pytest.approx(float(wanted))
    assert float(_pearson_over_all(a, -2 * a)) == pytest.approx(-1)


class Masked(nn.Module):
    """Rounds its pixels to a fifth of a level: no gradient, but attacks without any still work."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images):
        return self.model((500 * images).round() / 500)


def test_masked_gradients_are_told(network, data, executor, settings, monkeypatch):
    masked = Network(
        "masked", "rows", {seed: Masked(model) for seed, model in network.models.items()}
    )
    monkeypatch.setattr(CureStudy, "tuned", lambda self, name: Tuned(self.model, {}))
    given = replace(
        settings,
        spsa=partial(spsa, eps=9.0, steps=12, directions=16, learning_rate=0.04),
        square=partial(square, eps=9.0, queries=500),
    )
    found = cure_strong_attacks(masked, data, given, executor)
    holds = found.tables["masking"].set_index("check")["holds"]
    assert found.numbers["adv_cure_spsa - adv_cure_pgd8"].value < -0.1
    assert found.numbers["adv_cure_square"].value < found.numbers["adv_cure_pgd8"].value - 0.1
    assert not holds["SPSA and Square find little more than PGD(8)"]
    assert holds["SPSA and Square find nearly as much as PGD(8)"]
    assert not holds["a large ball leaves few images"]
    assert found.numbers["share_spsa_below_pgd"].value > 0.9


def test_all_attacks_share_the_ball_of_the_one_that_judges(
    network, data, executor, settings, monkeypatch
):
    seen = []

    def spy(name, model, images, *, eps=9.0, norm=math.inf, labels=None):
        seen.append((name, eps, norm))
        return pgd(model, images, eps=eps, norm=norm, steps=1, labels=labels)

    def stepped(model, images, *, eps=9.0, norm=math.inf, clip=None, labels=None):
        seen.append(("fgsm", eps, norm))
        return fgsm(model, images, eps=eps, norm=norm, clip=clip, labels=labels)

    def run(self, function, *tensors, randomness=False):
        return type("Mapped", (), {"value": function(*tensors)})

    monkeypatch.setattr(strong_module, "fgsm", stepped)
    monkeypatch.setattr(type(executor), "cached", run)
    monkeypatch.setattr(CureStudy, "tuned", lambda self, name: Tuned(self.model, {}))
    own = replace(
        settings,
        attack=partial(pgd, eps=9.0, norm=2),
        eps=0.3,
        spsa=partial(spy, "spsa", eps=9.0),
        square=partial(spy, "square", eps=9.0),
    )
    cure_strong_attacks(network, data, own, executor)
    assert set(seen) == {(name, 0.3, 2.0) for name in ("spsa", "square", "fgsm")}


def test_an_outcome_is_judged_on_the_true_label(made):
    data = made.grey((0.05, 0.2)).test
    wrong = data.labels.clone()
    wrong[0] = 1 - wrong[0]
    found = outcome(partial(fgsm, eps=0.1), made.threshold(), data.images, wrong)
    assert found["right"].tolist() == [False, False, True, True]
    assert found["margin"][2:].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert float(found["margin"][1]) == pytest.approx(-0.5, abs=1e-4)


@pytest.fixture(scope="module")
def visual(network, data, executor, made):
    settings = Visual(**{**made.small, "samples": 15}, shown=3, scale=2.0)
    return cure_visual(network, data, settings, executor.scope("cure_visual"))


def test_what_fools_a_network_and_what_others_see_in_it(visual, network, data, looked_at):
    images = held_out(data, 15).images
    sizes, seen = [], []
    for model, other in (
        (network.models[0], network.models[1]),
        (network.models[1], network.models[0]),
    ):
        result = deepfool(model, images)
        sizes.append(norms(result.perturbations))
        seen.append(
            predict(other, images + 2.0 * result.perturbations) == result.adversarial_labels
        )
    numbers = visual.numbers
    assert numbers["norm_original"].value == pytest.approx(
        float(torch.stack(sizes).mean()), rel=1e-5
    )
    assert numbers["seen_by_others_original"].value == pytest.approx(
        float(torch.stack(seen).double().mean())
    )
    gap = numbers["norm_cure"].value - numbers["norm_original"].value
    assert numbers["norm_cure - norm_original"].value == pytest.approx(gap)
    assert len(visual.tables["figure_8_11"]) == 4
    assert looked_at(visual) == ["figure_8_11"]


def test_equal_networks_see_the_same_and_one_network_asks_nobody(network, data, executor, made):
    twins = Network("twins", "rows", {0: network.models[0], 1: network.models[0]})
    settings = Visual(**{**made.small, "samples": 9}, scale=1.0, shown=2)
    found = cure_visual(twins, data, settings, executor)
    assert found.numbers["seen_by_others_original"].value == 1.0
    alone = cure_visual(Network("alone", "rows", {0: network.models[0]}), data, settings, executor)
    assert "seen_by_others_original" not in alone.numbers
    assert len(alone.tables["figure_8_11"]) == 2


def test_images_of_every_class_come_first():
    labels = torch.tensor([2, 2, 0, 0, 1, 2])
    usable = torch.tensor([False, True, True, True, True, True])
    assert _one_a_class(labels, usable).tolist() == [2, 4, 1, 3, 5]
    assert _one_a_class(labels, torch.zeros(6, dtype=torch.bool)).tolist() == []


def test_without_an_image_that_both_have_right_there_is_no_figure(
    network, data, executor, made, monkeypatch
):
    settings = Visual(**{**made.small, "samples": 9})
    study = cure_studies(network, data, settings, executor)[0]
    monkeypatch.setattr(CureStudy, "right", lambda self, model: torch.zeros(9))
    assert _figures(network, data, study) == {}


@pytest.mark.parametrize(
    ("given", "options", "key"),
    [
        (Strong, {"steps": (20,)}, "steps must be"),
        (Strong, {"steps": (40, 20)}, "steps must be"),
        (Strong, {"steps": (0, 20)}, "steps must be .*; got 0"),
        (Strong, {"restarts": 0}, "restarts must be .*; got 0"),
        (Strong, {"wide": 0.0}, "wide must be .*; got 0"),
        (Strong, {"spsa_samples": 2}, "spsa_samples must be .*; got 2"),
        (Visual, {"shown": 0}, "shown must be .*; got 0"),
        (Visual, {"scale": 0.0}, "scale must be .*; got 0"),
        (CureSettings, {"eps": None, "eps_grid": (0.1, 0.1)}, "eps_grid must be"),
    ],
)
def test_settings_out_of_range_are_refused(given, options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        given(**options)


def test_options_that_the_experiment_sets_are_named():
    bound = {"attack": {"eps": "cure.eps"}}
    assert CureSettings.binds == Table82.binds == Visual.binds == bound
    ball = {"eps": "cure.eps", "norm": "cure.attack.norm"}
    assert Strong.binds == {**bound, "spsa": ball, "square": ball}
