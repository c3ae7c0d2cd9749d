"""Studies and settings: boundary points with known geometry, S_c, its control, S_f and u_i."""

import math
from dataclasses import dataclass

import pytest
import torch

from pipeline.evaluation import held_out
from pipeline.statistics import exactly, spread_margin
from pipeline.studies.curvature import (
    CurvatureStudy,
    curvature_studies,
    unseen_split,
)
from pipeline.studies.curvature_fooling import (
    noise_norm,
    share_inside,
    universal_of,
    within,
    without,
)
from pipeline.studies.curvature_settings import (
    Curvatures,
    CurvatureSettings,
    MeanHessian,
    RandomVectors,
    SharedDirections,
    UniversalVectors,
    check_products,
    dimension_of,
)
from pipeline.studies.curvature_tables import curvature_columns, measured_at, named
from pipeline.studies.flatness import flat_share, structureless_flat, structureless_top
from pipeline.studies.noise import noise_needed, noise_radius
from pipeline.tables import sign_shares
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import principal_angles

SMALL = {"train_samples": 8, "samples": 10, "products": 16, "leading": 2}


@dataclass(frozen=True)
class Everything(MeanHessian, SharedDirections, UniversalVectors, RandomVectors):
    """All settings that an experiment may have."""


@pytest.fixture
def study(bent, executor) -> CurvatureStudy[Everything]:
    settings = Everything(**SMALL)
    return curvature_studies(bent.network(bent.model()), bent.dataset(), settings, executor)[0]


