import math

import pytest
import torch

from pipeline.studies.universal import cosines
from stages.universal.uap_diversity import Settings, uap_diversity


def test_cosines_of_known_vectors():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, -3.0], [0.0, 0.0]]).view(4, 1, 1, 2)
    half = math.sqrt(0.5)
    wanted = [[1, half, 0, 0], [half, 1, -half, 0], [0, -half, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(cosines(vectors), torch.tensor(wanted, dtype=torch.float64))


def test_vectors_of_a_binary_affine_classifier_are_parallel(small, executor, looked_at):
    settings = Settings(
        attack=small.attack,
        gradient=small.gradient,
        train_samples=24,
        orders=3,
        samples=40,
        resamples=50,
    )
    data = small.dataset(2)
    found = uap_diversity(
        small.network({0: small.affine(1)}), data, settings, executor.scope("uap_diversity")
    )
    assert found.numbers["largest |cosine|"].value == pytest.approx(1.0)
    assert found.numbers["mean |cosine|"].n == 3
    assert found.numbers["largest |random cosine|"].value < 0.9
    assert found.numbers["mean |cosine (gradient)|"].value == pytest.approx(1.0)
    low, high = (found.numbers[f"fool_val_{end}"].value for end in ("smallest", "largest"))
    assert 0 <= low <= high <= 1
    assert len(found.tables["figure_4_5"]) == 3
    assert looked_at(found) == ["figure_4_5"]
    assert found.tensors["vectors"].shape == (1, 3, 1, 6, 6)


def test_one_order_has_no_pairs():
    from robustness_geometry.checks import InputError

    with pytest.raises(InputError, match=r"orders must be .*; got 1"):
        Settings(orders=1)
