from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.studies.detector import boundary_curvature
from robustness_geometry.checks import InputError
from robustness_geometry.types import Dataset, Network, Split
from stages.detect.curvature_sign import SECTION, Settings, curvature_sign
from stages.experiments import Experiment

SMALL = {"calibration_samples": 10, "samples": 12, "directions": 3, "resamples": 50}


class Ball(nn.Module):
    """Logits (N, 1), positive outside of a ball round the centre of the cube."""

    def __init__(self, radius):
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(radius))
        self.eval()

    def forward(self, images):
        return (images.flatten(1) - 0.5).square().sum(dim=1, keepdim=True) - self.radius**2


def around_a_ball(count=24):
    """Images outside of a ball of radius 0.5, whose boundary bends away from them."""
    ways = torch.randn(count, 9, generator=torch.Generator().manual_seed(1))
    images = (0.5 + 0.9 * ways / ways.norm(dim=1, keepdim=True)).view(count, 1, 3, 3).clamp(0, 1)
    labels = torch.arange(count) % 2
    return Dataset(
        "shell", Split(images[:0], labels[:0]), Split(images, labels), ("0", "1"), (0.5,), (0.2,)
    )


def test_signs_outside_of_a_ball_are_those_of_the_table(executor, looked_at):
    network = Network("ball", "shell", {0: Ball(0.5), 1: Ball(0.4)})
    found = curvature_sign(
        network, around_a_ball(), Settings(**SMALL), executor.scope("curvature_sign")
    )
    # Seen from outside, F = f_inside - f_outside bends with -1 / R; seen from inside with +1 / R.
    assert found.numbers["share_negative_original"].value == 1.0
    assert found.numbers["share_positive_perturbed"].value == 1.0
    assert found.numbers["share_positive_doubled"].value == 1.0
    assert (
        found.numbers["share_negative_original"].n,
        found.numbers["share_negative_original"].seeds,
    ) == (12, 2)
    assert found.numbers["share_back_to_original_label"].value == 1.0
    assert found.numbers["distance_of_boundary_points / norm_of_r"].value < 0.01
    tangents = 8 / 9  # a random direction has that share in the tangent space, on average
    expected = tangents * (1 / 0.5 + 1 / 0.4) / 2
    assert found.numbers["median_kappa_perturbed"].value == pytest.approx(expected, rel=0.15)
    assert found.numbers["median_kappa_original"].value == pytest.approx(-expected, rel=0.15)
    assert found.tables["steps"]["chosen"].sum() == 1
    assert found.tables["table_7_2"]["sign"].tolist() == ["negative", "positive", "positive"]
    assert looked_at(found) == ["curvatures"]


def test_without_a_boundary_there_is_no_curvature():
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).eval()
    with torch.no_grad():
        model[1].weight.mul_(0).add_(torch.tensor([[1.0], [-1.0]]))
        model[1].bias.copy_(torch.tensor([0.0, -1e9]))
    images = torch.rand(3, 1, 3, 3)
    found = boundary_curvature(model, images, 0 * images, output="logits", h=(0.1,), directions=2)
    assert found.values.isnan().all()
    assert found.points.isfinite().all()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"samples": 1}, "samples must be .*; got 1"),
        ({"calibration_samples": 0}, "calibration_samples must be .*; got 0"),
        ({"directions": 0}, "directions must be .*; got 0"),
        ({"resamples": 0}, "resamples must be .*; got 0"),
        ({"h_factors": ()}, "h_factors must be"),
        ({"h_factors": (0.1, 0.0)}, "h_factors must be .*; got 0"),
        ({"h_factors": (-1.0,)}, "h_factors must be .*; got -1"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        Settings(**options)


def test_too_few_images_are_refused(network, data):
    few, enough = (replace(data, test=data.test.first(count)) for count in (3, 4))
    experiment = Experiment("curvature_sign", SECTION, curvature_sign, Settings(**SMALL))
    with pytest.raises(InputError, match=r"^dataset must be .*; got '?3 test images'?$"):
        experiment.check(network.name, few)
    experiment.check(network.name, enough)
