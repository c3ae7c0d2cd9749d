"""The shared directions u_i, noise and other vectors in them, and the S_c of several networks."""

import math
from functools import partial

import pytest
import torch

from pipeline.evaluation import held_out
from pipeline.studies.curvature_angles import angle_numbers, subspace_angles
from robustness_geometry.attacks.universal import universal_perturbation
from robustness_geometry.checks import InputError
from stages.curvature import projection_share as shares
from stages.curvature import sc_diversity as diversity
from stages.curvature import sc_transfer as transfer
from stages.curvature import shared_directions as shared
from stages.curvature import subspace_noise as noise

CURVED = {
    "train_samples": 6,
    "samples": 8,
    "sweep": (3.0,),
    "sweep_samples": 3,
    "resamples": 30,
}
SHARED = {**CURVED, "leading": 2}
MEAN = {**CURVED, "products": 16}
TURNED = (2.5, 2.5, -2.0, -2.0)


@pytest.fixture(scope="module")
def data(bent):
    return bent.dataset(6, 8)


def expected_size(bent) -> float:
    """E |v'Gv| over random unit v, for G of the curvatures of Bent where ||grad f|| = scale."""
    v = torch.randn(
        200_000, bent.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    v = v / v.norm(dim=1, keepdim=True)
    return float((v[:, 1:5].square() @ torch.tensor(bent.curved).double()).abs().mean())


def test_rho_is_the_curvature_over_that_of_random_directions(
    bent, data, executor, monkeypatch, looked_at
):
    monkeypatch.setattr(shared, "GRID", (1,))
    settings = shared.Settings(**SHARED, middle=2, last=3, directions=300)
    network = bent.network(bent.model())
    found = shared.shared_directions(network, data, settings, executor)
    numbers = found.numbers
    for i in (1, 2):
        assert numbers[f"rho_{i}"].value == pytest.approx(2.5 / expected_size(bent), rel=0.08)
    assert numbers["rho_first"].value == numbers["rho_1"].value
    assert numbers["rho_first - rho_middle"].value == pytest.approx(0, abs=0.01)
    assert numbers["share_negative_1"].value == 1
    assert numbers["rho_1"].n == 8
    sweep = found.tables["sweep"].set_index("direction")
    assert sweep.loc["u_1", "share_negative"] == 1
    assert sweep.loc["random", "rho"] == 1
    rows = found.tensors["directions"].flatten(1).double() @ bent.axes().T
    torch.testing.assert_close(
        rows[:, 3:5] @ rows[:, 3:5].T, torch.eye(2).double(), rtol=0, atol=1e-3
    )
    assert looked_at(found) == ["figure_7_6a", "figure_7_6b"]


def test_the_length_of_the_tangent_part_counts(bent, data, executor):
    settings = shared.Settings(**SHARED)
    (study,) = shared.curvature_studies(bent.network(bent.model()), data, settings, executor)
    rows, slopes = bent.axes(), bent.slopes(held_out(data, 8))
    asked = torch.stack(
        [rows[1], (rows[0] + rows[1]) / math.sqrt(2), rows[0], (rows[1] + rows[3]) / math.sqrt(2)]
    )
    rho, values = shared.relative_curvatures(study, study.test_points(), asked, 50)
    expected = torch.tensor([2.0, 1.0, 0.0, -0.25]).double() / slopes[:, None]
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        rho / rho[:, :1], (expected / expected[:, :1]).abs(), rtol=1e-3, atol=1e-5
    )


def test_ranks_are_in_proportion_to_the_dimension():
    assert shared.ranks_of(shared.Settings(), 3072, 400) == [
        1,
        2,
        5,
        10,
        20,
        50,
        100,
        200,
        500,
        1000,
        2000,
    ]
    assert shared.ranks_of(shared.Settings(), 784, 100) == [1, 2, 3, 5, 13, 26, 51, 128, 255, 510]
    assert shared.ranks_of(shared.Settings(leading=2), 784, 10) == [1, 2, 3, 5, 13]


