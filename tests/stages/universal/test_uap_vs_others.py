import pytest
import torch

from robustness_geometry.checks import InputError
from stages.universal.uap_vs_others import Settings, crossing, uap_vs_others


@pytest.fixture(scope="module")
def found(small, executor):
    settings = Settings(
        attack=small.attack,
        gradient=small.gradient,
        train_samples=24,
        orders=2,
        samples=40,
        factors=(0.5, 1.0, 4.0),
        made=(2.0, 8.0),
        directions=2,
        resamples=60,
    )
    network = small.network({0: small.affine(1), 1: small.affine(1, 1)})
    return uap_vs_others(network, small.dataset(2), settings, executor.scope("uap_vs_others"))


def test_the_crossing_lies_between_two_norms():
    shares = torch.tensor(
        [[0.2, 0.7, 0.9], [0.9, 0.9, 0.9], [0.1, 0.2, 0.3], [0.0, 0.9, 0.1]], dtype=torch.float64
    )
    wanted = [1.0 + 1.0 * (0.8 - 0.7) / 0.2, 0.5 * 0.8 / 0.9, 2.0, 0.5 + 0.5 * 0.8 / 0.9]
    assert crossing((0.5, 1.0, 2.0), shares).tolist() == pytest.approx(wanted)


def test_one_affine_boundary_has_one_direction_that_counts(found):
    """DeepFool's, FGSM's and the universal one are then the same up to the sign, or nearly."""
    assert found.numbers["fool_adversarial_df / fool_uap"].value > 0.3
    assert found.numbers["fool_random"].value <= found.numbers["fool_uap"].value
    assert found.numbers["noise_norm / xi"].value == pytest.approx(10)


def test_ratios_follow_from_the_shares(found):
    numbers = {name: estimate.value for name, estimate in found.numbers.items()}
    ratio = numbers["fool_uap"] / max(numbers["fool_random"], 0.5 / 40)
    assert numbers["fool_uap / fool_random"] == pytest.approx(ratio)
    assert numbers["fool_uap / 5 - fool_random"] == pytest.approx(
        numbers["fool_uap"] / 5 - numbers["fool_random"]
    )
    assert (
        numbers["noise_norm / norm_80"] >= 10 / 8 - 1e-9
    )  # never longer than the longest that was tried
    half = numbers["fool_uap(xi / 2) / fool_uap(xi)"]
    curve = found.tables["figure_4_9"].set_index(["direction", "norm_over_xi"]).fool_val
    assert half == pytest.approx(curve["universal", 0.5] / curve["universal", 1.0])


def test_the_table_and_the_figure(found, looked_at):
    table = found.tables["figure_4_9"]
    assert len(table) == 6 * 3
    assert table[table.norm_over_xi == 1.0].images.eq(40).all()
    assert looked_at(found) == ["figure_4_9"]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"factors": (0.5, 2.0)}, "factors"),
        ({"factors": (1.0, 2.0)}, "factors"),
        ({"factors": (2.0, 1.0, 0.5)}, "factors"),
        ({"made": (0.5, 2.0)}, "made"),
        ({"made": (1.0, 2.0)}, "made"),
        ({"made": (3.0, 2.0)}, "made"),
        ({"factors": (-1.0, 1.0)}, "factors"),
        ({"directions": 0}, "directions"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"{key} must be"):
        Settings(**options)
