"""S_c, its control, S_f and one direction as universal perturbations."""

from functools import partial

import pytest
import torch

from robustness_geometry.checks import InputError
from stages.curvature import sc_fooling as sc
from stages.curvature import sc_top_direction as top
from stages.curvature import sf_fooling as sf

MEAN = {
    "train_samples": 8,
    "samples": 6,
    "products": 16,
    "sweep": (3.0,),
    "sweep_samples": 3,
}
FOOLING = {"fool_samples": 10, "vectors": 40, "resamples": 30}
VECTORS = {**FOOLING, "universal_samples": 8, "universal_orders": 1}
RADIUS = 0.56


@pytest.fixture(scope="module")
def compared(bent, executor):
    settings = sc.Settings(
        **{**MEAN, "sweep": (0.3, 3.0)},
        **FOOLING,
        dimensions=(1, 2),
        small=2,
        noise_share=0.95,
        algorithm_samples=8,
        normals=1,
        universal=partial(bent.maker),
    )
    network = bent.network(bent.model(), bent.model(scale=1.0))
    return sc.sc_fooling(network, bent.dataset(), settings, executor)


def test_vectors_of_s_c_fool_and_those_of_the_negative_control_do_not(compared, looked_at):
    """F grows by r^2 along S_c, up to 0.2 before the boundary; along the control it falls."""
    values = {name: estimate.value for name, estimate in compared.numbers.items()}
    for m in (1, 2):
        assert values[f"fool_sc_{m}"] == 1
        assert values[f"fool_negative_{m}"] == 0
        assert 0.2 < values[f"fool_sf_{m}"] < 0.8  # one sign of the normal
        # The normals have no part of the curved directions, so that nothing is lost without them.
        assert values[f"fool_sc_less_sf_{m}"] == values[f"fool_sc_less_sf_{m} (closest)"] == 1
        assert values[f"fool_negative_less_sf_{m}"] == 0
        assert values[f"overlap_sc_{m}"] < 0.01
        assert values[f"fool_sc_{m} (closest)"] == 1
        assert values[f"fool_negative_{m} (closest)"] == 0
    assert values["overlap_random"] == 0.25
    assert values["fool_uap"] == 1
    assert 0 < values["fool_random"] < 0.6
    assert values["fool_sc - fool_negative"] == 1
    assert values["fool_sc - fool_sc_less_sf"] == 0
    assert any("is 0.95 of the measured one" in note for note in compared.notes)
    assert values["fool_sc - 0.9 fool_uap"] == pytest.approx(0.1)
    assert values["fool_sc - fool_uap, absolute"] == 0
    assert values["fool_sc_small - fool_sc_large"] == 0
    assert values["fool_sf, largest"] == max(values["fool_sf_1"], values["fool_sf_2"])
    assert values["fool_sc - fool_sf_m, smallest"] == pytest.approx(1 - values["fool_sf, largest"])
    assert any(
        "the sign of the curvature does make a difference here" in note for note in compared.notes
    )
    assert looked_at(compared) == ["figure_6_9b"]


def test_the_sweep_has_the_control_at_each_h(compared):
    sweep = compared.tables["sweep"]
    assert sweep["direction"].tolist() == ["sc", "negative"] * 2
    assert sweep["fooled"].tolist() == [1, 0, 1, 0]
    assert sweep["share_positive"].tolist() == [1, 0, 1, 0]
    assert sweep["share_negative"].tolist() == [0, 1, 0, 1]
    assert sweep["h"].tolist() == pytest.approx([0.3 * 0.078] * 2 + [3 * 0.078] * 2)


def test_only_pairs_of_the_same_images_are_compared(compared):
    table = compared.tables["figure_6_9b"]
    assert table["images"].unique().tolist() == [10]
    assert table["seeds"].unique().tolist() == [2]
    assert table["point"].value_counts().to_dict() == {"crossing": 10, "closest": 10, "": 2}
    assert table["overlap with sf"].notna().sum() == 9  # S_c and its control twice at each point


def test_too_large_a_subspace_is_refused(bent, executor):
    settings = sc.Settings(
        **{**MEAN, "products": 6},
        **FOOLING,
        dimensions=(1, 5),
        small=1,
        universal=partial(bent.maker),
    )
    with pytest.raises(
        InputError, match=r"products must be at least twice the dimension 5.*; got 6"
    ):
        sc.sc_fooling(bent.network(bent.model()), bent.dataset(), settings, executor)


