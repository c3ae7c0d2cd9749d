import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pipeline.evaluation import held_out
from pipeline.studies.detector import detector_studies, moved
from pipeline.studies.detector_boundary import (
    along_random_directions,
    boundary_curvature,
    of_other_classes,
    on_lines_to,
    on_ways_back,
)
from robustness_geometry.attacks import ddn, pgd
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from robustness_geometry.types import Dataset, Network, Split, predict
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


def around_a_ball(count=24, size=0.9):
    """Images at a distance from the centre of the cube, less where that leaves the cube."""
    ways = torch.randn(count, 9, generator=torch.Generator().manual_seed(1))
    images = (0.5 + size * ways / ways.norm(dim=1, keepdim=True)).view(count, 1, 3, 3).clamp(0, 1)
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
    table = found.tables["table_7_2"]
    assert table["sign"].tolist() == 2 * ["negative", "positive", "positive"]
    assert table["point"].tolist() == 3 * ["closest"] + 3 * ["crossing"]
    assert looked_at(found) == ["curvatures", "elsewhere"]


@pytest.mark.parametrize(("radius", "size", "sign"), [(0.45, 0.9, -1.0), (0.7, 0.3, 1.0)])
def test_the_sign_on_a_sphere_is_that_of_the_side_of_the_image(radius, size, sign, executor):
    network = Network("ball", "shell", {0: Ball(radius)})
    data = around_a_ball(size=size)
    found = curvature_sign(network, data, Settings(**SMALL), executor.scope("curvature_sign"))
    for name in ("original", "original (crossing)", "other", "random"):
        number = found.numbers.get(f"share_negative_{name}")
        # There is no image of another class, and from outside few directions meet the ball.
        assert number is None or number.value == (sign < 0), name
    assert math.copysign(1, found.numbers["median_kappa_original"].value) == sign
    # The closest point lies along the radius.
    reported = held_out(data, 22).images[10:]
    expected = ((reported - 0.5).flatten(1).norm(dim=1) - radius).abs().median()
    assert found.numbers["distance_original"].value == pytest.approx(float(expected), rel=0.05)
    assert found.numbers["alignment_original"].value == pytest.approx(1.0, abs=1e-4)


def test_the_points_of_table_7_2_are_closest_points(network, data, executor):
    study = detector_studies(network, data, Settings(**SMALL), executor)[0]
    images = study.test.images
    near, other = study.boundary(images, "closest"), study.boundary(images, "crossing")
    assert bool((near.angles.cos() > 0.999).all())
    rival = ddn(study.model, images, steps=100)
    # One of two points that are both closest to first order may be farther away by 1%.
    for each in (other, rival):
        assert bool((norms(near.perturbations) <= 1.01 * norms(each.perturbations)).all())
    # The perturbed image lies 2% beyond.
    beyond = study.perturbed(images, "closest")
    torch.testing.assert_close(beyond.perturbations, 1.02 * near.perturbations)
    assert bool(beyond.success.all())
    assert torch.equal(predict(study.model, moved(images, beyond)), beyond.adversarial_labels)


def test_the_way_back_leads_to_the_same_closest_point(network, data, executor):
    study = detector_studies(network, data, Settings(**SMALL), executor)[0]
    images = study.test.images
    beyond = moved(images, study.perturbed(images, "closest"))
    back, anew = on_ways_back(study.model, beyond, images), study.boundary(beyond, "closest")
    torch.testing.assert_close(back.points, anew.points, atol=1e-3, rtol=0)
    assert torch.equal(back.labels, predict(study.model, beyond))


def test_the_attack_under_study_makes_the_images_that_stand_beside(network, data, executor):
    settings = Settings(**SMALL, attack=partial(pgd, eps=0.3, steps=3))
    study = detector_studies(network, data, settings, executor)[0]
    images = study.test.images
    crossing = study.perturbed(images, "crossing").perturbations
    assert float(crossing.abs().max()) == pytest.approx(0.3)
    # The boundary is where DeepFool crosses it, and the closest point does not depend on either.
    plain = detector_studies(network, data, Settings(**SMALL), executor)[0]
    for point in ("closest", "crossing"):
        a, b = (each.boundary(images, point) for each in (study, plain))
        torch.testing.assert_close(a.points, b.points)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 1, 2], [2, 2, 3, 0]),
        ([1, 0, 0, 0], [1, 0, 0, 0]),
        ([5, 5, 5], [1, 2, 0]),
        ([3], [0]),
        ([], []),
    ],
)
def test_each_image_is_led_to_the_next_one_of_another_class(labels, expected):
    images = torch.arange(len(labels)).float().view(-1, 1, 1, 1)
    others = of_other_classes(images, torch.tensor(labels, dtype=torch.int64))
    assert others.flatten().long().tolist() == expected


def test_other_boundary_points_lie_on_their_lines():
    model, images = Ball(0.5), around_a_ball(6).test.images
    to_centre = on_lines_to(model, images, torch.full_like(images, 0.5))
    inside = 0.5 + 0.2 * (images - 0.5)
    random = along_random_directions(model, inside)  # from inside, every direction meets the sphere
    for found in (to_centre, random):
        assert bool(found.success.all())
        radii = (found.points - 0.5).flatten(1).norm(dim=1)
        torch.testing.assert_close(radii, torch.full_like(radii, 0.5), atol=1e-5, rtol=0)
    assert float(to_centre.angles.cos().min()) > 0.9999
    assert float(random.angles.cos().median()) < 0.99
    assert not bool(on_lines_to(model, images, images).success.any())


def test_without_a_boundary_point_there_is_no_curvature():
    points = around_a_ball(3).test.images
    points[1] = math.nan
    own, other = torch.tensor([1, 0, 1]), torch.tensor([0, 0, 0])
    found = boundary_curvature(
        Ball(0.5), points, own, other, output="logits", h=(0.1, 0.2), directions=2
    )
    assert found.isnan().tolist() == [[False, False], [True, True], [False, False]]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"samples": 1}, "samples must be .*; got 1"),
        ({"calibration_samples": 0}, "calibration_samples must be .*; got 0"),
        ({"directions": 0}, "directions must be .*; got 0"),
        ({"resamples": 0}, "resamples must be .*; got 0"),
        ({"h_factors": ()}, "h_factors must be"),
        ({"h_factors": (0.1, 0.0)}, "h_factors must be .*; got 0"),
        ({"overshoot": 0.0}, "overshoot must be .*; got 0"),
        ({"overshoot": math.nan}, "overshoot must be .*; got nan"),
        ({"control_samples": 1}, "control_samples must be .*; got 1"),
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
