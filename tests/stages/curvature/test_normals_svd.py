import pytest
import torch

from robustness_geometry.checks import InputError
from stages.curvature.normals_svd import Settings, linear_ratio, normals_svd

SMALL = {"normal_samples": 40, "samples": 30, "resamples": 30}


def weights(bent, count):
    return bent.axes()[:count] * torch.tensor([[1.0], [1.3], [0.7]])[:count].double()


def test_a_binary_linear_classifier_has_one_normal(bent, executor, looked_at):
    data = bent.dataset(40, 30, draw=bent.around)
    network = bent.network(bent.affine(bent.axes()[:1]), bent.affine(2 * bent.axes()[1:2]))
    found = normals_svd(network, data, Settings(**SMALL), executor)
    values = found.tables["figure_6_3"]["normals"].tolist()
    assert values[0] == pytest.approx(40**0.5)
    assert max(values[1:]) < 1e-6
    assert found.numbers["energy_normals"].value == pytest.approx(1)
    random = found.tables["figure_6_3"]["random"]
    assert sum(random**2) == pytest.approx(40)
    assert found.numbers["energy_random"].value == pytest.approx(random[0] ** 2 / 40, rel=0.1)
    assert found.numbers["dimension_90"].value == 1
    assert found.numbers["dimension_90 - classes"].value == -1
    assert found.numbers["energy_normals"].n == 40
    assert linear_ratio() < 1e-6
    assert found.numbers["sv_2 / sv_1, linear"].n == 100
    assert found.tensors["singular_values"].shape == (2, 16)
    assert looked_at(found) == ["figure_6_3", "inside"]


def test_three_classes_have_normals_in_a_plane_also_at_unseen_images(bent, executor):
    found = normals_svd(
        bent.network(bent.affine(weights(bent, 3))),
        bent.dataset(40, 30, draw=bent.around),
        Settings(**SMALL),
        executor,
    )
    table = found.tables["figure_6_3"]
    assert table["normals"][1] > 1
    assert table["normals"][2:].max() < 1e-6
    assert table["share_inside_unseen"][1] == pytest.approx(1)
    assert table["share_inside_unseen"][0] < 0.99
    assert found.numbers["dimension_90"].value == 2
    assert found.numbers["share_in_2_unseen"].value == pytest.approx(1)
    assert found.numbers["share_in_2_unseen"].n == 30


def test_images_without_a_normal_are_left_out_and_seeds_may_differ_in_them(bent, executor):
    data = bent.dataset(40, 30, draw=bent.around)
    models = [bent.affine(weights(bent, 3), edge=edge) for edge in (0.3, 0.9)]
    lost = [int((data.train.images[:, 0, 0, 0] > edge).sum()) for edge in (0.3, 0.9)]
    assert lost[0] > 24  # fewer are left than there are pixels
    assert 0 < lost[1] < 10
    found = normals_svd(bent.network(*models), data, Settings(**SMALL), executor)
    assert found.numbers["energy_normals"].n == (80 - sum(lost)) // 2
    assert any(
        f"unit r of {40 - lost[0]} training images ({lost[0]} are without" in note
        for note in found.notes
    )
    assert found.numbers["energy_random"].n == found.numbers["energy_normals"].n


def test_images_that_nothing_fools_are_refused(bent, executor):
    flat = bent.affine(bent.axes()[:1], edge=-1)
    with pytest.raises(
        InputError, match=r"normal_samples must be .*; got '?40 images without a normal"
    ):
        normals_svd(bent.network(flat), bent.dataset(40, 4), Settings(**SMALL), executor)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"normal_samples": 19}, "normal_samples must be .*; got 19"),
        ({"samples": 1}, "^samples must be .*; got 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=key):
        Settings(**options)
