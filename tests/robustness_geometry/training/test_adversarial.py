"""The perturbed training set and fine-tuning on it."""

import copy
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.training import Recipe, extra_epochs, fine_tune, perturbed_split
from robustness_geometry.training.adversarial import UNKNOWN_RATE
from robustness_geometry.types import Split


@pytest.fixture
def data():
    return Split(torch.rand(12, 1, 3, 3), torch.arange(12) % 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).eval()


def test_the_perturbed_set_keeps_the_true_labels_and_scales_the_perturbations(data):
    perturbations = torch.randn_like(data.images)
    made = perturbed_split(data, perturbations, scale=3.0)
    torch.testing.assert_close(made.images, data.images + 3 * perturbations)
    assert torch.equal(made.labels, data.labels)


def test_an_image_without_a_finite_perturbation_is_left_out(data):
    perturbations = torch.zeros_like(data.images)
    perturbations[4, 0, 1, 1] = math.nan
    made = perturbed_split(data, perturbations)
    kept = [i for i in range(12) if i != 4]
    assert torch.equal(made.images, data.images[kept])
    assert torch.equal(made.labels, data.labels[kept])


def test_perturbations_that_cannot_be_used_are_refused(data):
    with pytest.raises(InputError, match=r"perturbations\.shape must be .*; got \(11, 1, 3, 3\)"):
        perturbed_split(data, torch.zeros(11, 1, 3, 3))
    with pytest.raises(InputError, match="at least one is finite"):
        perturbed_split(data, torch.full_like(data.images, math.inf))
    with pytest.raises(InputError, match=r"alpha must be .*; got 0"):
        perturbed_split(data, torch.zeros_like(data.images), scale=0)


def test_extra_epochs_lower_the_rate_of_the_last_epoch():
    original = Recipe(
        epochs=10,
        learning_rate=0.1,
        schedule="step",
        milestones=(5, 8),
        batch_size=32,
        momentum=0.8,
    )
    recipe = extra_epochs(asdict(original), epochs=5, factor=0.5)
    assert recipe.learning_rate == pytest.approx(0.1 * 0.01 * 0.5)
    assert [recipe.rate(epoch) for epoch in range(5)] == [recipe.learning_rate] * 5
    assert (recipe.epochs, recipe.batch_size, recipe.momentum) == (5, 32, 0.8)
    assert extra_epochs({"learning_rate": 0.02}, factor=0.1).learning_rate == pytest.approx(0.002)


def test_a_network_with_its_own_weights_starts_from_a_stated_rate():
    assert extra_epochs({}, factor=0.5).learning_rate == pytest.approx(UNKNOWN_RATE / 2)
    assert extra_epochs({}, factor=0.5, learning_rate=0.04).learning_rate == pytest.approx(0.02)
    assert extra_epochs(
        {"learning_rate": 0.1}, factor=0.5, learning_rate=0.04
    ).learning_rate == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"factor": 0}, "learning_rate_factor must be .*; got 0"),
        ({"epochs": 0}, "epochs must be .*; got 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_extra_epochs_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=key):
        extra_epochs({"learning_rate": 0.1}, **options)


def test_fine_tuning_steps_on_the_given_images_only(data, model):
    before = copy.deepcopy(model.state_dict())
    recipe = Recipe(epochs=3, batch_size=12, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    states = fine_tune(model, data, recipe, seed=1)
    assert len(states) == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    weight, bias = before["1.weight"].double(), before["1.bias"].double()
    x = data.images.flatten(1).double()
    for state in states:  # full batches: each epoch is one gradient step on the same images
        excess = torch.softmax(x @ weight.T + bias, dim=1) - nn.functional.one_hot(data.labels, 3)
        weight, bias = weight - 0.1 * excess.T @ x / 12, bias - 0.1 * excess.mean(dim=0)
        torch.testing.assert_close(state["1.weight"].double(), weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state["1.bias"].double(), bias, rtol=1e-5, atol=1e-6)


def test_the_states_of_the_epochs_share_no_memory(data, model):
    first, second = fine_tune(model, data, Recipe(epochs=2, learning_rate=0.1))
    assert not torch.equal(first["1.weight"], second["1.weight"])
