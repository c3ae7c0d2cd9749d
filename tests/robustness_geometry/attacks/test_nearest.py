import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from robustness_geometry.attacks import alignment, ddn, deepfool, nearest, pgd
from robustness_geometry.attacks.nearest import PRUNE
from robustness_geometry.attacks.steepest import steepest_curve
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import Ball, orthonormalise
from robustness_geometry.norms import dual, norms
from robustness_geometry.types import predict

BOX = (0.0, 1.0)


def planes(model, images):
    """The gaps F_k (N, K - 1) and the normals w_k (N, K - 1, d) of an affine classifier."""
    logits, own = model(images).detach(), predict(model, images)
    others = torch.stack([(own + step) % logits.shape[1] for step in range(1, logits.shape[1])], 1)
    gaps = logits.gather(1, own[:, None]) - logits.gather(1, others)
    return gaps, model.weight.detach()[others] - model.weight.detach()[own][:, None]


def in_box(images, normal, gap, norm):
    """The least norm of r in the box with <w, r> >= gap, by bisection on the norm; inf if none."""
    x, low, high = images.flatten(1), torch.zeros_like(gap), torch.full_like(gap, 20.0)
    rows = torch.arange(len(x))

    def gain(radii):
        curve = steepest_curve(x, normal, radii, norm, BOX)
        return (curve(torch.ones_like(radii), rows) * normal).sum(1)

    reachable = gain(high) >= gap
    for _ in range(60):
        middle = (low + high) / 2
        enough = gain(middle) >= gap
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where(reachable, high, torch.inf)


