import pytest
import torch

from pipeline.studies.paths import endpoints, joined_pairs
from robustness_geometry.checks import InputError
from robustness_geometry.types import predict
from stages.topology.path_connectivity import Settings, path_connectivity

SMALL = {"pairs": 12, "spacing": 1e-2, "resamples": 100}


def test_half_planes_are_joined_straight(plane, executor, looked_at):
    settings = Settings(**SMALL)
    found = path_connectivity(
        plane.network(plane.half, plane.half), plane.dataset(40), settings, executor
    )
    for scenario in (1, 2, 3):
        assert found.numbers[f"share_connected_{scenario}"].value == 1
        assert found.numbers[f"share_connected_of_reached_{scenario}"].value == 1
        assert found.numbers[f"deviation_{scenario}"].value == 1
        assert found.numbers[f"deviation_{scenario} - 1"].value == 0
        assert found.numbers[f"anchors_{scenario}"].value == 0
        assert found.numbers[f"share_straight_{scenario}"].value == 1
    assert found.numbers["share_connected"].n == 36
    assert found.numbers["share_connected"].low < 1
    assert found.tables["paths"]["no_path"].tolist() == [0, 0, 0]
    assert found.tensors["deviation_2"].shape == (2, 12)
    assert looked_at(found) == ["connected", "figure_7_2"]


def test_a_ring_needs_detours(plane, executor, looked_at):
    found = path_connectivity(
        plane.network(plane.ring), plane.dataset(60), Settings(**SMALL), executor
    )
    assert found.numbers["share_straight_1"].value < found.numbers["share_connected_1"].value
    assert found.numbers["deviation_1"].value > 1.01
    assert found.numbers["anchors_1"].value > 0.2
    assert any("overshoot of 0.4" in note for note in found.notes)
    looked_at(found)


def test_pairs_of_two_balls_fail_and_are_counted(plane, executor, looked_at):
    found = path_connectivity(
        plane.network(plane.balls), plane.dataset(60), Settings(**SMALL, depth=10), executor
    )
    assert found.numbers["share_connected_1"].value < 1
    table = found.tables["paths"]
    failed = (1 - found.numbers["share_connected_1"].value) * found.numbers["share_connected_1"].n
    assert table["no_path"][0] == pytest.approx(failed)
    assert found.tensors["deviation_1"].isnan().sum() >= table["no_path"][0]
    looked_at(found)


def test_skipped_samples_are_audited(plane, executor):
    settings = Settings(**SMALL, safety=4.0, audited=5)
    found = path_connectivity(plane.network(plane.half), plane.dataset(40), settings, executor)
    assert any(
        "on 15 pairs every sample was looked at as well, and 0 of them" in note
        for note in found.notes
    )
    assert found.tables["paths"]["mean_samples"].max() < 101


def test_a_second_point_that_stays_outside_counts_as_not_joined(plane, executor):
    """A region behind a plateau: no gradient leads into it."""

    def island(x):
        return torch.where(x[:, :1].sum(dim=1) < 0.5, 0.5 - x[:, 0], -torch.ones_like(x[:, 0]))

    found = path_connectivity(plane.network(island), plane.dataset(40), Settings(**SMALL), executor)
    outside = int(found.tables["paths"]["endpoint_outside"][1])
    assert 0 < outside < 12
    assert found.numbers["share_connected_2"].n == 12
    assert found.numbers["share_connected_2"].value == pytest.approx(1 - outside / 12)
    assert found.numbers["share_connected_of_reached_2"].n == 12 - outside
    assert found.numbers["share_connected_of_reached_2"].value == 1


@pytest.mark.parametrize("scenario", [1, 2, 3])
def test_endpoints_are_what_the_scenario_says(plane, executor, scenario):
    network, data = plane.network(plane.half), plane.dataset(40)
    starts, others, labels = endpoints(network.model, data, scenario, 50, 0, executor)
    assert torch.equal(predict(network.model, starts), labels)
    assert torch.equal(starts[:10], starts[40:])
    alike = predict(network.model, others) == labels
    if scenario < 3:
        assert bool(alike.all()) == (scenario == 1)
        assert bool(alike.any()) == (scenario == 1)
        assert not bool((starts == others).flatten(1).all(dim=1).any())
    else:
        lengths = others.flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, lengths[:1].expand(50))
    rows = joined_pairs(
        network.model, data, Settings(pairs=50, spacing=1e-2), scenario, 0, executor
    )
    assert bool(rows.reached.all())
    assert torch.equal(predict(network.model, rows.ends), labels)


def test_an_image_without_a_partner_is_left_out(plane, executor, looked_at):
    network = plane.network(lambda x: x[:, 0] + 1)  # one label for all
    found = path_connectivity(
        network, plane.dataset(10), Settings(**{**SMALL, "pairs": 6}), executor
    )
    assert "share_connected_2" not in found.numbers
    assert found.numbers["share_connected_1"].value == 1
    looked_at(found)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"pairs": 0}, "pairs must be .*got 0"),
        ({"depth": 5}, "depth must be .*got 5"),
        ({"spacing": 0.0}, "spacing must be .*got 0"),
        ({"safety": -1.0}, "safety must be .*got -1"),
        ({"overshoot": 0.0}, "overshoot must be .*got 0"),
        ({"attack_steps": 0}, "attack_steps must be .*got 0"),
        ({"audited": -1}, "audited must be .*got -1"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        Settings(**options)
