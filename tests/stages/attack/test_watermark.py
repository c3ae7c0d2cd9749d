import pytest
import torch

from pipeline.evaluation import held_out
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import orthonormalise
from stages.attack.watermark import Settings, _spans, watermark, word_images

WORDS = ("NIPS", "SPAIN", "2016")
SHAPE = (1, 28, 28)


def drawn(shape=SHAPE, count=30, seed=0):
    return word_images(WORDS, shape, count, torch.Generator().manual_seed(seed))


def test_words_are_drawn_legibly_at_random_places_and_scales():
    pictures = drawn()
    assert pictures.shape == (30, *SHAPE)
    assert pictures.amin() == 0
    assert (pictures.amax(dim=(1, 2, 3)) > 0.9).all()
    columns = (pictures > 0.1).any(dim=2).squeeze(1)
    widths = [int(row.nonzero().max() - row.nonzero().min()) + 1 for row in columns]
    assert min(widths) < 18 < max(widths) <= 28
    assert pictures.flatten(1).unique(dim=0).shape[0] == 30
    assert torch.equal(pictures, drawn())
    assert not torch.equal(pictures, drawn(seed=1))


@pytest.mark.parametrize("shape", [(3, 64, 64), (3, 20, 50), (1, 50, 9)])
def test_words_fit_images_of_any_shape(shape):
    pictures = drawn(shape, 6)
    assert pictures.shape == (6, *shape)
    assert (pictures.flatten(1).sum(dim=1) > 0).all()
    assert (pictures == pictures[:, :1]).all()


def test_dimensions_are_those_of_the_thesis_and_of_small_images():
    small = _spans(SHAPE, WORDS)
    assert {suffix: len(span.pictures) for suffix, span in small.items()} == {
        "": 784 // 228,
        "_wide": 784 // 16,
    }
    for span in small.values():
        torch.testing.assert_close(span.basis @ span.basis.T, torch.eye(len(span.basis)))
    assert list(_spans((3, 80, 80), WORDS)) == [""]
    tiny = _spans((1, 9, 9), WORDS)
    assert len(tiny[""].pictures) == 1


def test_perturbations_lie_in_the_span_and_are_closed_forms(small, executor, looked_at):
    data = small.dataset(SHAPE, 3, 20)
    network = small.network({seed: small.affine(3, SHAPE, seed) for seed in (0, 1)})
    found = watermark(network, data, Settings(samples=12, resamples=100), executor)
    images = held_out(data, 12).images
    for suffix, span in _spans(SHAPE, WORDS).items():
        basis = orthonormalise(span.pictures.flatten(1).double())
        exact = [
            small.closed_form(model, images, lambda normals, b=basis: normals @ b.T @ b)
            for model in network.models.values()
        ]
        relative = 1.02 * torch.stack(exact) / images.flatten(1).norm(dim=1).double()
        middle = float(relative.flatten().sort().values[11:13].mean())
        assert found.numbers[f"relative_norm{suffix}"].value == pytest.approx(middle, rel=1e-3)
        assert found.numbers[f"share_fooled{suffix}"].value == 1.0
        assert found.numbers[f"alignment{suffix}"].value == pytest.approx(1, abs=1e-5)
        assert found.numbers[f"share_fooled{suffix}"].low < 1.0
        assert (
            found.numbers[f"relative_norm{suffix}"].n,
            found.numbers[f"share_fooled{suffix}"].seeds,
        ) == (12, 2)
    assert found.numbers["relative_norm"].value > found.numbers["relative_norm_wide"].value
    assert found.tables["watermark"]["rank"].tolist() == [3, 49]
    assert any("floor(d / 228) = 3" in note for note in found.notes)
    assert looked_at(found) == ["figure_3_12", "words"]


def test_a_network_that_sees_no_words_is_not_fooled(small, executor, looked_at):
    model = small.affine(2, SHAPE, 0)
    weight = model[1].weight.detach()
    basis = orthonormalise(
        torch.cat([span.basis for span in _spans(SHAPE, WORDS).values()]).double()
    )
    with torch.no_grad():
        model[1].weight.copy_(weight.double() - weight.double() @ basis.T @ basis)
    found = watermark(
        small.network({0: model}), small.dataset(SHAPE, 2, 6), Settings(resamples=50), executor
    )
    # Rounding leaves a trace of the words in the weights: whatever fools needs an absurd
    # perturbation.
    assert found.numbers["share_fooled"].value == 0 or found.numbers["relative_norm"].value > 1e3
    looked_at(found)


def test_the_options_of_a_deepfool_under_study_are_used(small, executor):
    from functools import partial

    data, network = small.dataset(SHAPE, 2, 6), small.network({0: small.affine(2, SHAPE, 0)})
    usual = (
        watermark(network, data, Settings(resamples=50), executor).numbers["relative_norm"].value
    )
    settings = Settings(attack=partial(deepfool, overshoot=0.5), resamples=50)
    assert watermark(network, data, settings, executor).numbers[
        "relative_norm"
    ].value == pytest.approx(usual * 1.5 / 1.02, rel=1e-3)


@pytest.mark.parametrize("words", [(), ("NIPS", " ")])
def test_blank_words_are_refused(words):
    with pytest.raises(InputError, match=r"^words must be one or more words that are not blank"):
        Settings(words=words)
