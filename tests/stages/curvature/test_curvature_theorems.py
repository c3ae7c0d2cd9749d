"""Theorems 3 and 4 on made-up boundaries."""

import math

import pytest
import torch

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import (
    crosses_quadratic,
    random_subspace,
    theorem3_radius,
    theorem4_radius,
)
from robustness_geometry.randomness import seeded
from stages.curvature import theorem3_flat as flat
from stages.curvature import theorem4_curved as curved

FLAT = {
    "dimension": 60,
    "dimensions": (5, 20, 40),
    "points": 200,
    "vectors": 30,
    "pairs": 4000,
    "resamples": 50,
}
CURVED = {
    "dimension": 40,
    "dimensions": (5, 20),
    "points": 40,
    "vectors": 10,
    "pairs": 2000,
    "resamples": 50,
}


@pytest.fixture(scope="module")
def third(executor):
    return flat.theorem3_flat(None, None, flat.Settings(**FLAT), executor)


@pytest.fixture(scope="module")
def fourth(executor):
    return curved.theorem4_curved(None, None, curved.Settings(**CURVED), executor)


def test_theorem_3_holds(third, looked_at):
    assert third.numbers["fooled - (1 - delta), smallest"].low > 0
    assert third.numbers["slope"].value == pytest.approx(0.5, abs=0.1)
    assert (third.numbers["rank"].value, third.numbers["rank - (classes - 1)"].value) == (9, 0)
    assert third.numbers["linear fooled - (1 - delta)"].value > 0
    assert third.numbers["fool_vector"].value == 0.5
    assert third.numbers["fool_direction"].value == 1
    table = third.tables["theorem_3"]
    assert table["rho"].tolist()[:3] == pytest.approx(
        [math.sqrt(math.e * m) / 0.09 for m in (5, 20, 40)]
    )
    # |r'v| of a random v is about 1 / sqrt(m) times a normal variable, of which a tenth lies within
    # 0.126 of zero.
    sizes = [math.sqrt(m) / 0.126 / 0.9 for m in (20, 40)]
    assert table["smallest_norm"].tolist()[1:3] == pytest.approx(sizes, rel=0.25)
    assert looked_at(third) == ["theorem_3"]


def test_a_shorter_radius_breaks_theorem_3(executor, monkeypatch):
    monkeypatch.setattr(flat, "theorem3_radius", lambda *given: theorem3_radius(*given) / 10)
    found = flat.flat_fooled(60, (5, 20), delta=0.1, xi=0.1, points=200, vectors=30)
    assert max(float(values.mean()) for values in found.values()) < 0.9


def test_normals_lie_near_the_subspace_by_as_much_as_xi_says():
    r, basis = flat.flat_model(30, 6, 0.2, 50, seeded("test"))
    torch.testing.assert_close(r.norm(dim=1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(
        (r @ basis.T).norm(dim=1), torch.full((50,), 0.8, dtype=torch.float64)
    )
    torch.testing.assert_close(basis @ basis.T, torch.eye(6, dtype=torch.float64))


def test_theorem_4_holds(fourth, looked_at):
    assert fourth.numbers["fooled - (1 - delta - beta), smallest"].low > 0
    assert fourth.numbers["rho's rise with kappa, largest"].value < 0
    assert fourth.numbers["norm's rise with kappa, largest"].high < 0
    assert fourth.numbers["t_flat - t_positive, smallest"].value > 0
    assert fourth.numbers["t_negative - t_flat, smallest"].value > 0
    assert (
        fourth.numbers["t_negative - t_flat, smallest"].n
        < fourth.numbers["t_flat - t_positive, smallest"].n
    )
    table = fourth.tables["theorem_4"]
    assert 0 < table["beta"].min() < table["beta"].max() < 0.5
    expected = math.sqrt(2 * math.log(20) / 5) / 0.02 + 0.02**-0.5
    assert table["rho"][0] == pytest.approx(expected)
    assert looked_at(fourth) == ["figure_6_5", "theorem_4"]


def test_a_shorter_radius_or_a_turned_curvature_breaks_theorem_4(monkeypatch):
    size = {"delta": 0.1, "points": 40, "vectors": 10}
    monkeypatch.setattr(curved, "theorem4_radius", lambda *given: theorem4_radius(*given) / 5)
    assert curved.curved_fooled(40, (20,), (0.1,), **size)["fooled 20 0.1"].mean() < 0.5
    monkeypatch.undo()
    monkeypatch.setattr(
        curved, "crosses_quadratic", lambda v, r, hessian: crosses_quadratic(v, r, -hessian)
    )
    assert curved.curved_fooled(40, (20,), (0.1,), **size)["fooled 20 0.1"].mean() < 0.5


def test_at_curvature_one_half_a_vector_fools_from_norm_one_on():
    """Without the factor 1/2 the boundary is then the sphere around x through its nearest point."""
    found = curved.norms_needed(20, 6, (0.1, 0.5), pairs=300)
    torch.testing.assert_close(found["norm 0.5"], torch.ones(300, dtype=torch.float64))
    generator = seeded("theorem 4, norms", 20, 6)
    basis = random_subspace(20, 6, generator, dtype=torch.float64)
    r, v = (torch.randn(300, k, generator=generator, dtype=torch.float64) for k in (20, 6))
    r, v = r / r.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True) @ basis
    hessian = 0.1 * torch.eye(20, dtype=torch.float64).expand(300, -1, -1)
    for factor, crossed in ((0.999, False), (1.001, True)):
        ends = factor * found["norm 0.1"][:, None] * v
        assert bool((crosses_quadratic(ends, r, hessian) == crossed).all())


def test_the_condition_of_theorem_4_is_on_the_plane_of_r_and_v():
    generator = seeded("test")
    r, v = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (4, 5))
    r, v = r / r.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    drawn = torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
    hessian = drawn + drawn.mT
    fails = curved._fails(r, v, hessian, 0.3)
    for i in range(4):
        for j in range(5):
            plane = torch.linalg.qr(torch.stack([r[i], v[j]], dim=1)).Q
            smallest = torch.linalg.eigvalsh(plane.T @ hessian[i] @ plane)[0]
            assert bool(fails[i, j]) == bool(smallest < 0.3)


