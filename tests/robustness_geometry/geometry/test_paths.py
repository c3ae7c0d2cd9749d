from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import deviation, find_path, find_paths


class Region(nn.Module):
    """Logits (N, 2): class 0 where ``height`` of the flattened point is above 0."""

    def __init__(self, height):
        super().__init__()
        self.height = height
        self.seen = 0
        self.eval()

    def forward(self, images):
        self.seen += len(images)
        height = self.height(images.flatten(1))
        return torch.stack([height, -height], dim=1)


FAR = partial(deepfool, overshoot=0.5)
"""Far enough inside a region whose boundary is round for the halves of a segment to stay in it."""


def at(*points):
    return torch.tensor(points, dtype=torch.float64).view(len(points), 1, 1, -1)


def horseshoe(x):
    """Points near a circle of radius 1, without those below y = 0.2."""
    return torch.minimum(0.25 - (x.norm(dim=1) - 1).abs(), x[:, 1] - 0.2)


def two_balls(x):
    centre = torch.tensor([1.0, 0.0], dtype=x.dtype)
    return 0.5 - torch.minimum((x - centre).norm(dim=1), (x + centre).norm(dim=1))


def test_an_affine_region_is_crossed_straight():
    model = Region(lambda x: x @ torch.tensor([1.0, -2.0], dtype=x.dtype) + 3)
    path = find_path(model, *at([0.0, 1.0], [4.0, 0.5]))
    assert path.found
    assert path.straight
    assert path.deviation == 1
    assert (len(path.anchors), path.depth, path.samples) == (2, 0, 10_001)


def test_a_horseshoe_needs_a_detour():
    model = Region(horseshoe)
    path = find_path(model, *at([-0.9, 0.3], [0.9, 0.3]), attack=FAR)
    assert path.found
    assert not path.straight
    assert 1.05 < path.deviation < 2
    assert path.failure == ""
    inner = path.anchors.flatten(1)
    for a, b in pairwise(inner):
        assert not torch.equal(a, b)
        share = torch.linspace(0, 1, 5001, dtype=torch.float64)[:, None]
        assert bool((horseshoe(a + share * (b - a)) > 0).all())


def test_disjoint_balls_end_in_a_reported_failure():
    path = find_path(Region(two_balls), *at([-1.0, 0.2], [1.0, 0.2]), depth=10)
    assert not path.found
    assert path.failure in ("depth", "projection")
    assert path.depth <= 10


def test_a_failed_projection_is_reported():
    def nowhere(model, points, *, targets):
        return deepfool(model, points, steps=1, overshoot=0, targets=1 - targets)

    path = find_path(Region(two_balls), *at([-1.0, 0.0], [1.0, 0.0]), attack=nowhere)
    assert (path.found, path.failure) == (False, "projection")


def test_bad_segments_are_found_out_by_few_samples():
    model = Region(two_balls)
    path = find_path(model, *at([-1.0, 0.2], [1.0, 0.2]), depth=10)
    assert path.samples < 10_001


def test_pairs_are_independent_of_each_other():
    starts, ends = (
        at([-0.9, 0.3], [0.0, 1.0], [-0.95, 0.35]),
        at([0.9, 0.3], [0.6, 0.85], [0.9, 0.4]),
    )
    together = find_paths(Region(horseshoe), starts, ends, attack=FAR)
    for index, path in enumerate(together):
        alone = find_path(Region(horseshoe), starts[index], ends[index], attack=FAR)
        torch.testing.assert_close(path.anchors, alone.anchors)
        assert (path.found, path.depth, path.samples) == (alone.found, alone.depth, alone.samples)


def test_samples_are_a_share_of_the_original_distance_apart():
    model = Region(horseshoe)
    path = find_path(model, *at([-0.9, 0.3], [0.9, 0.3]), attack=FAR, spacing=1e-2)
    segments = len(path.anchors) - 1
    assert path.samples >= path.deviation / 1e-2
    assert path.samples < 4 * path.deviation / 1e-2 + 10 * segments


def test_safety_leaves_samples_out_where_the_region_is_wide():
    model = Region(lambda x: 1.5 - x.norm(dim=1))
    pair = at([-1.0, 0.0], [1.0, 0.0])
    full, quick = find_path(model, *pair), find_path(model, *pair, safety=4)
    assert full.found
    assert quick.found
    assert quick.samples < 200 < full.samples


def test_safety_still_finds_a_narrow_gap():
    gap = Region(lambda x: (x[:, 0] - 0.123).abs() - 0.01)
    path = find_path(gap, *at([-1.0, 0.0], [1.0, 0.0]), safety=4, depth=10)
    assert not path.straight
    assert not path.found


def test_binary_logits_of_one_column():
    class Single(nn.Module):
        def forward(self, images):
            return images.flatten(1).sum(dim=1, keepdim=True)

    path = find_path(Single().eval(), *at([1.0, 0.0], [0.0, 2.0]))
    assert path.found


def test_equal_points_and_no_pairs():
    model = Region(two_balls)
    assert find_paths(model, at([1.0, 0.0])[:0], at([1.0, 0.0])[:0]) == []
    same = find_path(model, *at([1.0, 0.0], [1.0, 0.0]))
    assert same.found
    assert same.deviation == 1


def test_deviation_of_a_right_angle():
    assert deviation(at([0.0, 0.0], [3.0, 0.0], [3.0, 4.0])) == pytest.approx(7 / 5)


@pytest.mark.parametrize(
    ("points", "options", "key"),
    [
        (([-1.0, 0.0], [0.0, 0.0]), {}, r"ends\[0\] must be .*; got '?a point of label 1"),
        (
            ([-1.0, 0.0], [1.0, 0.0]),
            {"labels": torch.tensor([1])},
            r"starts\[0\] must be .*; got '?a point of label 0",
        ),
        (([-1.0, 0.0], [1.0, 0.0]), {"depth": 9}, "depth must be .*; got 9"),
        (([-1.0, 0.0], [1.0, 0.0]), {"spacing": 0.0}, "spacing must be .*; got 0.0"),
        (([-1.0, 0.0], [1.0, 0.0]), {"spacing": 2.0}, "spacing must be .*; got 2.0"),
        (([-1.0, 0.0], [1.0, 0.0]), {"safety": 0}, "safety must be .*; got 0"),
        (([-1.0, float("nan")], [1.0, 0.0]), {}, "images must be"),
    ],
)
def test_pairs_and_options_that_cannot_be_used_are_refused(points, options, key):
    with pytest.raises(InputError, match=key):
        find_path(Region(two_balls), *at(*points), **options)


def test_float32_and_a_partial_attack():
    starts, ends = at([-0.9, 0.3]).float(), at([0.9, 0.3]).float()
    (path,) = find_paths(Region(horseshoe), starts, ends, attack=FAR, spacing=1e-3)
    assert path.found
    assert path.anchors.dtype == torch.float32
