import math

import pytest
import torch
from torch import nn

from robustness_geometry.attacks.universal import universal_perturbation
from robustness_geometry.attacks.universal_group import Wanted, universal_perturbations
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded

SHAPE = (1, 6, 6)


@pytest.fixture(scope="module")
def model():
    """A curved classifier of five classes in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 5)
        ).double()
    with torch.no_grad():
        layers[1].weight.mul_(4)
    return layers.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(20, *SHAPE, generator=seeded("group"), dtype=torch.float64)


def test_each_vector_is_that_of_the_single_call(model, images):
    balls = [(2, 0.4, 1), (math.inf, 0.1, 0), (1, 2.0, 2)]
    wanted = [Wanted(radius, norm, generator=seeded(order)) for norm, radius, order in balls]
    together = universal_perturbations(model, images, wanted, passes=2)
    for (norm, radius, order), found in zip(balls, together, strict=True):
        alone = universal_perturbation(
            model, images, norm=norm, radius=radius, passes=2, generator=seeded(order)
        )
        torch.testing.assert_close(found.perturbation, alone.perturbation, rtol=0, atol=1e-9)
        assert found.history.tolist() == alone.history.tolist()
        assert (found.visits.tolist(), found.updates.tolist()) == (
            alone.visits.tolist(),
            alone.updates.tolist(),
        )
        assert (bool(found.reached), found.stopped) == (bool(alone.reached), alone.stopped)
        assert float(norms(found.perturbation, norm)) <= radius * (1 + 1e-9)


def test_parts_of_the_images_stand_for_themselves(model, images):
    members = [3, 5, 8, 13, 19, 1, 2]
    wanted = [Wanted(0.4, members=members), Wanted(0.4)]
    part, _ = universal_perturbations(
        model, images, wanted, passes=2, fooling_rate=0.99, clip=(0, 1), candidates=3
    )
    alone = universal_perturbation(
        model, images[members], radius=0.4, passes=2, fooling_rate=0.99, clip=(0, 1), candidates=3
    )
    torch.testing.assert_close(part.perturbation, alone.perturbation, rtol=0, atol=1e-9)


def test_a_vector_that_is_done_leaves_the_others_alone(model, images):
    small, large = universal_perturbations(
        model, images, [Wanted(1e-6), Wanted(3.0)], passes=2, fooling_rate=0.3
    )
    assert (small.passes, bool(small.reached)) == (2, False)
    assert (large.passes, bool(large.reached)) == (1, True)


def test_nothing_is_wanted_nothing_is_found(model, images):
    assert universal_perturbations(model, images, []) == []


def test_inputs_stay_as_they_were(model, images):
    before, weights = images.clone(), [p.clone() for p in model.parameters()]
    universal_perturbations(model, images, [Wanted(0.3)], passes=1)
    assert torch.equal(images, before)
    assert all(
        torch.equal(p, w) and p.requires_grad
        for p, w in zip(model.parameters(), weights, strict=True)
    )


@pytest.mark.parametrize(
    ("wanted", "options", "key"),
    [
        (Wanted(0.0), {}, "radius"),
        (Wanted(1.0, 3), {}, "norm"),
        (Wanted(7.0), {}, "radius"),
        (Wanted(1.0, members=[0]), {}, "images"),
        (Wanted(1.0), {"fooling_rate": 1.0}, "fooling_rate"),
        (Wanted(1.0), {"passes": 0}, "passes"),
        (Wanted(1.0), {"candidates": 1}, "candidates"),
        (Wanted(1.0), {"overshoot": -1}, "overshoot"),
        (Wanted(1.0), {"clip": (1, 0)}, "clip"),
    ],
)
def test_bad_input_is_refused(model, images, wanted, options, key):
    with pytest.raises(InputError, match=key):
        universal_perturbations(model, images, [wanted], **options)
