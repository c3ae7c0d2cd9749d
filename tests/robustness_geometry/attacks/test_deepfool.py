"""DeepFool against closed forms, in float64 to 1e-6."""

import math
import sys

import pytest
import torch

from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import InputError
from robustness_geometry.norms import dual, norms
from robustness_geometry.types import predict

MODULE = sys.modules[
    "robustness_geometry.attacks.deepfool"
]  # the package has the function under this name

OVERSHOOT = 1.02
VARIANTS = ["clean", "thesis", "overshot"]
EXPONENTS = [1, 1.1, 1.5, 2, 3, 10, math.inf]


def close(found, expected, tolerance=1e-6):
    expected = torch.as_tensor(expected, dtype=found.dtype).expand_as(found)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


def distances(model, points, p=2.0, projector=None):
    """|F_k| / ||P w_k||_q of every class k but the predicted one, (N, L - 1)."""
    own = predict(model, points)
    with torch.no_grad():
        logits = model(points)
    normals = model.weight.detach()[None] - model.weight.detach()[own][:, None]
    if projector is not None:
        normals = normals @ projector
    sizes = torch.linalg.vector_norm(normals, ord=dual(p), dim=2)
    found = (logits - logits.gather(1, own[:, None])).abs() / sizes
    others = torch.ones_like(logits).scatter(1, own[:, None], 0).bool()
    return found[others].view(len(points), -1)


# Affine classifiers: one step, exact.


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("classes", [2, 5, 23])
def test_affine_is_exact_in_one_step_for_every_norm(affine, points, p, classes):
    model, images = affine(classes), points()
    result = deepfool(model, images, norm=p)
    close(norms(result.perturbations, p), OVERSHOOT * distances(model, images, p).amin(dim=1))
    assert bool(result.success.all())
    assert bool((result.steps == 1).all())


@pytest.mark.parametrize("p", EXPONENTS)
def test_affine_steps_cover_the_gap(affine, points, p):
    model, images = affine(), points()
    result = deepfool(model, images, norm=p)
    index = torch.arange(len(images))
    new, own = result.adversarial_labels, result.labels
    with torch.no_grad():
        logits = model(images)
    gaps = logits[index, own] - logits[index, new]
    normals = model.weight.detach()[new] - model.weight.detach()[own]
    close((normals * result.perturbations.flatten(1)).sum(dim=1), OVERSHOOT * gaps)


@pytest.mark.parametrize("variant", ["clean", "thesis"])
def test_binary_affine_is_the_formula(affine, points, variant):
    model, images = affine(outputs=1), points()
    with torch.no_grad():
        exact = -model(images) / model.weight.square().sum() * model.weight
    result = deepfool(model, images, variant=variant)
    close(result.perturbations.flatten(1) / OVERSHOOT, exact)
    assert bool(((result.labels == 1) == (model(images)[:, 0] > 0)).all())
    assert bool((result.adversarial_labels == 1 - result.labels).all())


def test_overshot_adds_its_length_to_the_distance(affine, points):
    model, images = affine(), points()
    result = deepfool(model, images, variant="overshot")
    close(norms(result.perturbations), OVERSHOOT * (distances(model, images).amin(dim=1) + 1e-4))


def test_no_overshoot_lands_on_the_boundary(affine, points):
    model, images = affine(), points()
    result = deepfool(model, images, overshoot=0, steps=1)
    close(norms(result.perturbations), distances(model, images).amin(dim=1))


# Spheres: F = ||x||^2 - 1 and F = ||x|| - 1 about the origin.


@pytest.mark.parametrize(
    ("variant", "radius", "expected", "steps"),
    [
        ("clean", 0.8, 0.2295, 1),
        ("clean", 1.2, 0.203861, 2),
        ("overshot", 1.2, 0.200175, 2),
    ],
)
def test_sphere(radial, at, monkeypatch, variant, radius, expected, steps):
    # These values leave out the length that the variant overshot adds to each step.
    monkeypatch.setattr(MODULE, "EXTRA", 0.0)
    result = deepfool(radial(lambda r: r**2 - 1), at(radius), variant=variant)
    assert norms(result.perturbations).item() == pytest.approx(expected, abs=5e-7)
    assert result.steps.item() == steps
    assert bool(result.success)