def test_noise_in_the_normal_and_outside_it(bent):
    """Noise along the normal of a plane fools half of the time; orthogonal to it never."""
    model, images = bent.affine(bent.axes()[:1]), bent.dataset(2, 200, draw=bent.around).test.images
    distances = ((images.flatten(1) - 0.5) @ bent.axes()[0]).abs()
    size = float(distances.quantile(0.5))
    generators = [torch.Generator().manual_seed(i) for i in range(200)]
    other = bent.axes()[1:2].float()
    found = noise.changed_by_noise(
        model, bent.axes()[:1].float(), other, (size, 100.0), 20, images, generator=generators
    )
    kinds = list(noise.TITLES)
    near = distances < size
    assert found[~near, kinds.index("S"), 0].max() == 0
    assert float(found[near, kinds.index("S"), 0].mean()) == pytest.approx(0.5, abs=0.05)
    assert float(found[:, kinds.index("S"), 1].mean()) == pytest.approx(0.5, abs=0.05)
    assert found[:, [kinds.index("S_perp"), kinds.index("random")]].max() == 0
    # All noise has the same norm: of isotropic noise, the part along the normal is a 16th of its
    # square.
    length = torch.distributions.Beta(0.5, 7.5).sample((100_000,)).sqrt()
    expected = (size * length[:, None] > distances[None, :].float()).double().mean() / 2
    assert float(found[:, kinds.index("isotropic"), 0].mean()) == pytest.approx(
        float(expected), abs=0.03
    )


@pytest.mark.parametrize(("curved", "inside"), [(TURNED, 1.0), ((2.0, 2.0, -2.5, -2.5), 0.0)])
def test_noise_inside_the_shared_directions(bent, data, executor, looked_at, curved, inside):
    """Noise of 0.6 along directions of curvature 2.5 leads out, along those of -2.5 never."""
    settings = noise.Settings(
        **SHARED, dimension=2, magnitudes=(0.01, 0.3), noise_samples=8, draws=10
    )
    found = noise.subspace_noise(bent.network(bent.model(curved)), data, settings, executor)
    numbers = found.numbers
    assert numbers["changed_S_0.3"].value == inside
    assert numbers["changed_S_0.01"].value == numbers["changed_isotropic_0.01"].value == 0
    assert 0 < numbers["changed_isotropic_0.3"].value < 0.6
    gaps = [
        numbers[f"changed_S_{t}"].value - numbers[f"changed_S_perp_{t}"].value
        for t in ("0.01", "0.3")
    ]
    assert numbers["changed_S - changed_S_perp, smallest"].value == pytest.approx(min(gaps))
    control = (numbers["changed_S_0.3"].value - numbers["changed_random_0.3"].value) / 2
    assert numbers["changed_S - changed_random, mean"].value == pytest.approx(control)
    half = [
        numbers[f"changed_S_perp_{t}"].value - numbers[f"changed_S_{t}"].value / 2
        for t in ("0.01", "0.3")
    ]
    assert numbers["changed_S_perp - 0.5 changed_S, mean"].value == pytest.approx(sum(half) / 2)
    if inside:
        assert numbers["spearman"].value == pytest.approx(1)
    sweep = found.tables["sweep"]
    assert sweep["changed_S_0.3"].tolist() == [inside]
    assert sweep["share_positive"].tolist() == [inside]
    assert not inside or looked_at(found) == ["figure_7_7"]


