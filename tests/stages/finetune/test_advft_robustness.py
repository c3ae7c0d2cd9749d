"""Figure 3.6 on a small network."""

import pytest

from robustness_geometry.attacks import alignment, deepfool
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from robustness_geometry.training import extra_epochs, fine_tune, perturbed_split
from stages.finetune.advft_robustness import Settings, advft_robustness


@pytest.fixture(scope="module")
def found(network, data, executor):
    settings = Settings(epochs=2, samples=30, resamples=200)
    return advft_robustness(network, data, settings, executor.scope("advft_robustness"))


def rho(model, images):
    return float((norms(deepfool(model, images).perturbations) / norms(images)).double().mean())


def test_the_numbers_are_those_of_the_algorithm_done_by_hand(found, network, data):
    from pipeline.evaluation import held_out

    images = held_out(data, 30).images
    before, after, cosines = [], [], []
    for seed, model in network.models.items():
        made = perturbed_split(data.train, deepfool(model, data.train.images).perturbations)
        states = fine_tune(model, made, extra_epochs(network.training, epochs=2), seed=seed)
        before.append(rho(model, images))
        found_r = deepfool(model, images)
        cosines.append(alignment(model, images, found_r.perturbations)[found_r.success].mean())
        original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(states[1])
        after.append(rho(model, images))
        model.load_state_dict(original)
    numbers = found.numbers
    assert numbers["rho_original"].value == pytest.approx(sum(before) / 2, rel=1e-4)
    mean_cosine = float(sum(cosines)) / 2
    assert numbers["alignment_original"].value == pytest.approx(mean_cosine, rel=1e-4)
    assert numbers["rho_ft_deepfool_2"].value == pytest.approx(sum(after) / 2, rel=1e-4)
    assert numbers["rho_ft_deepfool_2 / rho_original"].value == pytest.approx(
        sum(after) / sum(before), rel=1e-4
    )


def test_every_number_has_an_interval_over_images_and_seeds(found):
    wanted = {"rho_original"} | {
        f"rho_ft_{s}_{e}" for s in ("deepfool", "fgsm", "clean") for e in (1, 2)
    }
    assert wanted <= set(found.numbers)
    for name in (
        "rho_ft_deepfool_1 - rho_original",
        "rho_original - rho_ft_fgsm_2",
        "rho_ft_deepfool_2 - rho_ft_fgsm_2",
    ):
        estimate = found.numbers[name]
        assert estimate.low < estimate.value < estimate.high
        assert estimate.seeds == 2
        assert 28 <= estimate.n <= 30  # DeepFool may fail on an image


def test_the_table_starts_at_the_original_network(found):
    table = found.tables["figure_3_6"]
    assert len(table) == 9
    assert table.groupby("network")["epoch"].apply(list).tolist() == [[0, 1, 2]] * 3
    assert table[table.epoch == 0].rho.nunique() == 1
    assert {"rho", "low", "high", "images", "seeds", "gain"} <= set(table.columns)
    assert found.curves["rho_ft_deepfool"][0] == found.numbers["rho_original"].value


def test_the_figure_and_notes_say_what_was_done(found):
    axes = found.figures["figure_3_6"].axes[0]
    assert len(axes.get_lines()) >= 3
    assert "90 training images" in found.notes[0]
    assert any("30 held-out images" in note for note in found.notes)


def test_a_second_run_gives_the_same_numbers(found, network, data, executor):
    settings = Settings(epochs=2, samples=30, resamples=200)
    again = advft_robustness(network, data, settings, executor.scope("advft_robustness"))
    assert {name: e.value for name, e in again.numbers.items()} == {
        n: e.value for n, e in found.numbers.items()
    }


def test_a_factor_of_zero_is_refused():
    with pytest.raises(
        InputError, match=r"^learning_rate_factor must be a finite number > 0; got 0"
    ):
        Settings(learning_rate_factor=0)
