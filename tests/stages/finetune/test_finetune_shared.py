"""The perturbed training sets and fine-tunings that the experiments share."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from pipeline.evaluation import held_out, recomputed_success
from pipeline.studies.finetuning import (
    FineTuningSettings,
    RobustnessSettings,
    fine_tuning_studies,
    recipe_of,
    strategies,
)
from robustness_geometry.attacks import alignment, deepfool, fgsm, pgd
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from robustness_geometry.types import Split, predict


def studies(network, data, settings, executor, *, samples=20):
    test = held_out(data, samples)
    return fine_tuning_studies(network, data, settings, executor, test=test, factor=0.5)


@pytest.fixture
def study(network, data, executor):
    return studies(network, data, FineTuningSettings(epochs=2), executor)[0]


def test_the_adversarial_sets_carry_the_true_labels_and_the_attacks_perturbations(
    study, data, network
):
    made = study.perturbed("deepfool", 2.0)
    expected = deepfool(network.models[0], data.train.images).perturbations
    torch.testing.assert_close(made.images, data.train.images + 2 * expected)
    assert torch.equal(made.labels, data.train.labels)
    assert study.perturbed("clean") is data.train


def test_fgsm_takes_one_eps_that_fools_nine_tenths_of_the_training_images(study, data, network):
    eps = study.fgsm_eps()
    made = study.perturbed("fgsm")
    sizes = norms(made.images - data.train.images, float("inf"))
    torch.testing.assert_close(sizes, torch.full_like(sizes, eps.eps))
    result = fgsm(network.models[0], data.train.images, eps=eps.eps)
    share = recomputed_success(network.models[0], data.train.images, result).double().mean()
    below = fgsm(network.models[0], data.train.images, eps=eps.eps * 0.95)
    assert eps.reachable is True
    assert float(share) == pytest.approx(eps.rate)
    assert float(share) >= 0.9 > float(below.success.double().mean())


def test_each_set_and_each_fine_tuning_is_made_once(network, data, executor, monkeypatch):
    settings = FineTuningSettings(epochs=2)
    first = studies(network, data, settings, executor.scope("advft_robustness"))[0]
    tuned = first.tuned("deepfool")

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("pipeline.devices.Machine.timed", refuse)
    second = studies(network, data, settings, executor.scope("advft_error"), samples=10)[0]
    again = second.tuned("deepfool")
    for one, other in zip(tuned, again, strict=True):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])


def test_fine_tuned_networks_differ_by_epoch_and_leave_the_original(study, network):
    before = {name: tensor.clone() for name, tensor in network.models[0].state_dict().items()}
    tuned = study.tuned("deepfool")
    weights = [network.models[0], *tuned]
    assert all(
        not torch.equal(a.state_dict()["network.1.weight"], b.state_dict()["network.1.weight"])
        for a, b in pairwise(weights)
    )
    assert all(
        torch.equal(before[name], tensor) for name, tensor in network.models[0].state_dict().items()
    )
    assert not any(layer.training for model in tuned for layer in model.modules())


def test_rho_is_deepfools_relative_l2_norm(study, network):
    images = study.test.images
    result = deepfool(network.models[0], images)
    expected = norms(result.perturbations) / norms(images)
    found = study.rho(network.models[0], "here")
    torch.testing.assert_close(found["here"], expected.double())
    cosines = alignment(network.models[0], images, result.perturbations)
    torch.testing.assert_close(found["cos here"], cosines.double())
    assert bool(result.success.all())


def test_a_smaller_training_set_is_a_stratified_choice(network, data, executor):
    (study, _) = studies(network, data, FineTuningSettings(train_samples=9), executor)
    assert study.train.labels.bincount().tolist() == [3, 3, 3]
    (study, _) = studies(network, data, FineTuningSettings(train_samples=1000), executor)
    assert len(study.train) == 90


def test_another_attack_under_study_is_one_more_set(network, data, executor):
    settings = FineTuningSettings(attack=partial(pgd, eps=0.2, steps=3))
    assert strategies(settings) == ["deepfool", "fgsm", "clean", "attack"]
    studied = FineTuningSettings(attack=partial(deepfool, norm=float("inf")))
    assert strategies(studied) == ["deepfool", "fgsm", "clean"]
    study = studies(network, data, settings, executor)[0]
    made = study.perturbed("attack")
    sizes = norms(made.images - data.train.images, float("inf"))
    assert float(sizes.max()) == pytest.approx(0.2, abs=1e-6)
    assert not torch.equal(predict(network.models[0], made.images), data.train.labels)


def test_the_rate_is_that_of_the_last_epoch_times_the_factor(network):
    recipe = recipe_of(network, FineTuningSettings(epochs=3), 0.5)
    assert (recipe.learning_rate, recipe.epochs, recipe.batch_size) == (0.025, 3, 20)
    given = FineTuningSettings(learning_rate=0.2)
    assert recipe_of(network, given, 0.1).learning_rate == pytest.approx(0.02)


def test_data_without_training_images_are_refused(data):
    empty = replace(data, train=Split(data.train.images[:0], data.train.labels[:0]))
    with pytest.raises(InputError, match=r"^dataset must .*training images"):
        FineTuningSettings().check(empty)
    FineTuningSettings().check(data)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"samples": 0},
        {"train_samples": 0},
        {"eps_samples": 0},
        {"resamples": 0},
        {"fooling_rate": 1.2},
        {"learning_rate": 0.0},
        {"learning_rate_factor": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))} must be "):
        RobustnessSettings(**options)
