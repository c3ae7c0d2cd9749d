"""What every attack promises: one table, every check for every attack."""

import inspect
import math
import re
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from robustness_geometry import attacks
from robustness_geometry.attacks import ddn, deepfool, fgsm, lbfgs, pgd, random_noise, spsa
from robustness_geometry.attacks.protocol import takes_generator
from robustness_geometry.checks import InputError
from robustness_geometry.randomness import per_image, seeded
from robustness_geometry.types import Perturbed, predict

ATTACKS = {
    "deepfool": deepfool,
    "deepfool thesis": partial(deepfool, variant="thesis"),
    "deepfool overshot": partial(deepfool, variant="overshot", candidates=3, clip=(0.0, 1.0)),
    "deepfool l1": partial(deepfool, norm=1, steps=5),
    "deepfool linf": partial(deepfool, norm=math.inf),
    "fgsm": partial(fgsm, eps=0.1),
    "fgsm l2": partial(fgsm, eps="1/2", norm=2, clip=(0.0, 1.0)),
    "lbfgs": partial(lbfgs, constants=4, steps=8),
    "lbfgs two targets": partial(lbfgs, constants=3, steps=5, candidates=2, clip=None),
    "pgd": partial(pgd, eps=0.1, steps=4),
    "pgd l2": partial(pgd, eps=0.5, norm=2, steps=4, restarts=3, clip=None),
    "random noise": random_noise,
    "random signs": partial(random_noise, norm=math.inf, directions=3, clip=(0.0, 1.0)),
    "spsa": partial(spsa, eps=0.1, steps=4, directions=6),
    "spsa l2": partial(spsa, eps=0.5, norm=2, steps=3, directions=3, clip=None),
    "ddn": partial(ddn, steps=20),
    "ddn clipped": partial(ddn, steps=20, clip=(0.0, 1.0)),
}


CONTRACTS_OF_THEIR_OWN = {
    "autoattack",  # its images share random numbers
    "fgsm_smallest_eps",  # one eps, and
    "universal_gradient",  # one vector, for all images, as
    "universal_perturbation",
}


def _configured():
    """Every other exported attack, with the options of its configuration file."""
    known = {getattr(attack, "func", attack) for attack in ATTACKS.values()}
    conf = Path(__file__).parents[3] / "conf" / "attack"
    for name in sorted(set(attacks.__all__) - CONTRACTS_OF_THEIR_OWN):
        attack = getattr(attacks, name)
        if inspect.isfunction(attack) and attack not in known and _returns_perturbed(attack):
            options = yaml.safe_load((conf / f"{name}.yaml").read_text())
            del options["_target_"]
            yield name, partial(attack, **options)


def _returns_perturbed(attack):
    return inspect.signature(attack).return_annotation is Perturbed


ATTACKS |= dict(_configured())
RANDOM = [name for name, attack in ATTACKS.items() if takes_generator(attack)]

every = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
every_random = pytest.mark.parametrize("attack", [ATTACKS[name] for name in RANDOM], ids=RANDOM)


def test_every_exported_attack_is_in_the_table():
    found = {getattr(attack, "func", attack) for attack in ATTACKS.values()}
    returning = {
        attack
        for attack in map(partial(getattr, attacks), attacks.__all__)
        if inspect.isfunction(attack) and _returns_perturbed(attack)
    }
    assert found == returning - {attacks.autoattack}
    assert set(RANDOM) == {"pgd", "pgd l2", "random noise", "random signs", "spsa", "spsa l2"} | {
        name for name in RANDOM if name in attacks.__all__
    }


@every
def test_images_model_and_generators_stay_as_they_were(attack, network, pictures):
    model = deepcopy(network)
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    state, before, random = deepcopy(model.state_dict()), pictures.clone(), torch.get_rng_state()
    images = pictures.clone().requires_grad_()
    result = attack(model, images)
    assert torch.equal(images, before)
    assert images.grad is None
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True)
    )
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert not result.perturbations.requires_grad


@every
def test_the_result_is_what_its_tensors_say(attack, network, pictures):
    result = attack(network, pictures)
    assert result.perturbations.shape == pictures.shape
    assert result.perturbations.dtype == pictures.dtype
    assert bool(torch.isfinite(result.perturbations).all())
    assert torch.equal(result.labels, predict(network, pictures))
    assert torch.equal(result.adversarial_labels, predict(network, result.adversarial(pictures)))
    assert torch.equal(result.success, result.adversarial_labels != result.labels)
    assert result.steps.dtype == result.labels.dtype == torch.int64