def test_overshot_recursion_on_the_sphere(radial, at):
    # Newton's recursion t -> t + 1.02 ((t^2 - 1) / 2t + 1e-4) along the radius, written out.
    radius = 1.2
    while radius >= 1:
        radius -= OVERSHOOT * ((radius**2 - 1) / (2 * radius) + 1e-4)
    result = deepfool(radial(lambda r: r**2 - 1), at(1.2), variant="overshot")
    assert norms(result.perturbations).item() == pytest.approx(1.2 - radius, rel=1e-9)


def test_thesis_variant_converges_to_the_sphere_from_outside(radial, at):
    result = deepfool(radial(lambda r: r**2 - 1), at(1.2), variant="thesis")
    assert norms(result.perturbations).item() == pytest.approx(0.2 * OVERSHOOT, rel=1e-6)
    assert bool(result.success)


@pytest.mark.parametrize("variant", ["clean", "thesis"])
@pytest.mark.parametrize("radius", [0.3, 0.8, 1.2, 3.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_cone_is_exact_in_one_step(radial, at, variant, radius, sign):
    result = deepfool(radial(lambda r: sign * (r - 1)), at(radius), variant=variant)
    close(norms(result.perturbations), OVERSHOOT * abs(radius - 1))
    assert result.steps.item() == 1
    assert bool(result.success)


# Subspaces.


def random_basis(m, d=12, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(
        torch.randn(d, m, generator=generator, dtype=torch.float64)
    ).Q.T.contiguous()


@pytest.mark.parametrize("m", [1, 3, 12])
def test_affine_in_a_subspace(affine, points, m):
    model, images, basis = affine(), points(), random_basis(m)
    projector = basis.T @ basis
    result = deepfool(model, images, subspace=basis)
    flat = result.perturbations.flatten(1)
    close(flat.norm(dim=1), OVERSHOOT * distances(model, images, projector=projector).amin(dim=1))
    torch.testing.assert_close(flat @ projector, flat, rtol=0, atol=1e-12)


def test_a_subspace_for_each_image_and_a_projector_agree_with_a_basis(affine, points):
    model, images = affine(), points(count=6)
    bases = torch.stack([random_basis(4, seed=seed) for seed in range(6)])
    each = deepfool(model, images, subspace=bases)
    for index, basis in enumerate(bases):
        one = deepfool(model, images[index : index + 1], subspace=basis)
        torch.testing.assert_close(each.perturbations[index : index + 1], one.perturbations)
    square = bases[0].T @ bases[0]
    matrix_free = deepfool(model, images, subspace=lambda v: (v.flatten(-3) @ square).view_as(v))
    tensor = deepfool(model, images, subspace=bases[0])
    torch.testing.assert_close(matrix_free.perturbations, tensor.perturbations)


def line(angle):
    return torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("angle", [0.0, 0.2, 0.4])
def test_sphere_from_outside_along_a_line(radial, at, angle):
    # At distance a, along a line at cosine c to the radius: t = a c - sqrt(1 - a^2 (1 - c^2)).
    a, c = 1.2, math.cos(angle)
    expected = a * c - math.sqrt(1 - a**2 * (1 - c**2))
    result = deepfool(radial(lambda r: r**2 - 1), at(a), subspace=line(angle), variant="thesis")
    assert norms(result.perturbations).item() == pytest.approx(OVERSHOOT * expected, rel=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2])
def test_sphere_from_inside_along_a_line(radial, at, angle):
    # The first linear model leads beyond the sphere, which is t = -a c + sqrt(1 - a^2 (1 - c^2))
    # away.
    a, c = 0.8, math.cos(angle)
    exact = -a * c + math.sqrt(1 - a**2 * (1 - c**2))
    result = deepfool(radial(lambda r: r**2 - 1), at(a), subspace=line(angle))
    found = norms(result.perturbations).item()
    assert found == pytest.approx(OVERSHOOT * (1 - a**2) / (2 * a * c), rel=1e-6)
    assert found > exact
    assert result.steps.item() == 1


def test_a_subspace_that_misses_the_boundary_fails(radial, at):
    # The line through (1.2, 0, 0) along the second axis never meets the unit sphere; no gradient
    # points along it.
    basis = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    result = deepfool(radial(lambda r: r**2 - 1), at(1.2), subspace=basis)
    assert not bool(result.success)
    assert bool((result.perturbations == 0).all())


@pytest.mark.parametrize(
    ("subspace", "message"),
    [
        (torch.ones(2, 12, dtype=torch.float64), "orthonormal"),
        (torch.eye(11, dtype=torch.float64), "subspace.shape"),
        (torch.eye(12, dtype=torch.float64).expand(3, 12, 12), "subspace"),
        (lambda v: 2 * v, "orthogonal projection"),
        (lambda v: torch.roll(v, 1, dims=-1) * 0 + v.flip(-1), "orthogonal projection"),
        (lambda v: v.flatten(2), "projector to shape"),
    ],
)
def test_what_is_no_subspace_is_refused(affine, points, subspace, message):
    # A wrong number of bases is also found by the check of shapes that runs in tests.
    with pytest.raises((InputError, TypeError), match=message):
        deepfool(affine(), points(), subspace=subspace)


@pytest.mark.parametrize(("option", "value"), [("norm", 3), ("clip", (0.0, 1.0))])
def test_a_subspace_goes_with_the_l2_norm_and_no_clipping(affine, points, option, value):
    with pytest.raises(InputError, match=option):
        deepfool(affine(), points(), subspace=random_basis(3), **{option: value})


# Labels, targets and candidates.


def test_an_image_that_has_another_label_stays(affine, points):
    model, images = affine(), points()
    wrong = (predict(model, images) + 1) % 5
    result = deepfool(model, images, labels=wrong)
    assert bool((result.perturbations == 0).all())
    assert bool(result.success.all())
    assert bool((result.steps == 0).all())
    assert torch.equal(result.labels, wrong)


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_are_reached(affine, points, variant):
    model, images = affine(), points(count=30)
    targets = torch.arange(30) % 5
    result = deepfool(model, images, targets=targets, variant=variant)
    assert bool(result.success.all())
    assert torch.equal(predict(model, result.adversarial(images)), targets)
    there = predict(model, images) == targets
    assert bool((result.perturbations[there] == 0).all())


def test_a_target_next_door_is_reached_in_one_exact_step(affine, points):
    model, images = affine(outputs=2), points()
    result = deepfool(model, images, targets=1 - predict(model, images))
    close(norms(result.perturbations), OVERSHOOT * distances(model, images)[:, 0])


def test_a_target_behind_another_class_takes_the_current_label_each_step(table):
    # Along the line the labels are 0, 1, 2; the step from 0 to 2 stops short in 1, and the next
    # goes from 1 to 2.
    model = table(lambda x: torch.stack([x[:, 0] * 0, x[:, 0] - 1, 2 * x[:, 0] - 4], dim=1))
    result = deepfool(
        model, torch.zeros(1, 1, 1, 1, dtype=torch.float64), targets=torch.tensor([2])
    )
    assert bool(result.success)
    assert result.steps.item() == 2
    assert result.perturbations.item() == pytest.approx(3 * OVERSHOOT)


def test_candidates_are_those_of_the_largest_logits(affine, points):
    model, images = affine(outputs=8), points(count=40)
    few = deepfool(model, images, candidates=2)
    with torch.no_grad():
        second = model(images).topk(2).indices[:, 1]
    assert bool((few.adversarial_labels == second)[few.steps == 1].float().mean() > 0.5)
    assert bool(
        (
            norms(few.perturbations) >= norms(deepfool(model, images).perturbations) * (1 - 1e-9)
        ).all()
    )
    everything = deepfool(model, images, candidates=100)
    torch.testing.assert_close(everything.perturbations, deepfool(model, images).perturbations)


# Failure.


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gradient_of_zero_fails_without_nan(table, points, variant):
    model = table(lambda x: torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], dim=1))
    result = deepfool(model, points(count=3), variant=variant)
    assert not bool(result.success.any())
    assert bool((result.perturbations == 0).all())
    assert bool((result.steps == 0).all())


