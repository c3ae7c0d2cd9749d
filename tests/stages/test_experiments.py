"""What of a stage is measured on which network, and what is refused before any work."""

import dataclasses

import pytest
from hydra import compose, initialize_config_dir

from pipeline.executor import Executor
from robustness_geometry.checks import InputError
from robustness_geometry.datasets import mnist5k
from robustness_geometry.models import build, lenet
from robustness_geometry.types import Network, Split
from stages.config import NetworkConfig, read
from stages.experiments import select
from stages.networks import Candidate


def configured(root, *overrides, name):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        return read(compose(name, list(overrides)))


def selected(root, stage, *overrides, name=""):
    own = stage if (root / "conf" / f"{stage}.yaml").exists() else "config"
    return {
        each.name: each for each in select(stage, configured(root, *overrides, name=name or own))
    }


@pytest.fixture(scope="module")
def digits():
    return mnist5k(train_limit=40, test_limit=20)


@pytest.fixture(scope="module")
def unlabelled(digits):
    """The same test images, and nothing to train on."""
    return dataclasses.replace(
        digits, train=Split(digits.train.images[:0], digits.train.labels[:0])
    )


def candidate(data, name="own"):
    return Candidate(name, NetworkConfig({}, {}, {}), data, lenet, None)


SPARED = [("cure", "cure_cifar10"), ("curvature", "sc_fooling"), ("universal", "uap_defence")]


@pytest.mark.parametrize(("stage", "experiment"), SPARED)
def test_a_suite_spares_its_own_networks_alone(root, stage, experiment):
    suite = selected(root, stage, "network=mnist5k_nin", name="base")[experiment]
    assert "mnist5k_nin" not in suite.settings.networks
    described = selected(root, stage, "model=nin", "dataset=mnist5k")[experiment]
    assert described.settings.networks is None


@pytest.mark.parametrize(
    ("stage", "override", "key"),
    [
        ("cure", "cure.networks=[lenet]", "cure.networks"),
        ("curvature", "settings.sc_fooling.networks=[lenet]", "settings.sc_fooling.networks"),
    ],
)
def test_a_spared_network_has_to_be_one_of_the_suite(root, stage, override, key):
    with pytest.raises(InputError, match=rf"{key} must be one of .*mnist5k_lenet.*; got 'lenet'"):
        selected(root, stage, override, name="base")


WRONG = [
    ("semirandom", "settings.noise_regimes_example.m=784", ("noise_regimes_example.m", "got 784")),
    ("semirandom", "settings.beta_semirandom.ratios=[4,600]", ("beta_semirandom.ratios", "got 600")),
    ("attack", "settings.dct_bands.block=14", ("settings.dct_bands.block", "got 14")),
    ("curvature", "curvature.products=20", ("curvature.products", "got 20")),
]


@pytest.mark.parametrize(("stage", "override", "said"), WRONG)
def test_what_the_images_rule_out_is_refused_before_any_training(
    root, digits, stage, override, said
):
    experiments = list(selected(root, stage, override).values())
    with pytest.raises(InputError, match=" must be .*; ".join(said)):
        candidate(digits).probe(experiments, described=True)


def test_a_stage_that_only_trains_is_refused_without_training_images(root, unlabelled):
    experiments = list(selected(root, "finetune").values())
    with pytest.raises(InputError, match="without training images"):
        candidate(unlabelled).probe(experiments, described=True)
    candidate(unlabelled).probe(experiments)  # of a suite, this network is left out


def test_an_experiment_that_trains_is_left_out_unless_asked_for(root, unlabelled, tmp_path):
    experiments = selected(root, "universal")
    candidate(unlabelled).probe(list(experiments.values()), described=True)
    network = Network("own", unlabelled.name, {0: build(lenet, unlabelled, 0)})
    found = experiments["uap_defence"].measure(
        {"own": network}, {"own": unlabelled}, Executor(work=tmp_path, progress=False)
    )
    assert not found.numbers
    assert found.notes == [f"Not measured on own: {unlabelled.name} has no training images."]
    asked = selected(root, "universal", "experiments=[uap_defence]")
    with pytest.raises(InputError, match="without training images"):
        candidate(unlabelled).probe(list(asked.values()), described=True)
