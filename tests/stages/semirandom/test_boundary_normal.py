import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from stages.semirandom.boundary_normal import Settings, boundary_normal

SMALL = {"samples": 20, "steps": 20, "restarts": 2, "resamples": 100}


def test_perturbations_of_an_affine_network_are_normal_and_shortest(made, executor, looked_at):
    network = made.network(made.affine(0), made.affine(1))
    found = boundary_normal(network, made.dataset(20), Settings(**SMALL), executor)
    assert found.numbers["share_unfooled"].value == 1
    assert found.numbers["median_cosine"].value == pytest.approx(1, abs=1e-9)
    assert found.numbers["median_cosine_attack"].value == pytest.approx(1, abs=1e-9)
    assert found.numbers["r* / r"].value == pytest.approx(1 / 1.02, rel=1e-6)
    assert found.tensors["cosine"].shape == (2, 20)
    assert looked_at(found) == ["cosines", "figure_5_1"]


def test_a_radius_beyond_the_boundary_is_noticed(made, executor):
    found = boundary_normal(
        made.network(made.affine()), made.dataset(20), Settings(**SMALL, radius=1.1), executor
    )
    assert found.numbers["share_unfooled"].value == 0
    assert any("another label in 20 cases" in note for note in found.notes)


class Plateau(nn.Module):
    """Has a boundary for the images with a dark first pixel only; elsewhere logits are constant."""

    def forward(self, images):
        first = images.flatten(1)[:, :1]
        return torch.where(
            first < 0.5, images.flatten(1).sum(dim=1, keepdim=True) - 40, torch.ones_like(first)
        )


def test_images_without_a_boundary_are_counted_and_left_out(made, executor, looked_at):
    data = made.dataset(12)
    lost = int((data.test.images[:, 0, 0, 0] >= 0.5).sum())
    found = boundary_normal(
        made.network(Plateau().eval()), data, Settings(**{**SMALL, "samples": 12}), executor
    )
    assert 0 < lost < 11
    assert found.numbers["median_cosine"].n <= 12 - lost
    assert any("they are left out" in note and f"of {12} cases" in note for note in found.notes)
    looked_at(found)


@pytest.mark.parametrize("name", ["radius", "steps", "restarts", "samples", "resamples"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(InputError, match=f"^{name} must be .*got 0"):
        Settings(**{name: 0})
