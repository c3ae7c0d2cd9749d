import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from pipeline.bootstrap import paired_bootstrap
from pipeline.statistics import of_means, share_ratio, spearman, stack
from pipeline.studies.universal import (
    ALGORITHM,
    GRADIENT,
    Plan,
    UniversalStudy,
    across_networks,
    made_by_both,
    made_of,
    random_vectors,
    scaled,
    universal_study,
    xi_of,
)
from pipeline.studies.universal_settings import MakingSettings, UniversalSettings
from robustness_geometry.attacks.universal import universal_perturbation
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from stages.universal.uap_defence import Settings


@pytest.fixture(scope="module")
def settings(small):
    return UniversalSettings(
        attack=small.attack,
        gradient=small.gradient,
        train_samples=40,
        orders=2,
        samples=30,
        resamples=50,
    )


@pytest.fixture(scope="module")
def binary(small, settings, executor):
    return universal_study(small.affine(1), 0, small.dataset(2), settings, executor)


def test_xi_is_the_thesis_2000_and_10():
    noise = torch.tensor([1.0, 20_000.0, 1e9]) / 255
    assert xi_of(noise, 2.0, 150_528) == pytest.approx(2_000 / 255)
    assert xi_of(noise, math.inf, 150_528) == pytest.approx(10 / 255, rel=2e-3)


def test_xi_is_refused_where_it_is_not_known():
    with pytest.raises(InputError, match=r"attack\.radius must be .*; got 'null'"):
        xi_of(torch.ones(3), 1.0, 4)
    with pytest.raises(InputError, match="fools no image"):
        xi_of(torch.full((3,), math.inf), 2.0, 4)


def test_the_flat_noise_norm_of_an_affine_classifier_is_its_distance(binary):
    layer = binary.model[1]
    with torch.no_grad():
        gaps = binary.model(binary.train.images)[:, 0].abs()
    exact = 1.02 * 6 * gaps / layer.weight.detach().norm()
    torch.testing.assert_close(binary.flat_noise(), exact, rtol=1e-6, atol=0)


def test_xi_is_a_tenth_of_the_norm_that_noise_is_measured_to_need(binary):
    """An affine boundary at distance D is crossed by noise along v at D / |<v, n>|, at least D."""
    needed = binary.noise()
    distance = binary.flat_noise() / 1.02 / 6
    assert (needed >= 0.999 * distance).all()
    assert len(needed) == 40
    few = replace(binary, settings=replace(binary.settings, noise_samples=9, algorithm_samples=20))
    assert len(few.noise()) == 9
    assert len(few.flat_noise()) == 20
    assert binary.xi(2.0) == pytest.approx(0.1 * float(needed.sort().values[19]), rel=1e-6)
    assert binary.xi(math.inf) == pytest.approx(binary.xi(2.0) / (0.515 * 6))
    assert any(f"{binary.noise_norm():.3g}" in note for note in made_of([binary]))


def test_the_better_of_two_makers_is_chosen_on_x(binary, monkeypatch):
    def strong(self, norm, maker, count=None):
        return [self.made_up[maker]]

    made = {maker: binary.vectors(2.0, maker)[0] for maker in (ALGORITHM, GRADIENT)}
    nothing = replace(made[GRADIENT], perturbation=0 * made[GRADIENT].perturbation)
    for weak in (ALGORITHM, GRADIENT):
        pair = made | {weak: nothing}
        monkeypatch.setattr(UniversalStudy, "made_up", pair, raising=False)
        monkeypatch.setattr(UniversalStudy, "vectors", strong)
        assert binary.best(2.0).maker != weak
        assert binary.best(2.0, weak).maker == weak


def test_of_a_makers_orders_the_one_that_fools_most_of_its_images_counts(binary):
    few = replace(binary, settings=replace(binary.settings, algorithm_samples=16))
    best = few.best(2.0, ALGORITHM)
    made = few.vectors(2.0, ALGORITHM)
    assert (best.images, best.maker) == (16, ALGORITHM)
    assert best.made.fooling_rate == max(one.fooling_rate for one in made)
    assert few.best(2.0, GRADIENT).images == 40
    note = made_by_both([few], 2.0, math.inf)[-1]
    assert "3 vectors ended, of 80% to be fooled: " in note
    assert "exactly" not in " ".join(made_by_both([few], 2.0))


def test_the_gradient_maker_has_no_norm_but_2_and_inf(small, binary):
    attack = partial(small.attack, norm=1, radius=2.0)
    one = replace(binary, settings=replace(binary.settings, attack=attack))
    assert one.best(1.0).maker == ALGORITHM
    assert float(norms(one.best(1.0).perturbation, 1)) <= 2.0 * (1 + 1e-6)


