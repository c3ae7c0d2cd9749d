import torch
from torch import nn

from benchmarks.cure import measure_cure, paragraphs
from benchmarks.subspace import measure_subspaces
from benchmarks.subspace import paragraphs as subspace_paragraphs


def network(*layers):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), *layers, nn.Softplus(), nn.Flatten(), nn.Linear(144, 10)
    ).eval()


def test_steps_of_cure_and_their_passes():
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 10
    found = measure_cure(
        {"plain": network(), "normed": network(nn.BatchNorm2d(4))}, images, labels, repeats=2
    )
    assert set(found["plain"]["passes"]) < set(found["normed"]["passes"])
    assert "forward pass in training mode" in found["normed"]["passes"]
    assert found["plain"]["of_pgd"]["median"] < 1
    assert found["plain"]["of_plain"]["median"] > 1
    lines = paragraphs(found)
    assert lines[0].startswith("## Steps of curvature regularisation")
    assert sum(line.startswith("| plain |") for line in lines) == 1


def test_steps_in_subspaces():
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10)).eval()
    found = measure_subspaces(model, images, batch=2, repeats=1)
    assert list(found["step_over_plain"]) == ["m = 36", "m = 9", "m = 1"]
    assert min(each["min"] for each in found["drawing_seconds"].values()) > 0
    assert "d = 144" in subspace_paragraphs(found)[2]
