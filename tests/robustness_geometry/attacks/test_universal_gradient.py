"""Gradient universal perturbations: closed forms, the ball, Algorithm 4 beside it, bad input."""

import math

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import fooled, universal_gradient, universal_perturbation
from robustness_geometry.checks import InputError
from robustness_geometry.datasets import sample_digits
from robustness_geometry.models import pretrained
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded


class Halves(nn.Module):
    """One logit, the first pixel less 1/2: its sign is the label."""

    def forward(self, images):
        return images.flatten(1)[:, :1] - 0.5


@pytest.fixture(scope="module")
def bright():
    """Thirty images of label 1, whose first pixels lie between .6 and .8."""
    images = torch.rand(30, 1, 3, 3, generator=seeded(0))
    images[:, 0, 0, 0] = torch.linspace(0.6, 0.8, 30)
    return images


@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_plane_is_crossed_along_its_normal(bright, norm):
    found = universal_gradient(Halves().eval(), bright, norm=norm, radius=0.31)
    assert found.fooling_rate == 1
    assert bool(found.reached)
    assert found.stopped == "fooling rate reached"
    v = found.perturbation.flatten()
    assert -0.31 - 1e-6 <= float(v[0]) < -0.3
    assert not v[1:].any()  # the other pixels have no gradient


@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_ball_that_is_too_small_for_some_fools_the_others(bright, norm):
    found = universal_gradient(Halves().eval(), bright, norm=norm, radius=0.2, iterations=60)
    assert found.fooling_rate == pytest.approx(0.5)
    assert not bool(found.reached)
    assert len(found.history) == found.passes == 60
    assert found.visits.tolist() == [30] * 60
    assert found.updates.tolist() == [1] * 60


@pytest.mark.parametrize(("norm", "radius"), [(2, 3.0), (math.inf, 0.15)])
def test_it_fools_more_unseen_digits_than_algorithm_4_of_the_same_images(norm, radius):
    model, digits = pretrained("mnist5k_fc500_150_10"), sample_digits().images
    used, unseen = digits[: len(digits) // 2], digits[len(digits) // 2 :]
    found = universal_gradient(model, used, norm=norm, radius=radius)
    peer = universal_perturbation(model, used, norm=norm, radius=radius, passes=3)
    assert float(norms(found.perturbation, norm)) <= radius * (1 + 1e-5)
    assert found.fooling_rate == float(fooled(model, used, found.perturbation).double().mean())
    assert found.fooling_rate >= peer.fooling_rate
    rates = [fooled(model, unseen, each.perturbation).double().mean() for each in (found, peer)]
    assert rates[0] > rates[1]


def test_the_same_generator_gives_the_same_vector_and_another_order_another():
    model, digits = pretrained("mnist5k_fc500_150_10"), sample_digits().images[:20]
    options = {"radius": 2.0, "iterations": 7, "batch_size": 6}
    first, again, other = (
        universal_gradient(model, digits, **options, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.perturbation, again.perturbation)
    assert not torch.equal(first.perturbation, other.perturbation)
    # Four batches make a pass; the last three steps are a pass that was cut short.
    assert first.updates.tolist() == [4, 3]
    assert first.visits.tolist() == [20, 18]


def test_given_labels_are_those_that_change(bright):
    model, labels = Halves().eval(), torch.zeros(30, dtype=torch.int64)
    assert universal_gradient(model, bright, radius=0.1, labels=labels).fooling_rate == 1
    inside = bright.clamp(min=0.55)
    clipped = universal_gradient(model, inside, radius=1.0, labels=labels + 1, clip=(0.55, 1.0))
    assert clipped.fooling_rate == 0


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"norm": 1}, "norm"),
        ({"radius": 0}, "radius"),
        ({"radius": 100}, "radius"),
        ({"iterations": 0}, "iterations"),
        ({"batch_size": 0}, "batch_size"),
        ({"step": 0}, "step"),
        ({"clip": (1, 0)}, "clip"),
    ],
)
def test_an_option_out_of_range_is_refused(bright, options, key):
    with pytest.raises(InputError, match=rf"^{key} must be"):
        universal_gradient(Halves().eval(), bright, **{"radius": 1.0, **options})


def test_no_images_are_refused(bright):
    with pytest.raises(InputError, match=r"^images must be at least one image"):
        universal_gradient(Halves().eval(), bright[:0], radius=1.0)
