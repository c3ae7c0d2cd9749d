import torch
from torch import nn

from benchmarks.curvature import measure_leading, measure_memory, measure_profile, paragraphs


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
