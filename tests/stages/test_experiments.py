"""What of a stage is measured on which network, and what is refused before any work."""

import dataclasses
import sys

import pytest
from hydra import compose, initialize_config_dir

import stages.attack
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


SPARED = [("curvature", "sc_diversity"), ("curvature", "sc_fooling"), ("universal", "uap_defence")]


@pytest.mark.parametrize(("stage", "experiment"), SPARED)
def test_a_suite_spares_its_own_networks_alone(root, stage, experiment):
    options = ("suite=digits", "network=mnist5k_nin")
    suite = selected(root, stage, *options, name="base")[experiment]
    assert "mnist5k_nin" not in suite.networks
    assert suite.leaves_out("mnist5k_nin")
    assert not suite.leaves_out("mnist5k_lenet5")
    described = selected(root, stage, "model=nin", "dataset=mnist5k")[experiment]
    assert described.networks is None
    assert not described.leaves_out("mnist5k_nin")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "suite.networks.uap_set_size=[lenet]",
            r"suite.networks.uap_set_size must be one of .*mnist5k_lenet.*; got 'lenet'",
        ),
        (
            "+suite.networks.sc_fool=[mnist5k_lenet]",
            r"suite.networks.sc_fool is no key .*; did you mean suite.networks.sc_fooling\?",
        ),
    ],
)
def test_a_spared_network_has_to_be_one_of_the_suite(root, override, said):
    with pytest.raises(InputError, match=said):
        selected(root, "curvature", override, name="base")


WRONG = [
    ("semirandom", "settings.noise_regimes_example.m=784", ("noise_regimes_example.m", "got 784")),
    (
        "semirandom",
        "settings.beta_semirandom.ratios=[4,600]",
        ("beta_semirandom.ratios", "got 600"),
    ),
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


COMPLETE = """
from dataclasses import dataclass
from pipeline.findings import Findings

SECTION = "Table 3.0"


@dataclass(frozen=True)
class Settings:
    samples: int = 3


def attack_broken(network, data, settings, executor):
    return Findings()
"""
BROKEN = [
    (COMPLETE.replace("SECTION", "SECTIONS"), "lacks SECTION, a text such as 'Table 3.1'$"),
    (COMPLETE.replace("class Settings", "class Options"), "lacks the dataclass Settings$"),
    (COMPLETE.replace("@dataclass(frozen=True)", ""), "lacks the dataclass Settings$"),
    (COMPLETE.replace("attack_broken", "attack"), "lacks the function attack_broken, called like"),
    ("x = 1", "lacks SECTION, .* and the dataclass Settings and the function attack_broken"),
    (COMPLETE + "(", "cannot be imported: SyntaxError: .*line 15"),
    ("import nowhere", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
    ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Adds the file attack_broken.py to the stage attack."""

    def write(text):
        (tmp_path / "attack_broken.py").write_text(text)
        paths = [*stages.attack.__path__, str(tmp_path)]
        monkeypatch.setattr(stages.attack, "__path__", paths)

    yield write
    sys.modules.pop("stages.attack.attack_broken", None)


@pytest.mark.parametrize(("text", "said"), BROKEN, ids=lambda v: v.strip()[-20:])
def test_a_broken_file_is_named_with_what_it_lacks(root, written, text, said):
    written(text)
    with pytest.raises(InputError, match=rf"^stages/attack/attack_broken.py .*{said}") as caught:
        selected(root, "attack")
    assert "\n" not in str(caught.value)


def test_an_experiment_has_to_return_findings(root, written, tmp_path):
    written(COMPLETE.replace("Findings()", "3"))
    experiment = selected(root, "attack")["attack_broken"]
    network, data = Network("own", "digits", {}), mnist5k(train_limit=4, test_limit=4)
    with pytest.raises(InputError, match=r"attack_broken must return Findings; got 3$"):
        experiment.measure({"own": network}, {"own": data}, Executor(work=tmp_path))
