"""Curvatures along S_c, universal perturbations and all directions, of known boundaries."""

from functools import partial

import pytest
import torch

from pipeline.evaluation import held_out
from robustness_geometry.checks import InputError
from stages.curvature import principal_curvatures as all_of_them
from stages.curvature import sc_average_curvature as average
from stages.curvature import uap_sections as sections

CURVED = {"samples": 8, "sweep": (3.0,), "sweep_samples": 3, "resamples": 30}
MEAN = {**CURVED, "train_samples": 6, "products": 16}
FOOLING = {"universal_samples": 6, "universal_orders": 1, "fool_samples": 8}


@pytest.fixture(scope="module")
def data(bent):
    return bent.dataset(6, 8)


@pytest.fixture(scope="module")
def slopes(bent, data):
    return bent.slopes(held_out(data, 8))


@pytest.fixture(scope="module")
def averaged(bent, data, executor):
    settings = average.Settings(**MEAN, dimensions=(1, 2, 4), small=2, directions=60)
    return average.sc_average_curvature(bent.network(bent.model()), data, settings, executor)


def test_equation_6_4_along_s_c_and_its_control(bent, averaged, looked_at):
    """E v'Hv over random unit v is the subspace's mean eigenvalue, not divided by the gradient."""
    numbers = averaged.numbers
    for m in (1, 2):
        assert numbers[f"kappa_S_{m}"].value == pytest.approx(2 * bent.scale, rel=1e-4)
        assert numbers[f"kappa_negative_{m}"].value == pytest.approx(-2.5 * bent.scale, rel=1e-4)
        assert numbers[f"share_positive_sc_{m}"].value == 1
        assert numbers[f"share_positive_negative_{m}"].value == 0
    assert numbers["kappa_S_4"].value == pytest.approx(bent.scale, rel=0.1)
    assert numbers["kappa_negative_4"].value == pytest.approx(-1.25 * bent.scale, rel=0.1)
    assert numbers["kappa_random"].value == pytest.approx(-bent.scale / 15, abs=0.25)
    assert numbers["kappa_S"].value == numbers["kappa_S_2"].value
    assert numbers["kappa_S - std"].value == pytest.approx(numbers["kappa_S"].value, rel=1e-4)
    assert numbers["spearman_sc"].value <= -0.5
    assert numbers["spearman_negative"].value >= 0.49
    for name in ("kappa_S", "kappa_negative_2", "kappa_random", "share_positive_sc_2"):
        assert numbers[f"{name} (closest)"].value == pytest.approx(numbers[name].value, rel=0.05)
    assert numbers["alignment_closest"].value == pytest.approx(1, abs=1e-3)
    assert 0.9 < numbers["alignment_crossing"].value < numbers["alignment_closest"].value
    assert numbers["kappa_S"].n == 8
    table = averaged.tables["figure_6_9a"]
    assert table["point"].value_counts().to_dict() == {"crossing": 10, "closest": 7}
    assert table.groupby("point")["cos(r, n)"].nunique().tolist() == [1, 1]
    assert looked_at(averaged) == ["figure_6_9a"]


def crossed(bent, data, executor) -> torch.Tensor:
    """||grad f|| / scale of Bent where DeepFool's r cross its boundary, (n,)."""
    settings = average.Settings(**MEAN, dimensions=(1, 2), small=2)
    (study,) = average.curvature_studies(
        bent.network(bent.model()), data, settings, executor, point="crossing"
    )
    return study.near_test.gradient_norms.double() / bent.scale


def test_the_sweep_divides_by_the_gradients_norm(bent, data, executor, averaged):
    sweep, slopes = averaged.tables["sweep"], crossed(bent, data, executor)
    assert sweep["direction"].tolist() == ["sc", "negative", "random"]
    expected = float((1 / slopes[:3]).mean())
    assert sweep["mean_curvature"][0] == pytest.approx(2 * expected, rel=1e-3)
    assert sweep["mean_curvature"][1] == pytest.approx(-2.5 * expected, rel=1e-3)
    assert sweep["share_positive"].tolist()[:2] == [1, 0]
    assert sweep["points"].unique().tolist() == [3]
    torch.testing.assert_close(
        torch.tensor(sweep["kappa h"].tolist()),
        torch.tensor((sweep["mean_curvature"] * sweep["h"]).tolist()),
    )