@every
def test_an_empty_batch_needs_no_model(attack, pictures):
    class Unusable(nn.Module):
        def forward(self, images):
            raise AssertionError("called")

    result = attack(Unusable().eval(), pictures[:0])
    assert isinstance(result, Perturbed)
    assert result.perturbations.shape == (0, *pictures.shape[1:])
    assert all(
        len(getattr(result, name)) == 0
        for name in ("labels", "adversarial_labels", "success", "steps")
    )


def on(attack, model, pictures, indices):
    """``attack`` on the images ``indices`` in float64, with one generator per image if it can."""
    options = (
        {"generator": per_image(0, "contract", indices)}
        if attack in map(ATTACKS.get, RANDOM)
        else {}
    )
    return attack(model, pictures[indices].double(), **options)


@pytest.fixture(scope="module")
def exact(network):
    return deepcopy(network).double()


@every
def test_images_do_not_depend_on_each_other(attack, exact, pictures):
    whole = on(attack, exact, pictures, list(range(len(pictures))))
    for index in [7, 0, 3]:
        alone = on(attack, exact, pictures, [index])
        expected = whole.perturbations[index : index + 1]
        torch.testing.assert_close(alone.perturbations, expected, rtol=1e-5, atol=1e-7)
        assert alone.success == whole.success[index]


@every
def test_the_order_of_the_batch_does_not_matter(attack, exact, pictures):
    order = list(range(6))
    forwards, backwards = (
        on(attack, exact, pictures, order),
        on(attack, exact, pictures, order[::-1]),
    )
    torch.testing.assert_close(
        forwards.perturbations, backwards.perturbations.flip(0), rtol=1e-5, atol=1e-7
    )
    assert torch.equal(forwards.labels, backwards.labels.flip(0))


@every
def test_binary_logits_decide_by_their_sign(attack, table, points):
    model, images = table(lambda x: x.sum(dim=1, keepdim=True) - 6), points(count=6)
    result = attack(model, images)
    assert torch.equal(result.labels, (images.flatten(1).sum(dim=1) > 6).long())
    assert bool((result.adversarial_labels == 1 - result.labels)[result.success].all())


@every
def test_given_labels_are_the_ones_to_leave(attack, network, pictures):
    wrong = (predict(network, pictures) + 1) % 5
    result = attack(network, pictures, labels=wrong)
    assert torch.equal(result.labels, wrong)
    assert torch.equal(result.success, result.adversarial_labels != wrong)


@every
def test_a_model_in_training_mode_is_refused(attack, network, pictures):
    model = deepcopy(network)
    model[4].train()
    with pytest.raises(
        InputError, match=r"model must be in evaluation mode .*; got training mode at layer '4'"
    ):
        attack(model, pictures)


@every
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(attack, table, points, value):
    model = table(lambda x: torch.where(x[:, :3] > 2, x[:, :3], value))
    with pytest.raises(InputError, match="logits must be"):
        attack(model, points(count=2))


@every
def test_logits_of_another_shape_are_refused(attack, table, points):
    with pytest.raises(InputError, match=r"logits\.shape"):
        attack(table(lambda x: x.sum(dim=1)), points(count=2))


@every
def test_pixels_that_are_not_finite_are_refused(attack, network, pictures):
    with pytest.raises(InputError, match="images must be"):
        attack(network, pictures.index_fill(0, torch.tensor([1]), math.nan))


@pytest.mark.parametrize(
    "attack", [deepfool, partial(fgsm, eps=1), lbfgs, partial(pgd, eps=1), random_noise, ddn]
)
def test_images_outside_the_clip_are_refused(attack, network, pictures):
    with pytest.raises(InputError, match=r"images must be within \[0, 1\]"):
        attack(network, 2 * pictures, clip=(0.0, 1.0))