def test_what_lies_in_the_shared_directions(bent, executor, looked_at):
    """u_1 and u_2 are curved, where neither r nor differences of the images have a part."""
    data = bent.dataset(6, 60)
    settings = shares.Settings(**{**SHARED, "samples": 60}, dimension=2)
    found = shares.projection_share(bent.network(bent.model()), data, settings, executor)
    numbers = found.numbers
    ideal = math.exp(
        math.lgamma(1.5) + math.lgamma(8) - math.lgamma(1) - math.lgamma(8.5)
    )  # of m = 2, d = 16
    assert numbers["proj_random"].value == pytest.approx(ideal, abs=0.05)
    offset = abs(numbers["proj_random"].value - math.sqrt(2 / 16))
    assert numbers["proj_random - sqrt(m / d), absolute"].value == pytest.approx(offset)
    assert numbers["proj_adversarial"].value < 1e-3
    assert numbers["proj_difference"].value < 1e-3
    assert numbers["proj_difference"].n == 60  # no image is its own partner
    assert numbers["proj_gradient"].value > 0.05
    margin = 1.2 * numbers["proj_random"].value - numbers["proj_gradient"].value
    assert numbers["1.2 proj_random - proj_gradient"].value == pytest.approx(margin)
    margin = numbers["proj_adversarial"].value - 1.5 * numbers["proj_random"].value
    assert numbers["proj_adversarial - 1.5 proj_random"].value == pytest.approx(margin)
    assert found.tables["sweep"]["share_negative"].tolist() == [1]
    assert looked_at(found) == ["table_7_1"]


def test_shares_are_of_the_vectors_own_length(bent):
    rows = bent.axes()
    vectors = torch.stack(
        [5 * rows[0], rows[2], 3 * rows[0] + 4 * rows[2], torch.zeros(16).double()]
    )
    found = shares._share(vectors.view(4, *bent.shape), rows[:2].float())
    torch.testing.assert_close(found[:3], torch.tensor([1.0, 0.0, 0.6]).double(), rtol=0, atol=1e-6)
    assert bool(found[3].isnan())


def test_image_gradients():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    across, down = shares.image_gradients(image)
    assert across.flatten().tolist() == [1, 1, 0, 1, 1, 0]
    assert down.flatten().tolist() == [3, 3, 3, 0, 0, 0]


@pytest.fixture(scope="module")
def transferred(bent, data, executor):
    """The first two networks bend alike; the third one along directions in which they are flat."""
    order = [0, 8, 9, 10, 11, 5, 6, 7, 1, 2, 3, 4, 12, 13, 14, 15]
    networks = {
        "a": bent.network(bent.model(), bent.model(scale=2.0), name="a"),
        "b": bent.network(bent.model(scale=0.5), name="b"),
        "c": bent.network(bent.model(order=order), name="c"),
    }
    settings = transfer.Settings(**MEAN, dimension=2, small=2, directions=30, pictures=1, grid=12)
    return transfer.sc_transfer(networks, dict.fromkeys(networks, data), settings, executor)


def test_angles_between_the_s_c_of_networks(transferred, looked_at):
    numbers = transferred.numbers
    assert numbers["cos_1[a][b]"].value == pytest.approx(1, abs=1e-6)
    assert numbers["cos_1[a][a]"].value == pytest.approx(1, abs=1e-6)
    assert numbers["cos_1[a][c]"].value < 0.15
    assert 0.1 < numbers["cos_1[random]"].value < 0.9
    pairs = ("a][b", "a][c", "b][c")
    over = sum(numbers[f"cos_1[{p}]"].value for p in pairs) / 3
    for pair in pairs:
        margin = numbers[f"cos_1[{pair}]"].value - numbers["cos_1[random]"].value
        assert numbers[f"cos_1[{pair}] - cos_1[random]"].value == pytest.approx(margin)
    margin = over - numbers["cos_1[random]"].value
    assert numbers["cos_1 - cos_1[random], mean of pairs"].value == pytest.approx(margin)
    images = sum(numbers[f"cos_1[{name}][images]"].value for name in "abc") / 3
    assert numbers["cos_1 - cos_1[images], mean of pairs"].value == pytest.approx(over - images)
    assert numbers["cos_1[a][images]"].value < 1e-3  # no image has a part of the curved axes
    assert numbers["cos_1[a][b], m = 2 (closest)"].value == pytest.approx(1, abs=1e-6)
    assert "cos_1[c][c]" not in numbers
    table = transferred.tables["angles"]
    assert (table["point"] == "closest").sum() == len(table) / 3
    counts = table[:8].set_index("subspaces")["pairs_of_seeds"].to_dict()
    assert {
        name: counts[name] for name in ("[a][b]", "[a][c]", "[b][c]", "[a][a]", "[random]")
    } == {
        "[a][b]": 2,
        "[a][c]": 2,
        "[b][c]": 1,
        "[a][a]": 2,
        "[random]": 4,
    }
    assert looked_at(transferred) == ["figure_6_12", "figure_6_13"]


