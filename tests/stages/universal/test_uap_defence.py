import math
from dataclasses import replace

import pytest
import torch

from robustness_geometry.checks import InputError
from stages.experiments import Experiment
from stages.universal.uap_defence import SECTION, Settings, smallest_multiples, uap_defence


@pytest.fixture(scope="module")
def found(small, executor):
    settings = Settings(
        attack=small.attack,
        gradient=small.gradient,
        train_samples=24,
        samples=30,
        resamples=60,
        pool=2,
        pool_samples=20,
        rounds=2,
        epochs=1,
        tune_samples=30,
    )
    network = small.network({0: small.affine(3), 1: small.affine(3, 1)})
    return uap_defence(network, small.dataset(3), settings, executor.scope("uap_defence"))


def test_the_smallest_multiple_is_the_first_that_crosses(small):
    model = small.affine(1)
    normal = model[1].weight.detach().view(1, 1, 6, 6)
    images = small.split(20, 2, 3).images
    gaps = model(images).detach()[:, 0]
    pool = torch.cat([-normal, normal]) / normal.pow(2).sum()  # moves the logit by -1, or by 1
    which = (gaps < 0).long()  # each towards the other side
    found = smallest_multiples(model, pool, 2.0, 40, images, which)
    exact = torch.where(gaps.abs() < 2, (gaps.abs() / 0.05).floor() * 0.05 + 0.05, math.inf)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9)
    assert smallest_multiples(model, pool, 2.0, 40, images, 1 - which).isinf().all()


def test_every_network_is_judged_and_compared(found):
    names = {"original", "ft1", "ft2", "ft_fixed"}
    for name in names:
        assert 0 <= found.numbers[f"fool_{name}"].value <= 1
        assert found.numbers[f"err_{name}"].n == 48
        assert found.numbers[f"fool_{name}"].n == 30
    values = {name: estimate.value for name, estimate in found.numbers.items()}
    for name in names:  # of one training seed or the other, the stronger of the two judges
        by = [values[f"fool_{name} ({maker})"] for maker in ("Algorithm 4", "gradient")]
        assert min(by) <= values[f"fool_{name}"] <= 1
    assert values["fool_original - fool_ft1"] == pytest.approx(
        values["fool_original"] - values["fool_ft1"]
    )
    gain = values["fool_ft2"] - values["fool_ft1"]
    assert values["fool_ft2 - fool_ft1"] == pytest.approx(gain)
    assert values["fool_ft_k - fool_ft1, smallest"] == pytest.approx(gain)
    assert values["err_ft1 - err_original"] == pytest.approx(
        values["err_ft1"] - values["err_original"]
    )


def test_the_table_the_figure_and_the_notes(found, looked_at):
    assert len(found.tables["rounds"]) == 4
    assert looked_at(found) == ["rounds"]
    assert any("stay clean" in note for note in found.notes)


def test_without_training_images_there_is_nothing_to_tune_on(small, executor):
    data = small.dataset(3)
    bare = replace(data, train=data.train.first(0))
    with pytest.raises(InputError, match="without training images"):
        Settings().check(bare)
    experiment = Experiment("uap_defence", SECTION, uap_defence, Settings(), named=True)
    with pytest.raises(InputError, match="without training images"):
        experiment.check("small", bare)
    network = small.network({0: small.affine(3)})
    found = experiment.measure({"small": network}, {"small": bare}, executor)
    assert not found.numbers
    assert found.notes == ["Not measured on small: made up has no training images."]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"ball": 1.0}, "ball"),
        ({"share": 0.0}, "share"),
        ({"rounds": 1}, "rounds"),
        ({"cap": 0.0}, "cap"),
        ({"pool": 0}, "pool"),
        ({"tune_samples": 0}, "tune_samples"),
        ({"learning_rate_factor": -1.0}, "learning_rate_factor"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"{key} must be"):
        Settings(**options)


def test_a_network_that_the_suite_spares_is_named(small, executor):
    network, data = small.network({0: small.affine(3)}, "spared"), small.dataset(3)
    settings = Settings(attack=small.attack, gradient=small.gradient)
    experiment = Experiment("uap_defence", SECTION, uap_defence, settings, networks=("other",))
    found = experiment.measure({"spared": network}, {"spared": data}, executor)
    assert not found.numbers
    assert found.notes == ["Not measured on spared: this suite takes other."]
