from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.universal import ART, WAYS, Setting, measure_universal, paragraphs


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
    ).eval()
    nn.init.zeros_(model[4].bias)  # all labels occur
    images = torch.rand(30, 1, 4, 4)
    return replace(Setting.of(model, images[:20], images[20:]), passes=1)


def test_radius_is_a_tenth_of_the_random_noise_norm(setting):
    from robustness_geometry.attacks import deepfool

    sizes = deepfool(setting.model, setting.images).perturbations.flatten(1).norm(dim=1)
    assert setting.radius == pytest.approx(4 * float(sizes.median()) / 10)


def test_all_ways_are_measured_on_the_same_orders(setting):
    results = measure_universal(setting, shufflings=2)
    rows = {row["name"]: row for row in results["ways"]}
    assert list(rows) == list(WAYS)
    plain, ahead = rows["one by one"], rows["batch_size=1"]
    assert plain["gain"]["one by one"] == {"min": 1.0, "median": 1.0, "max": 1.0}
    assert (plain["fooled"], plain["unseen"]) == (ahead["fooled"], ahead["unseen"])
    assert (
        0
        < results["bound"]["share_of_free_looks"]["median"]
        < results["bound"]["share"]["median"] * 1.5
    )
    assert results["bound"]["visits"]["min"] > 0
    text = "\n".join(paragraphs(results))
    assert all(name in text for name in WAYS)
    assert ("ART: not installed" in text) == (not ART.installed)
