"""Universal perturbations of ART: the same vector where DeepFool's single step is the same."""

import math
import random

import pytest
import torch
from art.attacks.evasion import UniversalPerturbation
from torch import nn

from benchmarks.peers import art_classifier
from robustness_geometry.attacks import universal_perturbation
from robustness_geometry.randomness import seeded


@pytest.fixture(scope="module")
def linear():
    """Ten linear classes: every boundary is a plane, so that both DeepFools arrive in one step."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(10, 784, generator=generator))
        model[1].bias.copy_(torch.randn(10, generator=generator))
    return model


@pytest.mark.parametrize(("p", "radius"), [(2, 0.6), (math.inf, 0.02)])
def test_the_vector_is_arts(linear, images, monkeypatch, p, radius):
    order = torch.randperm(len(images), generator=seeded(5)).tolist()
    monkeypatch.setattr(random, "sample", lambda *_: order)
    inner = {"max_iter": 10, "epsilon": 0.02, "nb_grads": 10, "verbose": False}
    options = {"delta": 0.01, "max_iter": 1, "eps": radius, "norm": p, "verbose": False}
    theirs = UniversalPerturbation(
        art_classifier(linear, images, clip=False), attacker_params=inner, **options
    )
    theirs.generate(images.numpy())
    ours = universal_perturbation(
        linear, images, norm=p, radius=radius, passes=1, generator=seeded(5)
    )
    assert 0.2 < ours.fooling_rate < 0.99
    torch.testing.assert_close(
        torch.as_tensor(theirs.noise), ours.perturbation, rtol=1e-3, atol=1e-4 * radius
    )
