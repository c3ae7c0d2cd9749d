import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import (
    boundary_heights,
    planar_curvature,
    plane_sections,
    stitched_section,
)


class Heights(nn.Module):
    """Logits of any function of the flattened points, (N, K)."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, images):
        return self.function(images.flatten(1))


def three_stripes(x):
    """Class 0 left of -1, class 1 between, class 2 right of 1, straight boundaries."""
    return torch.stack([-x[:, 0] - 1, 0 * x[:, 0], x[:, 0] - 1], dim=1)


def image(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def test_labels_and_leads_of_a_plane():
    x, y = torch.linspace(-2, 2, 9).double(), torch.linspace(-1, 1, 5).double()
    origins = torch.cat([image(0, 0, 0), image(0.5, 0, 1)])
    across, upward = image(1, 0, 0).expand(2, -1, -1, -1), image(0, 1, 0).expand(2, -1, -1, -1)
    section = plane_sections(Heights(three_stripes), origins, across, upward, x, y)
    assert section.labels.shape == (2, 5, 9)
    assert section.labels[0, 0, [0, 1, 3, 4, 5, 7, 8]].tolist() == [0, 0, 1, 1, 1, 2, 2]
    torch.testing.assert_close(section.leads[0, 2], torch.minimum(1 + x, 1 - x))
    torch.testing.assert_close(section.leads[1, 2], torch.minimum(1.5 + x, 0.5 - x))
    assert torch.equal(section.labels[0, 0], section.labels[0, 4])


def circle(radius, dimension=3):
    """Class 0 inside the sphere of that radius, class 1 outside."""
    origin = image(radius, *[0.0] * (dimension - 1))
    model = Heights(lambda x: torch.stack([radius**2 - x.square().sum(dim=1), 0 * x[:, 0]], dim=1))
    normal, tangent = origin / radius, torch.roll(origin / radius, 1, dims=3)
    return model, origin, normal, tangent


@pytest.mark.parametrize("radius", [0.5, 2.0, 30.0])
@pytest.mark.parametrize("inside", [True, False])
def test_heights_and_curvature_of_a_circle(radius, inside):
    model, origin, normal, tangent = circle(radius)
    own, other = torch.tensor([0 if inside else 1]), torch.tensor([1 if inside else 0])
    outward = normal if inside else -normal
    offsets = radius * torch.linspace(-0.2, 0.2, 11).double()[None]
    heights = boundary_heights(
        model,
        origin,
        outward,
        tangent,
        offsets,
        labels=own,
        targets=other,
        reach=torch.tensor([radius]).double(),
    )
    expected = (radius**2 - offsets**2).sqrt() - radius
    torch.testing.assert_close(
        heights, expected if inside else -expected, atol=1e-5 * radius, rtol=0
    )
    kappa = float(planar_curvature(heights, offsets)[0])
    assert kappa == pytest.approx((1 if inside else -1) / radius, rel=0.03)


def test_a_flat_boundary_has_no_curvature_and_other_classes_play_no_part():
    model = Heights(three_stripes)
    origins = image(
        1, 0, 0
    )  # between the classes 1 and 2; beyond s = 2 class 0 takes over on a tilted line
    offsets = torch.linspace(-5, 5, 11).double()[None]
    heights = boundary_heights(
        model,
        origins,
        image(1, 0, 0),
        image(0, 1, 0),
        offsets,
        labels=torch.tensor([1]),
        targets=torch.tensor([2]),
        reach=torch.tensor([1.0]).double(),
    )
    assert heights.abs().max() < 1e-5
    assert abs(float(planar_curvature(heights, offsets)[0])) < 1e-5


def test_a_boundary_out_of_reach_is_unknown():
    model, origin, normal, tangent = circle(1.0)
    offsets = torch.tensor([[0.0, 0.5, 2.0, 3.0]]).double()
    heights = boundary_heights(
        model,
        origin,
        normal,
        tangent,
        offsets,
        labels=torch.tensor([0]),
        targets=torch.tensor([1]),
        reach=torch.tensor([1.0]).double(),
    )
    assert heights.isnan().tolist() == [[False, False, True, True]]
    assert planar_curvature(heights, offsets).isnan().all()


def test_curvature_of_a_tilted_parabola():
    offsets = torch.linspace(-1, 1, 7).double().expand(2, -1)
    heights = torch.stack([0.3 + 0.5 * offsets[0] - 0.2 * offsets[0] ** 2, offsets[1] ** 2])
    heights[1, 3] = torch.nan
    torch.testing.assert_close(
        planar_curvature(heights, offsets),
        torch.tensor([0.4 / 1.25**1.5, -2.0], dtype=torch.float64),
    )


def test_stitched_sections_follow_the_path():
    anchors = torch.cat([image(-3, 0, 0), image(0, 0, 0), image(0, 2, 0)])
    y = torch.linspace(-1, 1, 5).double()
    found = stitched_section(Heights(three_stripes), anchors, image(1, 1, 1)[0], y, columns=50)
    assert found.breaks.tolist() == [0, 3, 5]
    assert found.labels.shape == found.leads.shape == (5, 50)
    assert bool((found.x[1:] > found.x[:-1]).all())
    middle = found.labels[2]
    assert torch.equal(middle[:20], torch.zeros(20, dtype=torch.int64))
    assert torch.equal(middle[20:], torch.ones(30, dtype=torch.int64))
    # Along the second segment the first pixel is part of the other axis.
    assert found.leads[4, 40] < 0 < found.leads[2, 0]


@pytest.mark.parametrize(
    ("anchors", "upward", "key"),
    [
        ([image(0, 0, 0)], image(0, 1, 0), "len"),
        ([image(0, 0, 0), image(0, 0, 0)], image(0, 1, 0), "anchors must be"),
        ([image(0, 0, 0), image(1, 0, 0)], image(2, 0, 0), "upward must be"),
    ],
)
def test_impossible_stitches_are_refused(anchors, upward, key):
    with pytest.raises(InputError, match=key):
        stitched_section(Heights(three_stripes), torch.cat(anchors), upward[0], torch.zeros(3))
