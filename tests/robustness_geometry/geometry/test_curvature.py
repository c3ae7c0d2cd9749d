"""Curvatures against closed forms: every sign and size is known."""

import math
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import (
    boundary_points,
    default_h,
    hessian_vector_products,
    leading_curvatures,
    mean_curvature,
    mean_hessian,
    normal_curvatures,
    normals,
    principal_curvatures,
    tangent_projection,
)
from robustness_geometry.geometry.surface import SpreadAxes, Surface
from robustness_geometry.randomness import per_image

WAYS = {"differences": ({"h": 1e-3}, 1e-4), "autodiff": ({"exact": True}, 1e-8)}
ways = pytest.mark.parametrize(("way", "accuracy"), WAYS.values(), ids=WAYS)
COLUMNS = pytest.mark.parametrize("columns", [1, 2])


def close(found, expected, **tolerance):
    expected = torch.as_tensor(expected, dtype=found.dtype).expand_as(found)
    torch.testing.assert_close(found, expected, **tolerance)


def near(found, expected, accuracy):
    close(found, expected, rtol=accuracy, atol=accuracy)


# Signs and sizes.


@ways
@COLUMNS
def test_inside_a_sphere_all_curvatures_are_1_over_r_and_outside_minus(
    quadric, image, pair, way, accuracy, columns
):
    z, radius = image(0, 2.5, 0, 0), 2.5
    model = quadric([1.0] * 4, radius**2, columns)
    inside = principal_curvatures(model, z, **pair(), **way)
    near(inside.values, 1 / radius, accuracy)
    swapped = {"labels": pair()["targets"], "targets": pair()["labels"]}
    near(principal_curvatures(model, z, **swapped, **way).values, -1 / radius, accuracy)


@ways
@COLUMNS
def test_ellipsoid(quadric, image, pair, way, accuracy, columns):
    model = quadric([1.0, 4.0, 0.25], columns=columns)
    found = principal_curvatures(model, image(1, 0, 0), **pair(), directions=True, **way)
    near(found.values, torch.tensor([[4.0, 0.25]]), accuracy)
    near(found.directions.abs(), torch.eye(3, dtype=torch.float64)[None, 1:], accuracy)


@ways
def test_saddle_has_one_of_each_sign(function, image, pair, way, accuracy):
    model = function(lambda z: z[:, :1] + z[:, 1:2] ** 2 - 1.5 * z[:, 2:3] ** 2)
    found = principal_curvatures(model, image(0, 0, 0), **pair(), **way)
    near(found.values, torch.tensor([[2.0, -3.0]]), accuracy)


@ways
def test_curvature_does_not_depend_on_the_scale_of_the_logits(function, image, pair, way, accuracy):
    model = function(lambda z: 700 * (z.square().sum(dim=1, keepdim=True) - 1))
    near(principal_curvatures(model, image(0.6, 0.8, 0), **pair(), **way).values, 1.0, accuracy)


@ways
def test_softmax_at_the_boundary_bends_it_the_same_way(quadric, image, pair, way, accuracy):
    model = quadric([1.0, 4.0, 0.25], columns=2)
    found = principal_curvatures(model, image(1, 0, 0), **pair(), output="softmax", **way)
    near(found.values, torch.tensor([[4.0, 0.25]]), accuracy)


@pytest.mark.parametrize("direction", [(0.0, 1.0, 1.0), (0.3, 2.0, -1.0), (0.0, 0.0, 5.0)])
def test_curvature_along_a_direction_is_that_of_its_tangent_part(quadric, image, pair, direction):
    model, z = quadric([1.0, 4.0, 0.25]), image(1, 0, 0)
    along = image(*direction)
    _, y, w = direction
    expected = (4 * y**2 + 0.25 * w**2) / (y**2 + w**2)
    near(normal_curvatures(model, z, along, **pair(), h=1e-3), expected, 1e-6)
    # Equation 6.4 keeps the scale of the logits: ||grad F|| = 2.
    near(normal_curvatures(model, z, along, **pair(), h=1e-3, normalised=False), 2 * expected, 1e-6)
    # Equation 7.3 leaves P v as short as it is.
    share = (y**2 + w**2) / along.square().sum().item()
    near(
        normal_curvatures(model, z, along, **pair(), h=1e-3, rescaled=False), share * expected, 1e-6
    )


def test_a_direction_along_the_normal_has_no_curvature(quadric, image, pair):
    both = torch.cat([image(1, 0, 0), image(0, 1, 0)])
    found = normal_curvatures(quadric([1.0, 4.0, 0.25]), image(1, 0, 0), both, **pair(), h=1e-3)
    assert found.isnan().tolist() == [[True, False]]
    found = normal_curvatures(
        quadric([1.0, 4.0, 0.25]), image(1, 0, 0), both, **pair(), h=1e-3, rescaled=False
    )
    near(found, torch.tensor([[0.0, 4.0]]), 1e-6)


