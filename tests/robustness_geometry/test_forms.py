"""Every public function that takes images: labels in any form, inputs of any shape and type."""

import math
from dataclasses import fields, is_dataclass
from functools import partial

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustness_geometry import attacks, detection, geometry, training
from robustness_geometry.attacks.universal_group import Wanted, universal_perturbations
from robustness_geometry.checks import InputError
from robustness_geometry.randomness import normal, seeded
from robustness_geometry.types import Split

D, N, CLASSES = 8, 6, 3


def mlp(dtype=torch.float32, shape=(), seed=0):
    """A smooth network of D inputs; ``shape``: that of the images that it takes."""
    torch.manual_seed(seed)
    layers = nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, CLASSES)
    with torch.no_grad():
        layers[0].weight.mul_(3)
    return nn.Sequential(*([nn.Flatten()] if len(shape) != 1 else []), *layers).to(dtype).eval()


def points(shape=(D,), dtype=torch.float32, count=N):
    flat = torch.rand(count, D, generator=seeded("forms"), dtype=torch.float64)
    return flat.view(count, *shape).to(dtype)


def own(model, images):
    return model(images.to(next(model.parameters()))).argmax(1)


def boundary(model, images):
    return geometry.boundary_points(model, images, tolerance=0.1)


def at_boundary(function):
    """A curvature function at the boundary points of the images."""
    return lambda model, images: function(model, boundary(model, images), tolerance=math.inf)


def pair(model, images):
    order = model(images.to(next(model.parameters()))).argsort(1, descending=True)
    return {"labels": order[:, 0], "targets": order[:, 1]}


def axes_at(model, images):
    return normal(images.new_empty(2, *images.shape), seeded("axes"))


def universal(model, images, **options):
    return attacks.universal_perturbation(model, images, radius=2, passes=2, **options)


def path(model, images):
    labels = own(model, images).tolist()
    first = next(i for i in range(N) for j in range(i) if labels[i] == labels[j])
    second = labels.index(labels[first])
    found = geometry.find_path(model, images[first], images[second], spacing=0.1)
    return found.anchors, geometry.deviation(found.anchors)


def group(model, images):
    return universal_perturbations(model, images, [Wanted(1.0), Wanted(2.0)], passes=1)


def fine_tuned(model, images):
    moved = training.perturbed_split(
        Split(images, own(model, images)), attacks.deepfool(model, images).perturbations
    )
    recipe = training.Recipe(epochs=1, batch_size=3)
    objective = training.Adversarial(partial(attacks.pgd, eps=0.1, steps=2, clip=None))
    return training.train(model, moved, recipe, objective=objective).history


def cured(model, images):
    data, recipe = Split(images, own(model, images)), training.Recipe(epochs=1, batch_size=3)
    return training.train(model, data, recipe, objective=training.Cure(ramp=0)).history


def subspaces(images):
    return geometry.RandomSubspaces((D,), 3, [seeded(i) for i in range(N)], like=images)