REFUSED = [
    (deepfool, {"norm": 0.5}, "norm must be .*; got 0.5"),
    (deepfool, {"norm": "wide"}, "norm must be .*; got 'wide'"),
    (deepfool, {"overshoot": -0.1}, "overshoot must be .*; got -0.1"),
    (deepfool, {"steps": 0}, "steps must be .*; got 0"),
    (deepfool, {"candidates": 1}, "candidates must be .*; got 1"),
    (deepfool, {"variant": "new"}, "variant must be one of clean, thesis, overshot; got 'new'"),
    (deepfool, {"clip": (1.0, 0.0)}, "clip must be"),
    (deepfool, {"clip": (0.0, math.inf)}, "clip must be"),
    (fgsm, {"eps": 0}, "eps must be .*; got 0"),
    (fgsm, {"eps": "8/0"}, "eps must be .*; got '8/0'"),
    (fgsm, {"eps": 0.1, "norm": 0}, "norm must be .*; got 0"),
    (pgd, {"eps": -1.0}, "eps must be .*; got -1.0"),
    (pgd, {"eps": 0.1, "norm": 1}, "norm must be 2 or inf.*; got 1"),
    (pgd, {"eps": 0.1, "steps": 0}, "steps must be .*; got 0"),
    (pgd, {"eps": 0.1, "step_size": 0.0}, "step_size must be .*; got 0.0"),
    (pgd, {"eps": 0.1, "restarts": 0}, "restarts must be .*; got 0"),
    (spsa, {"eps": 0}, "eps must be .*; got 0"),
    (spsa, {"eps": 0.1, "norm": 1}, "norm must be 2 or inf.*; got 1"),
    (spsa, {"eps": 0.1, "steps": 0}, "steps must be .*; got 0"),
    (spsa, {"eps": 0.1, "directions": 0}, "directions must be .*; got 0"),
    (spsa, {"eps": 0.1, "delta": 0}, "delta must be .*; got 0"),
    (spsa, {"eps": 0.1, "learning_rate": -1}, "learning_rate must be .*; got -1"),
    (lbfgs, {"constants": 0}, "constants must be .*; got 0"),
    (lbfgs, {"steps": 0}, "steps must be .*; got 0"),
    (lbfgs, {"candidates": 0}, "candidates must be .*; got 0"),
    (random_noise, {"norm": 0.9}, "norm must be .*; got 0.9"),
    (random_noise, {"directions": 0}, "directions must be .*; got 0"),
    (random_noise, {"max_norm": 0}, "max_norm must be .*; got 0"),
    (ddn, {"steps": 0}, "steps must be .*; got 0"),
    (ddn, {"gamma": 1.0}, "gamma must be .*; got 1.0"),
    (ddn, {"init_norm": 0}, "init_norm must be .*; got 0"),
    (ddn, {"alpha": 0.001}, "alpha must be .*; got 0.001"),
]


@pytest.mark.parametrize(
    ("attack", "options", "message"), REFUSED, ids=[f"{a.__name__} {o}" for a, o, _ in REFUSED]
)
def test_options_that_cannot_be_used_are_refused_before_any_work(
    attack, options, message, network, pictures
):
    with pytest.raises(InputError) as caught:
        attack(network, pictures[:0], **options)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@every_random
def test_the_same_seed_gives_the_same_bytes(attack, network, pictures):
    first, again, other = (attack(network, pictures, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.perturbations, again.perturbations)
    assert not torch.equal(first.perturbations, other.perturbations)
    default = attack(network, pictures)
    assert torch.equal(default.perturbations, attack(network, pictures).perturbations)


@every_random
def test_without_a_generator_all_draws_come_from_one_stream(attack, network, pictures):
    default, seed_0 = attack(network, pictures), attack(network, pictures, generator=seeded(0))
    assert torch.equal(default.perturbations, seed_0.perturbations)


@every_random
def test_a_generator_an_image_makes_the_cut_into_chunks_irrelevant(attack, exact, pictures):
    whole = on(attack, exact, pictures, list(range(12)))
    parts = [
        on(attack, exact, pictures, list(range(12))[start : start + 5]) for start in (0, 5, 10)
    ]
    joined = torch.cat([part.perturbations for part in parts])
    torch.testing.assert_close(whole.perturbations, joined, rtol=1e-5, atol=1e-7)


@every
def test_gradients_may_be_switched_off_around_an_attack(attack, network, pictures):
    with torch.no_grad():
        quiet = attack(network, pictures)
    assert torch.equal(quiet.perturbations, attack(network, pictures).perturbations)