@pytest.mark.parametrize(
    ("norm", "start"),
    [(1, "both"), (1.5, "deepfool"), (2, "deepfool"), (2, "ddn"), (3, "ddn"), (math.inf, "both")],
)
def test_on_an_affine_classifier_it_is_exact_in_every_norm(affine, points, norm, start):
    model, images = affine(outputs=4), points(count=5)
    gaps, normals = planes(model, images)
    sizes = norms(normals.flatten(0, 1), dual(norm)).view_as(gaps)
    expected = (gaps / sizes).amin(1)
    # Every class has a start of its own, so that none is left to luck.
    found = nearest(model, images, norm=norm, start=start, rivals=3)
    assert bool(found.success.all())
    torch.testing.assert_close(norms(found.perturbations, norm), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.alignment, torch.ones_like(expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", [1.0, 2.0, 4.0, math.inf])
def test_in_a_box_it_is_exact_on_an_affine_classifier(affine, points, norm):
    model, images = affine(outputs=3), points(count=6).square()
    gaps, normals = planes(model, images)
    expected = torch.stack(
        [in_box(images, normals[:, k], gaps[:, k], norm) for k in range(2)], 1
    ).amin(1)
    found = nearest(model, images, norm=norm, clip=BOX, rivals=2, refinements=20, angle=1e-4)
    sizes = norms(found.perturbations, norm)
    assert torch.equal(found.success, torch.isfinite(expected))
    moved = found.adversarial(images)
    assert bool(((moved >= 0) & (moved <= 1)).all())
    # The box matters: without it, the perturbations would be smaller.
    free = nearest(model, images, norm=norm, rivals=2)
    assert bool((norms(free.perturbations, norm) < 0.99 * sizes).any())
    done = found.success
    torch.testing.assert_close(sizes[done], expected[done], rtol=1e-3, atol=0)
    assert float(found.alignment[done].min()) > 0.999


def test_in_subspaces_it_is_exact_on_an_affine_classifier(affine, points):
    model, images = affine(), points(count=6)
    generator = torch.Generator().manual_seed(2)
    bases = torch.stack(
        [
            orthonormalise(torch.randn(4, 12, generator=generator, dtype=torch.float64))
            for _ in range(6)
        ]
    )
    gaps, normals = planes(model, images)
    expected = (gaps / (normals @ bases.mT).norm(dim=2)).amin(1)
    found = nearest(model, images, subspace=bases, rivals=4)
    torch.testing.assert_close(norms(found.perturbations), expected, rtol=1e-4, atol=0)
    r = found.perturbations.flatten(1)[:, None]
    torch.testing.assert_close(r @ bases.mT @ bases, r, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.alignment, torch.ones(6).double(), rtol=1e-4, atol=0)
    one = nearest(model, images[2:3], subspace=bases[2], rivals=4)
    torch.testing.assert_close(one.perturbations, found.perturbations[2:3])


def test_a_target_is_reached_at_its_nearest_point(affine, points):
    model, images = affine(outputs=3), points(count=10)
    own = predict(model, images)
    targets = (own + 1) % 3
    found = nearest(model, images, targets=targets, refinements=40, angle=1e-5)
    assert torch.equal(found.adversarial_labels, targets)
    aimed = deepfool(model, images, targets=targets)
    assert bool((norms(found.perturbations) <= norms(aimed.perturbations)).all())
    # Of the closest points of two half-spaces and of their edge, the nearest one that is in both.
    weight, bias = model.weight.detach(), model.bias.detach()
    for image, label, target, size in zip(
        images.flatten(1), own, targets, norms(found.perturbations), strict=True
    ):
        others = [k for k in range(3) if k != target]
        w = weight[others] - weight[target]
        b = w @ image + bias[others] - bias[target]
        tried = [-w[[k]].pinverse() @ b[[k]] for k in range(2)] + [-w.pinverse() @ b]
        valid = [r.norm() for r in tried if bool((w @ r + b <= 1e-9).all())]
        assert size.item() == pytest.approx(min(valid).item(), rel=2e-3), int(label)


@pytest.mark.parametrize("radius", [0.7, 1.6])
def test_on_a_ball_the_distance_is_the_radius_less_the_norm(points, radius):
    images = points(count=8, dimension=5) - 0.5
    found = nearest(Ball(radius=radius), images)
    expected = (radius - images.flatten(1).norm(dim=1)).abs()
    torch.testing.assert_close(norms(found.perturbations), expected, rtol=1e-5, atol=0)
    assert float(found.alignment.min()) > 0.9999


def test_on_an_ellipse_it_finds_the_closest_point(table):
    model = table(lambda x: (x[:, :1] / 2) ** 2 + x[:, 1:] ** 2 - 1)
    image = torch.tensor([0.9, 0.3], dtype=torch.float64).view(1, 1, 1, 2)
    t = torch.linspace(0, math.pi / 2, 1_000_001, dtype=torch.float64)
    closest = ((2 * t.cos() - 0.9) ** 2 + (t.sin() - 0.3) ** 2).min().sqrt()
    found = nearest(model, image, refinements=40, angle=1e-4)
    assert norms(found.perturbations).item() == pytest.approx(closest.item(), rel=1e-6)


class Small(nn.Sequential):
    """A random network on images (1, 3, 3)."""

    def __init__(self, seed, unit):
        generator = torch.Generator().manual_seed(seed)
        super().__init__(nn.Flatten(), nn.Linear(9, 12), unit, nn.Linear(12, 3))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.double().eval()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=some.integers(0, 10_000),
    unit=some.sampled_from([nn.ReLU(), nn.Tanh(), nn.Softplus()]),
    norm=some.sampled_from([1, 2, 2.5, math.inf]),
    clip=some.sampled_from([None, BOX]),
)
def test_on_networks_no_point_is_farther_than_that_of_deepfool(seed, unit, norm, clip):
    model = Small(seed, unit)
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 1, 3, 3, generator=generator, dtype=torch.float64)
    first = deepfool(model, images, norm=norm, clip=clip, prune=PRUNE)
    found = nearest(model, images, norm=norm, clip=clip, start="deepfool")
    both = nearest(model, images, norm=norm, clip=clip, start="both")
    for result in (found, both):
        assert bool((result.success | ~first.success).all())
        reached = predict(model, result.adversarial(images))
        assert torch.equal(reached != result.labels, result.success)
        done = first.success
        assert bool(
            (norms(result.perturbations, norm) <= norms(first.perturbations, norm))[done].all()
        )
    shorter = norms(both.perturbations, norm) <= norms(found.perturbations, norm)
    assert bool(shorter[found.success].all())
    again = nearest(model, images, norm=norm, clip=clip, start="both")
    assert torch.equal(both.perturbations, again.perturbations)


@pytest.mark.parametrize(("norm", "clip"), [(2, None), (2, BOX), (math.inf, None)])
def test_the_first_direction_leads_to_the_boundary_that_its_line_crosses_first(norm, clip):
    # Linearised at x = (.5, .5), the boundary of class 1 is nearer than that of class 2, at a
    # distance of .2 against .25; but it bends away, and is never reached.
    def logits(x):
        first, second = x[:, 0] - 0.5, x[:, 1] - 0.5
        away = first - 4 * first.square() - 0.2
        return torch.stack([0 * first, away, second - 0.25], dim=1)

    image = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    found = nearest(Function(logits), image, norm=norm, clip=clip)
    assert found.adversarial_labels.tolist() == [2]
    assert norms(found.perturbations, norm).item() == pytest.approx(0.25, rel=1e-3)


