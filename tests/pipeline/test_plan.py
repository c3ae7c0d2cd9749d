"""Plans: passes counted on a few images are those of all, and the table adds them up."""

from dataclasses import dataclass
from functools import partial

import pytest

from pipeline import plan
from pipeline.findings import Findings
from pipeline.plan import Speed, short, speeds, stage_rows, text
from robustness_geometry.attacks import fgsm, pgd
from robustness_geometry.training import Recipe, train
from robustness_geometry.types import Network
from stages import counting
from stages.config import NetworkConfig
from stages.counting import Sampling, counted
from stages.experiments import Experiment
from stages.stand_ins import PASSES, made_up_data, stand_in


def network_config(name, **options):
    return NetworkConfig(dataset={"_target_": f"robustness_geometry.datasets.{name}", **options})


@pytest.fixture(scope="module")
def data():
    return made_up_data(network_config("mnist", train_limit=120, test_limit=90))


@pytest.fixture(scope="module")
def model(data):
    return stand_in(data, 0)


@dataclass(frozen=True)
class Settings:
    samples: int = 90


def measured(function, data, model, executor):
    network = Network("net", data.name, {0: model})
    experiment = Experiment("made_up", "", function, Settings())
    return counted(experiment, {"net": network}, {"net": data}, executor)


@pytest.mark.parametrize("samples", [1, 3, 4, 5, 90])
@pytest.mark.parametrize(
    ("attack", "passes"), [(partial(fgsm, eps=0.1), 1), (partial(pgd, eps=0.1, steps=7), 7)]
)
def test_a_few_images_count_as_all_of_them(data, model, tmp_path, samples, attack, passes):
    """PGD takes as many gradients for every image, so that the count is exact."""

    def experiment(network, data, settings, executor):
        found = executor.map(partial(attack, network.model), data.test.images[:samples]).value
        assert found.perturbations.shape == (samples, 1, 28, 28)
        return Findings(notes=["done"])

    found, note = measured(experiment, data, model, Sampling(str(tmp_path)))
    assert note == "done"
    assert found.backward == pytest.approx(samples * passes)
    PASSES.forward = 0
    attack(model, data.test.images[:samples])
    assert found.forward == pytest.approx(PASSES.forward)


def test_what_experiments_share_is_counted_once(data, model, tmp_path):
    def experiment(network, data, settings, executor):
        for _ in range(3):
            executor.cached(partial(fgsm, network.model, eps=0.1), data.test.images)
        return Findings(notes=["done"])

    executor = Sampling(str(tmp_path))
    assert measured(experiment, data, model, executor)[0].backward == 90
    assert measured(experiment, data, model, executor)[0].backward == 0


def _trained(model, data, recipe):
    return dict(train(model, data, recipe).state_dict)


@pytest.mark.parametrize(("images", "epochs"), [(120, 1), (120, 3), (80, 2)])
def test_a_training_on_a_few_images_counts_as_one_on_all(data, model, tmp_path, images, epochs):
    def experiment(network, data, settings, executor):
        work = partial(_trained, network.model, data.train.first(images), Recipe(epochs=epochs))
        executor.shared_task(work)
        return Findings(notes=["done"])

    found, _ = measured(experiment, data, model, Sampling(str(tmp_path)))
    assert found.forward == pytest.approx(images * epochs)
    assert found.backward == pytest.approx(images * epochs)


def test_an_experiment_that_fails_or_takes_long_is_a_lower_bound(data, model, tmp_path):
    def experiment(network, data, settings, executor):
        executor.map(partial(fgsm, network.model, eps=0.1), data.test.images)
        while True:
            pass

    executor = Sampling(str(tmp_path))
    network = {"net": Network("net", data.name, {0: model})}
    given = Experiment("made_up", "", experiment, Settings())
    found, note = counted(given, network, {"net": data}, executor, seconds=0.2)
    assert found.backward == 90
    assert note.startswith("at least: TimeoutError")


