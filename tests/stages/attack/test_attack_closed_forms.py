import pytest

from robustness_geometry.checks import InputError
from stages.attack.attack_closed_forms import Settings, attack_closed_forms

SMALL = Settings(classifiers=3, points=10, dimension=12, classes=4, subspace_dimension=3)


def test_deepfool_is_exact_on_affine_classifiers(executor, looked_at):
    found = attack_closed_forms(None, None, SMALL, executor)
    for name in (
        "binary_error",
        "multiclass_error",
        "lp_error",
        "subspace_error",
        "subspace_residual",
    ):
        assert found.numbers[name].value < 1e-10
        assert found.numbers[name].high == found.numbers[name].value
    assert found.numbers["binary_steps"].value == found.numbers["multiclass_steps"].value == 1
    assert found.numbers["lp_flips"].value == found.numbers["lp_flips"].low == 1
    assert found.numbers["binary_error"].n == 30
    assert found.numbers["lp_error"].n == 30 * 6
    assert found.tables["lp"]["share_flipped"].tolist() == [1.0] * 6
    assert looked_at(found) == ["closed_forms"]


def test_a_wrong_deepfool_is_noticed(executor, monkeypatch):
    from robustness_geometry.attacks import deepfool

    def half_as_long(model, points, **options):
        result = deepfool(model, points, **options)
        result.perturbations.mul_(0.5)
        return result

    monkeypatch.setattr("stages.attack.attack_closed_forms.deepfool", half_as_long)
    found = attack_closed_forms(None, None, SMALL, executor)
    assert found.numbers["binary_error"].value == pytest.approx(0.5)
    assert found.numbers["lp_error"].value == pytest.approx(0.5)
    assert found.numbers["lp_flips"].value == 0


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"classifiers": 0}, "classifiers must be .*got 0"),
        ({"classes": 1}, "classes must be .*got 1"),
        ({"subspace_dimension": 100}, "subspace_dimension must be at most dimension = 48; got 100"),
        ({"exponents": (0.5,)}, "exponents must be .*got 0.5"),
        ({"exponents": ()}, "exponents must be at least one exponent p"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=key):
        Settings(**options)
