"""Theorem 5's numbers and limits."""

import math

import pytest
import torch

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import LossBounds, quadratic_robustness, theorem5_bounds
from stages.cure import theorem5 as module
from stages.cure.theorem5 import Settings, bounds_at, theorem5

SMALL = Settings(draws=100, dimension=8, normal_draws=200, matrices=40, resamples=30, samples=12)


@pytest.fixture(scope="module")
def found(network, data, executor):
    return theorem5(network, data, SMALL, executor.scope("theorem5"))


def value(number):
    return torch.tensor([number], dtype=torch.float64)


def test_the_bounds_of_the_example_and_their_limits():
    bounds = theorem5_bounds(value(1.0), value(0.5), value(2.0), value(1.0))
    assert float(bounds.lower) == pytest.approx(0.618034, abs=1e-6)
    assert float(bounds.upper) == pytest.approx(0.780776, abs=1e-6)
    flat = theorem5_bounds(value(2.0), value(0.5), value(0.0), value(1.0))
    assert (float(flat.lower), float(flat.upper)) == (0.5, 2.0)
    nearly = theorem5_bounds(value(2.0), value(0.5), value(1e-12), value(1.0))
    assert float(nearly.lower) == pytest.approx(0.5, rel=1e-9)
    across = theorem5_bounds(value(1.0), value(0.0), value(2.0), value(1.0))
    assert float(across.upper) == pytest.approx(1.0)


def test_random_losses_keep_every_bound(found):
    for name in ("margin_lower", "margin_upper", "margin_simple_lower", "margin_simple_upper"):
        assert found.numbers[name].value > 0, name
        assert found.numbers[name].n == 100
    assert 0 < found.numbers["tightness"].value < 1
    assert found.numbers["gap_parallel"].value < 1e-9
    assert found.numbers["error_parallel"].value < 1e-9
    assert found.numbers["|frobenius_ratio - 1|"].value < 0.03
    assert found.numbers["frobenius_ratio"].n == 40


def test_the_bounds_fall_with_curvature_and_gradient(found):
    nu = torch.linspace(0.1, 10, 100, dtype=torch.float64)
    lower = (torch.sqrt(1 + 2 * nu) - 1) / nu
    assert found.numbers["largest_step_lower"].value == pytest.approx(
        float(lower.diff().max()), rel=1e-9
    )
    upper = 0.5 / nu * (torch.sqrt(1 + 2 * nu / 0.25) - 1)
    assert found.numbers["largest_step_upper"].value == pytest.approx(
        float(upper.diff().max()), rel=1e-9
    )
    assert found.numbers["largest_step_line"].value == pytest.approx(
        float(lower.diff().max()), rel=1e-6
    )
    for name in ("lower", "upper", "line", "lower_gradient", "upper_gradient"):
        estimate = found.numbers[f"largest_step_{name}"]
        assert estimate.low == estimate.value == estimate.high < 0


def test_bounds_that_are_swapped_or_blind_to_curvature_are_noticed(
    network, data, executor, monkeypatch
):
    scoped = executor.scope("theorem5")

    def swapped(*given):
        right = theorem5_bounds(*given)
        return LossBounds(right.upper, right.lower, right.simple_lower, right.simple_upper)

    monkeypatch.setattr(module, "theorem5_bounds", swapped)
    found = theorem5(network, data, SMALL, scoped)
    assert found.numbers["margin_lower"].value < 0
    assert found.numbers["margin_upper"].value < 0
    monkeypatch.setattr(
        module, "theorem5_bounds", lambda g, a, nu, c: theorem5_bounds(g, a, 0 * nu, c)
    )
    found = theorem5(network, data, SMALL, scoped)
    assert found.numbers["largest_step_upper"].value == 0
    assert found.numbers["error_parallel"].value > 0.01


