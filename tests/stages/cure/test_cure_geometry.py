"""What the stage measures of losses and boundaries, on known answers and on the small network."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from pipeline.bootstrap import paired_bootstrap
from pipeline.evaluation import correct, held_out
from pipeline.studies.cure import cure_studies
from pipeline.studies.loss_hessian import power_curvature, profiles, smoothed_curvature
from robustness_geometry.attacks import deepfool, nearest
from robustness_geometry.checks import InputError
from robustness_geometry.geometry import boundary_points
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.training import train
from robustness_geometry.types import Network
from stages.cure import advft_attacks as advft_attacks_module
from stages.cure import advft_sections as sections_module
from stages.cure import cure_evolution as evolution_module
from stages.cure import gradient_alignment as alignment_module
from stages.cure import loss_hessian_profile as profile_module
from stages.cure import loss_surface as surface_module
from stages.cure.advft_attacks import Settings as Table81
from stages.cure.advft_attacks import _statistics, advft_attacks, beyond
from stages.cure.advft_sections import Settings as Sections
from stages.cure.advft_sections import advft_sections, bends
from stages.cure.cure_evolution import Settings as Evolution
from stages.cure.cure_evolution import cure_evolution, curvature_norms
from stages.cure.gradient_alignment import Settings as Alignment
from stages.cure.gradient_alignment import gradient_alignment
from stages.cure.loss_hessian_profile import Settings as Profile
from stages.cure.loss_hessian_profile import _sizes, logit_curvatures, loss_hessian_profile
from stages.cure.loss_surface import Settings as Surface
from stages.cure.loss_surface import linear_residual, loss_surface, surfaces
from stages.experiments import Experiment


def points(count=6, pixels=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    side = math.isqrt(pixels)
    return torch.rand(count, 1, side, side, generator=generator, dtype=torch.float64)


class Ball(nn.Module):
    """One logit |x - 0.5| ^ 2 - R^2: class 1 outside."""

    def __init__(self, radius):
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(radius, dtype=torch.float64))
        self.eval()

    def forward(self, images):
        return (images.flatten(1) - 0.5).square().sum(dim=1, keepdim=True) - self.radius**2


class Bowls(nn.Module):
    """Logits a_k |x|^2: the difference of two has the Hessian 2 (a_k - a_l) times the identity."""

    def __init__(self, *bends):
        super().__init__()
        self.bends = nn.Parameter(torch.tensor(bends, dtype=torch.float64))
        self.eval()

    def forward(self, images):
        return self.bends * images.flatten(1).square().sum(dim=1, keepdim=True)


def spread(model, images):
    """p (1 - p) of the two-class affine model, (N,)."""
    p = model(images).softmax(dim=1)[:, 1]
    return (p * (1 - p)).detach()


def test_the_loss_of_linear_logits_has_one_eigenvalue(made):
    model, images = made.affine(b=2.0), points()
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    found = profiles(model, images, labels, h=1e-4, scheme="central")
    wanted = spread(model, images) * model.w.detach().square().sum()
    torch.testing.assert_close(found["eigenvalues"][:, 0].double(), wanted, rtol=1e-5, atol=0)
    assert float(found["eigenvalues"][:, 1:].abs().max()) < 1e-6 * float(wanted.max())
    torch.testing.assert_close(
        found["alignment"], torch.ones(6, dtype=torch.float64), rtol=1e-6, atol=0
    )
    p = model(images).softmax(dim=1).detach()
    slope = (1 - p.gather(1, labels[:, None])[:, 0]) * model.w.detach().norm()
    torch.testing.assert_close(found["gradient"], slope)


def test_norms_of_a_known_hessian(made):
    model, images = made.affine(b=2.0), points()
    found = curvature_norms(
        model, images, torch.ones(6, dtype=torch.int64), h=1e-4, draws=3000, generator=seeded(0)
    )
    w = model.w.detach()
    torch.testing.assert_close(
        found["frobenius"], spread(model, images) * w.square().sum(), rtol=0.05, atol=0
    )
    along = w.abs().sum() / math.sqrt(16)  # w.z for z = -sign(w) / 4
    torch.testing.assert_close(
        found["hz"], spread(model, images) * along * w.norm(), rtol=1e-3, atol=0
    )


def test_a_vanishing_gradient_has_no_direction():
    found = curvature_norms(
        Bowls(0.0, 0.0), points(2), torch.zeros(2, dtype=torch.int64), h=0.5, draws=3
    )
    assert found["hz"].tolist() == [0, 0]
    assert found["frobenius"].tolist() == [0, 0]


def test_sizes_of_spectra():
    spectra = torch.tensor([[[10.0, 1.0, 0.99, -0.5], [0.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, -1.0]]])
    found = _sizes("x", spectra, torch.tensor([[2.0, 0.0, 0.5]]))
    assert found["lambda_max x"].tolist() == [[10.0, 0.0, pytest.approx(0.1)]]
    squares = 100 + 1 + 0.99**2 + 0.25
    assert found["squares x"][0, 0] == pytest.approx(squares)
    share = found["share_large x"][0]
    assert (float(share[0]), float(share[2])) == (0.5, 0.5)
    assert share[1].isnan()
    relative = found["relative x"][0]
    assert float(relative[0]) == pytest.approx(math.sqrt(squares) / 2)
    assert relative[1].isnan()
    assert float(relative[2]) == pytest.approx(math.sqrt(1.01) / 0.5)


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_power_iteration_finds_the_eigenvalue_of_linear_logits(made, scheme):
    model, images = made.affine(b=2.0), points()
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    options = {"steps": 2, "h": 1e-5, "scheme": scheme, "generator": seeded(0)}
    found = power_curvature(model, images, labels, **options)
    wanted = spread(model, images) * model.w.detach().square().sum()
    torch.testing.assert_close(found["power"], wanted, rtol=1e-3, atol=0)
    ones = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(found["alignment"], ones, rtol=1e-6, atol=0)
    p = model(images).softmax(dim=1).detach()
    own = p.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(found["gradient"], (1 - own) * model.w.detach().norm())
    torch.testing.assert_close(found["loss"], -own.log())


def test_power_iteration_agrees_with_the_matrix_of_a_smooth_network(network, data):
    test = held_out(data, 6)
    images, model = test.images.double(), copy.deepcopy(network.models[0]).double()
    matrix = profiles(model, images, test.labels, h=1e-3, scheme="central")
    options = {"steps": 200, "h": 1e-3, "scheme": "central", "generator": seeded(0)}
    found = power_curvature(model, images, test.labels, **options)
    spectra = matrix["eigenvalues"].double()
    top = torch.where(spectra[:, 0] > -spectra[:, -1], spectra[:, 0], spectra[:, -1])
    torch.testing.assert_close(found["power"], top, rtol=1e-2, atol=1e-6)
    size = matrix["gradient"].double()
    torch.testing.assert_close(found["gradient"], size, rtol=1e-5, atol=0)


def test_power_iteration_on_a_flat_loss_has_no_direction():
    found = power_curvature(
        Bowls(0.0, 0.0),
        points(2),
        torch.zeros(2, dtype=torch.int64),
        steps=3,
        h=0.5,
        scheme="forward",
    )
    assert found["power"].tolist() == [0, 0]
    assert found["alignment"].isnan().all()


def test_the_smoothed_hessian_of_linear_logits_is_the_hessian(made):
    model, images = made.affine(b=2.0), points()
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    options = {"steps": 2, "draws": 3, "h": 1e-5, "scheme": "forward", "generator": seeded(0)}
    found = smoothed_curvature(model, images, labels, **options)["smoothed"]
    wanted = spread(model, images) * model.w.detach().square().sum()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)


class Kink(torch.nn.Module):
    """Logits 0 and a max(sum(x), 0): the slope of the loss at label 1 jumps by a / 2 at sum 0."""

    def forward(self, images):
        tilted = 8 * images.flatten(1).sum(dim=1).clamp_min(0)
        return torch.stack([torch.zeros_like(tilted), tilted], dim=1)


def test_the_smoothed_hessian_of_a_kink_is_half_of_its_jump_over_h_from_either_side():
    h, side = 1e-3, torch.tensor([1e-9, -1e-9], dtype=torch.float64)
    images = side.view(2, 1, 1, 1).expand(2, 1, 4, 4)
    labels = torch.ones(2, dtype=torch.int64)
    options = {"steps": 3, "draws": 800, "h": h, "scheme": "forward", "generator": seeded(0)}
    found = smoothed_curvature(Kink().eval(), images, labels, **options)
    wanted = -4 * 4 * 0.5 / h  # the jump along the unit vector, half of the draws on each side
    jump = torch.full((2,), wanted, dtype=torch.float64)
    torch.testing.assert_close(found["smoothed"], jump, rtol=0.1, atol=0)


def test_hessians_of_logit_differences(made):
    images = 0.1 + points()
    bowls = logit_curvatures(Bowls(3.0, 1.0, -2.0), images, h=1.0, generator=seeded(0))
    wanted = torch.full((6,), 2 * 2.0 * math.sqrt(16), dtype=torch.float64)
    torch.testing.assert_close(bowls["exact"], wanted, rtol=0.2, atol=0)
    torch.testing.assert_close(bowls["finite"], bowls["exact"], rtol=1e-9, atol=0)
    straight = logit_curvatures(made.affine(), images, h=1.0, generator=seeded(0))
    assert float(straight["exact"].max()) == 0
    assert float(straight["finite"].max()) < 1e-12


def test_the_distance_from_the_best_plane():
    places = torch.linspace(-0.7, 0.7, 9, dtype=torch.float64)
    y, x = torch.meshgrid(places, places, indexing="ij")
    losses = torch.stack([3 + 2 * x - 5 * y, x.square(), x * y, 1 + x + 4 * y.square()])
    bend = x.square().std(correction=0)
    wanted = torch.stack([0 * bend, bend, (x * y).std(correction=0), 4 * bend])
    torch.testing.assert_close(linear_residual(losses), wanted, atol=1e-12, rtol=1e-9)


def test_the_loss_of_a_wrong_affine_network_is_flat_along_v_and_linear_along_r(made):
    model, images = made.affine(b=4.0, scale=30.0), points(3)
    labels = model(images).argmin(dim=1)
    found = surfaces(model, images, labels, reach=0.02, grid=5, generator=seeded(1))
    assert bool(found["success"].all())
    losses = found["losses"]
    torch.testing.assert_close(losses, losses[:, :1].expand_as(losses), rtol=1e-6, atol=1e-6)
    # r leads to the true label, at |w| an l2 unit.
    slope = -(losses[:, 0, -1] - losses[:, 0, 0]) / 0.04
    torch.testing.assert_close(slope, model.w.detach().norm().expand(3), rtol=1e-3, atol=0)
    assert float(found["curved"].max()) < 1e-3


def test_bends_of_a_ball():
    ways = points(8) - 0.5
    images = 0.5 + 0.9 * ways / norms(ways).view(-1, 1, 1, 1)
    found = bends(Ball(0.6), images, directions=4, h=0.01, generator=seeded(0))
    torch.testing.assert_close(
        found["distance"], torch.full((8,), 0.3, dtype=torch.float64), rtol=1e-3, atol=0
    )
    assert float(found["curvature"].mean()) == pytest.approx(1 / 0.6, rel=0.15)
    torch.testing.assert_close(
        found["gradient"], torch.full((8,), 1.2, dtype=torch.float64), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(found["bend"], found["curvature"] * found["gradient"])
    assert float(found["alignment"].min()) == pytest.approx(1)
    images[0] = 0.5  # where the gradient vanishes, so that no point is found
    lost = bends(Ball(0.6), images, directions=2, h=0.01)
    assert (
        lost["distance"].isnan().tolist()
        == lost["curvature"].isnan().tolist()
        == [True] + [False] * 7
    )


def test_linf_deepfool_withstands_where_the_distance_is_longer(made):
    model, images = made.affine(b=8.0), 0.3 + 0.4 * points(40)  # far from the edge of the box
    labels = model(images).argmax(dim=1)
    labels[0] = 1 - labels[0]
    distance = 1.02 * model(images)[:, 1].abs().detach() / model.w.detach().abs().sum()
    eps = float(distance.median())
    found = beyond(model, images, labels, eps=eps + 1e-9)
    wanted = distance > eps + 1e-9
    wanted[0] = False
    assert torch.equal(found["right"], wanted)
    assert not found["failed"].any()
    # In the box of the other attacks, pixels at 0 do not move down: 4 / 16 instead of 4 / 24.
    edge = torch.tensor([0.0, 0.5] * 8, dtype=torch.float64).view(1, 1, 4, 4)
    one = torch.ones(1, dtype=torch.int64)
    for eps, withstood in ((0.2, True), (0.26, False)):
        assert bool(beyond(made.affine(b=12.0), edge, one, eps=eps)["right"]) == withstood
    never = beyond(Bowls(1.0, 0.0), points(2), torch.zeros(2, dtype=torch.int64), eps=0.001)
    assert never["right"].tolist() == [True, True]


@pytest.fixture(scope="module")
def profile(network, data, executor, made):
    settings = Profile(
        **{**made.small, "samples": 8}, profile_seeds=1, curvature_h=0.5, logit_samples=3
    )
    return loss_hessian_profile(network, data, settings, executor.scope("loss_hessian_profile"))


def test_the_profile_is_the_mean_of_the_images_spectra(profile, network, data, looked_at):
    test = held_out(data, 8)
    spectra = profiles(network.models[0], test.images, test.labels, h=0.5, scheme="forward")[
        "eigenvalues"
    ]
    numbers = profile.numbers
    assert numbers["lambda_max_original"].value == pytest.approx(
        float(spectra[:, 0].mean()), rel=1e-4
    )
    assert numbers["squares_original"].value == pytest.approx(
        float(spectra.square().sum(dim=1).mean()), rel=1e-4
    )
    assert (numbers["lambda_max_cure"].n, numbers["lambda_max_cure"].seeds) == (8, 1)
    assert numbers["lambda_max_median_original"].value == pytest.approx(
        float(spectra[:, 0].double().quantile(0.5)), rel=1e-4
    )
    assert (numbers["power_cure"].n, numbers["power_cure"].seeds) == (8, 2)
    power = numbers["power_cure"].value / numbers["power_original"].value
    assert numbers["power_cure / power_original"].value == pytest.approx(power)
    assert power < 1
    assert (numbers["smoothed_cure"].n, numbers["smoothed_cure"].seeds) == (8, 2)
    smoothed = numbers["smoothed_cure"].value / numbers["smoothed_original"].value
    assert numbers["smoothed_cure / smoothed_original"].value == pytest.approx(smoothed)
    ratio = numbers["lambda_max_cure"].value / numbers["lambda_max_original"].value
    assert numbers["lambda_max_cure / lambda_max_original"].value == pytest.approx(ratio)
    assert numbers["lambda_max_cure / lambda_max_original"].value < 1  # what CURE is for
    assert numbers["exact_logit_hessian"].value > 0  # tanh bends
    table = profile.tables["eigenvalues"]
    assert table["original"].tolist() == pytest.approx(spectra.mean(dim=0).tolist(), abs=1e-5)
    assert table["index"].tolist() == list(range(1, 37))
    assert looked_at(profile) == ["figure_8_9"]


def test_the_alignment_shares_the_hessians_of_the_profile(
    profile, network, data, executor, made, nothing_new, looked_at
):
    test = held_out(data, 8)
    wanted = profiles(network.models[0], test.images, test.labels, h=0.5, scheme="forward")[
        "alignment"
    ]
    settings = Alignment(
        **{**made.small, "samples": 8}, profile_seeds=1, curvature_h=0.5, pairs=4000
    )
    nothing_new()
    found = gradient_alignment(network, data, settings, executor.scope("gradient_alignment"))
    numbers = found.numbers
    whole = numbers["alignment_original (matrix)"]
    assert whole.value == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert (whole.n, whole.seeds) == (8, 1)
    own = numbers["alignment_original"]
    assert (own.n, own.seeds, numbers["alignment_random"].n) == (8, 2, 4000)
    assert 0 < own.value <= 1
    assert numbers["alignment_random"].value == pytest.approx(math.sqrt(2 / math.pi / 36), rel=0.05)
    above = numbers["alignment_original"].value - 5 / 6
    assert numbers["alignment_original - 5 / sqrt(d)"].value == pytest.approx(above)
    assert numbers["2 / sqrt(d) - alignment_random"].value == pytest.approx(
        1 / 3 - numbers["alignment_random"].value
    )
    assert found.tables["remark_3"]["network"].tolist()[-1] == "random vectors"
    assert looked_at(found) == ["remark_3"]


def test_the_losses_of_the_three_networks(network, data, executor, made, looked_at):
    settings = Surface(**{**made.small, "samples": 12}, grid=5, shown=1)
    found = loss_surface(network, data, settings, executor.scope("loss_surface"))
    numbers = found.numbers
    for name in ("deepfool", "cure"):
        gap = numbers["residual_original"].value - numbers[f"residual_{name}"].value
        assert numbers[f"residual_original - residual_{name}"].value == pytest.approx(gap)
    assert (numbers["curved_original"].n, numbers["curved_original"].seeds) == (12, 2)
    assert 0 < numbers["curved_original"].value < 1
    images = held_out(data, 12).images
    half = 1.5 * float(norms(deepfool(network.models[0], images).perturbations).median())
    assert f"up to {half:.3g}, " in " ".join(found.notes)
    assert "no direction in 0 cases" in " ".join(found.notes)
    assert looked_at(found) == ["figure_8_3"]


def test_sections_of_both_networks(network, data, executor, made, looked_at, monkeypatch):
    monkeypatch.setattr(sections_module, "GRID", 21)
    settings = Sections(**{**made.small, "samples": 10}, directions=2, shown=1)
    found = advft_sections(network, data, settings, executor.scope("advft_sections"))
    numbers = found.numbers
    images = held_out(data, 10).images
    both = partial(nearest, start="both")
    r = torch.cat(
        [
            norms(boundary_points(model, images, attack=both).perturbations)
            for model in network.models.values()
        ]
    )
    assert numbers["distance_original"].value == pytest.approx(float(r.quantile(0.5)), rel=1e-5)
    assert numbers["curvature_original"].value > 0
    assert numbers["distance_original"].value <= numbers["distance_original (crossing)"].value
    assert numbers["alignment_original"].value >= numbers["alignment_original (crossing)"].value
    assert numbers["alignment_original"].value == pytest.approx(1, abs=1e-3)
    table = found.tables["figure_8_1"]
    assert set(table["point"]) == {"closest", "crossing"}
    assert "cos(r, n)" in set(table["quantity"])
    gap = numbers["distance_deepfool"].value - numbers["distance_original"].value
    assert numbers["distance_deepfool - distance_original"].value == pytest.approx(gap)
    assert looked_at(found) == ["figure_8_1"]
    drawn = [axes.get_images()[0].get_array() for axes in found.figures["figure_8_1"].axes]
    assert all(panel[10, 10] == 1 for panel in drawn)  # the image itself has its label
    assert all(panel.min() == 0 for panel in drawn)


def test_a_section_without_a_common_image_is_left_out(network, data, executor, made):
    settings = Sections(**{**made.small, "samples": 10})
    study = cure_studies(network, data, settings, executor)[0]
    lost = torch.full((10,), math.nan, dtype=torch.float64)
    assert sections_module._figures(network, study, [lost, torch.ones(10)]) == {}


def test_table_8_1_is_its_networks_and_attacks(network, data, executor, made, looked_at):
    settings = Table81(**made.small, steps=(2, 6))
    found = advft_attacks(network, data, settings, executor.scope("advft_attacks"))
    numbers = found.numbers
    for name in ("original", "deepfool"):
        values = [
            numbers[f"acc_{name}_{attack}"].value for attack in ("fgsm", "linf_df", "pgd2", "pgd6")
        ]
        assert numbers[f"gap_{name}"].value == pytest.approx(values[0] - values[-1])
        assert numbers[f"acc_{name}_pgd2 - acc_{name}_pgd6"].value == pytest.approx(
            values[2] - values[3]
        )
        assert max(values) < 1
    test = held_out(data, 30)
    boxed = partial(deepfool, norm=math.inf, clip=(0.0, 1.0))
    right = [
        correct(model, test.images, test.labels)
        & ~(norms(boxed(model, test.images).perturbations, math.inf) <= made.eps)
        for model in network.models.values()
    ]
    assert numbers["acc_original_linf_df"].value == pytest.approx(
        float(torch.stack(right).double().mean())
    )
    assert found.tables["table_8_1"]["attack"].tolist() == ["fgsm", "linf_df", "pgd2", "pgd6"] * 2
    assert looked_at(found) == ["table_8_1"]


def test_the_gap_that_is_left_by_fine_tuning():
    shares = {"fgsm": (0.9, 0.8), "linf_df": (0.6, 0.8), "pgd7": (0.5, 0.7), "pgd20": (0.4, 0.7)}
    samples = {
        f"{name} {attack}": (torch.arange(20) < 20 * share[index]).double().expand(2, 20)
        for attack, share in shares.items()
        for index, name in enumerate(("original", "deepfool"))
    }
    found = paired_bootstrap(samples, _statistics(Table81()), resamples=20)
    assert found["gap_original"].value == pytest.approx(0.5)
    assert found["gap_deepfool"].value == pytest.approx(0.1)
    assert found["gap_deepfool / gap_original"].value == pytest.approx(0.2)
    assert found["acc_original_linf_df - acc_original_pgd7"].value == pytest.approx(0.1)
    assert found["acc_deepfool_pgd20 - acc_original_pgd20"].value == pytest.approx(0.3)


def test_the_evolution_goes_through_the_epochs_in_order(network, data, executor, made, looked_at):
    recipe = replace(made.small["training"], epochs=12)
    settings = Evolution(**{**made.small, "samples": 10, "training": recipe}, draws=4)
    found = cure_evolution(network, data, settings, executor.scope("cure_evolution"))
    study = cure_studies(network, data, settings, executor)[0]
    test = held_out(data, 10)
    states = train(
        network.models[0],
        study.train,
        settings.training,
        objective=study.objective("cure"),
        seed=0,
        keep_states=True,
    ).states
    assert len(states) == 12
    for epoch, state in enumerate([network.models[0].state_dict(), *states]):
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.Tanh(), nn.Linear(10, 3)).eval()
        model.load_state_dict(state)
        hz = curvature_norms(model, test.images, test.labels, h=0.5, draws=1)["hz"]
        assert found.numbers[f"hz_{epoch}"].value == pytest.approx(float(hz.mean()), rel=1e-4)
    last = study.tuned("cure").model.state_dict()
    assert all(torch.equal(last[name], tensor) for name, tensor in states[-1].items())
    fall = found.numbers["hz_12"].value - found.numbers["hz_0"].value
    assert fall < 0
    assert found.numbers["hz_last - hz_first"].value == pytest.approx(fall)
    assert found.numbers["hz_first - hz_last"].value == pytest.approx(-fall)
    assert "frobenius_13" not in found.numbers
    hz = found.curves["hz"]
    assert found.numbers["spearman_hz"].value == pytest.approx(spearmanr(range(13), hz).statistic)
    assert found.tables["figure_8_10"]["epoch"].tolist() == [*range(13)] * 3
    assert found.numbers["hz_0"].seeds == 1
    assert looked_at(found) == ["figure_8_10"]


def test_networks_that_are_left_out_cost_nothing(network, data, executor, nothing_new):
    nothing_new()
    another = Network("another", "rows", network.models)
    for module, settings in (
        (advft_attacks_module, Table81),
        (sections_module, Sections),
        (evolution_module, Evolution),
        (alignment_module, Alignment),
        (profile_module, Profile),
        (surface_module, Surface),
    ):
        name = module.__name__.rpartition(".")[2]
        experiment = Experiment(
            name, module.SECTION, getattr(module, name), settings(), networks=("smooth",)
        )
        found = experiment.measure({"another": another}, {"another": data}, executor)
        assert not found.numbers
        assert "another" in found.notes[0]
        with pytest.raises(AssertionError, match="computed again"):
            experiment.measure({"smooth": network}, {"smooth": data}, executor)


@pytest.mark.parametrize(
    ("settings", "options", "key"),
    [
        (Table81, {"steps": (7,)}, "steps must be"),
        (Table81, {"steps": (20, 7)}, "steps must be"),
        (Table81, {"steps": (0, 7)}, "steps must be .*; got 0"),
        (Sections, {"directions": 0}, "directions must be .*; got 0"),
        (Sections, {"curvature_h": 0.0}, "curvature_h must be .*; got 0"),
        (Sections, {"shown": 0}, "shown must be .*; got 0"),
        (Sections, {"reach": -1.0}, "reach must be .*; got -1"),
        (Evolution, {"draws": 0}, "draws must be .*; got 0"),
        (Evolution, {"curvature_h": -0.1}, "curvature_h must be .*; got -0.1"),
        (Alignment, {"pairs": 1}, "pairs must be .*; got 1"),
        (Alignment, {"profile_seeds": 0}, "profile_seeds must be .*; got 0"),
        (Alignment, {"scheme": "backward"}, "scheme must be .*; got 'backward'"),
        (Alignment, {"curvature_h": 0.0}, "curvature_h must be .*; got 0"),
        (Profile, {"profile_seeds": 0}, "profile_seeds must be .*; got 0"),
        (Profile, {"smoothing_draws": 0}, "smoothing_draws must be .*; got 0"),
        (Profile, {"logit_samples": 1}, "logit_samples must be .*; got 1"),
        (Profile, {"scheme": "backward"}, "scheme must be .*; got 'backward'"),
        (Profile, {"curvature_h": math.inf}, "curvature_h must be .*; got inf"),
        (Surface, {"reach": 0.0}, "reach must be .*; got 0"),
        (Surface, {"grid": 2}, "grid must be .*; got 2"),
        (Surface, {"shown": 0}, "shown must be .*; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        settings(**options)


def test_curvature_is_measured_with_the_h_of_the_settings(network, data, executor, made):
    small = {**made.small, "samples": 4}
    own = [
        cure_evolution(network, data, Evolution(**small, draws=2, curvature_h=h), executor)
        .numbers["hz_0"]
        .value
        for h in (None, 0.5, 0.01)
    ]
    assert own[0] == own[1] != own[2]
