import pytest
import torch

from pipeline.evaluation import held_out
from robustness_geometry.checks import InputError
from stages.semirandom.boundary_sections import Settings, boundary_sections

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
    assert limit == pytest.approx(0.2 / 1087.31 * 1e-3, rel=1e-4)
    assert found.tensors["bend_3"].shape == (1, 15)
    looked_at(found)


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