def test_mean_curvature_with_both_divisors(quadric, image, pair):
    model, z = quadric([1.0, 4.0, 0.25]), image(1, 0, 0)
    tangent = mean_curvature(model, z, **pair(), h=1e-3, samples=4000)
    assert abs(tangent.values.item() - 2.125) < 4 * tangent.standard_errors.item()
    assert tangent.standard_errors.item() == pytest.approx(
        (4 - 0.25) / math.sqrt(8 * 4000), rel=0.05
    )
    sphere = mean_curvature(model, z, **pair(), h=1e-3, samples=4000, over="sphere")
    close(sphere.values, tangent.values * 2 / 3)
    close(sphere.standard_errors, tangent.standard_errors * 2 / 3)
    assert mean_curvature(model, z, **pair(), samples=1).standard_errors.isnan().all()


def test_mean_curvature_is_exact_on_a_sphere_and_the_mean_of_the_spectrum_elsewhere(
    quadric, smooth, pictures
):
    z = boundary_points(smooth, pictures)
    options = {"labels": z.labels, "targets": z.targets, "exact": True}
    spectrum = principal_curvatures(smooth, z.points, **options).values
    found = mean_curvature(smooth, z.points, **options, samples=400)
    assert bool(((found.values - spectrum.mean(dim=1)).abs() < 4 * found.standard_errors).all())


def test_the_draws_of_an_image_do_not_depend_on_its_batch(smooth, pictures):
    z = boundary_points(smooth, pictures)

    def measure(some, indices):
        draws = per_image(0, "curvature", indices)
        return mean_curvature(
            smooth, some.points, labels=some.labels, targets=some.targets, generator=draws
        ).values

    close(
        measure(z.select(torch.tensor([3])), [3]), measure(z, range(4))[3:], rtol=1e-10, atol=1e-12
    )


# Products with the Hessian.