def test_boundary_points_are_where_they_should_be(bent, study):
    points = study.test_points()
    normal, distances = bent.axes()[0], -(study.test.images.flatten(1) - 0.5) @ bent.axes()[0]
    assert len(points) == 10
    torch.testing.assert_close(points.normals.flatten(1), normal.expand(10, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        points.perturbations.flatten(1) @ normal, distances, rtol=0, atol=1e-6
    )
    assert points.angles.max() < 0.01
    assert len(study.test_points(3)) == len(study.train_points(3)) == 3


@pytest.mark.parametrize("negative", [False, True])
def test_s_c_is_made_of_signed_eigenvectors_of_the_projected_hessian(bent, study, negative):
    basis = study.curved(2, negative=negative).double()
    expected = bent.axes()[3:5] if negative else bent.axes()[1:3]
    assert principal_angles(basis, expected).angles.max() < 1e-3
    values = study.ends().values[0]
    torch.testing.assert_close(values[:2], torch.full((2,), 2 * bent.scale, dtype=torch.float64))
    torch.testing.assert_close(
        values[-2:], torch.full((2,), -2.5 * bent.scale, dtype=torch.float64)
    )
    assert values[2:-2].abs().max() < 1e-6  # neither the square of t nor its product with s_5


def test_seen_from_the_other_side_the_signs_turn(bent, executor):
    """The same boundary for images of the region outside the ball, and inside."""
    data = bent.dataset(draw=bent.around)
    for radius, sign in ((3.0, 1), (0.5, -1)):  # images inside, and outside
        settings = Everything(**SMALL)
        one = curvature_studies(bent.network(bent.ball(radius)), data, settings, executor)[0]
        values = one.at_random(one.test_points(), 3)
        torch.testing.assert_close(
            values, torch.full_like(values, sign / radius), rtol=1e-4, atol=0
        )
        ends = one.extremes(one.test_points()).values
        torch.testing.assert_close(ends, torch.full_like(ends, sign / radius), rtol=1e-4, atol=0)


def test_curvatures_along_directions_with_and_without_the_gradients_norm(bent, study):
    points, rows = study.test_points(), bent.axes().view(-1, *bent.shape)
    slopes = bent.slopes(held_out(bent.dataset(), 10))
    along = study.along(points, rows[1:5])
    torch.testing.assert_close(
        along, torch.tensor(bent.curved).double() / slopes[:, None], rtol=1e-4, atol=1e-6
    )
    raw = study.along(points, rows[1:5], normalised=False)
    torch.testing.assert_close(
        raw, bent.scale * torch.tensor(bent.curved).double().expand(10, -1), rtol=1e-4, atol=0
    )
    tilted = study.along(
        points, (rows[0] + rows[1])[None] * 7
    )  # only the tangent part counts, and its direction
    torch.testing.assert_close(tilted[:, 0], along[:, 0], rtol=1e-3, atol=0)
    inside = study.inside(points, bent.axes()[3:5], 4, normalised=False)
    torch.testing.assert_close(
        inside, torch.full_like(inside, -2.5 * bent.scale), rtol=1e-4, atol=0
    )


def test_directions_inside_a_subspace_are_drawn_for_each_image(bent, study):
    values = study.inside(study.test_points(), bent.axes()[[1, 3]], 200, normalised=False)
    torch.testing.assert_close(
        values.mean(), torch.tensor(-0.25 * bent.scale).double(), rtol=0, atol=0.15 * bent.scale
    )
    assert len(values.flatten().unique()) > 1900


def test_s_f_of_one_normal_has_one_dimension(bent, study):
    basis = study.normal_basis(5)
    assert basis.shape[1] == bent.d
    assert abs(float(basis[0].double() @ bent.axes()[0])) == pytest.approx(1, abs=1e-4)
    r = study.train_points().perturbations.flatten(1)
    assert torch.linalg.svdvals(r)[1] < 0.02 * torch.linalg.svdvals(r)[0]


def test_u_i_go_by_size_and_so_take_the_negative_directions(bent, study):
    assert principal_angles(study.shared(2).double(), bent.axes()[3:5]).angles.max() < 1e-2


def test_values_take_the_place_of_their_image(bent, executor):
    model = bent.affine(bent.axes()[:1], edge=0.6)
    data = bent.dataset(draw=bent.around, train=20, test=20)
    study = curvature_studies(bent.network(model), data, Everything(**SMALL), executor)[0]
    success = study.near_test.success
    assert torch.equal(success, study.test.images[:, 0, 0, 0] <= 0.6)
    assert 1 < int(success.sum()) < 10
    placed = study.placed(torch.arange(1.0, 3.0))
    assert placed[success][:2].tolist() == [1, 2]
    assert bool(placed[~success].isnan().all())
    assert int((~placed.isnan()).sum()) == 2


def test_images_that_nothing_fools_are_refused(bent, executor):
    study = curvature_studies(
        bent.network(bent.ball(1e6)), bent.dataset(), Everything(**SMALL), executor
    )[0]
    with pytest.raises(
        InputError, match=r"samples must be .*; got '?10 images without a boundary point"
    ):
        study.test_points()


def test_without_training_images_half_of_the_others_make_the_subspaces(bent, executor):
    data = bent.dataset(train=0, test=10)
    study = curvature_studies(bent.network(bent.model()), data, Everything(**SMALL), executor)[0]
    universal = universal_of(study, data, 10_000)
    assert len(study.train) == len(study.test) == len(unseen_split(data, 9)) == 5
    assert torch.equal(universal.test.images, study.test.images)
    together = torch.cat([study.train.images, study.test.images]).flatten(1)
    assert len(together.unique(dim=0)) == 10


@pytest.mark.parametrize("radius", [3.0, 0.5])
def test_the_norm_that_noise_needs_is_measured(bent, executor, radius):
    """Before a plane 1 / |v_1| times its distance; a line from outside often misses a ball."""
    data = bent.dataset(40, 8, draw=bent.around)
    plane = bent.network(bent.affine(bent.axes()[:1]))
    (flat,) = curvature_studies(plane, data, Everything(**SMALL), executor)
    images = data.train.images
    needed = noise_needed(flat.model, images, executor)
    distances = ((images.flatten(1) - 0.5) @ bent.axes()[0]).abs()
    # |v_1| of a random direction: its square is Beta(1/2, 15/2) distributed.
    shares = torch.distributions.Beta(0.5, 7.5).sample((4000, 40)).sqrt()
    expected = float((distances / shares).flatten().median())
    assert float(needed.median()) == pytest.approx(expected, rel=0.35)
    middle = float(needed[:8].sort().values[3])
    assert noise_radius(needed[:8], 0.2, 16) == pytest.approx(min(0.2 * middle, 4))
    assert noise_radius(torch.full((8,), math.inf), 0.2, 16) == 4
    ball = bent.ball(radius)
    through = noise_needed(ball, images, executor)
    away = images.flatten(1).sub(0.5).norm(dim=1).double()
    assert bool((through >= (away - radius).abs() - 1e-3).all())
    if radius == 3.0:  # seen from inside, some side is nearer than its tangent
        assert bool((through <= (radius**2 - away**2).sqrt() + 1e-2).all())
    else:
        assert bool(through.isinf().any())


def test_the_norm_of_the_training_images_counts(bent, study, executor):
    needed = noise_needed(study.model, study.train.images, executor)
    assert noise_norm(study, 0.2) == noise_radius(needed, 0.2, bent.d)
    assert noise_norm(study, 1.0) == 4 or noise_norm(study, 1.0) == float(needed.sort().values[3])


def test_crossings_stand_where_deepfool_leads_and_no_nearer_than_the_closest(bent, executor):
    """The line from the image along DeepFool's r crosses; in a ball both points are the same."""
    data = bent.dataset(12, 10, draw=bent.around)
    for model in (bent.model(), bent.ball(3.0)):
        (study,) = curvature_studies(
            bent.network(model), data, Everything(**SMALL), executor, point="crossing"
        )
        both = study.both
        assert [one.point for one in both.values()] == ["crossing", "closest"]
        assert list(both) == ["", " (closest)"]
        assert study.at("crossing") is study
        near, far = both[" (closest)"].near_test, study.near_test
        kept = near.success & far.success
        lengths = [each.perturbations.flatten(1).norm(dim=1)[kept] for each in (near, far)]
        assert int(kept.sum()) > 2
        assert bool((lengths[0] <= lengths[1] * 1.001).all())
        assert bool((near.angles <= far.angles + 0.02)[kept].all())
        found = measured_at([study])
        cosines = far.angles.double().cos()[far.success]
        assert found["alignment_crossing"].value == pytest.approx(float(cosines.mean()))
        assert found["alignment_closest"].value >= found["alignment_crossing"].value - 1e-6
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-3, atol=0)
    with pytest.raises(InputError, match=r"point must be .*; got 'nearest'"):
        study.at("nearest")


