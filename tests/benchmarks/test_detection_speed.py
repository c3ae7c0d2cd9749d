import torch
from torch import nn

from benchmarks.detection import measure_detection, paragraphs


def test_figures_and_report():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = measure_detection(model, images, repeats=1, directions=3)
    assert (found["forward"], found["backward"], found["passes_needed"]) == (1 + 6 + 18, 9, 36)
    assert found["ratio"]["min"] > 0
    lines = paragraphs(found)
    assert lines[0] == "## Detection"
    assert "25 forward and 9 backward passes" in lines[2]
    assert "36 plain forward passes" in lines[2]