@ways
def test_products_are_linear_in_length_and_serve_many_images_and_directions(
    smooth, pictures, way, accuracy
):
    labels, targets = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 3, 0, 2])
    vectors = torch.randn(
        4, 5, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    products = partial(hessian_vector_products, smooth, labels=labels, targets=targets, **way)
    found = products(pictures, vectors)

    def margin(index, image):
        logits = smooth(image.view(1, 1, 8, 8))[0]
        return logits[targets[index]] - logits[labels[index]]

    for index, picture in enumerate(pictures):
        hessian = torch.autograd.functional.hessian(partial(margin, index), picture.flatten())
        expected = vectors[index].flatten(1) @ hessian
        close(
            found[index].flatten(1),
            expected,
            rtol=0,
            atol=max(accuracy, 1e-10) * float(expected.abs().max()),
        )
    close(products(pictures, 3 * vectors), 3 * found, rtol=1e-9, atol=1e-12)
    close(products(pictures, vectors, at_once=2), found, rtol=1e-9, atol=1e-12)
    close(products(pictures, vectors[0]), products(pictures, vectors[:1].expand(4, -1, -1, -1, -1)))
    close(products(pictures, torch.zeros_like(vectors)), 0.0)


def test_softmax_products_are_those_of_the_probabilities(smooth, pictures, pair):
    vectors = torch.randn(
        1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    found = hessian_vector_products(
        smooth, pictures[:1], vectors, **pair(), output="softmax", h=1e-3
    )
    exact = hessian_vector_products(
        smooth, pictures[:1], vectors, **pair(), output="softmax", exact=True
    )
    close(found, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))

    def probabilities(image):
        shares = smooth(image.view(1, 1, 8, 8))[0].softmax(dim=0)
        return shares[1] - shares[0]

    hessian = torch.autograd.functional.hessian(probabilities, pictures[0].flatten())
    close(exact[0].flatten(1), vectors[0].flatten(1) @ hessian)


def test_differences_and_autodiff_agree_on_a_softplus_network(smooth, pictures):
    z = boundary_points(smooth, pictures)
    options = {"labels": z.labels, "targets": z.targets}
    differences = principal_curvatures(smooth, z.points, **options, h=1e-3).values
    exact = principal_curvatures(smooth, z.points, **options, exact=True).values
    close(differences, exact, rtol=1e-2, atol=1e-5 * float(exact.abs().max()))
    assert exact.shape == (4, 63)
    assert bool((exact.diff(dim=1) <= 0).all())


def test_relus_have_no_curvature_but_for_differences(jagged, pictures):
    z = boundary_points(jagged, pictures)
    options = {"labels": z.labels, "targets": z.targets}
    exact = principal_curvatures(jagged, z.points, **options, exact=True).values
    assert bool((exact == 0).all())
    found = principal_curvatures(jagged, z.points, **options).values
    assert float(found.abs().amax(dim=1).min()) > 0.1
    assert bool(
        (leading_curvatures(jagged, z.points, **options, exact=True, count=3).values == 0).all()
    )


def test_the_basis_matters_only_where_the_network_is_not_smooth(smooth, jagged, pictures):
    for model, alike in ((smooth, True), (jagged, False)):
        z = boundary_points(model, pictures[:1])
        options = {"labels": z.labels, "targets": z.targets, "h": 1e-3 if alike else 0.3}
        pixels = principal_curvatures(model, z.points, **options, basis="pixels").values
        spread = principal_curvatures(model, z.points, **options).values
        drawn = mean_curvature(model, z.points, **options, samples=300)
        error = 5 * drawn.standard_errors.item()
        assert spread.mean().item() == pytest.approx(drawn.values.item(), abs=error)
        assert (pixels.mean().item() == pytest.approx(drawn.values.item(), abs=error)) is alike
        assert (
            torch.allclose(pixels, spread, rtol=0, atol=1e-4 * float(pixels.abs().max())) is alike
        )
        both = [
            mean_hessian(model, z.points, **options, basis=basis) for basis in ("pixels", "spread")
        ]
        assert torch.allclose(*both, rtol=0, atol=1e-4 * float(both[0].abs().max())) is alike


def test_a_linear_classifier_is_flat(pictures, pair):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double().eval()
    for way in ({}, {"exact": True}):
        found = principal_curvatures(model, pictures, **pair(4), tolerance="inf", **way)
        close(found.values, 0.0, rtol=0, atol=1e-12)


def test_default_h_is_a_length_a_pixel():
    assert default_h(3072) == pytest.approx(1.0808, rel=1e-4)


# Normals.


def test_normals_have_length_one_and_point_outwards(quadric, image, pair):
    unit = normals(
        quadric([1.0, 4.0]), torch.cat([image(0.9, 0), image(0, -0.2)]), *pair(2).values()
    )
    close(unit, torch.cat([image(1.0, 0), image(0, -1.0)]))


def test_tangent_projection_removes_the_normal_and_nothing_else(smooth, pictures):
    z = boundary_points(smooth, pictures)
    vectors = torch.randn(
        4, 6, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    tangent = tangent_projection(vectors, z.normals)
    close((tangent * z.normals[:, None]).flatten(2).sum(dim=2), 0.0, rtol=0, atol=1e-12)
    close(tangent_projection(tangent, z.normals), tangent)
    removed = (vectors - tangent).flatten(2)
    close(removed, (removed @ z.normals.flatten(1)[..., None]) * z.normals.flatten(1)[:, None])


# The mean Hessian.


def test_mean_hessian_is_the_mean_of_projected_hessians(smooth, pictures):
    z = boundary_points(smooth, pictures)
    options = {"labels": z.labels, "targets": z.targets, "exact": True}
    raw, plain, curvature = [], [], []
    for index in range(4):
        pair = [z.labels[index], z.targets[index]]
        margin = partial(lambda classes, x: smooth(x.view(1, 1, 8, 8))[0, classes].diff()[0], pair)
        hessian = torch.autograd.functional.hessian(margin, z.points[index].flatten())
        n = z.normals[index].flatten()
        projector = torch.eye(64, dtype=torch.float64) - torch.outer(n, n)
        raw.append(hessian)
        plain.append(projector @ hessian @ projector)
        curvature.append(plain[-1] / z.gradient_norms[index])
    close(mean_hessian(smooth, z.points, **options), torch.stack(plain).mean(dim=0))
    close(
        mean_hessian(smooth, z.points, **options, normalised=True),
        torch.stack(curvature).mean(dim=0),
    )
    close(mean_hessian(smooth, z.points, **options, projected=False), torch.stack(raw).mean(dim=0))


def test_the_memory_of_the_mean_hessian_does_not_grow_with_the_images(
    quadric, image, pair, monkeypatch
):
    plain, counter = Surface.hessian, {"now": 0, "most": 0}

    def hessian(surface, axes):
        matrix = plain(surface, axes)
        counter["now"] += 1
        counter["most"] = max(counter.values())
        weakref.finalize(matrix, lambda: counter.update(now=counter["now"] - 1))
        return matrix

    monkeypatch.setattr(Surface, "hessian", hessian)
    mean_hessian(quadric([1.0, 1.0]), image(1, 0).expand(30, -1, -1, -1), **pair(30))
    assert counter["now"] == 0
    assert counter["most"] <= 2


def test_spread_axes_are_orthonormal_and_spread():
    axes = SpreadAxes(torch.zeros(1, 3, 4, 6, dtype=torch.float64))
    close(axes.rows @ axes.rows.T, torch.eye(72, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(axes.rows.abs().max()) <= 2 / math.sqrt(72) + 1e-12
    products = torch.randn(72, 72, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    close(axes.combine(products), axes.rows.T @ products)


# Bad input.


FUNCTIONS = {
    "principal": principal_curvatures,
    "leading": partial(leading_curvatures, count=1),
    "mean": mean_curvature,
    "hessian": mean_hessian,
    "along": lambda model, points, **options: normal_curvatures(model, points, points, **options),
}
functions = pytest.mark.parametrize("measure", FUNCTIONS.values(), ids=FUNCTIONS)


@functions
@pytest.mark.parametrize("h", [0, -1.0, math.inf, math.nan])
def test_a_length_that_is_not_above_zero_is_refused(quadric, image, pair, measure, h):
    with pytest.raises(InputError, match="h must be"):
        measure(quadric([1.0, 1.0, 1.0]), image(1, 0, 0), **pair(), h=h)


@functions
def test_a_point_off_the_boundary_is_refused_and_told_how_far(quadric, image, pair, measure):
    points = torch.cat([image(1, 0, 0), image(1.1, 0, 0)])
    far = (1.1**2 - 1) / 2.2
    with pytest.raises(
        InputError, match=f"1 of 2 not on the boundary, the farthest {far:.3g} away"
    ):
        measure(quadric([1.0, 1.0, 1.0]), points, **pair(2))
    measure(quadric([1.0, 1.0, 1.0]), points, **pair(2), tolerance=0.1)
    measure(quadric([1.0, 1.0, 1.0]), 3 * points, **pair(2), tolerance="inf")


@functions
def test_a_target_that_equals_its_label_is_refused(quadric, image, measure):
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InputError, match="targets must be"):
        measure(quadric([1.0, 1.0, 1.0]), image(1, 0, 0), labels=zero, targets=zero)


@functions
def test_logits_that_do_not_depend_on_the_input_are_refused(function, image, pair, measure):
    constant = function(lambda z: torch.tensor([[1.0, 0.0]], dtype=z.dtype).expand(len(z), 2))
    with pytest.raises(InputError, match="do not depend on the input at 1 of 1"):
        measure(constant, image(1, 0, 0), **pair())


@functions
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "probabilities"}, "output must be"),
        ({"tolerance": 0}, "tolerance must be"),
        ({"tolerance": math.nan}, "tolerance must be"),
        ({"at_once": 1}, "at_once must be"),
        ({"targets": torch.tensor([2])}, "targets must be"),
    ],
)
def test_bad_options_are_refused(quadric, image, pair, measure, options, message):
    with pytest.raises(InputError, match=message):
        measure(quadric([1.0, 1.0, 1.0]), image(1, 0, 0), **{**pair(), **options})


