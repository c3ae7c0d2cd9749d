"""Adversarial objectives: which examples they train on, and trainings that were killed."""

import copy
import math
import os
import signal
from functools import partial

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import deepfool, fgsm, pgd
from robustness_geometry.checks import InputError
from robustness_geometry.randomness import normal
from robustness_geometry.training import (
    Adversarial,
    CrossEntropy,
    Cure,
    Recipe,
    TrainingDiverged,
    train,
)
from robustness_geometry.training.objectives import Step, evaluating
from robustness_geometry.types import Perturbed, Split


def split(count=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.rand(count, 1, 6, 6, generator=generator) * 0.4
    for index, label in enumerate(labels):
        images[index, 0, 2 * label : 2 * label + 2] += 0.5
    return Split(images, labels)


def small(seed=0):
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(64, 3),
    ]
    return nn.Sequential(*layers).eval()


def shifted(model, images, *, labels=None, amount=0.25, generator=None):
    """Adds ``amount`` (NaN to the first image) and records how it was called."""
    CALLS.append((len(images), labels is not None, model.training))
    perturbations = torch.full_like(images, amount) + 0 * normal(images, generator)
    perturbations[0] = math.nan
    none = torch.zeros(len(images), dtype=torch.long)
    return Perturbed(perturbations, none, none, none.bool(), none)


CALLS: list[tuple[int, bool, bool]] = []


@pytest.fixture(autouse=True)
def forget():
    CALLS.clear()


def step(model, data):
    return Step(model.train(), data.images, data.labels, 0.0, torch.Generator().manual_seed(0))


def test_the_plain_objective_is_the_cross_entropy():
    data, model = split(), small()
    torch.manual_seed(1)
    expected = nn.functional.cross_entropy(copy.deepcopy(model).train()(data.images), data.labels)
    torch.manual_seed(1)
    torch.testing.assert_close(CrossEntropy().loss(step(model, data)).total, expected)


def test_adversarial_training_takes_the_loss_of_the_perturbed_images_in_training_mode():
    data, model, fresh = split(), small(), small()
    moved = data.images + 0.25
    moved[0] = data.images[0]  # its perturbation is not finite
    torch.manual_seed(1)
    expected = nn.functional.cross_entropy(fresh.train()(moved), data.labels)
    torch.manual_seed(1)
    found = Adversarial(shifted).loss(step(model, data))
    torch.testing.assert_close(found.total, expected)
    assert [(len(data), True, False)] == CALLS
    assert all(layer.training for layer in model.modules())
    torch.testing.assert_close(model[1].running_mean, fresh[1].running_mean)


@pytest.mark.parametrize(
    ("objective", "calls"),
    [
        (Adversarial(shifted), [(16, True, False)] * 6),
        (Adversarial(shifted, every="epoch"), [(48, True, False)] * 2),
        (Adversarial(shifted, every="epoch", true_labels=False), [(48, False, False)] * 2),
    ],
    ids=["each step", "each epoch", "own labels"],
)
def test_examples_are_made_anew_each_step_or_each_epoch(objective, calls):
    train(small(), split(), Recipe(epochs=2, batch_size=16), objective=objective)
    assert calls == CALLS


def test_examples_of_an_epoch_are_those_of_the_network_before_it():
    data = split()
    objective = Adversarial(partial(fgsm, eps=0.1), every="epoch")
    trained = train(
        small(), data, Recipe(epochs=1, batch_size=48, learning_rate=0.1), objective=objective
    )
    images = fgsm(small(), data.images, eps=0.1, labels=data.labels).adversarial(data.images)
    other = train(
        small(), Split(images, data.labels), Recipe(epochs=1, batch_size=48, learning_rate=0.1)
    )
    assert all(torch.equal(a, trained.state_dict[name]) for name, a in other.state_dict.items())