def test_bounds_at_images_of_a_quadratic_loss_enclose_its_distance():
    # l = g r + nu r^2 / 2 along g, from 0.1 below log 2: u is the gradient's direction.
    slope, nu, gap = value(0.5), value(2.0), 0.1
    values = {
        "loss": value(math.log(2) - gap),
        "gradient": slope,
        "power": nu,
        "alignment": value(1.0),
    }
    distance = quadratic_robustness(slope[None], nu[None], value(gap))
    held = bounds_at(values, distance * (1 + 1e-9), value(10.0))
    assert float(held["lower"]) == pytest.approx(1)
    assert float(held["upper"]) == pytest.approx(1)
    assert [float(held[f"lower_{end}"]) for end in ("holds", "vacuous")] == [1, 0]
    across = bounds_at({**values, "alignment": value(0.0)}, distance, value(10.0))
    assert (float(across["both_hold"]), float(across["upper_vacuous"])) == (1, 0)
    assert float(across["upper"] * distance) == pytest.approx(math.sqrt(2 * gap / 2.0))
    nearer = bounds_at(values, distance / 2, value(10.0))
    assert [float(nearer[f"{side}_holds"]) for side in ("lower", "upper")] == [0, 1]
    farther = bounds_at(values, 200 * distance, value(10.0))
    assert float(farther["lower_vacuous"]) == 1
    assert float(farther["upper_holds"]) == 0


@pytest.mark.parametrize(
    "lost", [{"loss": value(1.0)}, {"distance": value(math.nan)}, {"loss": value(math.log(2))}]
)
def test_images_without_a_distance_or_beyond_the_threshold_are_left_out(lost):
    values = {"loss": 0.1, "gradient": 1.0, "power": -3.0, "alignment": 0.5}
    values = {key: value(each) for key, each in values.items()}
    assert bounds_at(values, value(1.0), value(9.0))["both_hold"].isfinite().all()
    distance = lost.get("distance", value(1.0))
    found = bounds_at(values | lost, distance, value(9.0))
    assert all(each.isnan().all() for each in found.values())


def test_the_bounds_of_a_network_are_taken_on_all_seeds(found, network):
    both, lower = found.numbers["share_both_hold"], found.numbers["share_lower_holds"]
    assert both.seeds == len(network.models)
    assert 0 <= both.value <= min(lower.value, found.numbers["share_upper_holds"].value)
    assert found.numbers["lower / distance"].value <= found.numbers["upper / distance"].value
    assert any("threshold t = log 2" in note for note in found.notes)


def test_the_exact_solution_on_a_line():
    for nu in (0.2, 2.0, 6.0):
        root = (math.sqrt(1 + 2 * nu) - 1) / nu
        assert float(
            quadratic_robustness(value(1.0)[None], value(nu)[None], value(1.0))
        ) == pytest.approx(root)


def test_the_table_and_the_figures(found, looked_at):
    drawn, real = (set(found.tables[name]["number"]) for name in ("theorem_5", "networks"))
    assert drawn | real == set(found.numbers)
    assert not drawn & real
    assert looked_at(found) == ["figure_8_4", "figure_8_5"]
    lines = found.figures["figure_8_4"].axes[0].get_lines()
    at_two = {
        line.get_label(): dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in lines
    }
    nearest = min(next(iter(at_two.values())), key=lambda nu: abs(nu - 2))
    assert at_two["upper bound (Equation 8.3)"][nearest] == pytest.approx(0.780776, abs=0.01)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"draws": 1}, "draws must be .*; got 1"),
        ({"dimension": 1}, "dimension must be .*; got 1"),
        ({"normal_draws": 0}, "normal_draws must be .*; got 0"),
        ({"matrices": 1}, "matrices must be .*; got 1"),
        ({"resamples": 0}, "resamples must be .*; got 0"),
        ({"samples": 0}, "samples must be .*; got 0"),
        ({"power_steps": 0}, "power_steps must be .*; got 0"),
        ({"training_seeds": 0}, "training_seeds must be .*; got 0"),
        ({"curvature_h": 0.0}, "curvature_h must be .*; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        Settings(**options)
