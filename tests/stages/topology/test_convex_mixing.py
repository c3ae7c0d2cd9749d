import pytest

from robustness_geometry.checks import InputError
from stages.topology.convex_mixing import Settings, convex_mixing

SMALL = {"pairs": 10, "spacing": 1e-2, "resamples": 200, "sizes": (2, 4, 8), "mixtures": 150}


def test_half_planes_are_convex(plane, executor, looked_at):
    found = convex_mixing(
        plane.network(plane.half, plane.half), plane.dataset(60), Settings(**SMALL), executor
    )
    for k in (2, 4, 8):
        assert found.numbers[f"P_in_{k}"].value == 1
        assert found.numbers[f"P_in_{k}"].n == 150
    assert found.numbers["spearman"].value == 0
    assert found.numbers["share_found"].value == found.numbers["share_straight"].value == 1
    assert found.tensors["in_2"].shape == (2, 150)
    assert looked_at(found) == ["figure_7_3"]


def test_mixtures_leave_a_ring_the_more_images_they_have(plane, executor, looked_at):
    data = plane.dataset(400)
    kept = plane.ring(data.test.images.flatten(1)) > 0
    inside = type(data.test)(data.test.images[kept], data.test.labels[kept])
    ring = type(data)(data.name, data.train, inside, data.classes, data.mean, data.std)
    found = convex_mixing(plane.network(plane.ring), ring, Settings(**SMALL), executor)
    assert found.numbers["P_in_2"].high < 1
    assert found.numbers["P_in_first - P_in_last"].low > 0
    assert found.numbers["spearman"].value == pytest.approx(-1)
    assert found.numbers["share_found - share_straight"].low > 0
    looked_at(found)


def test_more_images_than_a_label_has_are_refused(plane, executor):
    settings = Settings(**{**SMALL, "sizes": (2, 3, 500)})
    with pytest.raises(InputError, match=r"^sizes must be at most .*got 500"):
        convex_mixing(plane.network(plane.half), plane.dataset(30), settings, executor)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"sizes": (2, 3)}, "sizes must be .*"),
        ({"sizes": (1, 2, 3)}, "sizes must be .*"),
        ({"sizes": (3, 2, 5)}, "sizes must be .*"),
        ({"mixtures": 0}, "mixtures must be .*got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        Settings(**options)
