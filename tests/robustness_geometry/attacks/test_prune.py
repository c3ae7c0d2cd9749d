"""DeepFool's option ``prune``: fewer gradients, the same perturbations."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustness_geometry.attacks import deepfool, universal_perturbation
from robustness_geometry.checks import InputError
from robustness_geometry.datasets import mnist5k
from robustness_geometry.models import pretrained


@pytest.fixture
def gradients(monkeypatch):
    """Counts the gradients that are taken, an image each."""
    taken = Counter()
    grad = torch.autograd.grad

    def counted(outputs, *inputs, **options):
        taken["images"] += len(outputs)
        return grad(outputs, *inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return taken


@pytest.mark.parametrize("name", ["mnist5k_lenet", "mnist5k_fc500_150_10", "mnist5k_nin"])
@pytest.mark.parametrize(
    "options", [{}, {"norm": math.inf}, {"variant": "overshot", "clip": (0.0, 1.0)}]
)
def test_digits_are_perturbed_as_by_all_classes(gradients, name, options):
    model, images = pretrained(name), mnist5k().test.images[:100]
    every = deepfool(model, images, **options)
    whole = gradients.pop("images")
    pruned = deepfool(model, images, prune=2, **options)
    assert gradients["images"] < 0.85 * whole
    assert torch.equal(pruned.steps, every.steps)
    assert torch.equal(pruned.adversarial_labels, every.adversarial_labels)
    torch.testing.assert_close(pruned.perturbations, every.perturbations, rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), prune=st.sampled_from([1, 1.5, 2, 1e9]))
def test_an_affine_classifier_is_never_worse_than_what_prune_allows(affine, points, seed, prune):
    model, images = affine(7, seed=seed), points(seed=seed)
    every, pruned = deepfool(model, images), deepfool(model, images, prune=prune)
    sizes = [result.perturbations.flatten(1).norm(dim=1) for result in (every, pruned)]
    normals = model.weight.detach()[None] - model.weight.detach()[every.labels][:, None]
    lengths = normals.norm(dim=2).scatter(1, every.labels[:, None], torch.nan)
    spread = lengths.nan_to_num(0).amax(dim=1) / lengths.nan_to_num(torch.inf).amin(dim=1)
    assert bool((sizes[1] >= sizes[0] * (1 - 1e-9)).all())
    assert bool((sizes[1] <= sizes[0] * (spread / prune).clamp_min(1) * (1 + 1e-9)).all())


def test_classes_with_equal_gradients_take_one_pass(gradients, table):
    """Of parallel boundaries the one with the smallest gap is nearest: one gradient suffices."""
    slopes = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    offsets = torch.tensor([0.0, -4.0, -1.0, -3.0, -2.0], dtype=torch.float64)
    model = table(lambda flat: flat[:, :1] * slopes + offsets)
    images = torch.zeros(3, 1, 1, 2, dtype=torch.float64)
    result = deepfool(model, images, prune=1)
    assert gradients["images"] == 3
    assert result.adversarial_labels.tolist() == [2, 2, 2]
    torch.testing.assert_close(
        result.perturbations[:, 0, 0, 0], torch.full((3,), 1.02, dtype=torch.float64)
    )


def test_a_class_without_gradient_hides_none(table):
    """The boundary with the smallest gap has no gradient: the others must still be looked at."""
    model = table(
        lambda flat: torch.stack([0 * flat[:, 0], 0 * flat[:, 0] - 0.5, flat[:, 0] - 1], dim=1)
    )
    result = deepfool(model, torch.zeros(2, 1, 1, 2, dtype=torch.float64), prune=2)
    assert result.adversarial_labels.tolist() == [2, 2]


def test_some_images_need_more_boundaries_than_others(affine, points, gradients):
    """The few that are left get passes of their own."""
    model, images = affine(9), points(40)
    every = deepfool(model, images)
    whole = gradients.pop("images")
    pruned = deepfool(model, images, prune=1e9)
    assert gradients["images"] == whole
    torch.testing.assert_close(pruned.perturbations, every.perturbations)
    gradients.clear()
    few = deepfool(model, images, prune=1.2)
    assert 40 < gradients["images"] < whole
    assert bool(few.success.all())


@pytest.mark.parametrize("prune", [0, -1, 0.5, math.nan, "wide"])
def test_what_is_no_ratio_is_refused(affine, points, prune):
    with pytest.raises(InputError, match="prune must be"):
        deepfool(affine(), points(), prune=prune)
    with pytest.raises(InputError, match="prune must be"):
        universal_perturbation(affine(), points(), radius=0.1, prune=prune)


def test_a_subspace_takes_all_classes(affine, points):
    with pytest.raises(InputError, match=r"prune must be .*; got 2"):
        deepfool(affine(), points(), prune=2, subspace=torch.eye(12, dtype=torch.float64)[:3])