def test_a_vector_of_another_radius_is_no_worse_on_x_than_the_scaled_one(binary):
    for norm in (2.0, math.inf):
        radius = 2 * binary.xi(norm)
        found = binary.within(norm, radius)
        assert float(norms(found, norm)) <= radius * (1 + 1e-6)
        scaled_best = scaled(binary.best(norm).perturbation, norm, radius)
        both = binary.fooled(binary.train.images, torch.cat([found, scaled_best])).mean(dim=0)
        assert both[0] >= both[1]
        same = binary.within(norm, binary.xi(norm))
        assert torch.equal(same, binary.best(norm).perturbation)


def test_a_radius_of_ones_own_holds_for_its_norm_alone(small, binary):
    attack = partial(universal_perturbation, norm="inf", radius="8/255")
    own = replace(binary, settings=replace(binary.settings, attack=attack))
    assert own.xi(math.inf) == pytest.approx(8 / 255)
    assert own.xi(2.0) == binary.xi(2.0)
    assert own.settings.norm == math.inf
    assert any("The radius in linf is given, 0.03137." in note for note in made_of([own]))


def test_options_spelled_out_or_not_give_the_same_vectors_key():
    plain = UniversalSettings(attack=partial(universal_perturbation, radius=None))
    spelled = UniversalSettings(
        attack=partial(
            universal_perturbation, norm="inf", radius=None, passes=10, batch_size=1, steps=10
        )
    )
    assert plain.algorithm.keywords == spelled.algorithm.keywords
    assert "norm" not in plain.algorithm.keywords


def test_vectors_are_made_together_and_lie_in_their_balls(binary):
    for norm in (2.0, math.inf):
        made = binary.vector(norm)
        assert float(norms(made.perturbation, norm)) <= binary.xi(norm) * (1 + 1e-6)
        assert float(binary.fooled(binary.train.images, made.perturbation).mean()) == pytest.approx(
            made.fooling_rate
        )
    first, second = binary.vector(2.0, 0).perturbation, binary.vector(2.0, 1).perturbation
    alone = binary.make([Plan(2.0, binary.xi(2.0), 1)])[0].perturbation
    torch.testing.assert_close(second, alone)
    assert not torch.equal(first, second) or float((first - second).abs().max()) == 0.0


def test_a_mini_batch_variant_runs_one_vector_after_another(small, binary):
    attack = partial(small.attack, batch_size=4)
    batched = replace(binary, settings=replace(binary.settings, attack=attack))
    plans = [Plan(2.0, binary.xi(2.0), 0), Plan(2.0, binary.xi(2.0), 1, members=torch.arange(20))]
    made = batched.make(plans)
    assert [float(norms(each.perturbation)) <= binary.xi(2.0) * (1 + 1e-6) for each in made] == [
        True,
        True,
    ]


def test_labels_that_are_not_finite_fool_nobody(binary):
    vectors = torch.stack(
        [torch.full(binary.train.images.shape[1:], value).double() for value in (0.0, math.inf)]
    )
    labels = binary.labels(binary.test.images, vectors)
    assert labels.shape == (30, 3)
    assert (labels[:, 0] == labels[:, 1]).all()
    assert (labels[:, 2] == -1).all()
    assert binary.fooled(binary.test.images, vectors).sum() == 0


def test_clipping_undoes_what_leaves_the_cube(binary):
    towards = binary.model[1].weight.detach().view(1, 1, 6, 6)
    assert binary.fooled(binary.test.images, 100 * towards).mean() > 0.3
    far = 100 * torch.ones_like(towards)
    same = binary.labels(binary.test.images, far, clip=(0.0, 1.0))[:, 1].unique()
    assert len(same) == 1