def test_the_top_direction_fools_with_both_signs(bent, executor, looked_at):
    maker = partial(bent.maker, norm=2.0, radius=RADIUS, axis=2)
    settings = top.Settings(**MEAN, **VECTORS, universal=maker, dimension=1)
    found = top.sc_top_direction(bent.network(bent.model()), bent.dataset(), settings, executor)
    values = {name: estimate.value for name, estimate in found.numbers.items()}
    assert values["fool_top"] == values["fool_top_best"] == values["fool_uap"] == 1
    assert values["fool_negative"] == values["fool_negative_best"] == 0
    assert values["fool_top (closest)"] == values["fool_top_less_sf (closest)"] == 1
    assert values["overlap_top"] < 0.01
    assert values["fool_sf_1"] == values["fool_sf_1 (closest)"] == 0.5
    assert values["fool_top - fool_sf"] == 0.5
    assert 0.2 < values["fool_sf"] < 0.8
    assert values["fool_top - fool_negative"] == 1
    assert values["fool_uap - fool_top"] == 0
    (vector,) = found.tensors["top"].flatten(1)
    parts = bent.axes() @ vector.double()
    assert float(parts[1:3].norm()) == pytest.approx(1, abs=1e-4)
    assert looked_at(found) == ["figure_6_10", "fooling"]
    assert found.tables["sweep"]["fooled"].tolist() == [1, 0]


def test_of_a_direction_with_a_sign_half_of_both_counts(bent, executor):
    """Across a plane one sign fools all the images before it and the other none."""
    maker = partial(bent.maker, norm=2.0, radius=RADIUS, axis=0)
    settings = top.Settings(**MEAN, **VECTORS, universal=maker, dimension=1)
    plane = bent.affine(bent.axes()[:1])
    found = top.sc_top_direction(bent.network(plane), bent.dataset(), settings, executor)
    values = {name: estimate.value for name, estimate in found.numbers.items()}
    assert values["fool_uap"] == 1
    assert values["fool_top"] == pytest.approx(values["fool_top_best"] / 2)
    assert 0.2 < values["fool_sf"] < 0.8


def test_the_sweep_takes_both_signs_of_one_direction(bent, executor):
    """Random vectors of one dimension are the same one half of the time."""
    maker = partial(bent.maker, norm=2.0, radius=RADIUS, axis=0)
    settings = top.Settings(**MEAN, **VECTORS, universal=maker)
    plane = bent.network(bent.affine(bent.axes()[:1]))
    (pair,) = top.fooling_studies(plane, bent.dataset(), settings, executor, images=8, orders=1)
    assert top.fooling_over_h(*pair, 1, 5, 5.0)["fooled"].tolist() == [0.5] * 2


def test_vectors_of_s_f_fool_one_side_of_a_plane(bent, executor, looked_at):
    """One sign of the only normal fools each image, and as many images wait on either side."""
    data = bent.dataset(40, 60, draw=bent.around)
    maker = partial(bent.maker, norm=2.0, radius=3.0, axis=0)
    settings = sf.Settings(
        **{**VECTORS, "fool_samples": 60},
        train_samples=8,
        normal_samples=40,
        dimension=1,
        dimensions=(1, 3),
        universal=maker,
    )
    network = bent.network(bent.affine(bent.axes()[:1]), bent.affine(bent.axes()[:1] * 2))
    found = sf.sf_fooling(network, data, settings, executor)
    values = {name: estimate.value for name, estimate in found.numbers.items()}
    assert values["fool_sf"] == values["fool_sf_1"] == values["fool_sf_3"] == 0.5
    assert values["fool_uap"] == 0.5
    assert values["fool_random"] < 0.5
    assert values["fool_sf - fool_random"] == pytest.approx(0.5 - values["fool_random"])
    assert values["fool_sf / fool_random"] == pytest.approx(0.5 / values["fool_random"])
    assert values["fool_uap - fool_sf"] == pytest.approx(0, abs=1e-12)
    assert found.tables["fooling"]["vector"].tolist()[-1] == "Algorithm 4"
    assert looked_at(found) == ["fooling"]


