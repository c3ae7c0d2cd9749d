import pytest
import torch
from torch import nn

from benchmarks.curvature import measure_leading, measure_memory, measure_profile, paragraphs
from benchmarks.curvature_peers import PRODUCTS, measure_curvature_peers
from benchmarks.curvature_peers import paragraphs as peer_lines


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()


def test_figures_and_report():
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    profile = measure_profile(network(), images[:1], repeats=1)
    assert profile["gradients"] == 128
    assert profile["share_of_plain_rate"]["min"] > 0
    leading = measure_leading(torch.device("cpu"), side=7)
    assert leading["dimension"] == 147
    assert leading["softplus"]["full_gradients"] == 2 * 147 + 1
    # At d = 3,072 that is a twentieth.
    assert leading["softplus"]["gradients"] <= 2 * 3072 / 20
    assert leading["softplus"]["largest_gap"] < 0.01
    assert leading["softplus"]["not_found"] == 0
    assert leading["relu"]["largest_gap"] > leading["softplus"]["largest_gap"]
    memory = measure_memory(network(), images)
    lines = paragraphs({"profile": profile, "leading": leading, "memory": memory})
    assert lines[0] == "## Curvature"
    assert "128 gradients" in lines[2]
    assert "d = 147" in lines[4]
    assert "From 2 to 4 images" in lines[6]


# torch.func loads what PyTorch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


def test_curvatures_are_those_of_the_installed_peers_and_products_are_counted():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.Softplus(beta=5), nn.Flatten(), nn.Linear(12, 3)]
    model = nn.Sequential(*layers).double().eval()
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    found = measure_curvature_peers(model, image)
    rows = {row["name"]: row for row in found["rows"]}
    assert {"this project", "this project, exact=True", "torch.func"} <= rows.keys()
    for row in rows.values():
        assert row["gap"] < 1e-5
        assert row["mean_gap"] < 1e-5
        assert row["products"] == 16
    for name in ("this project", "this project, exact=True"):
        assert (rows[name]["gradients"], rows[name]["mean_gradients"]) == (2 * 16 + 1, 2 * 10 + 1)
    assert rows["this project"]["gap"] > 0
    (line,) = [line for line in peer_lines(found) if line.startswith("| this project | 16 | 33 |")]
    assert "| 10 | 21 |" in line


@pytest.mark.parametrize("part", ["mean_gap", "gap"])
def test_a_peer_that_is_wrong_is_seen(part, monkeypatch):
    monkeypatch.setitem(PRODUCTS, "wrong", ("torch", "torch", lambda _, vectors: 2 * vectors))
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Softplus(), nn.Linear(4, 2)).double()
    found = measure_curvature_peers(model.eval(), torch.rand(1, 1, 3, 3, dtype=torch.float64))
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["wrong"][part] > 0.1
