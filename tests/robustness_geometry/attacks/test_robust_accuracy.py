import math

import pytest
import torch

from robustness_geometry.attacks import robust_accuracy_area, robust_accuracy_curve
from robustness_geometry.checks import InputError


def test_the_curve_counts_images_farther_than_eps_and_the_area_is_its_integral():
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(50, generator=generator).double()
    distances[3], distances[4] = 0.0, math.nan
    success = torch.rand(50, generator=generator) < 0.8
    success[3], success[4] = True, False  # misclassified without any; nothing found
    eps = torch.linspace(0, 0.9, 90_001, dtype=torch.float64)
    curve = robust_accuracy_curve(distances, success, eps)
    for index in (0, 1, 40_000, 90_000):
        left = [not s or d > eps[index] for d, s in zip(distances, success, strict=True)]
        assert curve[index].item() == pytest.approx(sum(left) / 50)
    assert curve[0].item() == pytest.approx(0.98)
    area = robust_accuracy_area(distances, success, 0.9)
    assert area == pytest.approx(torch.trapezoid(curve, eps).item(), abs=1e-4)


def test_a_norm_of_exactly_eps_fools():
    one = torch.ones(1)
    assert robust_accuracy_curve(one, one > 0, [1.0]).tolist() == [0.0]
    assert robust_accuracy_curve(one, one < 0, [1.0]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("distances", "success", "eps", "message"),
    [
        ([], [], [1.0], "distances.shape must be"),
        ([-1.0], [True], [1.0], "distances must be"),
        ([math.nan], [True], [1.0], "distances must be"),
        ([1.0], [True], [-1.0], "eps must be"),
        ([1.0], [True], [math.nan], "eps must be"),
    ],
)
def test_what_cannot_be_counted_is_refused(distances, success, eps, message):
    with pytest.raises(InputError, match=message):
        robust_accuracy_curve(torch.tensor(distances), torch.tensor(success).bool(), eps)


@pytest.mark.parametrize("largest", [0.0, -1.0, math.inf, math.nan])
def test_an_area_needs_an_end(largest):
    with pytest.raises(InputError, match="largest must be"):
        robust_accuracy_area(torch.ones(1), torch.ones(1).bool(), largest)