@pytest.mark.parametrize("options", [{"samples": 0}, {"over": "ball"}])
def test_mean_curvature_refuses_bad_options(quadric, image, pair, options):
    with pytest.raises(InputError, match=next(iter(options))):
        mean_curvature(quadric([1.0, 1.0]), image(1, 0), **pair(), **options)


@pytest.mark.parametrize("measure", [principal_curvatures, mean_hessian])
def test_another_basis_is_refused(quadric, image, pair, measure):
    with pytest.raises(InputError, match="basis must be"):
        measure(quadric([1.0, 1.0]), image(1, 0), **pair(), basis="waves")


def test_a_mean_over_nothing_is_refused(quadric, image, pair):
    with pytest.raises(InputError, match="points"):
        mean_hessian(quadric([1.0, 1.0]), image(1, 0)[:0], **pair(0))


def test_empty_batches_give_empty_results(quadric, image, pair):
    nothing = image(1, 0, 0)[:0]
    model = quadric([1.0, 1.0, 1.0])
    assert principal_curvatures(model, nothing, **pair(0)).values.shape == (0, 2)
    assert leading_curvatures(model, nothing, **pair(0), count=1).values.shape == (0, 1)
    assert mean_curvature(model, nothing, **pair(0)).values.shape == (0,)


def test_a_model_in_training_mode_is_refused(pair, pictures):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 2)).double()
    with pytest.raises(InputError, match="model must be in evaluation mode"):
        principal_curvatures(model, pictures, **pair(4))