def test_what_the_normals_lend_is_lost_without_them(bent, executor):
    """S_c of a plane is arbitrary; the normal projected out, nothing fools across it any more."""
    data = bent.dataset(40, 60, draw=bent.around)
    model = bent.affine(bent.axes()[:1])
    settings = sc.Settings(
        **{**MEAN, "train_samples": 40},
        **{**FOOLING, "fool_samples": 60},
        dimensions=(1, 2),
        small=2,
        algorithm_samples=8,
        normals=1,
        universal=partial(bent.maker),
    )
    (pair,) = sc.fooling_studies(bent.network(model), data, settings, executor, images=8)
    study, universal = pair
    normal = study.normal_basis(1)
    assert abs(float(normal[0].double() @ bent.axes()[0])) == pytest.approx(1, abs=1e-5)
    mixed = (bent.axes()[0] + 2 * bent.axes()[3]).view(1, *bent.shape).float()
    sets = {
        "mixed": 9 * mixed,
        "less": sc.without(9 * mixed, normal),
        "normal": sc.fooling_vectors(normal, study.train.images, 5, 9.0, "test"),
    }
    assert len(sets["normal"]) == 2
    shares = {name: float(v.mean()) for name, v in sc.fooled_shares(universal, sets).items()}
    assert shares["mixed"] > 0.3
    assert shares["less"] == 0
    assert shares["normal"] == 0.5


@pytest.mark.parametrize(("d", "m"), [(16, 10), (784, 10), (150_528, 100), (3 * 299**2, 100)])
def test_s_f_is_compared_at_the_thesis_share_of_dimensions(d, m):
    settings = sf.Settings()
    assert settings.judged(d) == m
    assert settings.every(d) == [1, 5, 10, 20, 50, 100]
    assert sf.Settings(dimension=3).every(d) == [1, 3, 5, 10, 20, 50, 100]


class Halves(torch.nn.Module):
    """The plane across the first axis where the second coordinate is above 0, else the third."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("rows", rows)
        self.eval()

    def forward(self, images):
        s = (images.flatten(1) - 0.5) @ self.rows.T
        return torch.where(s[:, 1] > 0, s[:, 0], s[:, 2])[:, None]


def test_s_f_comes_from_training_images_alone(bent, executor):
    """The normals of the images that judge are orthogonal to S_f, so that its vectors fool none."""
    data = bent.dataset(40, 20, draw=bent.around)
    for split, side in ((data.train, 1), (data.test, -1)):
        second = (split.images.flatten(1) - 0.5) @ bent.axes()[1]
        split.images.add_(
            ((side * second.abs() - second)[:, None] * bent.axes()[1]).view_as(split.images)
        )
    maker = partial(bent.maker, norm=2.0, radius=3.0, axis=2)
    settings = sf.Settings(
        **VECTORS,
        train_samples=8,
        normal_samples=40,
        dimension=1,
        dimensions=(1,),
        universal=maker,
    )
    found = sf.sf_fooling(bent.network(Halves(bent.axes())), data, settings, executor)
    assert found.numbers["fool_sf"].value == 0
    assert found.numbers["fool_uap"].value > 0.2


@pytest.mark.parametrize(
    ("settings", "options", "key"),
    [
        (sc.Settings, {"dimensions": (1,)}, "dimensions must be"),
        (sc.Settings, {"dimensions": (2, 1), "small": 1}, "dimensions must be"),
        (sc.Settings, {"dimensions": (0, 1), "small": 1}, "dimensions must be .*; got 0"),
        (sc.Settings, {"small": 3}, "small must be .*; got 3"),
        (sc.Settings, {"noise_share": 0.0}, "noise_share must be .*; got 0"),
        (sc.Settings, {"algorithm_samples": 1}, "algorithm_samples must be .*; got 1"),
        (sf.Settings, {"dimension": 0}, "dimension must be .*; got 0"),
        (sf.Settings, {"dimensions": (0,)}, "dimensions must be .*; got 0"),
        (sf.Settings, {"dimension": 30, "normal_samples": 20}, "dimension must be .*; got 30"),
        (sf.Settings, {"normal_samples": 1}, "normal_samples must be .*; got 1"),
        (top.Settings, {"dimension": 0}, "dimension must be .*; got 0"),
        (top.Settings, {"normals": 0}, "normals must be .*; got 0"),
        (sc.Settings, {"normals": 0}, "normals must be .*; got 0"),
        (top.Settings, {"vectors": 0}, "vectors must be .*; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, options, key):
    with pytest.raises(InputError, match=key):
        settings(**options)