def test_the_images_are_as_many_as_the_published_ones():
    data = made_up_data(network_config("svhn", test_limit=300))
    assert (len(data.train), len(data.test), data.shape) == (73257, 300, (3, 32, 32))
    data = made_up_data(network_config("imagenet", size=64, test_limit=7))
    assert (len(data.train), len(data.test), data.shape) == (0, 7, (3, 64, 64))
    assert len(data.classes) == 1000


def test_the_small_network_knows_the_made_up_pictures(data, model):
    labels = model(data.test.images).argmax(dim=1)
    assert (labels == data.test.labels).float().mean() > 0.9


SIZES = {
    name: {
        "network": name,
        "dataset": dataset,
        "pictures": 1e9,
        "parameters": 4e6,
        "activations": 1e6,
        "flops": flops,
        "device": "cpu",
        "forward": 0.001,
        "gradient": 0.004,
        "chunk": 125,
        "seeds": 3,
    }
    for name, dataset, flops in (("small", "mnist", 1e6), ("large", "imagenet", 5e6))
}


def test_a_rate_of_one_network_is_one_of_all_by_their_operations():
    found = speeds(SIZES, ("small", 1000.0))
    assert found["small"] == Speed(0.00025, 0.001)
    assert found["large"] == Speed(pytest.approx(0.00125), 0.005)
    assert speeds(SIZES, None)["large"] == Speed(0.001, 0.004)


def line(stage, experiment, network, forward, backward, note=""):
    where = {"stage": stage, "experiment": experiment, "network": network, "seconds": 0.0}
    return {**where, "forward": forward, "backward": backward, "bytes": 5e8, "note": note}


LINES = [
    line("attack", "attack_l2", "small", 3.6e6, 9e5),
    line("attack", "attack_linf", "small", 0.0, 0.0, "at least: TimeoutError: more than 10 s"),
    line("attack", "attack_l2", "large", 9e5, 9e5),
]


def test_a_row_adds_up_the_experiments_of_a_stage_and_network():
    small, large = stage_rows(LINES, speeds(SIZES, None))
    assert small["hours"] == pytest.approx((9e5 * 0.004 + 2.7e6 * 0.001) / 3600)
    assert (small["bytes"], small["open"]) == (1e9, "attack_linf")
    assert (large["hours"], large["open"]) == (pytest.approx(1.0), "")


def test_the_table_says_hours_disk_memory_and_what_is_a_lower_bound():
    speed = speeds(SIZES, None)
    found = text(stage_rows(LINES, speed), SIZES, speed, "on this machine's cpu")
    assert "hours: at least 2.8 in all, on this machine's cpu" in found
    assert "disk: 15GB (data 13GB, weights 24MB, results 1.5GB" in found
    assert "at least; not counted to its end: attack_linf" in found
    row = next(each for each in found.splitlines() if each.startswith("small"))
    assert row.split() == ["small", "250", "4MB", "140MB", "17MB"]


@pytest.mark.parametrize(
    ("number", "words"), [(0.99, "0.99"), (999, "1k"), (99_500, "100k"), (2.5e12, "2.5T")]
)
def test_numbers_have_two_digits(number, words):
    assert short(number) == words


@pytest.mark.parametrize("given", ["large", "medium:5", "large:", "large:-2", "large:nan", ":3"])
def test_a_rate_that_means_nothing_is_refused(given, capsys, monkeypatch):
    monkeypatch.setattr(plan, "_counted", lambda _: (list(SIZES.values()), 0))
    assert plan.main([f"rate={given}"]) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith("plan: rate must be NETWORK:GRADIENTS_A_SECOND")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["suite=thesiss"], "suite"),
        (["suite=smoke", "networks=lenet"], "networks must be one of mnist5k_lenet"),
        (["suite=smoke", "semirandom.samples=-1"], "semirandom.samples"),
    ],
)
def test_a_suite_that_cannot_be_counted_is_one_line_and_exit_code_2(words, says, capsys):
    assert counting.main(words) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert says in shown