def test_distances_to_arcs():
    arcs = curved.arc_distances()
    angle = arcs["angle"]
    ahead, aside = arcs["positive"] * angle.cos(), arcs["positive"] * angle.sin()
    torch.testing.assert_close(
        aside**2 + (ahead - 1 + curved.ARC) ** 2, torch.full_like(angle, curved.ARC**2)
    )
    met = arcs["negative"].isfinite()
    ahead, aside = (arcs["negative"] * angle.cos())[met], (arcs["negative"] * angle.sin())[met]
    torch.testing.assert_close(
        aside**2 + (ahead - 1 - curved.ARC) ** 2, torch.full_like(ahead, curved.ARC**2)
    )
    assert bool((ahead < 1 + curved.ARC).all())  # the near side of the circle
    torch.testing.assert_close(arcs["flat"] * angle.cos(), torch.ones_like(angle))


@pytest.mark.parametrize(
    ("settings", "options", "key"),
    [
        (flat.Settings, {"dimension": 1}, "dimension must be .*; got 1"),
        (flat.Settings, {"dimensions": (5,)}, "dimensions must be"),
        (flat.Settings, {"dimensions": (5, 300)}, "dimensions must be"),
        (flat.Settings, {"dimensions": (1, 5)}, "dimensions must be"),
        (flat.Settings, {"delta": 1.0}, "delta must be .*; got 1"),
        (flat.Settings, {"xi": 1.0}, "xi must be .*; got 1"),
        (flat.Settings, {"classes": 1}, "classes must be .*; got 1"),
        (flat.Settings, {"classes": 301}, "classes must be .*; got 301"),
        (flat.Settings, {"vectors": 0}, "vectors must be .*; got 0"),
        (flat.Settings, {"points": 1}, "points must be .*; got 1"),
        (flat.Settings, {"pairs": 1}, "pairs must be .*; got 1"),
        (curved.Settings, {"dimensions": ()}, "dimensions must be"),
        (curved.Settings, {"dimensions": (100,)}, "dimensions must be"),
        (curved.Settings, {"curvatures": (0.1,)}, "curvatures must be"),
        (curved.Settings, {"curvatures": (0.2, 0.1)}, "curvatures must be"),
        (curved.Settings, {"curvatures": (0.2, 1.0)}, "curvatures must be"),
        (curved.Settings, {"curvatures": (0.0, 0.1)}, "curvatures must be .*; got 0"),
        (curved.Settings, {"delta": 0.0}, "delta must be .*; got 0"),
        (curved.Settings, {"points": 1}, "points must be .*; got 1"),
        (curved.Settings, {"resamples": 0}, "resamples must be .*; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, options, key):
    with pytest.raises(InputError, match=key):
        settings(**options)
