import pytest
import torch

from pipeline.evaluation import held_out
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import curvature_limit
from stages.semirandom.boundary_sections import Settings, _share, boundary_sections, structureless

SMALL = {"samples": 15, "resamples": 100, "grid": 16, "pictures": 2, "steps": 4}


def test_affine_boundaries_are_flat(made, executor, looked_at):
    found = boundary_sections(
        made.network(made.affine(0, 3)), made.dataset(15, 3), Settings(**SMALL), executor
    )
    assert found.numbers["kappa_r"].value < 1e-6
    assert found.numbers["kappa_random"].value < 1e-6
    assert found.numbers["kappa_r"].n == 15
    assert looked_at(found) == ["figure_5_5", "figure_5_6", "figure_5_7"]


def test_curvatures_of_a_sphere(made, executor, looked_at):
    radius, data = 6.0, made.dataset(15)
    found = boundary_sections(
        made.network(made.ball(radius)), data, Settings(**SMALL, h=0.01), executor
    )
    distances = (held_out(data, 15).images.flatten(1).norm(dim=1) - radius).abs()
    assert found.numbers["kappa_random"].value == pytest.approx(1 / radius, rel=1e-6)
    assert found.numbers["kappa_top"].value == pytest.approx(1 / radius, rel=1e-6)
    assert found.numbers["kappa_top / kappa_random"].value == pytest.approx(1, rel=1e-6)
    for width in ("1", "0.3"):
        number = found.numbers[f"kappa_r_{width}"]
        assert number.value == pytest.approx(float(distances.median()) / radius, rel=0.02)
    assert found.numbers["kappa_r"].value == found.numbers["kappa_r_1"].value
    limit = found.numbers["kappa_r"].value - found.numbers["kappa_r - limit"].value
    assert limit == pytest.approx(curvature_limit(64, 6, 0.05), rel=1e-6)  # a tenth of 64
    null = found.numbers["kappa_top / kappa_random, structureless"].value
    assert found.numbers["kappa_top / kappa_random - structureless"].value == pytest.approx(
        1 - null, rel=1e-6
    )
    crossed = found.numbers["kappa_top (crossing)"].value
    assert crossed == pytest.approx(1 / radius, rel=1e-6)
    assert set(found.tables["curvature"]["point"]) == {"closest", "crossing"}
    assert len(found.tables["corollary_1"]) == 6
    assert found.tensors["bend_3"].shape == (1, 15)
    looked_at(found)


@pytest.mark.parametrize(("size", "steps"), [(60, 60), (300, 10)])
def test_the_null_is_that_of_a_symmetric_gaussian_matrix(size, steps):
    """Beside Lanczos on whole matrices, from random starts."""
    generator = torch.Generator().manual_seed(size)
    tops, along = [], []
    for _ in range(60):
        drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
        matrix = (drawn + drawn.T) / 2**0.5
        start = torch.randn(size, 1, generator=generator, dtype=torch.float64)
        krylov = [start / start.norm()]
        for _ in range(steps - 1):
            krylov.append(torch.linalg.qr(torch.cat([*krylov, matrix @ krylov[-1]], 1)).Q[:, -1:])
        basis = torch.cat(krylov, dim=1)
        tops.append(torch.linalg.eigvalsh(basis.T @ matrix @ basis).abs().max())
        units = torch.randn(50, size, generator=generator, dtype=torch.float64)
        units /= units.norm(dim=1, keepdim=True)
        along.append((units @ matrix * units).sum(dim=1).abs())
    ratio = float(torch.stack(tops).median() / torch.cat(along).median())
    assert structureless(size, steps) == pytest.approx(ratio, rel=0.08)


@pytest.mark.parametrize(("d", "share"), [(784, 0.1), (3072, 0.01), (150_528, 0.001), (10, 0.1)])
def test_corollary_1_is_judged_where_it_has_ten_dimensions(d, share):
    assert _share(d) == share


def test_a_network_without_a_boundary_has_only_the_drawing(made, executor, looked_at):
    found = boundary_sections(
        made.network(made.ball(1e6)), made.dataset(4), Settings(**SMALL), executor
    )
    assert torch.isnan(found.tensors["bend_1"]).all() or found.numbers["kappa_r"].n == 4
    assert "figure_5_6" in looked_at(found)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"widths": ()}, "widths must be one or more different numbers > 0"),
        ({"widths": (1.0, 1.0)}, "widths must be one or more different numbers > 0"),
        ({"widths": (0.0,)}, "widths must be .*got 0.0"),
        ({"h": -1.0}, "h must be .*got -1.0"),
        ({"delta": 1.0}, "delta must be .*got 1.0"),
        ({"grid": 0}, "grid must be .*got 0"),
        ({"steps": 0}, "steps must be .*got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        Settings(**options)
