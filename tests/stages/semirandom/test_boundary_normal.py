from dataclasses import replace

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import nearest
from robustness_geometry.checks import InputError
from stages.semirandom.boundary_normal import Settings, boundary_normal

SMALL = {
    "samples": 20,
    "steps": 20,
    "restarts": 2,
    "ddn_steps": 20,
    "rivals": 1,
    "resamples": 100,
}


def test_perturbations_of_an_affine_network_are_normal_and_shortest(made, executor, looked_at):
    network = made.network(made.affine(0), made.affine(1))
    found = boundary_normal(network, made.dataset(20), Settings(**SMALL), executor)
    assert found.numbers["share_unfooled"].value == 1
    assert found.numbers["median_cosine"].value == pytest.approx(1, abs=1e-9)
    assert found.numbers["median_cosine (crossing)"].value == pytest.approx(1, abs=1e-9)
    assert found.numbers["share_unfooled (crossing)"].value == 1
    assert found.numbers["r* / r"].value == pytest.approx(1, rel=1e-6)
    assert set(found.tables["observation_1"]["point"]) == {"closest", "crossing"}
    assert found.tensors["cosine"].shape == (2, 20)
    assert looked_at(found) == ["cosines", "figure_5_1"]


def test_a_radius_beyond_the_boundary_is_noticed(made, executor):
    found = boundary_normal(
        made.network(made.affine()), made.dataset(20), Settings(**SMALL, radius=1.1), executor
    )
    assert found.numbers["share_unfooled"].value == 0
    for search in ("PGD", "nearest"):  # twenty steps of DDN do not get that near
        assert found.numbers[f"share_unfooled, {search}"].value == 0
    assert any("was found in 20 cases" in note for note in found.notes)


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
    assert any("they are left out" in note and "of 12 cases" in note for note in found.notes)
    looked_at(found)


class Pocket(nn.Module):
    """A straight boundary far away, and a near one that no gradient at the image leads to."""

    def forward(self, images):
        flat = images.flatten(1) - 0.5
        near = (flat[:, 1:2] > 1).to(flat) * (flat[:, 1:2] - 1)
        return torch.cat([torch.zeros_like(near), flat[:, :1] - 4 + 100 * near], dim=1)


def aside(model, images, *, steps):
    """Takes the place of DDN, and finds what lies aside of the gradient."""
    found = nearest(model, images)
    r = torch.zeros_like(found.perturbations)
    r.flatten(1)[:, 1] = 1.1
    return replace(found, perturbations=r)


def test_a_nearer_label_change_that_one_search_finds_counts(made, executor, monkeypatch):
    data = made.dataset(6)
    centre = type(data.test)(torch.full_like(data.test.images, 0.5), data.test.labels)
    moved = type(data)(data.name, data.train, centre, data.classes, data.mean, data.std)
    monkeypatch.setattr("stages.semirandom.boundary_normal.ddn", aside)
    settings = Settings(**{**SMALL, "samples": 6})
    found = boundary_normal(made.network(Pocket().eval()), moved, settings, executor)
    assert found.numbers["share_unfooled, PGD"].value == 1
    assert found.numbers["share_unfooled, DDN"].value == 0
    assert found.numbers["share_unfooled"].value == 0
    assert found.numbers["share_unfooled (crossing)"].value == 0


@pytest.mark.parametrize(
    "name", ["radius", "steps", "restarts", "ddn_steps", "rivals", "samples", "resamples"]
)
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(InputError, match=f"^{name} must be .*got 0"):
        Settings(**{name: 0})
