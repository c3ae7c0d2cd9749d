"""The schema refuses what it does not know, naming key, value and what is allowed."""

import math

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from robustness_geometry.checks import InputError
from stages.config import check_network, read, ready
from stages.experiments import ACROSS, STAGES, experiments_of, select

BUILT = [stage for stage in (*STAGES, *ACROSS) if experiments_of(stage)]


def composed(root, *overrides, name="base"):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


def direct(root, stage, *overrides):
    """What `python -m stages.<stage>` composes."""
    own = (root / "conf" / f"{stage}.yaml").exists()
    return read(composed(root, *overrides, name=stage if own else "config"))


@pytest.mark.parametrize("suite", ["embedded", "smoke"])
def test_every_suite_is_accepted(root, suite):
    config = read(composed(root, f"suite={suite}"))
    assert config.suite.name == suite
    for name, network in config.networks.items():
        check_network(network, f"networks.{name}.")
    for stage in BUILT:
        assert select(stage, config)


@pytest.mark.parametrize("stage", BUILT)
def test_every_stage_runs_directly(root, stage):
    assert select(stage, direct(root, stage))


@pytest.mark.parametrize("stage", [*STAGES[1:], *ACROSS])
def test_a_direct_run_works_with_the_attack_of_the_command_line(root, stage):
    chosen = {
        "universal": "universal_perturbation",
        "universal_transfer": "universal_perturbation",
        "cure": "pgd",
    }
    config = direct(root, stage, "attack.norm=inf")
    block = getattr(config, stage)
    attack = block if stage == "attack" else block.get("attack") or block["boundary_attack"]
    assert attack["_target_"] == "robustness_geometry.attacks." + chosen.get(stage, "deepfool")
    assert attack["norm"] == math.inf
    other = getattr(direct(root, stage, "attack=ddn"), stage)
    assert "robustness_geometry.attacks.ddn" in str(other)


def test_a_change_of_the_attack_under_study_touches_no_other_stage(root):
    before, after = (composed(root, *change) for change in ((), ("attack.steps=51",)))
    assert [key for key in before if before[key] != after[key]] == ["attack"]


def test_a_stage_across_networks_follows_its_own(root):
    config = read(
        composed(
            root, "universal.attack.norm=inf", "++universal.samples=7", "++curvature.samples=8"
        )
    )
    assert config.universal_transfer["attack"]["norm"] == math.inf
    assert (config.universal_transfer["samples"], config.curvature_transfer["samples"]) == (7, 8)


def test_a_radius_of_null_is_left_to_the_experiment():
    leaf = {
        "_target_": "robustness_geometry.attacks.universal_perturbation",
        "norm": 2,
        "radius": None,
    }
    assert "radius" not in ready(leaf, "attack").keywords
    assert ready({**leaf, "radius": 3}, "attack").keywords["radius"] == 3
    with pytest.raises(InputError, match=r"attack.eps"):
        ready({"_target_": "robustness_geometry.attacks.fgsm", "eps": None}, "attack")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+sedes=[0]", ["sedes is no key", "did you mean seeds?"]),
        ("seeds=[]", ["seeds"]),
        ("seeds=[0,0]", ["seeds"]),
        ("seeds=three", ["seeds", "three"]),
        ("network=lenet5000", ["network", "lenet5000", "mnist5k_lenet"]),
        ("network=[mnist5k_lenet,lenet5000]", ["network", "lenet5000", "mnist5k_lenet"]),
        ("network=3", ["network", "3", "mnist5k_lenet"]),
        ("executor.threads=two", ["executor.threads", "two"]),
        ("+executor.thread=2", ["executor.thread is no key", "did you mean executor.threads?"]),
        ("tracking.enabled=perhaps", ["tracking.enabled", "perhaps"]),
        ("+tracking.url=x", ["tracking.url is no key", "did you mean tracking.uri?"]),
        ("suite.counterparts.LeNet=other", ["suite.counterparts.LeNet", "other"]),
    ],
)
def test_a_bad_key_or_value_is_named(root, override, words):
    with pytest.raises(InputError) as caught:
        read(composed(root, override))
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "override", "words"),
    [
        ("attack", "attack.steps=many", ["attack.steps", "many"]),
        ("attack", "+attack.step=3", ["attack.step is no key", "did you mean attack.steps?"]),
        (
            "attack",
            "attack._target_=robustness_geometry.attacks.deepfoul",
            ["attack._target_", "deepfoul"],
        ),
        ("attack", "experiments=[attack_l3]", ["experiments", "attack_l3", "attack_l2"]),
        ("attack", "+settings.attack_l3.samples=3", ["settings.attack_l3", "attack_l2"]),
        ("attack", "+settings.attack_l2.sample=3", ["settings.attack_l2.sample", "samples"]),
        ("attack", "settings.attack_l2.samples=0", ["samples", "0"]),
        ("attack", "settings.attack_l2.samples=few", ["settings.attack_l2.samples", "few"]),
        ("finetune", "finetune.epochs=0", ["epochs", "0"]),
        ("finetune", "+finetune.epoch=3", ["finetune.epoch", "epochs"]),
        ("train", "+train.speed=3", ["train.speed"]),
    ],
)
def test_a_bad_setting_of_a_stage_is_named(root, stage, override, words):
    config = read(composed(root, override))
    with pytest.raises(InputError) as caught:
        select(stage, config)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("networks.mnist5k_lenet.training.optimiser=lion", ["optimiser", "lion"]),
        ("networks.mnist5k_lenet.training.epochs=0", ["epochs", "0"]),
        (
            "+networks.mnist5k_lenet.training.rate=1",
            ["networks.mnist5k_lenet.training.rate", "is no key"],
        ),
        (
            "+networks.mnist5k_lenet.model.width=3",
            ["networks.mnist5k_lenet.model.width", "is no key"],
        ),
        (
            "+networks.mnist5k_lenet.dataset.rot=3",
            ["networks.mnist5k_lenet.dataset.rot", "is no key"],
        ),
    ],
)
def test_a_bad_network_is_named(root, override, words):
    with pytest.raises(InputError) as caught:
        read(composed(root, override))
    assert all(word in str(caught.value) for word in words)


def test_a_leaf_becomes_the_function_with_its_options():
    attack = ready(
        {"_target_": "robustness_geometry.attacks.deepfool", "steps": 7, "clip": [0.0, 1.0]},
        "attack",
    )
    assert attack.func.__name__ == "deepfool"
    assert attack.keywords == {"steps": 7, "clip": (0.0, 1.0)}


def test_params_yaml_is_a_whole_configuration(root):
    config = read(OmegaConf.load(root / "params.yaml"))
    assert config.suite.name == "embedded"


def test_every_preset_names_experiments_of_the_stage_that_it_says(root):
    stages = (*STAGES, *ACROSS)
    run_by = {name: stage for stage in stages for name in experiments_of(stage)}
    for path in (root / "conf" / "experiment").glob("*.yaml"):
        text = path.read_text()
        (stage,) = {run_by[name] for name in yaml.safe_load(text)["experiments"]}
        assert f"python -m stages.{stage} experiment={path.stem}\n" in text


def test_every_model_is_composed_with_the_recipe_of_its_name(root):
    for model in (root / "conf" / "model").glob("*.yaml"):
        config = composed(root, f"model={model.stem}", name="config")
        recipe = root / "conf" / "training" / model.name
        own = yaml.safe_load(recipe.read_text()) if recipe.exists() else {}
        own.pop("defaults", None)
        assert own.items() <= dict(config.get("training") or {}).items()
