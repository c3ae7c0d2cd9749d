import math

import pytest
import torch

from robustness_geometry.geometry import inscribed_radius, sphere_step


def first_crossing(offset, cosine, radius):
    """The distance along the best direction at which the norm passes the radius, by search."""
    steps = torch.linspace(0, 20, 400_001, dtype=torch.float64)
    towards = -1.0 if offset > radius else 1.0
    x = offset + towards * steps * cosine
    inside = (x**2 + (steps * math.sqrt(1 - cosine**2)) ** 2).sqrt() < radius
    changed = (inside != inside[0]).nonzero()
    return float(steps[changed[0, 0]]) if len(changed) else math.inf


@pytest.mark.parametrize("cosine", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("offset", [0.0, 1.5, 2.5, 4.0])
def test_steps_to_a_sphere(offset, cosine):
    expected = first_crossing(offset, cosine, 2.0)
    found = float(sphere_step(torch.tensor(offset).double(), torch.tensor(cosine).double(), 2.0))
    assert found == pytest.approx(expected, abs=1e-3)
    assert math.isinf(found) == (offset > 2 and math.sqrt(1 - cosine**2) > 2 / offset)


def ball(radius, *centres):
    return lambda points: torch.stack([(points - c).norm(dim=1) < radius for c in centres]).any(
        dim=0
    )


def test_inscribed_balls_of_a_plane_and_of_spheres():
    point, axis = (
        torch.zeros(3, dtype=torch.float64),
        torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
    )
    assert inscribed_radius(lambda x: x[:, 0] > 0, point, axis, largest=1e3) == 1e3
    sphere = ball(2.0, 2 * axis)
    assert inscribed_radius(sphere, point, axis, largest=50.0) == pytest.approx(2.0, rel=0.01)
    assert inscribed_radius(lambda x: ~sphere(x), point, -axis, largest=50.0) == 50.0
    far = ball(2.0, 2 * axis, -10 * axis)
    assert inscribed_radius(lambda x: ~far(x), point, -axis, largest=50.0) == pytest.approx(
        4.0, rel=0.01
    )


def test_a_small_hole_inside_a_ball_is_noticed():
    axis = torch.tensor([0.0, 1.0], dtype=torch.float64)
    holed = lambda x: (x[:, 1] > 0) & ((x - 3 * axis).norm(dim=1) > 0.5)  # noqa: E731
    assert inscribed_radius(holed, 0 * axis, axis, largest=20.0) == pytest.approx(1.25, rel=0.01)