class Function(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits
        self.eval()

    def forward(self, x):
        return self.logits(x.flatten(1))


def test_the_alignment_of_any_attack_is_the_cosine_with_the_normal(network, pictures):
    for attack in (deepfool, ddn):
        result = attack(network, pictures, steps=20)
        points = result.adversarial(pictures).requires_grad_()
        logits = network(points)
        own = result.labels[:, None]
        gap = logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own)[:, 0]
        (normal,) = torch.autograd.grad(gap.sum(), points)
        expected = torch.cosine_similarity(result.perturbations.flatten(1), normal.flatten(1))
        found = alignment(network, pictures, result.perturbations)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    best = nearest(network, pictures)
    torch.testing.assert_close(
        best.alignment, alignment(network, pictures, best.perturbations), rtol=1e-4, atol=1e-5
    )
    assert best.alignment.mean() > found.mean()
    # In l_inf it is <r, g> / (||r||_inf ||g||_1), which is 1 for the signs of the gradient.
    flat = pgd(network, pictures, eps=0.3, steps=5, clip=None)
    assert float(alignment(network, pictures, flat.perturbations, norm=math.inf).max()) <= 1


def test_where_nothing_is_moved_there_is_no_alignment(network, pictures):
    nowhere = alignment(network, pictures, torch.zeros_like(pictures))
    assert bool(nowhere.isnan().all())
    wrong = (predict(network, pictures) + 1) % 5
    result = nearest(network, pictures, labels=wrong)
    assert not result.perturbations.any()
    assert bool(result.alignment.isnan().all())


def test_more_images_than_a_batch_holds_get_the_same_perturbations(affine, points):
    model, images = affine(), points(count=150)
    found = nearest(model, images)
    assert len(found.success) == 150
    alone = nearest(model, images[140:])
    torch.testing.assert_close(found.perturbations[140:], alone.perturbations)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "fgsm"}, "start must be one of deepfool, ddn, both; got 'fgsm'"),
        ({"rivals": 0}, "rivals must be"),
        ({"steps": 1}, "steps must be"),
        ({"refinements": -1}, "refinements must be"),
        ({"bisections": 0}, "bisections must be"),
        ({"angle": -1}, "angle must be"),
        ({"norm": 0.5}, "norm must be"),
        ({"clip": (1.0, 0.0)}, "clip must be"),
        ({"subspace": torch.eye(144)[:3], "norm": 1}, "norm must be 2 with a subspace"),
        ({"subspace": torch.eye(144)[:3], "clip": BOX}, "clip must be None with a subspace"),
        ({"targets": torch.zeros(12).long(), "rivals": 2}, "rivals must be 1 with targets"),
    ],
)
def test_options_that_cannot_be_used_are_refused(network, pictures, options, message):
    with pytest.raises(InputError, match=message):
        nearest(network, pictures, **options)


@pytest.mark.parametrize("norm", [1.0, 1.3, 2.0, 5.0, math.inf])
@pytest.mark.parametrize("clip", [None, BOX])
def test_no_point_of_the_ball_and_the_box_lies_farther_along_the_gradient(norm, clip):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(6, 8, generator=generator, dtype=torch.float64)
    g = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    radii, rows = torch.linspace(0.1, 1.2, 6).double(), torch.arange(6)
    curve = steepest_curve(x, g, radii, norm, clip)
    ends = curve(torch.ones_like(radii), rows)
    assert bool((norms(ends, norm) <= radii * (1 + 1e-9)).all())
    gain = (ends * g).sum(1)
    for _ in range(300):
        tried = ends + 0.2 * torch.randn(6, 8, generator=generator, dtype=torch.float64)
        if clip is not None:
            tried = (x + tried).clamp(*clip) - x
        tried = tried * (radii / norms(tried, norm)).clamp_max(1)[:, None]
        assert bool(((tried * g).sum(1) <= gain + 1e-9).all())
    half = curve(torch.full_like(radii, 0.5), rows)
    assert bool((norms(half, norm) <= norms(ends, norm)).all())