@pytest.mark.parametrize("radius", [3.0, 4.5])
def test_curvature_and_its_scale_on_a_ball(bent, executor, radius):
    """kappa = 1 / R whatever h, and the boundary turns by 2 atan(h / R) over 2 h."""
    data = bent.dataset(8, 6, draw=bent.around)
    (study,) = curvature_studies(
        bent.network(bent.ball(radius)), data, Everything(**SMALL), executor
    )
    for h in (0.1, 1.0):
        values = study.at_random(study.test_points(), 3, h=h)
        found = curvature_columns(values, h)
        assert found["kappa h"] == pytest.approx(h / radius, rel=1e-3)
        assert found["kink"] == pytest.approx(2 * math.degrees(math.atan(h / radius)), rel=1e-3)
        assert found["share_positive"] == 1


@pytest.mark.parametrize("dimension", [200, 320])
def test_a_hessian_without_structure(dimension):
    """Drawn symmetric Gaussian matrices have the shares and ratios of the closed forms."""
    generator = torch.Generator().manual_seed(dimension)
    drawn = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    values = torch.linalg.eigvalsh((drawn + drawn.T) / 2)
    v = torch.randn(400, dimension, generator=generator, dtype=torch.float64)
    v = v / v.norm(dim=1, keepdim=True)
    along = ((v @ drawn) * v).sum(dim=1).abs().median()
    assert float(flat_share(values)) == pytest.approx(structureless_flat(0.05), abs=0.03)
    ratio = float(values.abs().max() / along)
    assert ratio == pytest.approx(structureless_top(dimension), rel=0.15)


@pytest.mark.parametrize("m", [1, 4, 16])
def test_vectors_without_a_subspace(bent, m):
    """Orthogonal to it, at the same norm, unchanged where they were; nothing is left of its own."""
    basis = bent.axes()[:m].float()
    drawn = torch.randn(6, *bent.shape, generator=torch.Generator().manual_seed(m))
    left = without(drawn, basis)
    if m == bent.d:
        assert not bool(left.any())
        return
    torch.testing.assert_close(left.flatten(1).norm(dim=1), drawn.flatten(1).norm(dim=1))
    assert float((left.flatten(1) @ basis.T).abs().max()) < 1e-5
    torch.testing.assert_close(without(left, basis), left, rtol=1e-4, atol=1e-5)
    own = (basis[:1] * 2).view(1, *bent.shape)
    assert not bool(without(own, basis).any())
    inside = share_inside(torch.cat([own, left[:1], own + 2 * left[:1] / left[:1].norm()]), basis)
    expected = torch.tensor([1.0, 0.0, 0.5**0.5], dtype=torch.float64)
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-5)


def test_too_few_products_are_refused_before_they_are_made(bent, executor):
    settings = Everything(**{**SMALL, "products": 7})
    study = curvature_studies(bent.network(bent.model()), bent.dataset(), settings, executor)[0]
    check_products(7, 3, study.d)
    assert study.curved(3).shape == (3, bent.d)
    with pytest.raises(
        InputError, match=r"products must be at least twice the dimension 4.*; got 7"
    ):
        study.curved(4)
    whole = curvature_studies(
        bent.network(bent.model()), bent.dataset(), Everything(**SMALL), executor
    )[0]
    assert whole.curved(12).shape == (12, bent.d)  # of all d products nothing is left out
    with pytest.raises(InputError, match="products must be"):
        whole.curved(17)