def test_a_model_that_ignores_its_input_fails_without_an_error(table, points):
    model = table(lambda x: torch.tensor([[1.0, 0.0]], dtype=x.dtype).expand(len(x), 2))
    assert not bool(deepfool(model, points(count=3)).success.any())


def test_a_class_without_gradient_is_infinitely_far(table, points):
    # The second class is near but flat, the third one is farther but can be reached.
    model = table(
        lambda x: torch.stack([x[:, 0] * 0 + 3, x[:, 0] * 0 + 2.9, 3 * x[:, 0] - 3], dim=1)
    )
    result = deepfool(model, points(count=4))
    assert bool(result.success.all())
    assert bool((result.adversarial_labels == 2).all())


def test_too_few_steps_return_the_last_iterate(radial, at):
    result = deepfool(radial(lambda r: r**2 - 1), at(1.2), steps=1)
    assert not bool(result.success)
    assert norms(result.perturbations).item() == pytest.approx((1.44 - 1) / 2.4 * OVERSHOOT)


def test_logits_that_overflow_on_the_way_fail(table):
    # A step of 1.02 leads past x = 1, where the logits are NaN.
    model = table(
        lambda x: torch.stack([1 - x[:, 0], torch.where(x[:, 0] > 1, math.nan, x[:, 0] - 1)], dim=1)
    )
    result = deepfool(model, torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    assert not bool(result.success)
    assert bool(torch.isfinite(result.perturbations).all())


def test_an_image_on_the_boundary_crosses_it(affine, points):
    model, images = affine(outputs=1), points(count=1)
    with torch.no_grad():
        model.bias -= model(images)[0]
    result = deepfool(model, images)
    assert bool(result.success)
    assert norms(result.perturbations).item() < 1e-12


# Networks.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("p", [1.5, 2, math.inf])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_a_network_is_fooled_in_float32(network, pictures, variant, p, clip):
    result = deepfool(network, pictures, variant=variant, norm=p, clip=clip)
    moved = result.adversarial(pictures)
    assert bool(result.success.all())
    assert bool((predict(network, moved) != result.labels).all())
    assert torch.equal(predict(network, moved), result.adversarial_labels)
    if clip:
        assert float(moved.min()) >= 0
        assert float(moved.max()) <= 1


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_the_l1_norm_changes_few_pixels(network, pictures, clip):
    sparse, dense = (
        deepfool(network, pictures, norm=1, clip=clip),
        deepfool(network, pictures, clip=clip),
    )
    assert float(sparse.success.float().mean()) > 0.8
    assert bool(((sparse.perturbations != 0).flatten(1).sum(dim=1) <= sparse.steps).all())
    both = sparse.success & (sparse.steps < 5)
    assert float(norms(sparse.perturbations[both], 1).mean()) < float(
        norms(dense.perturbations[both], 1).mean()
    )


def test_the_result_does_not_depend_on_the_size_of_the_active_set(network, pictures, monkeypatch):
    whole = deepfool(network, pictures)
    monkeypatch.setattr(MODULE, "BATCH", 5)
    pieces = deepfool(network, pictures)
    torch.testing.assert_close(whole.perturbations, pieces.perturbations, rtol=1e-4, atol=1e-6)
    assert torch.equal(whole.steps, pieces.steps)


def test_more_classes_than_are_held_at_once(affine, points):
    model, images = affine(outputs=37), points()
    result = deepfool(model, images)
    close(norms(result.perturbations), OVERSHOOT * distances(model, images).amin(dim=1))


def test_targets_refuse_candidates(affine, points):
    with pytest.raises(InputError, match="candidates"):
        deepfool(affine(), points(count=1), targets=torch.tensor([1]), candidates=3)


@pytest.mark.parametrize(
    "labels", [torch.tensor([7]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor([0, 1])]
)
def test_labels_that_are_no_classes_are_refused(affine, points, labels):
    with pytest.raises((InputError, TypeError), match="labels"):
        deepfool(affine(), points(count=1), labels=labels)