def test_pgd_training_makes_a_network_robust():
    data, test = split(240), split(100, seed=1)
    model = train(small(), data, Recipe(epochs=8, batch_size=24, learning_rate=0.02)).model
    recipe = Recipe(epochs=4, batch_size=24, learning_rate=0.02)
    attack = partial(pgd, eps=0.25, steps=5)
    robust = train(model, data, recipe, objective=Adversarial(attack)).model

    def accuracy(network):
        return float((~attack(network, test.images, labels=test.labels).success).double().mean())

    assert accuracy(robust) > accuracy(model) + 0.15


def test_layers_keep_their_own_modes():
    model = small().train()
    model[3].eval()
    with evaluating(model):
        assert not any(layer.training for layer in model.modules())
    assert [layer.training for layer in model] == [True, True, True, False, True, True]
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model[1].training


def test_a_word_that_names_no_rhythm_is_refused():
    with pytest.raises(InputError, match=r"every must be one of step, epoch.*; got 'week'"):
        Adversarial(shifted, every="week")


@pytest.mark.parametrize(
    "objective", [Adversarial(partial(pgd, eps=0.1, steps=2)), Cure(ramp=1)], ids=["pgd", "cure"]
)
def test_a_loss_that_turns_nan_names_epoch_and_step(objective, tmp_path):
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()
            self.register_buffer("count", torch.zeros((), dtype=torch.long))
            self.eval()

        def forward(self, images):
            self.count += self.training
            return self.inner(images) * (math.nan if self.count > 4 else 1.0)

    message = r"diverged in epoch 2, step 2: loss nan; the state after epoch 1 is kept in .*\.pt$"
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.01)
    with pytest.raises(TrainingDiverged, match=message):
        train(Fragile(), split(), recipe, objective=objective, checkpoint=tmp_path / "one")
    (kept,) = tmp_path.iterdir()
    assert torch.load(kept, weights_only=True)["epochs"] == 1


def die_in_step(number):
    """Kill this process at the ``number``-th forward pass in training mode."""
    steps = []

    def count(module, _):
        steps.append(isinstance(module, nn.BatchNorm2d) and module.training)
        if sum(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    nn.modules.module.register_module_forward_pre_hook(count)


def in_a_process_that_is_killed(work, number):
    child = os.fork()
    if child == 0:
        die_in_step(number)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


ADAM = Recipe(
    epochs=4,
    batch_size=16,
    optimiser="adam",
    learning_rate=1e-3,
    schedule="cosine",
    final_rate=1e-5,
    weight_decay=0,
    augmentation="crop_flip",
)
RESUMED = {
    "cure": Cure(h=0.5, ramp=3),
    "pgd": Adversarial(partial(pgd, eps=0.1, steps=2)),
    "deepfool": Adversarial(partial(deepfool, steps=5), every="epoch", true_labels=False),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_training_killed_in_an_epoch_ends_with_the_bytes_of_an_unbroken_one(tmp_path, name):
    options = {"objective": RESUMED[name], "seed": 3, "keep_states": True}
    unbroken = train(small(), split(), ADAM, **options)
    in_a_process_that_is_killed(
        lambda: train(small(), split(), ADAM, checkpoint=tmp_path / "one", **options),
        8,  # three steps an epoch: in the second step of the third
    )
    seen = []
    resumed = train(
        small(),
        split(),
        ADAM,
        checkpoint=tmp_path / "one",
        on_epoch=lambda epoch, *_: seen.append(epoch),
        **options,
    )
    assert seen == [3, 4]
    assert resumed.history == unbroken.history
    assert len(resumed.states) == len(unbroken.states) == 4
    for found, wanted in zip(resumed.states, unbroken.states, strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_checkpoint_without_the_weights_of_each_epoch_is_not_taken_for_one_with_them(tmp_path):
    train(small(), split(), ADAM, checkpoint=tmp_path / "one")
    assert (
        len(train(small(), split(), ADAM, checkpoint=tmp_path / "one", keep_states=True).states)
        == 4
    )