ATTACKS = {
    "deepfool": attacks.deepfool,
    "deepfool l1": partial(attacks.deepfool, norm=1, clip=(0, 1)),
    "fgsm": partial(attacks.fgsm, eps=0.1),
    "pgd": partial(attacks.pgd, eps=0.1, steps=3),
    "pgd l2": partial(attacks.pgd, eps=torch.linspace(0.1, 0.6, N), norm=2, steps=3),
    "ddn": partial(attacks.ddn, steps=5),
    "lbfgs": partial(attacks.lbfgs, constants=2, steps=4),
    "random_noise": attacks.random_noise,
    "spsa": partial(attacks.spsa, eps=0.1, steps=2, directions=3),
}
WITH_LABELS = {
    **ATTACKS,
    "fgsm_smallest_eps": partial(attacks.fgsm_smallest_eps, grid=4),
    "fooled": lambda model, images, labels: attacks.fooled(
        model, images, images[:1] - images[1:2], labels=labels
    ),
    "universal_perturbation": universal,
    "boundary_points": geometry.boundary_points,
    "class_curvatures": partial(geometry.class_curvatures, h=[0.5]),
    "find_paths": lambda model, images, labels: [
        found.anchors for found in geometry.find_paths(model, images, images, labels=labels)
    ],
    "loss_curvature": geometry.loss_curvature,
    "loss_gradients": geometry.loss_gradients,
    "plane_sections": lambda model, images, labels: geometry.plane_sections(
        model, images, *axes_at(model, images), torch.ones(2), torch.ones(2), labels=labels
    ),
    "stays_in_region": lambda model, images, labels: geometry.stays_in_region(
        model, images[:, None], labels
    ),
    "cure_penalty": partial(training.cure_penalty, h=0.5),
}
ANY_SHAPE = {
    **WITH_LABELS,
    "universal_perturbations": group,
    "deepfool in a basis": lambda model, images: attacks.deepfool(
        model, images, subspace=geometry.random_subspace(D, 4, seeded(0))
    ),
    "deepfool in own subspaces": lambda model, images: attacks.deepfool(
        model, images, subspace=subspaces(images)
    ),
    "principal_curvatures": at_boundary(partial(geometry.principal_curvatures, basis="pixels")),
    "mean_curvature": at_boundary(geometry.mean_curvature),
    "mean_hessian": at_boundary(partial(geometry.mean_hessian, basis="pixels")),
    "extreme_curvatures": at_boundary(partial(geometry.extreme_curvatures, steps=4)),
    "leading_curvatures": at_boundary(partial(geometry.leading_curvatures, count=1, products=None)),
    "normal_curvatures": lambda model, images: geometry.normal_curvatures(
        model, images, axes_at(model, images)[0], **pair(model, images), tolerance=math.inf
    ),
    "hessian_vector_products": lambda model, images: geometry.hessian_vector_products(
        model, images, axes_at(model, images)[0], **pair(model, images)
    ),
    "exact products": lambda model, images: geometry.hessian_vector_products(
        model, images, axes_at(model, images)[0], **pair(model, images), exact=True
    ),
    "loss_hessian_products": lambda model, images: geometry.loss_hessian_products(
        model, images, own(model, images), axes_at(model, images)[0][:, None]
    ),
    "normals": lambda model, images: geometry.normals(model, images, **pair(model, images)),
    "random_directions": lambda model, images: geometry.random_directions(images, normals=images),
    "find_path": path,
    "stitched_section": lambda model, images: geometry.stitched_section(
        model, images[:3], images[3] - images[4], torch.zeros(1), columns=6
    ),
    "boundary_heights": lambda model, images: geometry.boundary_heights(
        model,
        images,
        *axes_at(model, images),
        torch.zeros(N, 2),
        **pair(model, images),
        reach=torch.ones(N),
    ),
    "curvature_score": partial(detection.curvature_score, h=0.5),
    "by products": partial(detection.curvature_score, h=0.5, by="products", directions=2),
    "confidence": detection.confidence,
    "fine-tuning": fine_tuned,
    "cure": cured,
}


def tensors(result):
    """All numbers of a result, in one flat list of float64 tensors."""
    if isinstance(result, Tensor):
        return [result.double().flatten()]
    if is_dataclass(result):
        return [x for f in fields(result) for x in tensors(getattr(result, f.name))]
    if isinstance(result, dict):
        return [x for key in sorted(result) for x in tensors(result[key])]
    if isinstance(result, list | tuple):
        return [x for each in result for x in tensors(each)]
    return [] if result is None else [torch.tensor([result], dtype=torch.float64)]


def same(wanted, found):
    pairs = zip(wanted, found, strict=True)
    return all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in pairs)


def call(name, model, images, **given):
    function = ANY_SHAPE[name]
    if name in ("loss_curvature", "loss_gradients", "stays_in_region", "cure_penalty"):
        given.setdefault("labels", own(model, images))
    elif name in ("fooled", "find_paths", "plane_sections"):
        given.setdefault("labels", None)
    return function(model, images, **given)