def test_sections_along_the_universal_perturbation(bent, data, slopes, executor, looked_at):
    for axis, kappa in ((1, 2.0), (3, -2.5)):
        settings = sections.Settings(
            **MEAN,
            **FOOLING,
            universal=partial(bent.maker, norm=2.0, radius=0.5, axis=axis),
            directions=40,
            profile_samples=3,
            pictures=2,
            grid=12,
        )
        found = sections.uap_sections(bent.network(bent.model()), data, settings, executor)
        numbers = found.numbers
        middle = float((1 / crossed(bent, data, executor)).quantile(0.5))
        assert numbers["kappa_uap (closest)"].value == pytest.approx(
            kappa * float((1 / slopes).quantile(0.5)), rel=1e-3
        )
        size = numbers["|kappa_uap| / |kappa_random|"].value
        assert size == pytest.approx(abs(kappa) * middle / numbers["kappa_random"].value, rel=1e-3)
        assert numbers["kappa_uap"].value == pytest.approx(kappa * middle, rel=1e-3)
        assert numbers["kappa_sc"].value == pytest.approx(2 * middle, rel=1e-3)
        assert numbers["kappa_negative"].value == pytest.approx(-2.5 * middle, rel=1e-3)
        assert 0 < numbers["kappa_random"].value < 1
        margin = numbers["kappa_uap"].value - 3 * numbers["kappa_random"].value
        assert numbers["kappa_uap - 3 kappa_random"].value == pytest.approx(margin)
        assert numbers["share_positive_uap"].value == (axis == 1)
        assert 0.2 < numbers["share_positive_random"].value < 0.7
        assert numbers["share_flat"].value == pytest.approx(11 / 15)
        assert (numbers["share_flat"].n, numbers["kappa_uap"].n) == (3, 8)
        shown = found.tables["sweep"].set_index("direction")["share_positive"]
        assert shown["universal"] == (axis == 1)
    assert looked_at(found) == ["curvature", "figure_6_7"]


def test_a_perturbation_along_the_only_normal_has_no_section(bent, executor, looked_at):
    """That of a plane: no curvature is found, and none is made up."""
    settings = sections.Settings(
        **MEAN,
        **FOOLING,
        universal=partial(bent.maker, norm=2.0, radius=0.5, axis=0),
        profile_samples=3,
        pictures=1,
        grid=12,
    )
    found = sections.uap_sections(
        bent.network(bent.affine(bent.axes()[:1])), bent.dataset(6, 8), settings, executor
    )
    assert "kappa_uap" not in found.numbers or abs(found.numbers["kappa_uap"].value) < 1e-9
    assert found.numbers["kappa_random"].value < 1e-9
    looked_at(found)


@pytest.fixture(scope="module")
def profiled(bent, data, executor):
    settings = all_of_them.Settings(
        **{**CURVED, "leading": 4}, profile_samples=8, directions=60, draws=400
    )
    return all_of_them.principal_curvatures(bent.network(bent.model()), data, settings, executor)


def test_all_principal_curvatures(bent, slopes, profiled, looked_at):
    numbers, mean = profiled.numbers, float((1 / slopes).mean())
    assert numbers["largest, full profile"].value == pytest.approx(2 * mean, rel=1e-4)
    assert numbers["smallest, full profile"].value == pytest.approx(-2.5 * mean, rel=1e-4)
    assert numbers["largest"].value == pytest.approx(2 * mean, rel=1e-3)
    assert numbers["smallest"].value == pytest.approx(-2.5 * mean, rel=1e-3)
    assert numbers["largest + smallest"].value == pytest.approx(-0.5 * mean, rel=1e-2)
    assert numbers["mean_curvature"].value == pytest.approx(-mean / 15, rel=1e-4)
    assert numbers["mean_curvature_direct"].value == pytest.approx(-mean / 15, abs=0.1)
    assert (
        numbers["share_flat"].value
        == numbers["share_flat, mean over images"].value
        == pytest.approx(11 / 15)
    )
    assert numbers["share_negative_bent"].value == 0.5
    assert numbers["share_flat, no structure"].value == pytest.approx(0.0636, abs=1e-3)
    ratio = numbers["kappa_top / kappa_random"].value
    assert 1 < ratio < 2.5 / 0.1
    shuffled = numbers["kappa_top / kappa_random, shuffled eigenvectors"].value
    assert shuffled == pytest.approx(
        ratio, rel=0.15
    )  # the Hessian of a smooth boundary is a matrix
    none = numbers["kappa_top / kappa_random, no structure"].value
    assert none == pytest.approx(30**0.5 / 0.6745, rel=1e-3)
    assert numbers["mean_curvature_direct (crossing)"].value == pytest.approx(
        numbers["mean_curvature_direct"].value, abs=0.1
    )
    assert numbers["equation 7.4, difference - 3 standard errors"].value < 0
    values = profiled.tensors["principal_curvatures"]
    assert values.shape == (1, 8, 15)
    expected = torch.tensor([2.0, 2.0, *[0.0] * 11, -2.5, -2.5]) / slopes[:, None]
    torch.testing.assert_close(values[0].double(), expected.double(), rtol=1e-4, atol=1e-5)
    assert len(profiled.tables["figure_7_5b"]) == 15
    assert looked_at(profiled) == ["extremes", "figure_7_5b"]


