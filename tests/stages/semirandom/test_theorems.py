import pytest

from robustness_geometry.checks import InputError
from robustness_geometry.geometry import RandomSubspaces, theorem1_bounds
from stages.semirandom import theorem1_affine as first
from stages.semirandom import theorem2_corollary1 as second

FIRST = {
    "dimension": 300,
    "dimensions": (1, 3, 50, 250),
    "classifiers": 3,
    "points": 40,
    "resamples": 100,
}
SECOND = {"dimension": 300, "dimensions": (30,), "trials": 150, "grid": 60, "resamples": 100}


def test_affine_classifiers_keep_the_bounds_of_theorem_1(executor, looked_at):
    found = first.theorem1_affine(None, None, first.Settings(**FIRST), executor)
    for m in (1, 3, 50, 250):
        assert found.numbers[f"coverage_{m}"].value >= 0.956
        assert found.numbers[f"lemma2_{m}"].value >= 0.9
        assert found.numbers[f"deepfool_error_{m}"].value < 1e-9
        assert found.numbers[f"coverage_{m}"].n == 120
    assert found.numbers["scaled_ratio_250"].value == pytest.approx(1, abs=0.02)
    assert found.numbers["ratio_3"].value == pytest.approx(
        10 * found.numbers["scaled_ratio_3"].value
    )
    assert found.numbers["smallest zeta_1 for m >= 250"].value == pytest.approx(0.80457, rel=1e-4)
    assert found.numbers["largest zeta_2 for m >= 250"].value == pytest.approx(1.27816, rel=1e-4)
    assert found.numbers["|zeta_2 - 1| at a million"].high < 0.02
    assert found.numbers["width at 1 - width at 250"].value > 1000
    assert found.tables["coverage"]["promised"].unique() == pytest.approx([0.956])
    assert looked_at(found) == ["coverage", "figure_5_2"]


def test_a_wrong_projection_breaks_the_bounds(executor, monkeypatch):
    right = RandomSubspaces.project
    monkeypatch.setattr(RandomSubspaces, "project", lambda self, *given: 0.5 * right(self, *given))
    drawn = first._ratios  # without DeepFool, which would notice itself
    monkeypatch.setattr(first, "_ratios", lambda *given, compared: drawn(*given, compared=False))
    found = first.theorem1_affine(
        None, None, first.Settings(**{**FIRST, "dimensions": (250,)}), executor
    )
    assert found.numbers["coverage_250"].value < theorem1_bounds(300, 250, 0.002, 10).probability


def test_spheres_keep_the_bounds_of_theorem_2_and_the_lemmas_hold(executor, looked_at):
    found = second.theorem2_corollary1(None, None, second.Settings(**SECOND), executor)
    for side in ("inside", "outside"):
        for bend in ("0.25", "1"):
            assert found.numbers[f"coverage_30_{side}_{bend}"].low >= 0.8
    assert found.numbers["corollary_30"].low >= 0.904
    assert found.numbers["lemma4_lower_slack"].value >= -1e-9
    assert found.numbers["lemma4_upper_slack"].value >= -1e-9
    assert found.numbers["lemma7_slack"].value >= -1e-12
    assert found.numbers["lemma8_slack"].value >= -1e-12
    assert found.numbers["curvature_error"].value < 0.01
    assert len(found.tables["bounds"]) == 5
    assert looked_at(found) == ["lemma_4", "theorem_2"]


@pytest.mark.parametrize(
    ("settings", "options", "key"),
    [
        (first.Settings, {"dimensions": (2000,)}, "dimensions must be .*"),
        (first.Settings, {"dimensions": ()}, "dimensions must be .*"),
        (first.Settings, {"delta": 0.0}, "delta must be .*got 0"),
        (first.Settings, {"classes": 1}, "classes must be .*got 1"),
        (first.Settings, {"points": 0}, "points must be .*got 0"),
        (second.Settings, {"dimensions": (1,)}, "dimensions must be .*"),
        (second.Settings, {"bends": (1.5,)}, "bends must be .*"),
        (second.Settings, {"corollary_delta": 1.0}, "corollary_delta must be .*got 1"),
        (second.Settings, {"classes": 2}, "classes must be .*got 2"),
        (second.Settings, {"trials": 0}, "trials must be .*got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        settings(**options)