def test_sections_of_one_network_along_the_s_c_of_another(bent, data, transferred):
    numbers, middle = transferred.numbers, float((1 / bent.slopes(held_out(data, 8))).quantile(0.5))
    for pair in ("[a][b]", "[b][a]", "[a][a]"):
        assert numbers[f"kappa{pair} (closest)"].value == pytest.approx(2 * middle, rel=1e-3)
        assert numbers[f"kappa{pair}"].value == pytest.approx(2 * middle, rel=0.02)
        assert numbers[f"share_positive{pair}"].value == 1
    for pair in ("[a][b]", "[a][a]"):  # the networks at the end have the same training seeds there
        margin = numbers[f"kappa{pair}"].value - numbers[f"kappa_random[{pair[4]}]"].value
        assert numbers[f"kappa - kappa_random{pair}"].value == pytest.approx(margin)
    assert abs(numbers["kappa[a][c]"].value) < 0.05
    pairs = [f"[{s}][{t}]" for s in "abc" for t in "abc" if s != t]
    shares = [numbers[f"share_positive{pair}"].value for pair in pairs]
    assert numbers["share_positive, mean of pairs"].value == pytest.approx(sum(shares) / 6)
    excess = [numbers[f"kappa - kappa_random{pair}"].value for pair in pairs]
    assert numbers["kappa - kappa_random, mean of pairs"].value == pytest.approx(sum(excess) / 6)
    assert abs(numbers["kappa_images[a]"].value) < 0.05  # images differ along flat axes alone
    assert numbers["kappa[a][c]"].seeds == 1  # c has no second training seed
    assert numbers["kappa_random[b]"].value > 0
    assert len(transferred.tables["curvature"]) == 24


def test_intervals_of_angles_draw_the_seeds_of_both_networks(bent):
    """Four pairs of two and two seeds are not four independent cases: one seed decides two."""
    rows = bent.axes()

    found = {"a": [rows[:1], rows[1:2]], "b": [rows[:1], rows[:1].clone()]}
    angles = subspace_angles(found, rows[2:3], 1)
    torch.testing.assert_close(
        angles["[a][b]"][..., 0], torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double(), rtol=0, atol=1e-9
    )
    numbers = angle_numbers(angles, 400)
    assert (numbers["cos_1[a][b]"].low, numbers["cos_1[a][b]"].high) == pytest.approx((0, 1))
    assert bool(angles["[a][a]"][0, 0].isnan())


def test_one_network_or_different_shapes_are_refused(bent, data, executor):
    with pytest.raises(InputError, match="network must be"):
        transfer.sc_transfer(
            {"a": bent.network(bent.model())}, {"a": data}, transfer.Settings(**MEAN), executor
        )
    two = dict.fromkeys(("a", "b"), bent.network(bent.model()))
    settings = transfer.Settings(**{**MEAN, "products": 3}, dimension=5, small=1)
    with pytest.raises(
        InputError, match=r"products must be at least twice the dimension 5.*; got 3"
    ):
        transfer.sc_transfer(two, dict.fromkeys(two, data), settings, executor)


def test_cosines_depend_on_the_dimension_alone():
    one = diversity.largest_cosines(1, 3, 5)
    torch.testing.assert_close(one, torch.ones(5, dtype=torch.float64))
    wide = diversity.largest_cosines(500, 2, 4000)  # |cosine| of two: sqrt(2 / (pi m)) in the mean
    assert float(wide.mean()) == pytest.approx(math.sqrt(2 / (math.pi * 500)), rel=0.05)
    assert (
        diversity.largest_cosines(50, 4, 200).mean() > diversity.largest_cosines(50, 2, 200).mean()
    )


