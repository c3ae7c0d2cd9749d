"""The examples in the docstrings of the library run and print what they show."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import robustness_geometry

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(robustness_geometry.__path__, "robustness_geometry.")
)

WITH_EXAMPLES = {
    "robustness_geometry.attacks.deepfool": {"deepfool"},
    "robustness_geometry.attacks.fooling": {"fooled"},
    "robustness_geometry.attacks.universal": {"universal_perturbation"},
    "robustness_geometry.detection": {"curvature_score", "threshold_at"},
    "robustness_geometry.norms": {"norms", "project"},
    "robustness_geometry.training.cure": {"Cure", "cure_penalty"},
}
"""Some of the functions whose examples must be found, so that the search cannot fail in silence."""


def examples(name):
    """The examples of a module, by the name of what they explain."""
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), name)
    return {test.name.removeprefix(f"{name}."): test for test in found if test.examples}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_every_module_run(name):
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    state = torch.get_rng_state()  # examples seed the global generator
    try:
        for test in examples(name).values():
            runner.run(test, out=report.append)
    finally:
        torch.set_rng_state(state)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize(("name", "explained"), WITH_EXAMPLES.items())
def test_examples_are_found(name, explained):
    assert explained <= set(examples(name))


def test_all_modules_are_looked_at():
    assert set(WITH_EXAMPLES) <= set(MODULES)
    assert len(MODULES) > 60