def test_the_sweep_is_over_multiples_of_h(bent, study):
    assert study.h == pytest.approx(0.0195 * 4)
    assert study.h_factors == {
        factor: pytest.approx(factor * 0.078) for factor in (0.1, 0.3, 1.0, 3.0)
    }
    assert study.ends_at(3.0).values[0, 0] == pytest.approx(2 * bent.scale, rel=1e-4)


def test_subspaces_at_other_h_are_made_of_few_images_and_products(bent, study):
    curved = study.curved_at(3.0, 2)
    assert list(curved) == ["sc", "negative"]
    assert principal_angles(curved["sc"].double(), bent.axes()[1:3]).angles.max() < 1e-3
    assert principal_angles(curved["negative"].double(), bent.axes()[3:5]).angles.max() < 1e-3
    assert len(study.curved_at(3.0, 12)["sc"]) == bent.d // 2
    basis, leading = study.shared_at(3 * study.h, 1)
    assert (basis.shape, leading.shape) == ((1, bent.d), (8, 2))
    assert bool((leading < 0).all())


def test_a_study_has_the_images_that_its_settings_name(bent, executor):
    network, data = bent.network(bent.model(), bent.model()), bent.dataset()
    scope = executor.scope("somewhere")
    none = curvature_studies(network, data, CurvatureSettings(), scope)
    assert [(study.seed, len(study.train), len(study.test)) for study in none] == [
        (0, 0, 0),
        (1, 0, 0),
    ]
    assert none[1].d == bent.d
    assert (none[1].executor._experiment, none[1].executor._seed) == ("somewhere", 1)
    (unseen, _) = curvature_studies(network, data, Curvatures(samples=3), scope)
    assert (len(unseen.train), len(unseen.test)) == (0, 3)
    held = held_out(data, 3)
    assert torch.equal(unseen.test.images, held.images)
    assert torch.equal(unseen.test.labels, held.labels)


def test_random_vectors_of_a_subspace(bent):
    like = torch.zeros(1, *bent.shape, dtype=torch.float64)
    basis = bent.axes()[1:4]
    vectors = within(basis, like, 500, 0.3, "test").flatten(1).double()
    torch.testing.assert_close(
        vectors.norm(dim=1), torch.full((500,), 0.3).double(), rtol=1e-5, atol=0
    )
    parts = vectors @ basis.T
    torch.testing.assert_close(parts @ basis, vectors, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        parts.square().mean(dim=0), torch.full((3,), 0.03).double(), rtol=0.15, atol=0
    )
    assert parts.mean(dim=0).abs().max() < 0.03
    assert not torch.equal(within(basis, like, 5, 0.3, "other").flatten(1).double(), vectors[:5])


def test_small_helpers():
    assert [dimension_of(200, d) for d in (3072, 784, 150_528, 3)] == [200, 51, 200, 1]
    values = torch.tensor([[1.0, 2.0, math.nan], [3.0, 6.0, math.nan]], dtype=torch.float64)
    found = spread_margin("a").reduce(values)
    assert float(found) == pytest.approx(3 - torch.tensor([1.0, 2, 3, 6]).std())
    assert torch.equal(spread_margin("a").reduce(values.expand(4, 2, 3)), found.expand(4))
    shares = sign_shares(torch.tensor([[1.0, -1.0], [3.0, 2.0]]))
    assert shares == {
        "mean_curvature": 1.25,
        "share_positive": 0.75,
        "share_negative": 0.25,
        "points": 2,
    }
    assert list(named({"a": exactly(1.0)}, Curvatures(output="softmax"))) == ["a (softmax)"]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"h": 0.0}, "h must be .*; got 0"),
        ({"h": -1.0}, "h must be .*; got -1"),
        ({"output": "probabilities"}, "output must be .*; got 'probabilities'"),
        ({"sweep": (1.0, 0.0)}, "sweep must be .*; got 0"),
        ({"train_samples": 1}, "train_samples must be .*; got 1"),
        ({"samples": 1}, "samples must be .*; got 1"),
        ({"sweep_samples": 1}, "sweep_samples must be .*; got 1"),
        ({"products": 1}, "products must be .*; got 1"),
        ({"leading": 0}, "leading must be .*; got 0"),
        ({"resamples": 0}, "resamples must be .*; got 0"),
        ({"universal_samples": 1}, "universal_samples must be .*; got 1"),
        ({"universal_orders": 0}, "universal_orders must be .*; got 0"),
        ({"fool_samples": 0}, "fool_samples must be .*; got 0"),
        ({"vectors": 0}, "vectors must be .*; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=key):
        Everything(**options)