def test_the_sweep_has_signs_at_each_h(profiled):
    sweep = profiled.tables["sweep"]
    assert sweep["h_factor"].tolist() == [3.0]
    assert (sweep["largest"] > 0).all()
    assert (sweep["smallest"] < 0).all()
    assert (sweep["share_positive"] + sweep["share_negative"] == 1).all()
    for basis in ("spread", "pixels"):  # a smooth boundary's spectrum depends on neither
        assert sweep[f"share_flat ({basis})"].tolist() == pytest.approx([11 / 15])
    assert sweep["spectra"].tolist() == [8]


def test_beyond_the_largest_dimension_only_the_ends_are_found(bent, data, slopes, executor):
    settings = all_of_them.Settings(
        **{**CURVED, "leading": 4}, profile_samples=5, full_dimension=15, directions=60
    )
    found = all_of_them.principal_curvatures(bent.network(bent.model()), data, settings, executor)
    assert found.numbers["largest"].value == pytest.approx(
        2 * float((1 / slopes[:5]).mean()), rel=1e-3
    )
    assert found.numbers["mean_curvature"] == found.numbers["mean_curvature_direct"]
    assert found.numbers["largest"].n == 5
    assert "share_flat" not in found.numbers
    assert found.tensors == {}
    assert list(found.figures) == ["extremes"]


def test_rows_of_two_seeds_belong_to_the_same_images(bent, executor):
    """The second network has no boundary for some images; the others stay at their places."""
    data = bent.dataset(10, 12, draw=bent.around)
    network = bent.network(bent.affine(bent.axes()[:1]), bent.affine(bent.axes()[:1], edge=0.6))
    settings = all_of_them.Settings(
        **{**CURVED, "samples": 12}, leading=2, profile_samples=12, directions=2
    )
    lost = held_out(data, 12).images[:, 0, 0, 0] > 0.6
    assert 0 < int(lost.sum()) < 12
    studies = all_of_them.curvature_studies(network, data, settings, executor)
    for study, missing in zip(studies, (lost & False, lost), strict=True):
        full = all_of_them.profile(study, 12)
        rows = all_of_them._quantities(study, settings, full)
        for name in ("direct", "largest", "mean", "excess", "rank 0"):
            assert torch.equal(rows[name].isnan(), missing), name


def test_equation_7_4_has_the_constant_one_over_d():
    """The ellipsoid x^2 + 4 y^2 + z^2 / 4 = 1 at (1, 0, 0): 1.4167; of 1 / (d - 1), 2.125."""
    mean, error = all_of_them.drawn_mean(
        torch.tensor([[4.0, 0.25]], dtype=torch.float64), 100_000, 0
    )
    assert float(error) < 0.01
    assert float(mean) == pytest.approx(4.25 / 3, abs=4 * float(error))


def test_share_of_flat_curvatures():
    values = torch.tensor([[1.0, 0.05, -0.051, 0.0], [-2.0, 0.1, 0.11, 1.0]])
    assert all_of_them.flat_share(values).tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("settings", "options", "key"),
    [
        (average.Settings, {"directions": 0}, "directions must be .*; got 0"),
        (average.Settings, {"dimensions": (10,)}, "dimensions must be"),
        (average.Settings, {"small": 7}, "small must be .*; got 7"),
        (sections.Settings, {"directions": 0}, "directions must be .*; got 0"),
        (sections.Settings, {"profile_samples": 0}, "profile_samples must be .*; got 0"),
        (sections.Settings, {"pictures": 0}, "pictures must be .*; got 0"),
        (sections.Settings, {"grid": 1}, "grid must be .*; got 1"),
        (all_of_them.Settings, {"profile_samples": 0}, "profile_samples must be .*; got 0"),
        (all_of_them.Settings, {"full_dimension": 0}, "full_dimension must be .*; got 0"),
        (all_of_them.Settings, {"directions": 1}, "directions must be .*; got 1"),
        (all_of_them.Settings, {"draws": 1}, "draws must be .*; got 1"),
        (all_of_them.Settings, {"basis_samples": 0}, "basis_samples must be .*; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, options, key):
    with pytest.raises(InputError, match=key):
        settings(**options)
