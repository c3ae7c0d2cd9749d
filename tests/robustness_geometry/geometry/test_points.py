"""Curvature functions take a Boundary, or bare points with their labels and targets."""

from dataclasses import fields, is_dataclass
from functools import partial

import numpy as np
import pytest
import torch

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import (
    Ball,
    boundary_points,
    extreme_curvatures,
    hessian_operator,
    leading_curvatures,
    mean_curvature,
    mean_hessian,
    mean_hessian_ends,
    normal_curvatures,
    principal_curvatures,
)


def along(model, points, **options):
    vectors = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return normal_curvatures(model, points, vectors.double(), **options)


def product(model, points, **options):
    return torch.from_numpy(hessian_operator(model, points, **options).matvec(np.ones(64)))


FUNCTIONS = {
    "normal": along,
    "mean": mean_curvature,
    "principal": partial(principal_curvatures, directions=True),
    "mean Hessian": mean_hessian,
    "operator": product,
    "leading": partial(leading_curvatures, count=2, directions=True),
    "extreme": partial(extreme_curvatures, steps=5),
    "mean Hessian's ends": partial(mean_hessian_ends, steps=5),
}
functions = pytest.mark.parametrize("measure", FUNCTIONS.values(), ids=FUNCTIONS)
WAYS = ({}, {"h": 0.3, "output": "softmax", "tolerance": "inf", "at_once": 8}, {"exact": True})


def tensors(result):
    """The tensors of a result, which is one or a dataclass of several."""
    if not is_dataclass(result):
        return [result]
    return [getattr(result, f.name) for f in fields(result)]


@pytest.fixture(scope="module")
def near(jagged, pictures):
    return boundary_points(jagged, pictures)


@functions
@pytest.mark.parametrize("options", WAYS, ids=["default", "softmax", "exact"])
def test_a_boundary_is_measured_as_its_bare_points_are(jagged, near, measure, options):
    whole = tensors(measure(jagged, near, **options))
    bare = tensors(
        measure(jagged, near.points, labels=near.labels, targets=near.targets, **options)
    )
    assert len(whole) == len(bare)
    for one, other in zip(whole, bare, strict=True):
        assert torch.equal(one, other)


@functions
@pytest.mark.parametrize("given", [("labels",), ("targets",), ("labels", "targets")])
def test_classes_beside_a_boundary_are_refused(jagged, near, measure, given):
    with pytest.raises(
        InputError, match=r"^labels and targets must be left out .*Boundary"
    ) as caught:
        measure(jagged, near, **{name: getattr(near, name) for name in given})
    assert "\n" not in str(caught.value)


@functions
@pytest.mark.parametrize("given", [(), ("labels",), ("targets",)])
def test_bare_points_without_both_classes_are_refused(jagged, near, measure, given):
    with pytest.raises(InputError, match=r"^labels and targets must be given .*bare") as caught:
        measure(jagged, near.points, **{name: getattr(near, name) for name in given})
    assert "\n" not in str(caught.value)


@functions
def test_a_boundary_with_images_without_a_point_is_refused(jagged, near, measure):
    success = torch.tensor([True, False, True, True])
    holes = type(near)(**{**vars(near), "success": success})
    with pytest.raises(InputError, match=r"^points must be a Boundary .*; got 1 of 4 images"):
        measure(jagged, holes)
    measure(jagged, holes.found())


@functions
def test_unknown_options_are_refused(jagged, near, measure):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'height'"):
        measure(jagged, near, height=0.3)


def test_the_ball_bends_by_one_over_its_radius():
    ball = Ball(radius=2.0)
    near = boundary_points(ball, torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64))
    found = principal_curvatures(ball, near).values
    torch.testing.assert_close(found, torch.full((1, 3), 0.5, dtype=torch.float64))
    assert ball(near.points).abs().item() < 1e-9
    with pytest.raises(InputError, match=r"^radius must be"):
        Ball(radius=0)