def test_without_training_images_the_held_out_ones_are_halved(small, settings, executor):
    data = small.dataset(2)
    bare = replace(data, train=data.train.first(0))
    found = universal_study(small.affine(1), 0, bare, settings, executor)
    assert (len(found.train), len(found.test), found.held_out) == (24, 24, True)
    both = torch.cat([found.train.images, found.test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 48
    for part in (found.train, found.test):  # each image has kept its label
        for image, label in zip(part.images, part.labels, strict=True):
            at = int((data.test.images == image).flatten(1).all(dim=1).nonzero())
            assert int(data.test.labels[at]) == int(label)


def test_a_study_is_of_its_training_seed(small, settings, executor):
    data = small.dataset(2)
    study = universal_study(small.affine(1), 3, data, settings, executor.scope("somewhere"))
    assert (study.seed, len(study.train), len(study.test)) == (3, 40, 30)
    assert (study.executor._experiment, study.executor._seed) == ("somewhere", 3)


def test_without_shufflings_a_vector_is_the_same_as_among_others(binary):
    few = {name: getattr(binary.settings, name) for name in ("attack", "train_samples", "samples")}
    alone = replace(binary, settings=MakingSettings(**few, resamples=50))
    for norm in (2.0, math.inf):
        torch.testing.assert_close(
            alone.vector(norm).perturbation, binary.vector(norm).perturbation
        )


def test_what_is_measured_across_networks_meets_by_seed_and_image(small, settings, executor):
    short = replace(settings, samples=20)
    data, model = small.dataset(2), small.affine(1)
    studies = {
        "a": [universal_study(model, seed, data, settings, executor) for seed in (0, 1)],
        "b": [universal_study(model, 1, data, short, executor)],
    }

    def seeds(source, target):
        assert source.seed == target.seed
        return {"sum": torch.full((len(target.test),), float(source.seed + target.seed))}

    met = across_networks(studies, seeds, ("sum",))
    assert set(met) == {"sum[a][a]", "sum[a][b]", "sum[b][a]", "sum[b][b]"}
    assert all(values.shape == (2, 30) for values in met.values())
    assert met["sum[a][a]"].unique().tolist() == [0, 2]
    assert bool(met["sum[a][b]"][0].isnan().all())
    assert bool(met["sum[b][a]"][1].eq(2).all())
    assert (met["sum[a][b]"][1].isnan()).tolist() == [False] * 20 + [True] * 10


def test_images_that_carry_a_vector_are_drawn_by_their_share(small):
    retraining = Settings(share=0.25, tune_samples=20)
    carries, which = retraining.draw(4000, 3, torch.Generator().manual_seed(0))
    assert float(carries.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert which.unique().tolist() == [0, 1, 2]
    tune = retraining.images(small.dataset(2))
    assert len(tune) == 20
    assert tune.labels.double().mean() == 0.5


def test_random_vectors_have_their_norm():
    for norm in (2.0, math.inf):
        drawn = random_vectors((3, 4, 4), norm, 0.7, 5)
        torch.testing.assert_close(norms(drawn, norm), torch.full((5,), 0.7))
    assert set(random_vectors((1, 8, 8), math.inf, 0.5, 1).unique().tolist()) == {-0.5, 0.5}


def test_scaling_keeps_zero():
    v = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    assert norms(scaled(v, 2.0, 2.0)).tolist() == pytest.approx([2.0])
    assert scaled(0 * v, 2.0, 2.0).abs().sum() == 0


def test_spearman_is_scipys_with_ties():
    x, y = (
        [1.0, 2.0, 5.0, 9.0, 10.0],
        torch.tensor([[0.0, 0.0, 0.3, 0.2, 0.9], [5.0, 4.0, 3.0, 2.0, 1.0]]),
    )
    wanted = [spearmanr(x, row).statistic for row in y.tolist()]
    assert spearman(x, *y.T).tolist() == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize(
    "values", [(3.0, 2.0, 1.0), (1.0, 5.0, 2.0, 9.0), (4.0, 4.0, 1.0, 7.0, 7.0), range(13)]
)
def test_a_rank_correlation_is_scipys_in_double_precision(values):
    found = spearman(range(len(values)), *torch.tensor(values, dtype=torch.float32))
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(spearmanr(range(len(values)), values).statistic, abs=1e-15)


def test_functions_of_means_take_each_quantity_over_its_own_images():
    samples = stack([{"a": torch.tensor([1.0, 1.0, 0.0, 0.0]), "b": torch.tensor([1.0, 0.0])}])
    assert samples["b"].isnan().sum() == 2
    statistics = {"gap": of_means(("a", "b"), torch.sub), "ratio": share_ratio("a", "b", 2)}
    found = paired_bootstrap(samples, statistics, resamples=200)
    assert found["gap"].value == 0.0
    assert found["ratio"].value == 1.0
    assert found["ratio"].high < math.inf


def test_a_share_of_none_counts_as_half_an_image():
    samples = {"a": torch.ones(10), "b": torch.zeros(10)}
    assert (
        paired_bootstrap(samples, {"r": share_ratio("a", "b", 10)}, resamples=20)["r"].value == 20.0
    )


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"train_samples": 1}, "train_samples"),
        ({"algorithm_samples": 1}, "algorithm_samples"),
        ({"noise_samples": 0}, "noise_samples"),
        ({"samples": 0}, "samples"),
        ({"orders": 0}, "orders"),
        ({"resamples": 0}, "resamples"),
        ({"attack": partial(universal_perturbation, radius=0)}, r"attack\.radius"),
        ({"attack": partial(universal_perturbation, radius=-1.0)}, r"attack\.radius"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"{key} must be"):
        UniversalSettings(**options)


def test_a_constant_classifier_has_no_xi(small, settings, executor):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double().eval()
    with torch.no_grad():
        flat[1].weight.zero_()
    found = universal_study(flat, 0, small.dataset(2), settings, executor)
    with pytest.raises(InputError, match="fools no image"):
        found.vector(2.0)


def test_a_derived_xi_is_no_larger_than_an_image_of_ones(binary, monkeypatch):
    far = torch.tensor([1.0, math.inf, math.inf])
    assert xi_of(far, 2.0, 36) == 6
    assert xi_of(far, math.inf, 36) == 1
    assert not any("xi is cut" in note for note in made_of([binary]))
    monkeypatch.setattr(UniversalStudy, "noise", lambda self: far)
    assert any("xi is cut to the norm of an image of ones" in note for note in made_of([binary]))
