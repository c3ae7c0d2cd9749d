"""AutoAttack through its package: never weaker than PGD, silent, seeded, and without traces."""

import logging
import math
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import autoattack, pgd
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from robustness_geometry.randomness import per_image, seeded
from robustness_geometry.types import predict


@pytest.fixture(scope="module")
def robust():
    """A small smooth network whose labels a part of the images keeps at eps = 0.05."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(100, 5)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 1, 7, 7, generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """50 queries of Square instead of 5,000, and 20 steps of FAB, to save time."""
    from pyautoattack import fab_base, square

    def short(perturb, option, value):
        def run(self, images, labels):
            setattr(self, option, value)
            return perturb(self, images, labels)

        return run

    for kind, option, value in (
        (square.SquareAttack, "n_queries", 50),
        (fab_base.FABAttack, "n_iter", 20),
    ):
        monkeypatch.setattr(kind, "perturb", short(kind.perturb, option, value))


@pytest.mark.parametrize("p", [2, math.inf])
def test_it_is_never_weaker_than_pgd_and_stays_inside_ball_and_box(robust, images, p):
    eps = 0.4 if p == 2 else 0.05
    ours = pgd(robust, images, eps=eps, norm=p, steps=40, restarts=2)
    found = autoattack(robust, images, eps=eps, norm=p)
    assert 0 < int(found.success.sum()) < len(images)
    assert bool((found.success | ~ours.success).all())
    assert float(norms(found.perturbations, p).max()) <= eps * (1 + 1e-5)
    moved = found.adversarial(images)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert torch.equal(found.adversarial_labels, predict(robust, moved))
    assert torch.equal(found.success, found.adversarial_labels != found.labels)
    assert bool((found.perturbations[~found.success] == 0).all())
    assert set(found.steps[~found.success].tolist()) == {100 + 400 + 400}


def test_nothing_outside_changes_and_nothing_is_said(robust, images, capfd, caplog):
    model, before = deepcopy(robust).requires_grad_(True), images.clone()
    state, random, trace = deepcopy(model.state_dict()), torch.get_rng_state(), sys.gettrace()
    with caplog.at_level(logging.DEBUG):
        result = autoattack(model, images, eps=0.3)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert sys.gettrace() is trace
    assert not logging.getLogger("auto-attack").disabled
    assert all(torch.equal(a, state[name]) for name, a in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not result.perturbations.requires_grad
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name == "auto-attack"]


def test_the_generator_seeds_it(robust, images):
    first, again = (
        autoattack(robust, images, eps=0.3, generator=seeded(3)).perturbations for _ in range(2)
    )
    other = autoattack(
        robust, images, eps=0.3, generator=per_image(9, "other", range(6))
    ).perturbations
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_given_labels_that_are_wrong_already_count_as_reached(robust, images):
    labels = predict(robust, images)
    wrong = torch.where(torch.arange(6) < 4, (labels + 1) % 5, labels)
    found = autoattack(robust, images, eps=0.3, labels=wrong)
    assert bool(found.success[:4].all())
    assert bool((found.perturbations[:4] == 0).all())
    assert found.steps[:4].tolist() == [0] * 4


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes_need_no_loss_of_four(images, classes):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(49, classes)).double().eval()
    found = autoattack(model, images.double(), eps=0.2)
    assert bool(found.success.any())
    assert found.perturbations.dtype == torch.float64


def test_an_empty_batch_needs_no_model(images):
    result = autoattack(nn.Identity().eval(), images[:0], eps=0.1)
    assert result.perturbations.shape == (0, 1, 7, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "eps must be .*; got 0"),
        ({"eps": 0.1, "norm": 1}, "norm must be 2 or inf.*; got 1"),
    ],
)
def test_options_that_cannot_be_used_are_refused(robust, images, options, message):
    with pytest.raises(InputError, match=message):
        autoattack(robust, images[:0], **options)


def test_images_outside_the_box_and_training_mode_are_refused(robust, images):
    with pytest.raises(InputError, match=r"images must be within \[0, 1\]"):
        autoattack(robust, 2 * images, eps=0.1)
    with pytest.raises(InputError, match="model must be in evaluation mode"):
        autoattack(deepcopy(robust).train(), images, eps=0.1)