@pytest.fixture(autouse=True)
def _no_type_checks():
    """Wrong types reach the functions, as outside the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("shape", [(D,), (2, 4), (1, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("name", ANY_SHAPE)
def test_inputs_of_any_shape_give_the_numbers_of_pictures(name, shape):
    flat = tensors(call(name, mlp(shape=shape), points(shape)))
    picture = tensors(call(name, mlp(), points((1, 1, D))))
    for one, other in zip(flat, picture, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-4, atol=1e-5)


FORMS = {
    "list": Tensor.tolist,
    "tuple": lambda labels: tuple(labels.tolist()),
    "list of tensors": list,
    "numpy": Tensor.numpy,
    "numpy uint8": lambda labels: labels.numpy().astype(np.uint8),
    "numpy backwards": lambda labels: labels.flip(0).numpy()[::-1],
    "int32": Tensor.int,
    "uint8": Tensor.byte,
}


@pytest.mark.parametrize("name", WITH_LABELS)
def test_labels_in_their_usual_forms_give_the_same_numbers(name):
    model, images = mlp(), points((1, 2, 4))
    labels = own(model, images)
    wanted = tensors(call(name, model, images, labels=labels))
    for form in FORMS.values():
        found = tensors(call(name, model, images, labels=form(labels)))
        assert same(wanted, found)


WRONG = {
    "floats": (lambda labels: labels.float(), r"float32 \(6,\)"),
    "a list of floats": (lambda labels: labels.double().tolist(), r"float32 \(6,\)"),
    "one-hot": (lambda labels: torch.eye(CLASSES)[labels], r"labels.argmax\(1\)\); got"),
    "truths": (lambda labels: labels > 0, r"bool \(6,\)"),
    "too few": (lambda labels: labels[:-1].tolist(), r"int64 \(5,\)"),
    "names": (lambda labels: list("abcdef"), "type list"),
    "negative": (lambda labels: labels - 5, r"from 0 to 2; got \[-5"),
    "too large": (lambda labels: (labels + 3).tolist(), r"from 0 to 2; got \[3"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", WITH_LABELS)
def test_labels_that_are_none_are_refused_by_name(name, wrong):
    model, images = mlp(), points((1, 2, 4))
    change, message = WRONG[wrong]
    with pytest.raises(InputError, match=f"^labels must be whole numbers .*{message}"):
        call(name, model, images, labels=change(own(model, images)))


@pytest.mark.parametrize("name", ["deepfool", "pgd", "spsa", "lbfgs", "boundary_points"])
def test_targets_are_taken_like_labels_and_refused_by_their_own_name(name):
    model, images = mlp(), points((1, 2, 4))
    targets = (own(model, images) + 1) % CLASSES
    wanted = tensors(call(name, model, images, targets=targets))
    found = tensors(call(name, model, images, targets=targets.numpy().astype(np.int32)))
    assert same(wanted, found)
    for bad in (targets.float(), targets + 7):
        with pytest.raises(InputError, match=r"^targets must be whole numbers"):
            call(name, model, images, targets=bad)


def test_one_image_takes_a_single_number_as_its_label():
    model, image = mlp(), points((1, 2, 4), count=1)
    label = int(own(model, image))
    wanted = attacks.deepfool(model, image, labels=torch.tensor([label]))
    for given in (label, np.int64(label), np.array(label), torch.tensor(label)):
        found = attacks.deepfool(model, image, labels=given)
        assert torch.equal(found.perturbations, wanted.perturbations)


def conv(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()


def pictures(channels=3):
    return torch.rand(2, channels, 4, 4, generator=seeded("pictures"))


IMAGES = {
    "numpy": (lambda x: x.numpy(), r"torch\.as_tensor\(images\); got an object of type ndarray"),
    "a list": (lambda x: x.tolist(), "got an object of type list"),
    "uint8": (lambda x: (255 * x).byte(), r"images / 255; got torch.uint8 \(2, 3, 4, 4\)"),
    "integers": (lambda x: (9 * x).long(), r"images.float\(\); got torch.int64"),
    "no batch": (lambda x: x[0], r"network takes; .*; got torch.float32 \(3, 4, 4\)"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), r"network takes; .*\(2, 4, 4, 3\)"),
    "NaN": (lambda x: x / 0, "finite; got NaN or infinite pixels"),
    "0 to 255": (lambda x: 255 * x, r"; got pixels in \[.*, 2.*\]"),
    "dark ones of 255": (lambda x: (9 * x).round(), r"; got pixels in \[0, 9\]"),
}
WITHOUT_LABELS = {name: ANY_SHAPE[name] for name in ("confidence", "curvature_score")}


@pytest.mark.parametrize("wrong", IMAGES)
@pytest.mark.parametrize("name", [*ATTACKS, "boundary_points", *WITHOUT_LABELS])
def test_images_in_other_forms_are_refused_by_what_to_write(name, wrong):
    if name == "pgd l2":
        pytest.skip("its radii are for other images")
    change, message = IMAGES[wrong]
    with pytest.raises(InputError, match=f"^images must be .*{message}"):
        ANY_SHAPE[name](conv(), change(pictures()))


@pytest.mark.parametrize("name", ATTACKS)
def test_images_of_any_layout_stay_as_they_were(name):
    model, images = mlp(), points((1, 2, 4))
    wanted = tensors(call(name, model, images))
    for given in (
        images.transpose(2, 3).contiguous().transpose(2, 3),
        images.clone().requires_grad_(),
        images.to(memory_format=torch.channels_last),
    ):
        before = given.detach().clone()
        found = tensors(call(name, model, given))
        assert same(wanted, found)
        assert torch.equal(given.detach(), before)
    expanded = images[:1].expand(N, -1, -1, -1)
    copies = tensors(call(name, model, expanded.clone()))
    assert same(copies, tensors(call(name, model, expanded)))
    assert torch.equal(expanded, images[:1].expand(N, -1, -1, -1))


def test_points_beside_images_are_taken_without_a_clip():
    # Perturbed images lie outside [0, 1] on both sides; those that count to 255 on one side only.
    model, images = conv(), pictures()
    moved = images + 8 * torch.randn(images.shape, generator=seeded("noise"))
    assert attacks.deepfool(model, moved).perturbations.shape == images.shape
    assert geometry.boundary_points(model, 1.9 * images).points.shape == images.shape
    inside = attacks.fgsm(model, 255 * images, eps=8, clip=(0, 255))
    assert bool((inside.adversarial(255 * images) <= 255.001).all())


TYPES = [
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
]
SECOND = {"class_curvatures", "loss_curvature", "cure_penalty"}
"""Functions of second derivatives, which half precision cannot give."""


class To(nn.Module):
    """A network whose logits have another type than its images."""

    def __init__(self, dtype):
        super().__init__()
        self.network, self.dtype = mlp(), dtype
        self.eval()

    def forward(self, images):
        return self.network(images.float()).to(self.dtype)


class Mixed(nn.Module):
    """A network that works in mixed precision by itself."""

    def __init__(self):
        super().__init__()
        self.network = mlp()
        self.eval()

    def forward(self, images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.network(images)


def types_of(result):
    if isinstance(result, Tensor):
        return {result.dtype} if result.is_floating_point() else set()
    if is_dataclass(result):
        return set().union(*(types_of(getattr(result, f.name)) for f in fields(result)))
    if isinstance(result, list | tuple):
        return set().union(*map(types_of, result))
    return set()


FIRST = sorted(set(WITH_LABELS) - SECOND - {"loss_gradients", "find_paths"})


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("name", FIRST)
def test_results_keep_the_type_of_the_images(name, types):
    images, weights = types
    result = call(name, mlp(weights), points((1, 2, 4), images))
    assert types_of(result) <= {images, torch.float64}


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("network", [To(torch.float64), To(torch.bfloat16), Mixed()], ids=str)
def test_logits_of_another_type_are_taken(name, network):
    images = points((1, 2, 4))
    assert types_of(call(name, network, images)) <= {images.dtype, torch.float64}


@pytest.mark.parametrize("name", FIRST)
def test_under_autocast_only_the_network_has_less_precision(name):
    images = points((1, 2, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(name, mlp(), images)
    assert types_of(found) <= {torch.float32, torch.float64}
    inside = call(name, Mixed(), images)
    assert same(tensors(found), tensors(inside))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_network_of_any_type_has_about_the_distances_of_the_exact_one(dtype, linear):
    network, images = To(dtype), points((1, 2, 4), count=40)
    if linear:
        network.network = nn.Sequential(nn.Flatten(), nn.Linear(D, CLASSES)).eval()
    exact = attacks.deepfool(network.network, images).perturbations.flatten(1).norm(dim=1)
    found = attacks.deepfool(network, images)
    assert bool(found.success.all())
    sizes = found.perturbations.flatten(1).norm(dim=1)
    torch.testing.assert_close(sizes, exact, rtol=0.1, atol=0.02)


CURVATURES = [name for name in ANY_SHAPE if "curvature" in name or "hessian" in name]


@pytest.mark.parametrize("name", CURVATURES)
def test_curvatures_in_half_precision_are_refused(name):
    images = points((1, 2, 4))
    with pytest.raises(InputError, match=r"^images must be .*float64.*; got torch.bfloat16"):
        call(name, mlp(torch.bfloat16), images.bfloat16())
    with pytest.raises(InputError, match=r"^model must be .*; got weights of torch.float16"):
        call(name, mlp(torch.float16), images)
    with (
        pytest.raises(InputError, match=r"^torch.autocast must be off for curvatures"),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        call(name, mlp(), images)
