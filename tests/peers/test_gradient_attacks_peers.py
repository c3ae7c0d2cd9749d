"""FGSM, PGD and DDN of other libraries, from the same start with the same steps."""

import math

import pytest
import torch
from adv_lib.attacks import ddn as their_ddn
from foolbox import PyTorchModel, attacks

from robustness_geometry.attacks import ddn, fgsm, pgd
from robustness_geometry.norms import norms
from robustness_geometry.types import predict

EPS = {2.0: 1.0, math.inf: 0.1}
STEPS = 10


@pytest.fixture(scope="module")
def exact(model):
    """The network in double precision: signs of gradients then do not hang on rounding."""
    from copy import deepcopy

    return deepcopy(model).double()


@pytest.fixture(scope="module")
def pictures(images):
    return images[:64].double()


def steps_of(p, *, once):
    kinds = {
        (math.inf, True): attacks.LinfFastGradientAttack,
        (2.0, True): attacks.L2FastGradientAttack,
        (math.inf, False): attacks.LinfProjectedGradientDescentAttack,
        (2.0, False): attacks.L2ProjectedGradientDescentAttack,
    }
    options = {} if once else {"steps": STEPS, "abs_stepsize": EPS[p] / 4}
    return kinds[p, once](random_start=False, **options)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_fgsm_is_foolboxs(exact, pictures, p):
    chosen = predict(exact, pictures)
    bounded = PyTorchModel(exact, bounds=(0.0, 1.0), device="cpu")
    theirs = steps_of(p, once=True).run(bounded, pictures, chosen, epsilon=EPS[p])
    ours = fgsm(exact, pictures, eps=EPS[p], norm=p, clip=(0.0, 1.0), labels=chosen)
    torch.testing.assert_close(ours.adversarial(pictures), theirs, atol=1e-7, rtol=0)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_pgd_is_foolboxs(exact, pictures, p):
    chosen = predict(exact, pictures)
    bounded = PyTorchModel(exact, bounds=(0.0, 1.0), device="cpu")
    theirs = steps_of(p, once=False).run(bounded, pictures, chosen, epsilon=EPS[p])
    ours = pgd(
        exact,
        pictures,
        eps=EPS[p],
        norm=p,
        steps=STEPS,
        step_size=EPS[p] / 4,
        random_start=False,
        clip=(0.0, 1.0),
        labels=chosen,
    )
    torch.testing.assert_close(ours.adversarial(pictures), theirs, atol=1e-6, rtol=0)


def test_ddn_is_adv_libs(model, images, labels):
    theirs = their_ddn(model, images, labels, steps=100, levels=None)
    ours = ddn(model, images, steps=100, clip=(0.0, 1.0), labels=labels)
    assert bool(ours.success.all())
    assert bool((predict(model, theirs) != labels).all())
    expected = float(norms(theirs - images).mean())
    assert float(norms(ours.perturbations).mean()) == pytest.approx(expected, rel=0.01)
