"""Table 3.3 on a small network."""

import pytest

from robustness_geometry.training.loop import error
from stages.finetune.advft_error import Settings, advft_error


@pytest.fixture(scope="module")
def found(network, data, executor):
    return advft_error(
        network, data, Settings(epochs=2, resamples=200), executor.scope("advft_error")
    )


def test_the_original_error_is_the_share_of_wrong_labels_over_images_and_seeds(
    found, network, data
):
    wanted = sum(error(model, data.test) for model in network.models.values()) / 2
    estimate = found.numbers["err_original"]
    assert estimate.value == pytest.approx(wanted)
    assert (estimate.n, estimate.seeds) == (45, 2)


def test_the_numbers_are_paired(found):
    for strategy in ("deepfool", "fgsm", "clean"):
        gain = found.numbers[f"err_original - err_ft_{strategy}"]
        loss = found.numbers[f"err_ft_{strategy} - err_original"]
        assert gain.value == pytest.approx(-loss.value)
        assert gain.value == pytest.approx(
            found.numbers["err_original"].value - found.numbers[f"err_ft_{strategy}"].value
        )


def test_the_table_has_a_row_for_each_network_with_its_change(found):
    table = found.tables["table_3_3"].set_index("network")
    assert list(table.index) == [
        "original network",
        "fine-tuned on DeepFool examples",
        "fine-tuned on FGSM examples",
        "fine-tuned on clean images",
    ]
    assert table.loc["fine-tuned on FGSM examples", "change"] == pytest.approx(
        found.numbers["err_ft_fgsm - err_original"].value
    )
    assert any("baseline" in note for note in found.notes)


def test_the_figure_shows_all_of_them(found):
    assert len(found.figures["table_3_3"].axes[0].get_xticklabels()) == 4


def test_fine_tuning_on_a_part_of_the_images_says_so(found, network, data, executor):
    count = len(data.train) // 2
    settings = Settings(epochs=1, train_samples=count, resamples=20)
    few = advft_error(network, data, settings, executor.scope("few")).notes
    text = f"Only {count} of the {len(data.train)} training images"
    assert any(note.startswith(text) for note in few)
    assert not any(note.startswith("Only") for note in found.notes)