def smooth(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [
        torch.nn.Flatten(),
        torch.nn.Linear(16, 8),
        torch.nn.Softplus(beta=5),
        torch.nn.Linear(8, 2),
    ]
    return torch.nn.Sequential(*layers).double().eval()


def test_retraining_on_vectors_of_s_c(bent, executor, looked_at):
    data = bent.dataset(40, 20, draw=bent.around)
    settings = diversity.Settings(
        **MEAN,
        universal=partial(universal_perturbation, norm=2, radius=None, passes=1),
        universal_samples=8,
        fool_samples=16,
        vectors=3,
        small=2,
        pool=2,
        epochs=1,
        repeats=20,
        draws=3,
    )
    network = bent.network(smooth(0))
    before = [parameter.clone() for parameter in network.model.parameters()]
    found = diversity.sc_diversity(network, data, settings, executor.scope("diversity"))
    assert all(torch.equal(a, b) for a, b in zip(before, network.model.parameters(), strict=True))
    numbers = found.numbers
    margin = numbers["fool_retrained"].value - 0.5 * numbers["fool_original"].value
    assert numbers["fool_retrained - 0.5 fool_original"].value == pytest.approx(margin)
    assert numbers["fool_retrained_pool"].n == 16
    assert numbers["err_retrained"].n == 20
    assert numbers["m"].value == 3
    assert any("found by 6 products each" in note for note in found.notes)
    assert sorted(found.tables) == ["cosines", "retraining", "sweep"]
    assert looked_at(found) == ["figure_6_11", "retraining"]


def test_without_training_images_vectors_are_compared_only(bent, executor):
    settings = diversity.Settings(
        **MEAN,
        universal=partial(bent.maker),
        universal_samples=4,
        fool_samples=6,
        vectors=3,
        small=2,
        noise_share=1.0,
        repeats=20,
        draws=2,
    )
    found = diversity.sc_diversity(
        bent.network(bent.model()), bent.dataset(0, 12), settings, executor
    )
    assert "fool_original" not in found.numbers
    assert found.tables["sweep"]["fooled"].tolist() == pytest.approx([5 / 6, 0])
    assert any("nothing is retrained" in note for note in found.notes)
    assert list(found.figures) == ["figure_6_11"]


@pytest.mark.parametrize(
    ("settings", "options", "key"),
    [
        (shared.Settings, {"middle": 1}, "middle must be .*; got 1"),
        (shared.Settings, {"last": 100}, "middle must be .*; got 100"),
        (shared.Settings, {"directions": 0}, "directions must be .*; got 0"),
        (noise.Settings, {"dimension": 0}, "dimension must be .*; got 0"),
        (noise.Settings, {"magnitudes": (0.1,)}, "magnitudes must be"),
        (noise.Settings, {"magnitudes": (0.2, 0.1)}, "magnitudes must be"),
        (noise.Settings, {"magnitudes": (0.0, 0.1)}, "magnitudes must be .*; got 0"),
        (noise.Settings, {"draws": 0}, "draws must be .*; got 0"),
        (noise.Settings, {"noise_samples": 0}, "noise_samples must be .*; got 0"),
        (shares.Settings, {"dimension": 0}, "dimension must be .*; got 0"),
        (transfer.Settings, {"dimension": 0}, "dimension must be .*; got 0"),
        (transfer.Settings, {"small": 0}, "small must be .*; got 0"),
        (transfer.Settings, {"directions": 0}, "directions must be .*; got 0"),
        (transfer.Settings, {"grid": 1}, "grid must be .*; got 1"),
        (diversity.Settings, {"draws": 1}, "draws must be .*; got 1"),
        (diversity.Settings, {"repeats": 1}, "repeats must be .*; got 1"),
        (diversity.Settings, {"pool": 0}, "pool must be .*; got 0"),
        (diversity.Settings, {"share": 0.0}, "share must be .*; got 0"),
        (diversity.Settings, {"noise_share": 1.1}, "noise_share must be .*; got 1.1"),
        (
            diversity.Settings,
            {"learning_rate_factor": 0.0},
            "learning_rate_factor must be .*; got 0",
        ),
        (diversity.Settings, {"tune_samples": 0}, "tune_samples must be .*; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, options, key):
    with pytest.raises(InputError, match=key):
        settings(**options)
