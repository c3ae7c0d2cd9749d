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
    every = deepfool(model, images, prune=None, **options)
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
    every, pruned = (deepfool(model, images, prune=value) for value in (None, prune))
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
    every = deepfool(model, images, prune=None)
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


def plain(model, images, *, steps=50, overshoot=0.02):
    """Algorithm 2 for one image at a time, with the gradients of all classes."""
    found = torch.zeros_like(images)
    for row, image in enumerate(images[:, None]):
        label = model(image).argmax()
        total = torch.zeros_like(image)
        for _ in range(steps):
            logits = model(image + total)[0].detach()
            jacobian = torch.autograd.functional.jacobian(model, image + total)[0].flatten(1)
            gaps, normals = (logits - logits[label]).abs(), jacobian - jacobian[label]
            sizes = normals.norm(dim=1)
            distances = torch.where(sizes > 0, gaps / sizes, torch.inf)
            best = distances.argmin()
            total = total + (gaps[best] / sizes[best] ** 2 * normals[best]).view_as(image)
            if model(image + (1 + overshoot) * total).argmax() != label:
                break
        found[row] = (1 + overshoot) * total[0]
    return found


def random_network(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    layers = torch.nn.Linear(64, 40), torch.nn.Tanh(), torch.nn.Linear(40, classes)
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers).double().eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() / 6
    return model, torch.rand(4, 1, 8, 8, generator=generator).double()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 50),
    prune=st.sampled_from([None, math.inf, "auto"]),
)
def test_random_networks_are_perturbed_as_by_the_plain_algorithm(seed, classes, prune):
    model, images = random_network(seed, classes)
    found = deepfool(model, images, prune=prune).perturbations
    torch.testing.assert_close(found, plain(model, images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "most"),
    [("mnist5k_lenet", 6), ("mnist5k_fc500_150_10", 6), ("mnist5k_nin", 10)],
)
@pytest.mark.parametrize(
    "options", [{}, {"norm": math.inf}, {"variant": "overshot", "clip": (0.0, 1.0)}]
)
def test_auto_perturbs_digits_as_all_classes_do(gradients, name, most, options):
    model, images = pretrained(name), mnist5k().test.images[: 40 if options else 128]
    every = deepfool(model, images, prune=None, **options)
    whole = gradients.pop("images")
    found = deepfool(model, images, **options)
    assert gradients["images"] <= (0.6 * whole if options else most * len(images))
    assert torch.equal(found.steps, every.steps)
    assert torch.equal(found.adversarial_labels, every.adversarial_labels)
    torch.testing.assert_close(found.perturbations, every.perturbations, rtol=1e-4, atol=1e-6)


def many_classes(kind):
    """A network of 1,000 classes with spread-out lengths of its gradients."""
    torch.manual_seed(0)
    layers = {
        "linear": [torch.nn.Flatten(), torch.nn.Linear(192, 1000)],
        "hidden": [
            torch.nn.Flatten(),
            torch.nn.Linear(192, 100),
            torch.nn.ReLU(),
            torch.nn.Linear(100, 1000),
        ],
        "convolutions": [
            torch.nn.Conv2d(3, 8, 3),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(72, 1000),
        ],
    }[kind]
    last = layers[-1]
    last.weight.data *= (0.15 * torch.randn(1000, 1)).exp()
    return torch.nn.Sequential(*layers).eval(), torch.rand(6, 3, 8, 8)


@pytest.mark.parametrize("kind", ["linear", "hidden", "convolutions"])
@pytest.mark.parametrize("options", [{}, {"norm": math.inf}, {"subspace": 100}, {"targets": 7}])
def test_a_thousand_classes_take_no_more_than_twice_the_gradients_of_ten(gradients, kind, options):
    model, images = many_classes(kind)
    given = dict(options)
    if "subspace" in given:
        given["subspace"] = torch.linalg.qr(torch.randn(192, 100)).Q.T
    if "targets" in given:
        given["targets"] = torch.full((6,), 7)
    else:
        deepfool(model, images, prune=None, candidates=10, **given)
    ten = gradients.pop("images", 0)
    every = deepfool(model, images, prune=None, steps=3, **given)
    whole = gradients.pop("images")
    found = deepfool(model, images, steps=3, **given)
    assert gradients["images"] <= (2 * ten or whole)
    assert torch.equal(found.adversarial_labels, every.adversarial_labels)
    torch.testing.assert_close(found.perturbations, every.perturbations, rtol=1e-4, atol=1e-6)


def test_auto_corrects_itself_where_lengths_differ_much(affine, points, gradients):
    """The wider the lengths that are seen, the wider the bound on the others."""
    model, images = affine(9), points(40)
    model.weight.data[1::2] *= 30
    every = deepfool(model, images, prune=None)
    whole = gradients.pop("images")
    found = deepfool(model, images)
    assert gradients["images"] <= whole
    torch.testing.assert_close(found.perturbations, every.perturbations)


def test_a_subspace_of_one_dimension_is_searched_widely(affine, points):
    model, images = affine(9), points(40)
    line = torch.ones(1, images[0].numel(), dtype=torch.float64) / images[0].numel() ** 0.5
    every, found = (deepfool(model, images, prune=p, subspace=line) for p in (None, "auto"))
    torch.testing.assert_close(found.perturbations, every.perturbations)
