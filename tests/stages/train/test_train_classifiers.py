"""Training through the executor, and the measured test errors."""

from functools import partial

import pytest
import torch

from pipeline.executor import Executor
from pipeline.studies.training import trained
from robustness_geometry.models import build, fc500_150_10
from robustness_geometry.training import Recipe, TrainingDiverged, train
from robustness_geometry.training.loop import error
from robustness_geometry.types import Dataset, Network, Split
from stages.train.train_classifiers import Settings, train_classifiers

RECIPE = Recipe(epochs=3, batch_size=20, learning_rate=0.05)
FACTORY = partial(fc500_150_10, hidden=(12,))


def pictures(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.6 * torch.rand(count, 1, 6, 6, generator=generator)
    for index, label in enumerate(labels):
        images[index, 0, 2 * label : 2 * label + 2] += 0.2
    return Split(images, labels)


@pytest.fixture(scope="module")
def data():
    return Dataset("rows", pictures(60, 0), pictures(45, 1), ("0", "1", "2"), (0.3,), (0.2,))


@pytest.fixture
def executor(tmp_path):
    return Executor(threads=1, progress=False, work=tmp_path)


def test_trained_is_the_plain_training_of_the_built_model(data, executor):
    model, history = trained(FACTORY, data, RECIPE, 3, executor)
    plain = train(build(FACTORY, data, 3), data.train, RECIPE, seed=3, test=data.test)
    assert history == plain.history
    for name, tensor in plain.state_dict.items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert not any(layer.training for layer in model.modules())


def test_a_second_call_takes_up_the_first_and_another_seed_does_not(data, executor, monkeypatch):
    first, _ = trained(FACTORY, data, RECIPE, 0, executor)
    other, _ = trained(FACTORY, data, RECIPE, 1, executor)
    monkeypatch.setattr("pipeline.studies.training.train", None)
    again, history = trained(FACTORY, data, RECIPE, 0, executor)
    assert torch.equal(first.network[1].weight, again.network[1].weight)
    assert not torch.equal(first.network[1].weight, other.network[1].weight)
    assert len(history["test_error"]) == 3


def test_the_checkpoints_lie_in_the_work_folder(data, executor, tmp_path):
    trained(FACTORY, data, RECIPE, 0, executor)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert torch.load(checkpoint, weights_only=True)["epochs"] == 3


def test_divergence_passes_through(data, executor):
    with pytest.raises(TrainingDiverged, match=r"training diverged in epoch \d, step 1: loss"):
        trained(FACTORY, data, Recipe(epochs=2, learning_rate=1e30), 0, executor)


@pytest.fixture
def found(data, executor):
    models = {seed: trained(FACTORY, data, RECIPE, seed, executor) for seed in (0, 1)}
    network = Network(
        "rows_fc",
        "rows",
        {s: m for s, (m, _) in models.items()},
        {"epochs": 3},
        {s: h for s, (_, h) in models.items()},
    )
    return network, train_classifiers(network, data, Settings(resamples=200), executor)


def test_the_error_is_the_share_of_wrong_labels_over_images_and_seeds(found, data):
    network, findings = found
    errors = [error(model, data.test) for model in network.models.values()]
    assert 0 < sum(errors) < 1
    assert findings.numbers["test_error"].value == pytest.approx(sum(errors) / 2)
    assert findings.numbers["accuracy"].value == pytest.approx(1 - sum(errors) / 2)
    assert (findings.numbers["test_error"].n, findings.numbers["test_error"].seeds) == (45, 2)
    table = findings.tables["table_3_1_test_error"]
    assert table["seed"].tolist() == ["0", "1", "all"]
    assert table["test_error"].tolist() == pytest.approx([*errors, sum(errors) / 2])
    assert (table["low"] <= table["test_error"]).all()


def test_the_curves_are_means_over_the_seeds(found):
    network, findings = found
    first, second = network.history[0], network.history[1]
    wanted = [(a + b) / 2 for a, b in zip(first["train_loss"], second["train_loss"], strict=True)]
    assert findings.curves["train_loss"] == pytest.approx(wanted)
    assert findings.tables["learning_curves"]["epoch"].tolist() == [1, 2, 3]
    assert len(findings.figures["learning_curves"].axes[0].get_lines()) == 2


def test_a_network_with_its_own_weights_has_no_curves(found, data, executor):
    network, _ = found
    bare = Network("given", "rows", {0: network.models[0]})
    findings = train_classifiers(bare, data, Settings(resamples=50), executor)
    assert findings.figures == {}
    assert "came with its weights" in findings.notes[-1]
    assert findings.numbers["test_error"].value == error(network.models[0], data.test)
