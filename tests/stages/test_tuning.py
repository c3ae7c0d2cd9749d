"""What a network tunes holds for it alone, and is never overridden in silence."""

import pytest
from hydra import compose, initialize_config_dir

from robustness_geometry.checks import InputError
from stages.config import read
from stages.tuning import tuned


@pytest.fixture
def composed(root):
    def make(name="base", *overrides):
        with initialize_config_dir(str(root / "conf"), version_base="1.3"):
            return read(compose(name, list(overrides)))

    return make


def test_a_network_brings_its_values(composed):
    config = tuned(composed("base", "network=mnist5k_lenet"))
    assert (config.cure["h"], config.cure["unit"], config.cure["eps"]) == (3, "pixel", None)
    assert config.cure["training"]["batch_size"] == 64
    assert config.cure["training"]["epochs"] == 8  # the budget's
    full = tuned(composed("base", "network=mnist5k_lenet", "budget=full"))
    assert full.cure["training"] == {**config.cure["training"], "epochs": 20}
    assert config.settings["advft_attacks"]["eps"] is None


def test_a_direct_run_has_the_thesis_values_and_all_images(composed):
    config = composed("cure", "model=resnet18", "dataset=cifar10")
    assert tuned(config) is config
    assert (config.cure["h"], config.cure["unit"], config.cure["eps"]) == (1.5, "std", "8/255")
    assert config.cure["train_samples"] is None
    recipe = config.cure["training"]
    assert (recipe["optimiser"], recipe["learning_rate"], recipe["epochs"]) == ("adam", 1e-4, 20)
    assert config.budget.name == "full"


def test_a_value_that_the_network_would_override_is_refused(composed):
    config = composed("base", "network=mnist5k_lenet", "cure.h=2")
    with pytest.raises(InputError, match=r"cure\.h .*networks\.mnist5k_lenet\.tuned\.cure\.h"):
        tuned(config)


def test_what_the_network_does_not_tune_can_be_changed(composed):
    config = tuned(composed("base", "network=mnist5k_lenet", "cure.samples=7"))
    assert config.cure["samples"] == 7


@pytest.mark.parametrize("budget", ["full", "hours", "two_cores", "smoke"])
@pytest.mark.parametrize("suite", ["embedded", "digits", "fashion", "thesis"])
def test_every_suite_goes_with_every_budget(composed, suite, budget):
    config = composed("base", f"suite={suite}", f"budget={budget}")
    assert config.budget.name == budget
    for name in config.networks:
        config.network = name
        tuned(config)


def test_an_unknown_block_is_refused(composed):
    config = composed("base", "network=mnist5k_lenet", "+networks.mnist5k_lenet.tuned.cuer.h=1")
    with pytest.raises(InputError, match=r"mnist5k_lenet\.tuned.*cuer"):
        tuned(config)


def test_a_setting_of_one_experiment_stands_above_the_tuned_block(composed):
    plain = tuned(composed("base", "network=mnist5k_lenet"))
    assert "h" not in plain.settings["cure_visual"]  # that of the block, which the network tunes
    own = composed("base", "network=mnist5k_lenet", "settings.cure_visual.h=7")
    assert tuned(own).settings["cure_visual"]["h"] == 7
